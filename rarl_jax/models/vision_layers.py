"""What the vision towers of every family do to a VisionBatch beside plain layers: rotary angles, attention within whole images, the way back to raster order."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from rarl_jax.models.config import VisionConfig
from rarl_jax.models.layers import AttentionKind, attend, move_rows
from rarl_jax.models.vision_batch import VisionBatch

Rope = tuple[Float[Array, 'W Q H/2'], Float[Array, 'W Q H/2']]  # cos, sin
ACTIVATION = ('windows', 'patches', 'vision_embed')
NORM_EPS = 1e-6  # the towers', fixed by the architectures
ROPE_THETA = 10_000.0  # likewise


def vision_rope(vision: VisionConfig, coordinates: Int[Array, 'W Q 2']) -> Rope:
    """cos and sin: the first half of a head's frequencies turns with the row, the second with the column."""
    quarter = vision.head_dim // 4
    frequencies = (1.0 / ROPE_THETA ** (np.arange(quarter, dtype=np.float32) / quarter)).astype(np.float32)
    angles = (coordinates[..., None].astype(jnp.float32) * frequencies).reshape(*coordinates.shape[:-1], 2 * quarter)
    return jnp.cos(angles), jnp.sin(angles)


class PatchEmbed(nn.Module):
    """x w + b of patches of still images.

    `w` is as published, for every frame of a patch, [colours * frames * rows * columns, C]. All frames being one, their weights are added up
    first, and the product is as wide as a single frame.
    """

    vision: VisionConfig
    init_scale: float
    bias: bool
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, 'W Q X']) -> Float[Array, 'W Q C']:
        vision, axes = self.vision, ('patch', 'vision_embed')
        start = nn.with_logical_partitioning(nn.initializers.normal(self.init_scale), axes)
        shape = (vision.temporal_patch_size * vision.frame_dim, vision.hidden_size)
        w = self.param('w', start, shape, self.param_dtype)
        w = w.reshape(vision.in_channels, vision.temporal_patch_size, -1, vision.hidden_size)
        y = x @ w.sum(1, dtype=jnp.float32).reshape(vision.frame_dim, -1).astype(x.dtype)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[1:])
            y = y + self.param('b', zeros, (vision.hidden_size,), self.param_dtype).astype(x.dtype)
        return y


def attend_images(
    q: Float[Array, 'W Q N H'],
    k: Float[Array, 'W Q N H'],
    v: Float[Array, 'W Q N H'],
    batch: VisionBatch,
    implementation: AttentionKind,
) -> Float[Array, 'W Q N H']:
    """Each patch sees its whole image: rows are gathered image by image and put back."""
    (w, slots, n, h), (i, s) = q.shape, batch.image_slots.shape
    rows = jnp.concatenate([part.reshape(w * slots, n * h) for part in (q, k, v)], axis=-1)
    rows = move_rows(rows, batch.image_slots.ravel(), batch.slot_places).reshape(i, s, 3, n, h)
    seen = attend(rows[:, :, 0], rows[:, :, 1], rows[:, :, 2], implementation, key_lengths=batch.image_lengths)
    seen = move_rows(seen.reshape(i * s, n * h), batch.slot_places, batch.image_slots.ravel())
    return seen.reshape(w, slots, n, h)


def raster(rows: Float[Array, 'R/4 D'], batch: VisionBatch) -> Float[Array, 'I M D']:
    """Merged tokens from the order of the slots to the raster order of their images, zero in padding."""
    flat = move_rows(rows, batch.merged_slots.ravel(), batch.slot_merged)
    return flat.reshape(*batch.merged_slots.shape, -1)
