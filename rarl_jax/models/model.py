"""The model of every family: a vision tower and a decoder. `model.apply({'params': p}, ..., method='hidden')` is a pure function of a dict of arrays."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from rarl_jax.models.cache import AXES, AttentionKind, Axes, Cache, empty_layer
from rarl_jax.models.config import Config
from rarl_jax.models.decoder import Decoder
from rarl_jax.models.images import Patches
from rarl_jax.models.layers import Constrain, Remat, unconstrained
from rarl_jax.models.packed import Segments
from rarl_jax.models.vision_batch import VisionBatch, plan_vision


class Model(nn.Module):
    """The policy; a family says which `tower` sees for it. Its params are stacked (as initialised) or apart (`params.unstack`); `scan` needs them stacked."""

    tower: ClassVar[type[nn.Module]]

    config: Config
    # Of activations; norms' statistics, rope, softmax and logits stay float32.
    dtype: Dtype = jnp.float32
    # Of freshly initialised params.
    param_dtype: Dtype = jnp.float32
    # One compiled layer looped over [L, ...]: compiles faster, needed for remat to save memory; a CPU runs faster unrolled.
    scan: bool = False
    remat: Remat = 'none'
    attention: AttentionKind = 'xla'
    # Pins activations to the mesh.
    constrain: Constrain = unconstrained

    def setup(self):
        config = self.config
        shared = {
            'init_scale': config.init_scale,
            'dtype': self.dtype,
            'param_dtype': self.param_dtype,
            'scan': self.scan,
            'remat': self.remat,
            'implementation': self.attention,
            'constrain': self.constrain,
        }
        self.vision = self.tower(config.vision, **shared)
        self.text = Decoder(config.text, **shared)

    def __call__(
        self,
        ids: Int[Array, 'B T'],
        positions: Int[Array, '3 B T'],
        feature_index: Int[Array, 'B T'],
        images: VisionBatch,
    ) -> Float[Array, 'B T V']:
        """Logits of whole conversations, and what initialises the params. Training wants `hidden` and logits of chosen places only."""
        embeds = self.embed(ids, self.encode_images(images), feature_index)
        return self.logits(self.hidden(embeds, positions))

    def example(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, VisionBatch]:
        """Arguments of a call, as small as can be."""
        vision = self.config.vision
        patches = np.zeros((vision.merge_unit, vision.frame_dim), np.float32)
        page = Patches(patches, (1, vision.spatial_merge_size, vision.spatial_merge_size))
        ids = np.zeros((1, 1), np.int32)
        return ids, np.zeros((3, 1, 1), np.int32), ids, plan_vision([page], vision)

    def encode_images(self, images: VisionBatch) -> Float[Array, 'I M D']:
        """One feature per merged token, raster order, zero in padding."""
        return self.vision(images)

    def embed(
        self,
        ids: Int[Array, 'B T'],
        features: Float[Array, 'I M D'] | None = None,
        feature_index: Int[Array, 'B T'] | None = None,
    ) -> Float[Array, 'B T D']:
        """Token embeddings; where feature_index >= 0, that row of the flattened I * M features instead."""
        return self.text.embed(ids, features, feature_index)

    def image_embeds(self, features: Float[Array, 'I M D']) -> Float[Array, 'I M D']:
        """Of features, those that stand in the place of the images' tokens."""
        return features

    def hidden(
        self, embeds: Float[Array, 'B T D'], positions: Int[Array, '3 B T'], segments: Segments | None = None
    ) -> Float[Array, 'B T D']:
        """Full causal pass over right-padded rows, or over rows packed from several `segments` (see Decoder)."""
        return self.text(embeds, positions, segments)

    def logits(self, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
        """float32."""
        return self.text.logits(hidden)

    def no_features(self, images: int, rows: int) -> Float[np.ndarray, 'I M D']:
        """Features of so many images of `rows` merged tokens that are not there: zeros. Not a method of `apply`: it needs no params."""
        return np.zeros((images, rows, self.config.text.hidden_size), self.dtype)

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens. Not a method of `apply`: it needs no params."""
        text = self.config.text
        sizes = {'batch': batch, 'length': length, 'kv_heads': text.num_kv_heads, 'head': text.head_dim}
        return tuple(empty_layer(self.attention, sizes, self.dtype) for _ in range(text.num_layers))

    @property
    def cache_axes(self) -> Axes:
        """Logical axes of the arrays of one layer's cache."""
        return AXES[self.attention]

    def prefill(
        self, cache: Cache, embeds: Float[Array, 'B T D'], positions: Int[Array, '3 B T']
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """First chunks into an empty cache, see Decoder.prefill."""
        return self.text.prefill(cache, embeds, positions)

    def extend(
        self,
        cache: Cache,
        embeds: Float[Array, 'B T D'],
        positions: Int[Array, '3 B T'],
        start: Int[Array, 'B'],
        lengths: Int[Array, 'B'],
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """Further chunks behind what the cache holds, see Decoder.extend."""
        return self.text.extend(cache, embeds, positions, start, lengths)
