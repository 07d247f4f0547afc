"""Episodes on disk, for people to read: rollouts/STAGE-STEP.jsonl, one episode an object, and its pictures as files beside it.

    rollouts/rl_main-000020.jsonl
    rollouts/images/page-NAME-HASH.jpg      a page, at most PAGE_SIDE pixels long, written once for the run
    rollouts/images/crop-HASH.jpg           what a zoom cut out, at most CROP_SIDE pixels long, written once per page and box

The report reads these files, and nothing else writes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from input_pipeline.schema import Box, Question
from rarl_jax.conversation.rewards import Reward, zoom_ious
from rarl_jax.conversation.tool import cut
from rarl_jax.runtime import files as jsonl

if TYPE_CHECKING:
    from rarl_jax.conversation.dialogue import Episode

PAGE_SIDE, CROP_SIDE = 1200, 448  # px of the longer side of a stored picture
Decode = Callable[[list[int]], str]  # a tokenizer's ids -> text
_PICTURE = re.compile(r'(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?')


@dataclass(frozen=True)
class ShownZoom:
    """One call of the tool, as the report shows it."""

    requested: Box | None  # as the policy wrote it, in `frame`
    frame: str  # 'model', 'original' or 'normalized'
    box: Box | None  # xyxy px of the original page; None where there was no usable box
    status: str  # 'ok' or why it failed
    iou: float | None  # with the region it overlaps most; None for a failed call, and where the question has no region
    image: str | None  # path of the crop, relative to the rollouts folder; None where nothing was cut
    turn: int  # the policy's turn it was made in, from 0
    label: str | None  # the policy's name for the region


@dataclass(frozen=True)
class Trajectory:
    """One episode with all that explains its pay."""

    stage: str
    step: int
    question_id: str
    page_id: str
    task: str
    prompt: str  # the question's words
    answer: str  # the right one
    prediction: str | None  # the policy's; None = it gave none
    regions: tuple[Box, ...]  # where one must look, px of the original page
    group: int  # episodes of one question and step share it
    sample: int  # place in the group
    turn_texts: tuple[str, ...]  # what the policy chose, turn by turn
    observations: tuple[str, ...]  # what the host wrote after each turn but the last
    zooms: tuple[ShownZoom, ...]  # in the order of the calls
    page_image: str  # path relative to the rollouts folder
    page_size: tuple[int, int]  # width, height in px of the original
    parts: dict[str, float]  # the reward's named parts
    total: float
    advantage: float
    finish_reason: str
    chosen_tokens: int  # tokens that the policy chose


def write_rollouts(
    folder: Path,
    step: int,
    stage: str,
    episodes: Sequence[Episode],
    questions: Mapping[str, Question],
    rewards: Sequence[Reward],
    advantages: Sequence[float],
    pages: Mapping[str, Image.Image],
    decode: Decode,
) -> Path:
    """Writes FOLDER/STAGE-STEP.jsonl at once, with its pictures, and returns its path. Written again after a resume, it is the same file.

    Args:
      questions: by question id.
      rewards, advantages: one for each episode.
      pages: the pages at full resolution, by page id.
      decode: turns ids into text, special tokens kept.
    """
    rows = zip(episodes, rewards, advantages, strict=True)
    trajectories = []
    for episode, reward, advantage in rows:
        question = questions[episode.question_id]
        trajectories.append(
            _trajectory(folder, step, stage, episode, question, reward, advantage, pages[question.page_id], decode)
        )
    path = folder / f'{stage}-{step:06d}.jsonl'
    jsonl.write_whole(path, ''.join(jsonl.dump(asdict(each)) for each in trajectories))
    return path


def _trajectory(
    folder: Path,
    step: int,
    stage: str,
    episode: Episode,
    question: Question,
    reward: Reward,
    advantage: float,
    page: Image.Image,
    decode: Decode,
) -> Trajectory:
    return Trajectory(
        stage=stage,
        step=step,
        question_id=question.id,
        page_id=question.page_id,
        task=question.task,
        prompt=question.prompt,
        answer=question.answer,
        prediction=episode.answer,
        regions=question.regions,
        group=int(episode.group),
        sample=int(episode.sample),
        turn_texts=tuple(turn.text for turn in episode.turns),
        observations=observations(episode, decode),
        zooms=_shown_zooms(folder, episode, question, page),
        page_image=_save_page(folder, question.page_id, page),
        page_size=(episode.page.width, episode.page.height),
        parts=dict(reward.parts),
        total=float(reward.total),
        advantage=float(advantage),
        finish_reason=episode.finish_reason,
        chosen_tokens=int(np.sum(episode.loss_mask)),
    )


def observations(episode: Episode, decode: Decode) -> tuple[str, ...]:
    """What stands between the stretches that the policy chose, as text; a picture's run of tokens is written [picture]."""
    chosen = np.flatnonzero(episode.loss_mask)
    if not len(chosen):
        return ()
    span = slice(chosen[0], chosen[-1] + 1)
    pairs = zip(episode.loss_mask[span].tolist(), episode.ids[span].tolist(), strict=True)
    runs = [(mask, [token for _, token in run]) for mask, run in groupby(pairs, key=lambda pair: pair[0])]
    return tuple(_PICTURE.sub('[picture]', decode(ids)) for mask, ids in runs if not mask)


