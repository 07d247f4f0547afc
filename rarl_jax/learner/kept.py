"""An update on disk, so that it can be repeated: its episodes as arrays and what the loss divides by, in one safetensors file.

    ids, loss_mask, sample_logprobs [sum of T]     the episodes' tokens, one episode behind the other
    lengths, groups, advantages [E]                tokens, question and advantage of each
    old_logprobs [sum of chosen tokens]            where it was not the step's first update
    frames [sum of P, X], grids [I, 3]             every image once
    images [sum of images], image_counts [E]       which of them each episode saw, in order
   features.0, ... [sum of M, ...], rows [I]      where it took the tower's features: the leaves of them, and the rows of each image

What was written and read is JSON in the file's metadata. No pickle: a file may come from anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rarl_jax.conversation.boxes import PageFrame
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.learner.batches import distinct_images
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.images import Patches
from rarl_jax.runtime.files import replacing

FORMAT = 'rarl_jax update 2'


@dataclass(frozen=True)
class Update:
    """The episodes of one update on one process, and all that its loss needs of them."""

    episodes: Sequence[Episode]
    advantages: Float[np.ndarray, 'E']
    # Of each episode's chosen tokens; None = this is the step's first update.
    old_logprobs: Sequence[Float[np.ndarray, 'n']] | None
    tokens: float  # chosen tokens of all processes
    sequences: int  # episodes of all processes
    features: FeatureCache | None = None  # of all images, where the update takes them from the rollout


@dataclass(frozen=True)
class UpdateRecord:
    """What is told of an update that is kept."""

    stage: str
    step: int  # of the stage, from 1
    global_step: int  # of the run: the checkpoint of this step holds the policy that the update met
    metrics: dict[str, str]  # what the update told, exactly; as text, because JSON knows no NaN


def write_update(path: Path, update: Update, record: UpdateRecord) -> None:
    """Writes the file at once."""
    episodes = update.episodes
    images = distinct_images(episodes)
    number = {id(image): place for place, image in enumerate(images)}
    arrays = {
        'ids': np.concatenate([e.ids for e in episodes]),
        'loss_mask': np.concatenate([e.loss_mask for e in episodes]),
        'sample_logprobs': np.concatenate([e.sample_logprobs for e in episodes]),
        'lengths': np.array([len(e.ids) for e in episodes]),
        'groups': np.array([e.group for e in episodes]),
        'advantages': np.asarray(update.advantages),
        'frames': np.concatenate([image.frame for image in images]),
        'grids': np.array([image.grid for image in images]),
        'images': np.array([number[id(image)] for e in episodes for image in e.images]),
        'image_counts': np.array([len(e.images) for e in episodes]),
    }
    if update.old_logprobs is not None:
        arrays['old_logprobs'] = np.concatenate(update.old_logprobs)
    if update.features is not None:
        arrays['rows'] = np.array([len(jax.tree.leaves(update.features[image])[0]) for image in images])
        arrays |= {f'features.{n}': leaf for n, leaf in enumerate(update.features.leaves(images))}
    told = {
        'record': asdict(record),
        'tokens': update.tokens,
        'sequences': update.sequences,
        'question_ids': [e.question_id for e in episodes],
    }
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={'format': FORMAT, 'update': json.dumps(told)})


def read_update(path: Path) -> tuple[Update, UpdateRecord]:
    """The update of a file. Of its episodes only what a loss looks at is there: no turns and no zooms.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no update.
    """
    try:
        with safe_open(path, 'np') as file:
            told = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f'{path} is no safetensors file ({error}): give one that a run has written.') from error
    if told.get('format') != FORMAT:
        raise ValueError(f'{path} is {told.get("format")!r}, expected {FORMAT!r}: give a file of this version.')
    values = json.loads(told['update'])
    episodes = _episodes(arrays, values['question_ids'])
    old = arrays.get('old_logprobs')
    if old is not None:
        old = _cut(old, [int(e.loss_mask.sum()) for e in episodes])
    features, images = None, distinct_images(episodes)
    if 'rows' in arrays:
        features, count = FeatureCache(), sum(name.startswith('features.') for name in arrays)
        features.take(images, arrays['rows'].tolist(), [arrays[f'features.{n}'] for n in range(count)])
    update = Update(episodes, arrays['advantages'], old, values['tokens'], values['sequences'], features)
    return update, UpdateRecord(**values['record'])


def _cut(rows: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
    """So many rows each, one piece behind the other."""
    return np.split(rows, np.cumsum(counts)[:-1])


def _episodes(arrays: dict[str, np.ndarray], question_ids: Sequence[str]) -> list[Episode]:
    grids = [tuple(map(int, grid)) for grid in arrays['grids']]
    frames = _cut(arrays['frames'], [int(np.prod(grid)) for grid in grids])
    images = [Patches(*each) for each in zip(frames, grids, strict=True)]
    tokens = {name: _cut(arrays[name], arrays['lengths']) for name in ('ids', 'loss_mask', 'sample_logprobs')}
    shown = _cut(arrays['images'], arrays['image_counts'])
    return [
        Episode(
            question_id=question_id,
            group=int(arrays['groups'][i]),
            sample=0,
            **{name: each[i] for name, each in tokens.items()},
            images=tuple(images[place] for place in shown[i]),
            zooms=(),
            turns=(),
            finish_reason='stop',
            page=PageFrame(0, 0, 0, 0),
        )
        for i, question_id in enumerate(question_ids)
    ]
