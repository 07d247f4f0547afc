"""Qwen2.5-VL as a thin Linen module: `model.apply({'params': p}, ..., method=model.hidden)` is a pure function of a plain dict."""

from __future__ import annotations

import flax
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rarl_jax.models.layers import Attention, Constrain, Remat, unconstrained
from rarl_jax.models.params import Params, init_params
from rarl_jax.models.qwen2_5_vl import text, vision
from rarl_jax.models.qwen2_5_vl.config import Config
from rarl_jax.models.qwen2_5_vl.vision import VisionBatch


class Qwen2_5_VL(nn.Module):
    """The policy. Its params may be stacked (as initialised) or unstacked (`params.unstack`); `scan` needs them stacked."""

    config: Config
    dtype: DTypeLike = jnp.float32  # of activations; norms' statistics, rope, softmax and logits stay float32
    param_dtype: DTypeLike = jnp.float32  # of freshly initialised params
    scan: bool = False  # one compiled layer looped over [L, ...]: compiles faster, needed for remat to save memory; a CPU runs faster unrolled
    remat: Remat = 'none'
    attention: Attention = 'xla'
    constrain: Constrain = unconstrained  # pins activations to the mesh

    def setup(self):
        if self.is_initializing():
            fresh = init_params(self.make_rng('params'), self.config, self.param_dtype)
            for name, tree in fresh.items():
                self.put_variable('params', name, tree)

    def __call__(
        self,
        ids: Int[Array, 'B T'],
        positions: Int[Array, '3 B T'],
        feature_index: Int[Array, 'B T'],
        images: VisionBatch,
    ) -> Float[Array, 'B T V']:
        """Logits of whole conversations. Training wants `hidden` and logits of chosen places only."""
        embeds = self.embed(ids, self.encode_images(images), feature_index)
        return self.logits(self.hidden(embeds, positions))

    def encode_images(self, images: VisionBatch) -> Float[Array, 'I M D']:
        """One feature per merged token, raster order, zero in padding."""
        return vision.encode(
            self.config.vision,
            self._part('vision'),
            images,
            self.dtype,
            self.scan,
            self.remat,
            self.attention,
            self.constrain,
        )

    def embed(
        self,
        ids: Int[Array, 'B T'],
        features: Float[Array, 'I M D'] | None = None,
        feature_index: Int[Array, 'B T'] | None = None,
    ) -> Float[Array, 'B T D']:
        """Token embeddings; where feature_index >= 0, that row of the flattened I * M features instead."""
        return text.embed_tokens(self._part('text'), ids, features, feature_index, self.dtype)

    def hidden(
        self, embeds: Float[Array, 'B T D'], positions: Int[Array, '3 B T'], segments: Int[Array, 'B T'] | None = None
    ) -> Float[Array, 'B T D']:
        """Full causal pass over right-padded rows, or over rows packed from several `segments` (see text.forward)."""
        return text.forward(
            self.config.text,
            self._part('text'),
            embeds,
            positions,
            segments,
            self.scan,
            self.remat,
            self.attention,
            self.constrain,
        )

    def logits(self, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
        """float32."""
        return text.logits(self._part('text'), hidden)

    def _part(self, name: str) -> Params:
        return flax.core.unfreeze(self.variables['params'])[name]