def read_rollouts(path: Path) -> list[Trajectory]:
    """The episodes of one file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an object is not what this version writes.
    """
    try:
        return [_from_json(row) for row in jsonl.read(path)]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f'{path} was not written by this version ({error!r}): delete it, and the report leaves it out.'
        ) from error


def _from_json(row: dict[str, Any]) -> Trajectory:
    zooms = tuple(
        ShownZoom(**{**zoom, 'requested': _box(zoom['requested']), 'box': _box(zoom['box'])}) for zoom in row['zooms']
    )
    lists = {name: tuple(row[name]) for name in ('turn_texts', 'observations', 'page_size')}
    return Trajectory(**{**row, **lists, 'zooms': zooms, 'regions': tuple(map(tuple, row['regions']))})


def _box(values: list[float] | None) -> Box | None:
    return None if values is None else tuple(values)


# ---------------------------------------------------------------- pictures


def _shown_zooms(folder: Path, episode: Episode, question: Question, page: Image.Image) -> tuple[ShownZoom, ...]:
    overlaps = iter(zoom_ious(episode, question))
    shown = []
    for zoom in episode.zooms:
        overlap = next(overlaps) if zoom.succeeded else None
        each = ShownZoom(
            requested=None if zoom.requested is None else _finite(zoom.requested),
            frame=zoom.frame,
            box=zoom.box,
            status=zoom.status,
            iou=overlap if question.regions else None,
            image=_save_crop(folder, question.page_id, page, zoom.box) if zoom.succeeded else None,
            turn=zoom.turn,
            label=zoom.label,
        )
        shown.append(each)
    return tuple(shown)


def _finite(box: Box) -> Box | None:
    """The box, or None where JSON has no word for one of its numbers."""
    return tuple(map(float, box)) if np.isfinite(box).all() else None


def _save_page(folder: Path, page_id: str, page: Image.Image) -> str:
    name = re.sub(r'[^A-Za-z0-9_-]+', '-', page_id)[:60]
    return _save(folder, f'page-{name}-{_hash(page_id)}.jpg', page, PAGE_SIDE)


def _save_crop(folder: Path, page_id: str, page: Image.Image, box: Box) -> str:
    return _save(folder, f'crop-{_hash(json.dumps([page_id, *box]))}.jpg', cut(page, box), CROP_SIDE)


def _save(folder: Path, name: str, image: Image.Image, side: int) -> str:
    """Stores a picture once; returns its path relative to the folder. The name is ours alone: no page id can point elsewhere."""
    path = folder / 'images' / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        small = image.convert('RGB')
        small.thumbnail((side, side))
        temporary = path.with_name(f'.{name}.partial')
        small.save(temporary, 'JPEG', quality=85)
        temporary.replace(path)
    return f'images/{name}'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
