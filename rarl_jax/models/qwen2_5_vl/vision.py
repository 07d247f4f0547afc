"""The vision tower: patches of any number of ragged images -> one feature per merged token.

The host lays the patches out window by window, each window padded to its full 64 patches, all images behind one another. In this layout a
window block's attention is a plain batch; only the few full blocks gather q, k and v per image, and the merger's output once.

    slots [W * 64]      window 0 of image 0 | window 1 of image 0 | ... | window 0 of image 1 | ... | padding
    places [I, S]       image 0: its patches in the order of the slots, padding | image 1: ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from rarl_jax.models.images import Patches
from rarl_jax.models.layers import (
    AttentionKind,
    Constrain,
    Dense,
    GatedMlp,
    Remat,
    RMSNorm,
    Run,
    attend,
    move_rows,
    rotate,
    run_layers,
    unconstrained,
)
from rarl_jax.models.positions import patch_coordinates, window_plan
from rarl_jax.models.qwen2_5_vl.config import VisionConfig

Rope = tuple[Float[Array, 'W Q H/2'], Float[Array, 'W Q H/2']]  # cos, sin
ACTIVATION = ('windows', 'patches', 'vision_embed')
NORM_EPS = 1e-6  # the vision tower's, fixed by the architecture
ROPE_THETA = 10_000.0  # likewise


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

    # Normalised patches, zero in padding; Q slots a window, X numbers a patch.
    pixels: Float[Array, 'W Q X']
    # Row and column of the patch in its image.
    coordinates: Int[Array, 'W Q 2']
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


def vision_sizes(images: Sequence[Patches], vision: VisionConfig) -> VisionSizes:
    """What these images need, and not more."""
    windows = sum(vision.windows(image.grid) for image in images)
    return VisionSizes(len(images), windows, max((len(image.pixels) for image in images), default=0))


def vision_shapes(sizes: VisionSizes, vision: VisionConfig) -> VisionBatch:
    """A batch of these sizes as shapes without content."""
    (i, w, s), slots, unit = sizes, vision.window_patches, vision.merge_unit
    whole = partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    return VisionBatch(
        pixels=jax.ShapeDtypeStruct((w, slots, vision.patch_dim), jnp.float32),
        coordinates=whole((w, slots, 2)),
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
    plans = [window_plan(image.grid, vision.spatial_merge_size, vision.window_side) for image in images]
    return _lay_out(images, plans, vision, sizes)


def _lay_out(images: Sequence[Patches], plans: list, vision: VisionConfig, sizes: VisionSizes) -> VisionBatch:
    (i, w, s), unit, slots = sizes, vision.merge_unit, vision.window_patches
    pixels = np.zeros((w, slots, vision.patch_dim), np.float32)
    coordinates = np.zeros((w, slots, 2), np.int32)
    window_lengths, image_lengths = np.ones(w, np.int32), np.ones(i, np.int32)
    merged_slots = np.full((i, s // unit), w * slots // unit, np.int32)
    window = 0
    for number, (image, plan) in enumerate(zip(images, plans, strict=True)):
        image_lengths[number] = len(image.pixels)
        places = patch_coordinates(image.grid, vision.spatial_merge_size)
        for merged in plan:
            patches = (merged[:, None] * unit + np.arange(unit)).ravel()
            window_lengths[window] = len(patches)
            pixels[window, : len(patches)] = image.pixels[patches]
            coordinates[window, : len(patches)] = places[patches]
            merged_slots[number, merged] = window * slots // unit + np.arange(len(merged))
            window += 1
    image_slots = merged_slots[..., None] * unit + np.arange(unit, dtype=np.int32)
    image_slots = image_slots.reshape(i, s)
    return VisionBatch(
        pixels=pixels,
        coordinates=coordinates,
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


class VisionBlock(nn.Module):
    """Attention and MLP over windows [W, Q], or over whole images, for which the rows are gathered image by image and put back."""

    vision: VisionConfig
    init_scale: float
    param_dtype: Dtype
    implementation: AttentionKind

    @nn.compact
    def __call__(self, x: Float[Array, 'W Q C'], turn: Rope, batch: VisionBatch, full: bool) -> Float[Array, 'W Q C']:
        vision, (w, slots, c) = self.vision, x.shape
        heads = (vision.num_heads, vision.head_dim)
        dense = partial(Dense, init_scale=self.init_scale, bias=True, param_dtype=self.param_dtype)
        norm = partial(RMSNorm, NORM_EPS, self.param_dtype)
        qkv = dense(3 * c, ('vision_embed', 'vision_qkv'), name='qkv')(norm(name='norm1')(x))
        qkv = qkv.reshape(w, slots, 3, *heads)
        q, k, v = rotate(qkv[:, :, 0], *turn), rotate(qkv[:, :, 1], *turn), qkv[:, :, 2]
        if full:
            i, s = batch.image_slots.shape
            rows = jnp.concatenate([part.reshape(w * slots, c) for part in (q, k, v)], axis=-1)
            rows = move_rows(rows, batch.image_slots.ravel(), batch.slot_places).reshape(i, s, 3, *heads)
            seen = attend(
                rows[:, :, 0], rows[:, :, 1], rows[:, :, 2], self.implementation, key_lengths=batch.image_lengths
            )
            seen = move_rows(seen.reshape(i * s, c), batch.slot_places, batch.image_slots.ravel())
        else:
            seen = attend(q, k, v, self.implementation, key_lengths=batch.window_lengths)
        x = x + dense(c, ('vision_heads', 'vision_embed'), name='proj')(seen.reshape(w, slots, c))
        mlp = GatedMlp(vision.intermediate_size, ('vision_embed', 'vision_mlp'), dense, name='mlp')
        return x + mlp(norm(name='norm2')(x))


class PatchMerger(nn.Module):
    """2 x 2 neighbouring patches become one token of the decoder's width; back from window order to raster order."""

    vision: VisionConfig
    init_scale: float
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, 'W Q C'], batch: VisionBatch) -> Float[Array, 'I M D']:
        width = self.vision.hidden_size * self.vision.merge_unit
        dense = partial(Dense, init_scale=self.init_scale, bias=True, param_dtype=self.param_dtype)
        rows = RMSNorm(NORM_EPS, self.param_dtype, name='norm')(x).reshape(-1, width)
        rows = jax.nn.gelu(dense(width, ('vision_merged', 'vision_mlp'), name='up')(rows), approximate=False)
        rows = dense(self.vision.out_hidden_size, ('vision_mlp', 'embed'), name='down')(rows)
        flat = move_rows(rows, batch.merged_slots.ravel(), batch.slot_merged)
        return flat.reshape(*batch.merged_slots.shape, -1)


