"""Host-side plans of where things are: M-RoPE positions and feature rows of a conversation, coordinates of an image's patches. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rarl_jax.models.config import Config
from rarl_jax.models.images import Patches

Grid = tuple[int, int, int]  # frames, rows, columns of an image, counted in patches


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


def mrope_positions(
    ids: Int[np.ndarray, 'T'], grids: Sequence[Grid], image_token_id: int, merge_size: int, start: int = 0
) -> tuple[Int[np.ndarray, '3 T'], int]:
    """Positions of a conversation's tokens in time, height and width (Qwen2-VL, arXiv 2409.12191, section 2.1).

    A text token has the same position on all three axes. An image's tokens share one time and count rows and columns from it;
    what follows goes on after the image's longer side.

    Args:
        ids: one conversation, or the part of it that is appended to a cache; no padding.
        grids: its images, in order.
        start: position of the first token: 0, or T + delta of what came before.

    Returns:
        positions, and delta: the next token's position is T + delta.

    Raises:
        ValueError: the image tokens do not fit the grids.
    """
    is_image = np.asarray(ids) == image_token_id
    counts = [t * (h // merge_size) * (w // merge_size) for t, h, w in grids]
    if is_image.sum() != sum(counts):
        raise ValueError(
            f'conversation: {is_image.sum()} image tokens, but its {len(counts)} images have {sum(counts)}; give the grids of exactly these images.'
        )
    positions = np.empty((3, len(is_image)), np.int32)
    place, position = 0, start
    image_starts = np.flatnonzero(is_image)
    seen = 0
    for grid, count in zip(grids, counts, strict=True):
        first = image_starts[seen]
        if not is_image[first : first + count].all():
            raise ValueError(
                f'conversation: the image of grid {grid} needs {count} image tokens in a row at {first}; text cuts them apart.'
            )
        positions[:, place:first] = position + np.arange(first - place)
        position += first - place
        positions[:, first : first + count] = position + _image_offsets(grid, merge_size)
        position += max(grid[1], grid[2]) // merge_size
        place, seen = first + count, seen + count
    positions[:, place:] = position + np.arange(len(is_image) - place)
    position += len(is_image) - place
    return positions, int(position) - len(is_image)


def _image_offsets(grid: Grid, merge_size: int) -> Int[np.ndarray, '3 M']:
    t, h, w = grid
    return np.indices((t, h // merge_size, w // merge_size)).reshape(3, -1)


def patch_coordinates(grid: Grid, merge_size: int) -> Int[np.ndarray, 'P 2']:
    """Row and column of every patch of an image, in the order of `Patches.frame`: merged block by merged block."""
    t, h, w = grid
    rows, columns = np.indices((h, w))
    blocks = (h // merge_size, merge_size, w // merge_size, merge_size)
    pairs = np.stack([axis.reshape(blocks).transpose(0, 2, 1, 3).ravel() for axis in (rows, columns)], axis=-1)
    return np.tile(pairs, (t, 1)).astype(np.int32)
