"""Episodes as padded arrays: what a loss sees, and the pieces of it that the sampler shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import GetAttrKey
from jaxtyping import Float, Int

from rarl_jax.conversation.dialogue import Episode
from rarl_jax.models.images import Patches
from rarl_jax.models.interface import Config, VisionBatch, VisionBuckets, VisionConfig, plan_vision
from rarl_jax.models.interface import as_part as images_as_part
from rarl_jax.models.positions import mrope_positions
from rarl_jax.runtime import processes
from rarl_jax.runtime.sharding import batch_parts, processes_of, put_batch


@dataclass(frozen=True)
class Buckets:
    """Sizes that arrays are padded to; beyond the largest, or with none, four sizes an octave. Few sizes mean few compilations."""

    lengths: tuple[int, ...] = ()  # tokens of a row
    images: tuple[int, ...] = ()  # images of a batch
    windows: tuple[int, ...] = ()  # vision windows of a batch
    patches: tuple[int, ...] = ()  # patches of the largest image
    chosen: tuple[int, ...] = ()  # tokens of a row that the policy chose
    groups: tuple[int, ...] = ()  # tokens of a row that holds a packed group


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollouts:
    """A padded batch of episodes, as a loss sees it. The log-prob of ids[t] comes from the hidden state at t - 1."""

    ids: Int[np.ndarray, 'B T']  # 0 in padding
    positions: Int[np.ndarray, '3 B T']  # M-RoPE: time, row, column
    lengths: Int[np.ndarray, 'B']  # tokens of the row; 0 = a padding row
    loss_mask: Float[np.ndarray, 'B T']  # 1 where the policy chose the token
    sample_logprobs: Float[np.ndarray, 'B T']  # 0 where it did not
    feature_index: Int[np.ndarray, 'B T']  # row of the flattened [I * M] features; -1 = a text token
    vision: VisionBatch  # every image once: a group shares its page
    group: Int[np.ndarray, 'B']  # episodes of one question; -1 = a padding row
    advantages: Float[np.ndarray, 'B']  # 0 until they are known


def collate(episodes: Sequence[Episode], config: Config, buckets: Buckets, rows: int | None = None) -> Rollouts:
    """Pads episodes to the smallest buckets that hold them.

    Args:
        rows: B; the number of episodes if None. Further rows are padding.
    Raises:
        ValueError: there are more episodes than rows.
    """
    b, t = rows or len(episodes), round_up(max(len(e.ids) for e in episodes), buckets.lengths, 16)
    if b < len(episodes):
        raise ValueError(f'Batch: {len(episodes)} episodes do not fit {b} rows; raise the rows or split the episodes.')
    images = list({id(image): image for e in episodes for image in e.images}.values())
    vision = plan_images(images, config.vision, buckets)
    first_row = {id(image): index * vision.merged_slots.shape[1] for index, image in enumerate(images)}
    ids, positions = np.zeros((b, t), np.int32), np.zeros((3, b, t), np.int32)
    chosen, logprobs = np.zeros((b, t), np.float32), np.zeros((b, t), np.float32)
    features, lengths, group = np.full((b, t), -1, np.int32), np.zeros(b, np.int32), np.full(b, -1, np.int32)
    for row, e in enumerate(episodes):
        n = len(e.ids)
        ids[row, :n], chosen[row, :n], logprobs[row, :n] = e.ids, e.loss_mask, e.sample_logprobs
        positions[:, row, :n] = positions_of(e.ids, e.images, config)[0]
        features[row, :n] = feature_rows(e.ids, [first_row[id(image)] for image in e.images], e.images, config)
        lengths[row], group[row] = n, e.group
    return Rollouts(ids, positions, lengths, chosen, logprobs, features, vision, group, np.zeros(b, np.float32))


def round_up(count: int, sizes: Sequence[int] = (), least: int = 1) -> int:
    """The smallest of `sizes` that holds `count`; where none does, four sizes to an octave and multiples of `least`.

    What a policy does in a batch has no limit that could be planned for: one rare batch costs a compilation, not the run.
    """
    step = max(least, 1 << max(count.bit_length() - 3, 0))
    return min((size for size in sizes if size >= count), default=max(-(-count // step), 1) * step)


def plan_images(images: Sequence[Patches], vision: VisionConfig, buckets: Buckets) -> VisionBatch:
    """`plan_vision` with sizes from `buckets`."""
    sizes = image_sizes(images, vision, buckets)
    return plan_vision(images, vision, VisionBuckets(*((size,) for size in sizes)))


def image_sizes(images: Sequence[Patches], vision: VisionConfig, buckets: Buckets) -> tuple[int, int, int]:
    """The images, windows and patches that a batch of these images is padded to."""
    side = vision.window_side * vision.spatial_merge_size
    windows = sum(t * -(-h // side) * -(-w // side) for t, h, w in (image.grid for image in images))
    patches = max(len(image.pixels) for image in images)
    return (
        round_up(len(images), buckets.images),
        round_up(windows, buckets.windows),
        round_up(patches, buckets.patches, vision.merge_unit),
    )


def plan_shared_images(images: Sequence[Patches], vision: VisionConfig, mesh: Mesh) -> VisionBatch:
    """`plan_images` of this process's part of a batch, in the sizes of the process that needs most."""
    count, windows, patches = image_sizes(images, vision, Buckets())
    parts = batch_parts(mesh)
    needed = processes.largest(np.array([multiple(count, parts), multiple(windows, parts), patches]))
    plan = plan_vision(images, vision, VisionBuckets(*((int(size),) for size in needed)))
    return images_as_part(plan, jax.process_index(), processes_of(mesh))


def multiple(count: int, of: int) -> int:
    """`count`, or the next multiple `of` a number."""
    return -(-count // of) * of


def as_part(rollouts: Rollouts, part: int, parts: int) -> Rollouts:
    """These rows as number `part` of `parts` equally padded pieces of a larger batch."""
    index, features = rollouts.feature_index, rollouts.vision.merged_slots.size
    return replace(
        rollouts,
        feature_index=np.where(index < 0, -1, index + part * features),
        vision=images_as_part(rollouts.vision, part, parts),
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


def positions_of(
    ids: Int[np.ndarray, 'T'], images: Sequence[Patches], config: Config, start: int = 0
) -> tuple[Int[np.ndarray, '3 T'], int]:
    """M-RoPE positions of a conversation, or of a part of it that begins at position `start`, and the next token's position."""
    grids = [image.grid for image in images]
    positions, delta = mrope_positions(ids, grids, config.image_token_id, config.vision.spatial_merge_size, start)
    return positions, len(ids) + delta


def feature_rows(
    ids: Int[np.ndarray, 'T'], first_rows: Sequence[int], images: Sequence[Patches], config: Config
) -> Int[np.ndarray, 'T']:
    """For each image token, its row among the batch's features; -1 for text. `first_rows` is where each image's rows begin."""
    rows = np.full(len(ids), -1, np.int32)
    counts = [image.merged(config.vision.spatial_merge_size) for image in images]
    places = [np.arange(first, first + count) for first, count in zip(first_rows, counts, strict=True)]
    rows[np.asarray(ids) == config.image_token_id] = np.concatenate(places) if places else []
    return rows
