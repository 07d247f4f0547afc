"""The vision tower: patches of any number of ragged images -> one feature per merged token.

A window of the batch is one of the attention: in a window block it is a plain batch; only the few full blocks gather q, k and v per image.
"""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
from flax.typing import Dtype
from jaxtyping import Array, Float

from rarl_jax.models.layers import (
    AttentionKind,
    Constrain,
    Dense,
    GatedMlp,
    Remat,
    RMSNorm,
    Run,
    attend,
    rotate,
    run_layers,
    unconstrained,
)
from rarl_jax.models.qwen2_5_vl.config import VisionConfig
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.models.vision_layers import ACTIVATION, NORM_EPS, PatchEmbed, Rope, attend_images, raster, vision_rope


class VisionBlock(nn.Module):
    """Attention and MLP over windows [W, Q], or over whole images."""

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
            seen = attend_images(q, k, v, batch, self.implementation)
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
        return raster(rows, batch)


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
        self.patch = PatchEmbed(self.vision, scale, bias=False, param_dtype=dtype)
        self.blocks = VisionBlock(self.vision, scale, dtype, self.implementation)
        self.merger = PatchMerger(self.vision, scale, dtype)

    def __call__(self, batch: VisionBatch) -> Float[Array, 'I M D']:
        turn = vision_rope(self.vision, batch.coordinates)

        def call(full, block, x):
            return self.constrain(block(x, turn, batch, full), ACTIVATION)

        kinds = [index in self.vision.fullatt_block_indexes for index in range(self.vision.depth)]
        starts = [index for index in range(self.vision.depth) if index == 0 or kinds[index] or kinds[index - 1]]
        runs = [
            Run(start, end, partial(call, kinds[start]))
            for start, end in zip(starts, [*starts[1:], self.vision.depth], strict=True)
        ]
        x = self.constrain(self.patch(batch.pixels.astype(self.dtype)), ACTIVATION)
        return self.merger(run_layers(self.blocks, runs, x, self.scan, self.remat)[-1], batch)