class VisionTower(nn.Module):
    """Features of every image's merged tokens in raster order, zero in padding."""

    vision: VisionConfig
    init_scale: float
    dtype: Dtype
    param_dtype: Dtype
    scan: bool
    remat: Remat
    implementation: AttentionKind
    constrain: Constrain = unconstrained

    def setup(self):
        scale, dtype = self.init_scale, self.param_dtype
        self.patch = Dense(self.vision.hidden_size, ('patch', 'vision_embed'), scale, param_dtype=dtype)
        self.blocks = VisionBlock(self.vision, scale, dtype, self.implementation)
        self.merger = PatchMerger(self.vision, scale, dtype)

    def __call__(self, batch: VisionBatch) -> Float[Array, 'I M D']:
        turn = _rope(self.vision, batch.coordinates)

        def call(full, block, x):
            return self.constrain(block(x, turn, batch, full), ACTIVATION)

        kinds = [index in self.vision.fullatt_block_indexes for index in range(self.vision.depth)]
        starts = [index for index in range(self.vision.depth) if index == 0 or kinds[index] or kinds[index - 1]]
        runs = [
            Run(start, end, partial(call, kinds[start]))
            for start, end in zip(starts, [*starts[1:], self.vision.depth], strict=True)
        ]
        x = self.constrain(self.patch(batch.pixels.astype(self.dtype)), ACTIVATION)
        return self.merger(run_layers(self.blocks, runs, x, self.scan, self.remat), batch)


def _rope(vision: VisionConfig, coordinates: Int[Array, 'W Q 2']) -> Rope:
    """cos and sin: the first half of a head's frequencies turns with the row, the second with the column."""
    quarter = vision.head_dim // 4
    frequencies = (1.0 / ROPE_THETA ** (np.arange(quarter, dtype=np.float32) / quarter)).astype(np.float32)
    angles = (coordinates[..., None].astype(jnp.float32) * frequencies).reshape(*coordinates.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)
