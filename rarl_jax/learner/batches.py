"""Episodes as the arrays of an update: rows of packed segments, and what a loss needs of the tokens that the policy chose.

    one episode a row           ids       prompt . . turn 0 . observation . . turn 1 | padding
    G episodes of a group       ids       prompt . . . . | episode 0 . . . | episode 1 . . | ... | padding
    that share their prompt     segments  0 0 0 0 0 -1 -1 | 1 1 1 1 1 1 1  | 2 2 2 2 2     | ... | 0

The prompts of all rows have the same room, so that attention knows where to look (models/packed.py).

A packed row's tokens see their own segment and the prompt, each at the position that it has in its episode, so hidden states are those of one row an
episode. With eight episodes of 120 tokens, 80 of which are the page and the question, a third of the tokens is left. Where a row holds one episode
no segments are given: attention is then causal and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import GetAttrKey
from jaxtyping import Float, Int

from rarl_jax.conversation.dialogue import Episode, errors_of
from rarl_jax.learner.invariants import check_episode, name_of
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.images import Patches
from rarl_jax.models.interface import Config, VisionConfig
from rarl_jax.models.packed import RowLayout, Segments
from rarl_jax.models.positions import feature_rows, positions_of
from rarl_jax.models.vision_batch import VisionBatch, VisionSizes, plan_vision, vision_sizes
from rarl_jax.models.vision_batch import as_part as images_as_part
from rarl_jax.runtime import processes
from rarl_jax.runtime.sharding import batch_parts, processes_of, put_batch


@dataclass(frozen=True)
class Buckets:
    """Sizes that arrays are padded to; beyond the largest, or with none, four sizes an octave. Few sizes mean few compilations."""

    lengths: tuple[int, ...] = ()  # tokens of a row, packed or not
    prompts: tuple[int, ...] = ()  # tokens of a prompt that packed episodes share
    segments: tuple[int, ...] = ()  # tokens of a packed episode behind its prompt
    images: tuple[int, ...] = ()  # images of a batch
    windows: tuple[int, ...] = ()  # vision windows of a batch
    patches: tuple[int, ...] = ()  # patches of the largest image
    chosen: tuple[int, ...] = ()  # tokens of an episode that the policy chose
    scored: tuple[int, ...] = ()  # those of all episodes of a packed row together


@dataclass(frozen=True)
class Sizes:
    """Exact sizes of a batch's arrays."""

    length: int  # tokens of a row
    prompt: int  # tokens of it that a shared prompt has room for; 0 = rows are not packed
    segment: int  # tokens of a packed episode behind it
    images: int
    windows: int
    patches: int  # of the largest image
    chosen: int  # tokens of an episode that the policy chose
    scored: int  # those of all episodes of a row together


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """What one device pass sees: B rows of G episodes each, E = B G episodes in all, those of a row side by side."""

    ids: Int[np.ndarray, 'B T']  # 0 in padding
    positions: Int[np.ndarray, '3 B T']  # M-RoPE: time, row, column
    feature_index: Int[np.ndarray, 'B T']  # row of the flattened [I * M] features; -1 = a text token
    # 0 = prompt and padding, -1 = room that the prompt leaves, else 1 + number of the episode; None = one episode a row.
    segments: Segments | None
    images: (
        VisionBatch | Any
    )  # every image once, a group shares its page; or their features [I M ...], where these are kept
    # The N places of each row's chosen tokens, episode by episode: where the token stands whose hidden state chose it; T = no token.
    source: Int[np.ndarray, 'B N']
    targets: Int[np.ndarray, 'B N']  # the chosen tokens
    scored: Int[np.ndarray, 'E R']  # which of its row's N each of an episode's chosen tokens is; N = no token
    mask: Float[np.ndarray, 'E R']  # 1 where there is one
    sample_logprobs: Float[np.ndarray, 'E R']  # as the sampler had them
    advantages: Float[np.ndarray, 'E']  # one for all tokens of an episode; unused by supervised learning
    old_logprobs: Float[np.ndarray, 'E R'] | None = None  # the learner's before its first update on these episodes
    reference_logprobs: Float[np.ndarray, 'E R'] | None = None  # of the reference policy, where a KL is weighed


