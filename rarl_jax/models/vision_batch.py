"""Images as a vision tower takes them: any number of ragged images in arrays of few sizes, laid out on the host.

The host lays the patches out window by window, each window padded to its full number of slots, all images behind one another. What a tower does
to each patch, or within a window, is then a plain batch; attention within whole images gathers q, k and v per image.

    slots [W * Q]       window 0 of image 0 | window 1 of image 0 | ... | window 0 of image 1 | ... | padding
    places [I, S]       image 0: its patches in the order of the slots, padding | image 1: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rarl_jax.models.config import VisionConfig
from rarl_jax.models.images import Patches
from rarl_jax.models.positions import patch_coordinates


class VisionSizes(NamedTuple):
    """Sizes of a VisionBatch's arrays. Few of them mean few compilations: which, is the caller's choice."""

    # I, images in the batch.
    images: int
    # W, windows of all images together.
    windows: int
    # S, patches of the largest image; a multiple of a merged token's.
    patches: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisionBatch:
    """Images as the tower takes them. R = W * slots of a window; an index out of its range means padding."""

    # Normalised patches, zero in padding; Q slots a window, X numbers of a patch's one frame.
    pixels: Float[Array, 'W Q X']
    # Row and column of the patch in its image.
    coordinates: Int[Array, 'W Q 2']
    # Rows and columns of the image that the window is of, counted in patches; 1 in a padding window.
    image_sides: Int[Array, 'W 2']
    # Patches in the window, 1 in a padding window: no softmax over nothing.
    window_lengths: Int[Array, 'W']
    # Slot of an image's patch, and the inverse: place in the flattened [I * S].
    image_slots: Int[Array, 'I S']
    slot_places: Int[Array, 'R']
    # Patches of the image, 1 in a padding image.
    image_lengths: Int[Array, 'I']
    # Merged slot (slot // 4) of an image's merged token, raster order, and the inverse: place in the flattened [I * M].
    merged_slots: Int[Array, 'I M']
    slot_merged: Int[Array, 'R/4']

    @property
    def held(self) -> Bool[Array, 'W Q']:
        """Which slots hold a patch; padding windows seem to hold one."""
        return np.arange(self.pixels.shape[1]) < self.window_lengths[:, None]

    @property
    def image_rows(self) -> int:
        """M: rows of features that each image has."""
        return self.merged_slots.shape[1]


def vision_sizes(images: Sequence[Patches], vision: VisionConfig) -> VisionSizes:
    """What these images need, and not more."""
    windows = sum(vision.windows(image.grid) for image in images)
    return VisionSizes(len(images), windows, max((len(image.frame) for image in images), default=0))


def vision_shapes(sizes: VisionSizes, vision: VisionConfig) -> VisionBatch:
    """A batch of these sizes as shapes without content."""
    (i, w, s), slots, unit = sizes, vision.window_patches, vision.merge_unit
    whole = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return VisionBatch(
        pixels=jax.ShapeDtypeStruct((w, slots, vision.frame_dim), jnp.float32),
        coordinates=whole((w, slots, 2)),
        image_sides=whole((w, 2)),
        window_lengths=whole((w,)),
        image_slots=whole((i, s)),
        slot_places=whole((w * slots,)),
        image_lengths=whole((i,)),
        merged_slots=whole((i, s // unit)),
        slot_merged=whole((w * slots // unit,)),
    )


def plan_vision(images: Sequence[Patches], vision: VisionConfig, sizes: VisionSizes | None = None) -> VisionBatch:
    """Lays out images on the host.

    Args:
        images: in the order in which `feature_index` counts them.
        sizes: of the arrays, the rest is padding; None = exactly the images' own.

    Raises:
        ValueError: there is no image, or they do not fit.
    """
    if not images:
        raise ValueError('vision batch: no image, expected at least 1; a batch without images needs no vision tower.')
    needed = vision_sizes(images, vision)
    sizes = needed if sizes is None else sizes
    for name, count, room in zip(sizes._fields, needed, sizes, strict=True):
        if count > room:
            raise ValueError(
                f'vision batch: {count} {name}, but there is room for {room}; make it larger or lower the pixel limits.'
            )
    return _lay_out(images, vision, sizes)


def _lay_out(images: Sequence[Patches], vision: VisionConfig, sizes: VisionSizes) -> VisionBatch:
    (i, w, s), unit, slots = sizes, vision.merge_unit, vision.window_patches
    pixels = np.zeros((w, slots, vision.frame_dim), np.float32)
    coordinates = np.zeros((w, slots, 2), np.int32)
    image_sides, window_lengths, image_lengths = (np.ones(shape, np.int32) for shape in ((w, 2), w, i))
    merged_slots = np.full((i, s // unit), w * slots // unit, np.int32)
    window = 0
    for number, image in enumerate(images):
        image_lengths[number] = len(image.frame)
        places = patch_coordinates(image.grid, vision.spatial_merge_size)
        for merged in vision.window_plan(image.grid):
            patches = (merged[:, None] * unit + np.arange(unit)).ravel()
            image_sides[window], window_lengths[window] = image.grid[1:], len(patches)
            pixels[window, : len(patches)] = image.frame[patches]
            coordinates[window, : len(patches)] = places[patches]
            merged_slots[number, merged] = window * slots // unit + np.arange(len(merged))
            window += 1
    image_slots = merged_slots[..., None] * unit + np.arange(unit, dtype=np.int32)
    image_slots = image_slots.reshape(i, s)
    return VisionBatch(
        pixels=pixels,
        coordinates=coordinates,
        image_sides=image_sides,
        window_lengths=window_lengths,
        image_slots=image_slots,
        slot_places=_inverse(image_slots, w * slots),
        image_lengths=image_lengths,
        merged_slots=merged_slots,
        slot_merged=_inverse(merged_slots, w * slots // unit),
    )


def _inverse(index: Int[np.ndarray, 'I S'], size: int) -> Int[np.ndarray, 'R']:
    flat = index.ravel()
    inverse = np.full(size, flat.size, np.int32)
    used = np.flatnonzero(flat < size)
    inverse[flat[used]] = used
    return inverse


def as_part(batch: VisionBatch, part: int, parts: int) -> VisionBatch:
    """These images as number `part` of `parts` equally padded pieces of a larger batch, whose arrays are those of the pieces end to end.

    Indices then count from the larger batch's beginning, and padding points behind its end.
    """

    def moved(index: Int[np.ndarray, '...'], size: int) -> Int[np.ndarray, '...']:
        return np.where(index < size, index + part * size, parts * size).astype(np.int32)

    slots, merged = batch.slot_places.size, batch.slot_merged.size
    return replace(
        batch,
        image_slots=moved(batch.image_slots, slots),
        slot_places=moved(batch.slot_places, batch.image_slots.size),
        merged_slots=moved(batch.merged_slots, merged),
        slot_merged=moved(batch.slot_merged, batch.merged_slots.size),
    )
