"""The vision tower: patches of any number of ragged images -> several features per merged token.

Every block sees whole images. What patches are behind some of the blocks goes to the decoder too (DeepStack, arXiv 2406.04334), each through a
merger of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from rarl_jax.models.layers import AttentionKind, Constrain, Dense, Remat, Run, rotate, run_layers, unconstrained
from rarl_jax.models.qwen3_vl.config import VisionConfig
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.models.vision_layers import ACTIVATION, NORM_EPS, PatchEmbed, Rope, attend_images, raster, vision_rope


class Features(NamedTuple):
    """Of every image's merged tokens in raster order, zero in padding."""

    # In the place of the image's tokens.
    tokens: Float[Array, 'I M D']
    # Added behind the decoder's layers 0, 1, ...
    deep: tuple[Float[Array, 'I M D'], ...]


class LayerNorm(nn.LayerNorm):
    """flax's, in x's dtype, its weights with the logical axis of a norm's."""

    epsilon: float = NORM_EPS
    use_fast_variance: bool = False
    scale_init: Callable = nn.with_logical_partitioning(nn.initializers.ones, ('norm',))
    bias_init: Callable = nn.with_logical_partitioning(nn.initializers.zeros, ('norm',))


class Mlp(nn.Module):
    """down(gelu(up(x))). `axes`: logical names of the outer width, the inner one, and that of what comes out."""

    width: int
    features: int
    axes: tuple[str, str, str]
    dense: Callable[..., Dense]
    approximate: bool

    @nn.compact
    def __call__(self, x: Float[Array, '... C']) -> Float[Array, '... D']:
        x = jax.nn.gelu(self.dense(self.width, self.axes[:2], name='up')(x), approximate=self.approximate)
        return self.dense(self.features, self.axes[1:], name='down')(x)


class VisionBlock(nn.Module):
    """Attention within each image, and an MLP."""

    vision: VisionConfig
    init_scale: float
    param_dtype: Dtype
    implementation: AttentionKind

    @nn.compact
    def __call__(self, x: Float[Array, 'W Q C'], turn: Rope, batch: VisionBatch) -> Float[Array, 'W Q C']:
        vision, (w, slots, c) = self.vision, x.shape
        dense = partial(Dense, init_scale=self.init_scale, bias=True, param_dtype=self.param_dtype)
        norm = partial(LayerNorm, dtype=x.dtype, param_dtype=self.param_dtype)
        qkv = dense(3 * c, ('vision_embed', 'vision_qkv'), name='qkv')(norm(name='norm1')(x))
        qkv = qkv.reshape(w, slots, 3, vision.num_heads, vision.head_dim)
        q, k, v = rotate(qkv[:, :, 0], *turn), rotate(qkv[:, :, 1], *turn), qkv[:, :, 2]
        seen = attend_images(q, k, v, batch, self.implementation).reshape(w, slots, c)
        x = x + dense(c, ('vision_heads', 'vision_embed'), name='proj')(seen)
        axes = ('vision_embed', 'vision_mlp', 'vision_embed')
        mlp = Mlp(vision.intermediate_size, c, axes, dense, approximate=True, name='mlp')
        return x + mlp(norm(name='norm2')(x))


class PatchMerger(nn.Module):
    """2 x 2 neighbouring patches become one token of the decoder's width."""

    vision: VisionConfig
    init_scale: float
    param_dtype: Dtype
    # Whether the norm is over a merged token, not over a patch.
    norm_merged: bool

    @nn.compact
    def __call__(self, x: Float[Array, 'W Q C'], batch: VisionBatch) -> Float[Array, 'I M D']:
        width = self.vision.hidden_size * self.vision.merge_unit
        dense = partial(Dense, init_scale=self.init_scale, bias=True, param_dtype=self.param_dtype)
        norm = LayerNorm(dtype=x.dtype, param_dtype=self.param_dtype, name='norm')
        rows = norm(x.reshape(-1, width)) if self.norm_merged else norm(x).reshape(-1, width)
        axes = ('vision_merged', 'vision_mlp', 'embed')
        mlp = Mlp(width, self.vision.out_hidden_size, axes, dense, approximate=False, name='mlp')
        return raster(mlp(rows), batch)


class VisionTower(nn.Module):
    """Patches, and a table of positions stretched over each image; blocks; mergers."""

    vision: VisionConfig
    init_scale: float
    dtype: Dtype
    param_dtype: Dtype
    scan: bool
    remat: Remat
    implementation: AttentionKind
    constrain: Constrain = unconstrained

    def setup(self):
        scale, dtype, vision = self.init_scale, self.param_dtype, self.vision
        self.patch = PatchEmbed(vision, scale, bias=True, param_dtype=dtype)
        table = nn.with_logical_partitioning(nn.initializers.normal(scale), ('position', 'vision_embed'))
        self.positions = self.param('positions', table, (vision.num_position_embeddings, vision.hidden_size), dtype)
        self.blocks = VisionBlock(vision, scale, dtype, self.implementation)
        self.merger = PatchMerger(vision, scale, dtype, norm_merged=False)
        self.deepstack = [PatchMerger(vision, scale, dtype, norm_merged=True) for _ in vision.deepstack_visual_indexes]

    def __call__(self, batch: VisionBatch) -> Features:
        vision, turn = self.vision, vision_rope(self.vision, batch.coordinates)

        def call(block, x):
            return self.constrain(block(x, turn, batch), ACTIVATION)

        x = self.patch(batch.pixels.astype(self.dtype)) + stretched(self.positions, batch).astype(self.dtype)
        x = self.constrain(x, ACTIVATION)
        taps = [index + 1 for index in vision.deepstack_visual_indexes]
        ends = [*taps, *([] if vision.depth in taps else [vision.depth])]
        runs = [Run(start, end, call) for start, end in pairwise([0, *ends])]
        behind = dict(zip(ends, run_layers(self.blocks, runs, x, self.scan, self.remat), strict=True))
        deep = tuple(merger(behind[end], batch) for merger, end in zip(self.deepstack, taps, strict=True))
        return Features(self.merger(behind[vision.depth], batch), deep)


def stretched(table: Float[Array, 'P C'], batch: VisionBatch) -> Float[Array, 'W Q C']:
    """The square table's positions for each patch, its corners at the corners of the patch's image, bilinearly between rows and columns."""
    side = math.isqrt(len(table))
    ends = jnp.maximum(batch.image_sides - 1, 1)[:, None]  # the last row and column
    at = batch.coordinates.astype(jnp.float32) * (side - 1) / ends
    low = jnp.floor(at).astype(jnp.int32)
    part = at - low
    table, total = table.astype(jnp.float32), 0.0
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = jnp.minimum(low + jnp.array([down, right]), side - 1)
        weight = jnp.prod(jnp.where(jnp.array([down, right]), part, 1 - part), axis=-1, keepdims=True)
        total += weight * table[corner[..., 0] * side + corner[..., 1]]
    return total