def micro_batches(
    episodes: Sequence[Episode],
    advantages: Float[np.ndarray, 'E'],
    config: Config,
    buckets: Buckets,
    size: int,
    mesh: Mesh,
    pack: int = 1,
    old_logprobs: Sequence[Float[np.ndarray, 'n']] | None = None,
    features: FeatureCache | None = None,
) -> Iterator[Batch]:
    """Cuts episodes, whole groups side by side, into batches of `size` episodes a device (0 = one batch), and puts each on the mesh when it is asked for.

    All of them have the same shape, so that one program does for all. With several processes each brings its own episodes, as many as the others, and its share of every batch's rows.

    Args:
        pack: episodes of a group that share one row and its prompt; 1 = each has its own.
        old_logprobs: of each episode's chosen tokens, where this is not the first update on them.
        features: of all their images, where the tower that made them still stands; None = batches bring the images' patches.
    Raises:
        ValueError: `size` is no whole number of packed rows.
    """
    parts, count = batch_parts(mesh), processes_of(mesh)
    if size % pack:
        raise ValueError(f'micro_batch is {size} episodes, expected a multiple of the {pack} of a row (pack), or 0.')
    whole = multiple(len(episodes), parts * pack)
    held = min(size * parts, whole) if size else whole
    pieces = [slice(at, at + held) for at in range(0, len(episodes), held)]
    sizes = agreed_sizes([episodes[piece] for piece in pieces], config, buckets, parts, pack)
    for piece in pieces:
        old = None if old_logprobs is None else old_logprobs[piece]
        batch = collate(episodes[piece], advantages[piece], config, sizes, held, pack, old, features)
        yield on_mesh(as_part(batch, jax.process_index(), count), mesh)


def agreed_sizes(
    batches: Sequence[Sequence[Episode]], config: Config, buckets: Buckets, parts: int, pack: int
) -> Sizes:
    """The one size of everything in these batches: what the fullest of any process needs, so that all arrays have one shape.

    Images and windows are multiples of the `parts` that a process's rows are split into.
    """
    needed = []
    for episodes in batches:
        images = vision_sizes(distinct_images(episodes), config.vision)
        needed.append([*row_tokens(episodes, pack), *images, *chosen_tokens(episodes, pack)])
    needed = map(int, processes.largest(np.array(needed)).max(axis=0))
    prompt, segment, rest, count, windows, patches, chosen, scored = needed
    prompt = round_up(prompt, buckets.prompts, 16) if prompt else 0
    return Sizes(
        length=round_up(prompt + rest, buckets.lengths, 16),
        prompt=prompt,
        segment=round_up(segment, buckets.segments, 16) if segment else 0,
        images=multiple(round_up(count, buckets.images), parts),
        windows=multiple(round_up(windows, buckets.windows), parts),
        patches=round_up(patches, buckets.patches, config.vision.merge_unit),
        chosen=round_up(chosen, buckets.chosen, 8),
        scored=round_up(scored, buckets.chosen if pack == 1 else buckets.scored, 8),
    )


def sizes_of(episodes: Sequence[Episode], config: Config, buckets: Buckets, pack: int = 1) -> Sizes:
    """The sizes of a batch of one process on one device."""
    return agreed_sizes([episodes], config, buckets, 1, pack)


def row_tokens(episodes: Sequence[Episode], pack: int) -> tuple[int, int, int]:
    """The most tokens, `pack` episodes of a group standing in a row, of a shared prompt, of an episode behind it, and of a row behind it."""
    if pack == 1:
        return 0, 0, max(len(e.ids) for e in episodes)
    rows = [held_in_row(episodes[at : at + pack]) for at in range(0, len(episodes), pack)]
    behind = [[len(e.ids) - shared for _, e in held] or [1] for held, shared in rows]
    return max(max(shared for _, shared in rows), 1), max(map(max, behind)), max(map(sum, behind))


def chosen_tokens(episodes: Sequence[Episode], pack: int) -> tuple[int, int]:
    """The most tokens that the policy chose in an episode, and in the `pack` episodes of a row."""
    counts = np.array([int(e.loss_mask.sum()) for e in episodes])
    return counts.max(), np.add.reduceat(counts, np.arange(0, len(counts), pack)).max()


