"""Episodes on disk, for people to read: rollouts/STAGE-STEP.jsonl, one episode an object, and its pictures as files beside it.

    rollouts/rl_main-000020.jsonl
    rollouts/images/page-NAME-HASH.jpg      a page, at most PAGE_SIDE pixels long, written once for the run
    rollouts/images/crop-HASH.jpg           what a zoom cut out, at most CROP_SIDE pixels long, written once per page and box

The report reads these files, and nothing else writes them. What became of an episode is told in the same words wherever it is kept: an
`EpisodeRecord` with its `ZoomRecord`s, in the samples of an evaluation too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dacite
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
T = TypeVar('T')
_PICTURE = re.compile(r'(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?')


@dataclass(frozen=True)
class ZoomRecord:
    """One call of the tool. Evaluation keeps the first three fields, rollouts all."""

    status: str  # 'ok' or why it failed
    box: Box | None  # xyxy px of the original page; None where there was no usable box
    # With the region that it overlaps most; None for a failed call, and where the question has no region.
    iou: float | None
    requested: Box | None = None  # as the policy wrote it, in `frame`; None where it wrote no four finite numbers
    frame: str = ''  # 'model', 'original' or 'normalized'
    image: str | None = None  # path of the crop, relative to the rollouts folder; None where nothing was cut
    turn: int = 0  # the policy's turn it was made in, from 0
    label: str | None = None  # the policy's name for the region


@dataclass(frozen=True)
class EpisodeRecord:
    """How one episode went, in any file that tells of it."""

    prediction: str | None  # what stood between the answer tags; None = no answer
    grade: float | None  # of the prediction, 0 to 1; None = there is no verdict
    zooms: tuple[ZoomRecord, ...]  # in the order of the calls
    turns: int  # turns that the policy took
    finish_reason: str


@dataclass(frozen=True, kw_only=True)
class RolloutRecord(EpisodeRecord):
    """The same with all that explains its reward: a line of rollouts/STAGE-STEP.jsonl."""

    stage: str
    step: int
    question_id: str
    page_id: str
    task: str
    prompt: str  # the question's words
    answer: str  # the right one
    regions: tuple[Box, ...]  # where one must look, px of the original page
    group: int  # episodes of one question and step share it
    sample: int  # place in the group
    turn_texts: tuple[str, ...]  # what the policy chose, turn by turn
    observations: tuple[str, ...]  # what the host wrote after each turn but the last
    page_image: str  # path relative to the rollouts folder
    page_size: tuple[int, int]  # width, height in px of the original
    parts: dict[str, float]  # the reward's named parts
    total: float
    advantage: float
    chosen_tokens: int  # tokens that the policy chose


def zoom_records(episode: Episode, question: Question) -> tuple[ZoomRecord, ...]:
    """Every call of the tool with its IoU."""
    overlaps = iter(zoom_ious(episode, question))
    ious = [next(overlaps) if zoom.succeeded else None for zoom in episode.zooms]
    boxes = [None if zoom.box is None else tuple(map(float, zoom.box)) for zoom in episode.zooms]
    return tuple(
        ZoomRecord(zoom.status, box, overlap if question.regions else None)
        for zoom, box, overlap in zip(episode.zooms, boxes, ious, strict=True)
    )


def record_from(kind: type[T], row: Mapping[str, Any]) -> T:
    """A record of any kind from its JSON object. ValueError where the object is of another shape."""
    try:
        return dacite.from_dict(kind, row, dacite.Config(cast=[tuple], strict=True))
    except dacite.DaciteError as error:
        raise ValueError(f'this is no {kind.__name__}: {error}') from error


# ---------------------------------------------------------------- rollouts


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
      pages: what the questions show at full resolution, by its picture_id.
      decode: turns ids into text, special tokens kept.
    """
    lines = []
    for episode, reward, advantage in zip(episodes, rewards, advantages, strict=True):
        question = questions[episode.question_id]
        page = pages[question.picture_id]
        record = RolloutRecord(
            prediction=episode.answer,
            grade=reward.parts.get('accuracy'),
            zooms=_shown_zooms(folder, episode, question, page),
            turns=len(episode.turns),
            finish_reason=episode.finish_reason,
            stage=stage,
            step=step,
            question_id=question.id,
            page_id=question.page_id,
            task=question.task,
            prompt=question.prompt,
            answer=question.answer,
            regions=question.regions,
            group=int(episode.group),
            sample=int(episode.sample),
            turn_texts=tuple(turn.text for turn in episode.turns),
            observations=observations(episode, decode),
            page_image=_save_page(folder, question.picture_id, page),
            page_size=(episode.page.width, episode.page.height),
            parts=dict(reward.parts),
            total=float(reward.total),
            advantage=float(advantage),
            chosen_tokens=int(np.sum(episode.loss_mask)),
        )
        lines.append(jsonl.dump(asdict(record)))
    path = folder / f'{stage}-{step:06d}.jsonl'
    jsonl.write_whole(path, ''.join(lines))
    return path


def observations(episode: Episode, decode: Decode) -> tuple[str, ...]:
    """What stands between the stretches that the policy chose, as text; a picture's run of tokens is written [picture]."""
    chosen = np.flatnonzero(episode.loss_mask)
    if not len(chosen):
        return ()
    span = slice(chosen[0], chosen[-1] + 1)
    pairs = zip(episode.loss_mask[span].tolist(), episode.ids[span].tolist(), strict=True)
    runs = [(mask, [token for _, token in run]) for mask, run in groupby(pairs, key=lambda pair: pair[0])]
    return tuple(_PICTURE.sub('[picture]', decode(ids)) for mask, ids in runs if not mask)


def read_rollouts(path: Path) -> list[RolloutRecord]:
    """The episodes of one file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: an object is not what this version writes.
    """
    rows = jsonl.read(path)
    try:
        return [record_from(RolloutRecord, row) for row in rows]
    except ValueError as error:
        raise ValueError(
            f'{path} was not written by this version ({error}): delete it, and the report leaves it out.'
        ) from error


# ---------------------------------------------------------------- pictures


def _shown_zooms(folder: Path, episode: Episode, question: Question, page: Image.Image) -> tuple[ZoomRecord, ...]:
    """The calls with the policy's own words about them, and the crops that they cut."""
    return tuple(
        dataclasses.replace(
            record,
            requested=None if zoom.requested is None else _finite(zoom.requested),
            frame=zoom.frame,
            image=_save_crop(folder, question.picture_id, page, zoom.box) if zoom.succeeded else None,
            turn=zoom.turn,
            label=zoom.label,
        )
        for record, zoom in zip(zoom_records(episode, question), episode.zooms, strict=True)
    )


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
        small = image.convert('RGB')
        small.thumbnail((side, side))
        with jsonl.replacing(path) as temporary:
            small.save(temporary, 'JPEG', quality=85)
    return f'images/{name}'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