def held_in_row(group: Sequence[Episode]) -> tuple[list[tuple[int, Episode]], int]:
    """The episodes of a packed row with their numbers, and the tokens of the prompt that they share.

    Those without a token in the loss have no part in it and are left out. ValueError where prompts differ.
    """
    held = [(number, e) for number, e in enumerate(group) if e.loss_mask.any()]
    shared = min((int(e.loss_mask.argmax()) for _, e in held), default=0)
    first = held[0][1] if held else None
    if any((e.ids[:shared] != first.ids[:shared]).any() or e.images[0] is not first.images[0] for _, e in held):
        raise ValueError(
            f'Episodes of {first.question_id} are packed as one group, but their prompts differ: '
            'episodes of a question must stand side by side, and pack must divide their number.'
        )
    return held, shared


def collate(
    episodes: Sequence[Episode],
    advantages: Float[np.ndarray, 'E'],
    config: Config,
    sizes: Sizes,
    rows: int,
    pack: int = 1,
    old_logprobs: Sequence[Float[np.ndarray, 'n']] | None = None,
    features: FeatureCache | None = None,
) -> Batch:
    """The arrays of `episodes`, padded to `rows` episodes.

    Raises:
        ValueError: they do not fit the rows or the sizes, a first token is marked as chosen (nothing precedes it that could have chosen it), or
            a packed row's prompts differ.
    """
    if rows < len(episodes):
        raise ValueError(f'Batch: {len(episodes)} episodes do not fit {rows} rows; raise the rows or split them.')
    images = distinct_images(episodes)
    if features is None:
        shown = plan_vision(images, config.vision, VisionSizes(sizes.images, sizes.windows, sizes.patches))
    else:
        shown = features.stacked(images, sizes.images, sizes.patches // config.vision.merge_unit)
    first_row = {id(image): index * image_rows(shown) for index, image in enumerate(images)}
    shape, scored, chosen = (rows // pack, sizes.length), (rows // pack, sizes.scored), (rows, sizes.chosen)
    segments = None
    if pack > 1:
        segments = Segments(np.zeros(shape, np.int32), RowLayout(sizes.prompt, sizes.segment, pack))
    batch = Batch(
        ids=np.zeros(shape, np.int32),
        positions=np.zeros((3, *shape), np.int32),
        feature_index=np.full(shape, -1, np.int32),
        segments=segments,
        images=shown,
        source=np.full(scored, sizes.length, np.int32),
        targets=np.zeros(scored, np.int32),
        scored=np.full(chosen, sizes.scored, np.int32),
        mask=np.zeros(chosen, np.float32),
        sample_logprobs=np.zeros(chosen, np.float32),
        advantages=np.zeros(rows, np.float32),
        old_logprobs=None if old_logprobs is None else np.zeros(chosen, np.float32),
    )
    for row, values in enumerate(old_logprobs or ()):
        batch.old_logprobs[row, : len(values)] = values
    batch.advantages[: len(episodes)] = advantages
    for row in range(-(-len(episodes) // pack)):
        group = episodes[row * pack : (row + 1) * pack]
        held, shared = held_in_row(group) if pack > 1 else (list(enumerate(group)), 0)
        filled = sizes.prompt
        if segments is not None and held:
            segments.numbers[row, shared:filled] = -1
        for number, episode in held:
            _fill(batch, config, first_row, episode, (row, number), shared, filled)
            filled += len(episode.ids) - shared
    return batch


def _fill(
    batch: Batch,
    config: Config,
    first_row: dict[int, int],
    episode: Episode,
    at: tuple[int, int],
    shared: int,
    filled: int,
) -> None:
    """Writes an episode's tokens behind the `filled` places of a row, the first `shared` ones at its beginning; `at` is the row and the number in it."""
    (row, number), count = at, len(episode.ids)
    end = filled + count - shared
    if end > batch.ids.shape[1]:
        raise ValueError(
            f'A row of {end} tokens does not fit {batch.ids.shape[1]}: add a larger size to buckets.lengths.'
        )
    with errors_of(name_of(episode)):
        positions, _ = positions_of(episode.ids, episode.images, config)
        rows = [first_row[id(image)] for image in episode.images]
        features = feature_rows(episode.ids, rows, episode.images, config)
    check_episode(episode, positions, features, config.image_token_id)
    places = np.arange(count)
    places[shared:] += filled - shared
    batch.ids[row, places] = episode.ids
    batch.positions[:, row, places] = positions
    batch.feature_index[row, places] = features
    if batch.segments is not None:
        batch.segments.numbers[row, filled:end] = 1 + number
    number += row * (len(batch.mask) // len(batch.ids))
    chosen = np.flatnonzero(episode.loss_mask)
    if len(chosen) > batch.mask.shape[1]:
        raise ValueError(
            f'An episode has {len(chosen)} chosen tokens, room is for {batch.mask.shape[1]}: add a larger size to buckets.chosen.'
        )
    before = int((batch.source[row] < batch.ids.shape[1]).sum())  # of the row's episodes before this one
    of_row, here = slice(before, before + len(chosen)), slice(len(chosen))
    if of_row.stop > batch.source.shape[1]:
        raise ValueError(
            f'The episodes of a row have {of_row.stop} chosen tokens, room is for {batch.source.shape[1]}: '
            'add a larger size to buckets.scored.'
        )
    batch.source[row, of_row] = places[chosen - 1]
    batch.targets[row, of_row] = episode.ids[chosen]
    batch.scored[number, here] = np.arange(of_row.start, of_row.stop)
    batch.mask[number, here] = 1
    batch.sample_logprobs[number, here] = episode.sample_logprobs[chosen]


def as_part(batch: Batch, part: int, parts: int) -> Batch:
    """These rows as number `part` of `parts` equally padded pieces of a larger batch."""
    index, features = batch.feature_index, feature_count(batch.images)
    return replace(
        batch,
        feature_index=np.where(index < 0, -1, index + part * features),
        images=images_as_part(batch.images, part, parts) if isinstance(batch.images, VisionBatch) else batch.images,
    )


def on_mesh(batch: Any, mesh: Mesh) -> Any:
    """A batch's host arrays where the mesh wants them, split by rows."""
    return put_batch(batch, mesh, batch_axes(batch))


def batch_axes(batch: Any) -> Any:
    """Which axis of each array counts the rows: the first; the second of M-RoPE's positions [3 B T]; -1 for a scalar, which has none."""

    def axis(path: tuple, array: Any) -> int:
        if len(np.shape(array)) == 3 and path and path[-1] == GetAttrKey('positions'):
            return 1
        return 0 if np.shape(array) else -1

    return jax.tree_util.tree_map_with_path(axis, batch)


# ---------------------------------------------------------------- sizes


def round_up(count: int, sizes: Sequence[int] = (), least: int = 1) -> int:
    """The smallest of `sizes` that holds `count`; where none does, four sizes to an octave and multiples of `least`.

    What a policy does in a batch has no limit that could be planned for: one rare batch costs a compilation, not the run.
    """
    step = max(least, 1 << max(count.bit_length() - 3, 0))
    return min((size for size in sizes if size >= count), default=max(-(-count // step), 1) * step)


def multiple(count: int, of: int) -> int:
    """`count`, or the next multiple `of` a number."""
    return -(-count // of) * of


# ---------------------------------------------------------------- images


def distinct_images(episodes: Sequence[Episode]) -> list[Patches]:
    """Every image of the episodes once, in order of appearance."""
    return list({id(image): image for e in episodes for image in e.images}.values())


def image_rows(images: VisionBatch | Any) -> int:
    """M, rows of features that each image of a batch has."""
    return images.image_rows if isinstance(images, VisionBatch) else jax.tree.leaves(images)[0].shape[1]


def feature_count(images: VisionBatch | Any) -> int:
    """I * M, rows of features of all images of a batch."""
    count = len(images.image_lengths) if isinstance(images, VisionBatch) else len(jax.tree.leaves(images)[0])
    return count * image_rows(images)


def image_sizes(images: Sequence[Patches], vision: VisionConfig, buckets: Buckets) -> VisionSizes:
    """What the arrays of a batch of these images are padded to."""
    count, windows, patches = vision_sizes(images, vision)
    return VisionSizes(
        round_up(count, buckets.images),
        round_up(windows, buckets.windows),
        round_up(patches, buckets.patches, vision.merge_unit),
    )


def plan_shared_images(images: Sequence[Patches], vision: VisionConfig, mesh: Mesh) -> VisionBatch:
    """The layout of this process's part of a batch's images, in the sizes of the process that needs most."""
    count, windows, patches = image_sizes(images, vision, Buckets())
    parts = batch_parts(mesh)
    needed = processes.largest(np.array([multiple(count, parts), multiple(windows, parts), patches]))
    plan = plan_vision(images, vision, VisionSizes(*map(int, needed)))
    return images_as_part(plan, jax.process_index(), processes_of(mesh))
