"""The decoder of every family: a full causal pass for training, and passes over an explicit key-value cache for sampling.

Where families differ, their TextConfig says how.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Float, Int

from rarl_jax.models.cache import AttentionKind, Cache, LayerCache, attend_cached, write
from rarl_jax.models.config import TextConfig
from rarl_jax.models.layers import (
    Constrain,
    Dense,
    GatedMlp,
    Remat,
    RMSNorm,
    Run,
    attend,
    maps_of_one_input,
    rotate,
    run_layers,
    unconstrained,
    unrolled,
)
from rarl_jax.models.packed import Segments

Rope = tuple[Float[Array, 'B T H/2'], Float[Array, 'B T H/2']]  # cos, sin
Added = tuple[Float[Array, 'B T D'], ...]  # to the hidden states behind layers 0, 1, ... (DeepStack, arXiv 2406.04334)
ACTIVATION = ('batch', 'length', 'embed')
NO_SLOT = np.iinfo(np.int32).max  # in no cache: what is written there is dropped


def rope(text: TextConfig, positions: Int[Array, '3 B T']) -> Rope:
    """cos and sin of M-RoPE (arXiv 2409.12191): each frequency turns with one of time, height, width."""
    half = text.head_dim // 2
    frequencies = (1.0 / text.rope_theta ** (np.arange(half, dtype=np.float32) / half)).astype(np.float32)
    angles = jnp.moveaxis(positions.astype(jnp.float32)[text.mrope_axes], 0, -1) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def features_at(
    features: Float[Array, 'I M D'], feature_index: Int[Array, 'B T'], elsewhere: Float[Array, 'B T D'] | float
) -> Float[Array, 'B T D']:
    """The rows of the flattened [I * M] features that feature_index names; `elsewhere` where it is negative."""
    rows = features.reshape(-1, features.shape[-1])
    return jnp.where(feature_index[..., None] >= 0, rows[jnp.maximum(feature_index, 0)], elsewhere)


def add_behind(added: Added, index: int | Int[Array, ''], x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """x, and what is added behind the layer of that number, if anything is."""
    if isinstance(index, int):
        return x + added[index] if index < len(added) else x
    more = jnp.stack(added)[jnp.minimum(index, len(added) - 1)]
    return x + jnp.where(index < len(added), more, 0)


class Seen(NamedTuple):
    """What the queries of a chunk see."""

    # Of each token; None = all that causality allows is seen.
    segments: Segments | None = None
    # Tokens that the cache holds before the chunk; None = it is empty.
    start: Int[Array, 'B'] | None = None
    # Where the chunk goes in the cache; None = at its beginning.
    slots: Int[Array, 'B T'] | None = None


class Attention(nn.Module):
    """Grouped-query attention with M-RoPE, over the chunk itself or over a cache that the chunk is written into first."""

    text: TextConfig
    dense: partial[Dense]
    implementation: AttentionKind

    @nn.compact
    def __call__(
        self, x: Float[Array, 'B T D'], turn: Rope, seen: Seen, cache: LayerCache | None
    ) -> tuple[Float[Array, 'B T D'], LayerCache | None]:
        text, (b, t, _) = self.text, x.shape

        sizes = [
            ('q', text.num_heads, 'heads'),
            ('k', text.num_kv_heads, 'kv_heads'),
            ('v', text.num_kv_heads, 'kv_heads'),
        ]
        maps = [(name, heads * text.head_dim, ('embed', axis)) for name, heads, axis in sizes]
        q, k, v = (
            y.reshape(b, t, -1, text.head_dim)
            for y in maps_of_one_input(self, partial(self.dense, bias=text.qkv_bias), x, maps)
        )
        if text.qk_norm:
            norm = partial(RMSNorm, text.rms_norm_eps, self.dense.keywords['param_dtype'])
            q, k = norm(name='q_norm')(q), norm(name='k_norm')(k)
        q, k = rotate(q, *turn), rotate(k, *turn)
        if cache is not None:
            cache = write(self.implementation, cache, k, v, seen.slots)
        if seen.start is None:
            out = attend(q, k, v, self.implementation, causal=True, segments=seen.segments)
        else:
            out = attend_cached(self.implementation, q, cache, seen.start, (k, v))
        return self.dense(text.hidden_size, ('heads', 'embed'), name='o')(out.reshape(b, t, -1)), cache


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    text: TextConfig
    init_scale: float
    param_dtype: Dtype
    implementation: AttentionKind

    def setup(self):
        dense = partial(Dense, init_scale=self.init_scale, param_dtype=self.param_dtype)
        self.input_norm = RMSNorm(self.text.rms_norm_eps, self.param_dtype)
        self.attention = Attention(self.text, dense, self.implementation)
        self.post_norm = RMSNorm(self.text.rms_norm_eps, self.param_dtype)
        self.mlp = GatedMlp(self.text.intermediate_size, ('embed', 'mlp'), dense)

    def __call__(
        self, x: Float[Array, 'B T D'], turn: Rope, seen: Seen, cache: LayerCache | None = None
    ) -> tuple[Float[Array, 'B T D'], LayerCache | None]:
        out, cache = self.attention(self.input_norm(x), turn, seen, cache)
        x = x + out
        return x + self.mlp(self.post_norm(x)), cache


class Decoder(nn.Module):
    """Embeddings, layers, the final norm, and the head, which is the embedding table where the weights are tied."""

    text: TextConfig
    init_scale: float
    dtype: Dtype
    param_dtype: Dtype
    scan: bool
    remat: Remat
    implementation: AttentionKind
    constrain: Constrain = unconstrained

    def setup(self):
        table = nn.with_logical_partitioning(nn.initializers.normal(self.init_scale), ('vocab', 'embed'))
        shape = (self.text.vocab_size, self.text.hidden_size)
        self.table = self.param('embed', table, shape, self.param_dtype)
        self.layers = DecoderLayer(self.text, self.init_scale, self.param_dtype, self.implementation)
        self.norm = RMSNorm(self.text.rms_norm_eps, self.param_dtype)
        self.head = self.table if self.text.tie_word_embeddings else self.param('head', table, shape, self.param_dtype)

    def embed(
        self,
        ids: Int[Array, 'B T'],
        features: Float[Array, 'I M D'] | None,
        feature_index: Int[Array, 'B T'] | None,
    ) -> Float[Array, 'B T D']:
        """Embeddings of text tokens, and image features where feature_index (into the flattened I * M) is not negative."""
        x = self.table[ids].astype(self.dtype)
        if features is None:
            return x
        return features_at(features.astype(self.dtype), feature_index, x)

    def logits(self, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
        """In float32."""
        head = self.head.astype(hidden.dtype)
        return jnp.einsum('...d,vd->...v', hidden, head, preferred_element_type=jnp.float32)

    def __call__(
        self,
        embeds: Float[Array, 'B T D'],
        positions: Int[Array, '3 B T'],
        segments: Segments | None = None,
        added: Added = (),
    ) -> Float[Array, 'B T D']:
        """The full causal pass, to the final norm.

        Args:
            segments: None = every row is one conversation, padded on the right (padding can't be seen from the left, so it needs no mask);
                else the conversation of each token: tokens see their own, and 0, a beginning that all conversations of the row share.
        """
        turn = rope(self.text, positions)
        seen = Seen(segments)

        def call(layer, x):
            return self.constrain(layer(x, turn, seen)[0], ACTIVATION)

        def call_and_add(layer, state):
            x, index = state
            return add_behind(added, index, call(layer, x)), index + 1

        x, layers = self.constrain(embeds, ACTIVATION), self.text.num_layers
        if added:  # one run for all layers: every further one would cut a copy of its weights out of the stack
            x, _ = run_layers(self.layers, [Run(0, layers, call_and_add)], (x, 0), self.scan, self.remat)[-1]
        else:
            x = run_layers(self.layers, [Run(0, layers, call)], x, self.scan, self.remat)[-1]
        return self.norm(x)

    def prefill(
        self, cache: Cache, embeds: Float[Array, 'B T D'], positions: Int[Array, '3 B T'], added: Added = ()
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """The first chunk of every row, right-padded, into an empty cache: `extend` from 0, without looking at the empty slots.

        What padding leaves in the cache is never read (a row sees only its own length) and is written over by what is appended.
        """
        return self._over_cache(cache, embeds, positions, Seen(), added)

    def extend(
        self,
        cache: Cache,
        embeds: Float[Array, 'B T D'],
        positions: Int[Array, '3 B T'],
        start: Int[Array, 'B'],
        lengths: Int[Array, 'B'],
        added: Added = (),
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """Appends a right-padded chunk to each row at its own length; a decode step is T = 1.

        Args:
            start: tokens that the row's cache holds.
            lengths: tokens of the chunk that count, 0 leaves the row as it is. Nothing is written past the cache's end: keep start + lengths <= S.
        """
        chunk = jnp.arange(embeds.shape[1])
        slots = jnp.where(chunk < lengths[:, None], start[:, None] + chunk, NO_SLOT)
        return self._over_cache(cache, embeds, positions, Seen(start=start, slots=slots), added)

    def _over_cache(
        self, cache: Cache, embeds: Float[Array, 'B T D'], positions: Int[Array, '3 B T'], seen: Seen, added: Added
    ) -> tuple[Float[Array, 'B T D'], Cache]:
        """All layers, each with its own cache."""
        turn = rope(self.text, positions)

        def call(index, layer, state):
            x, filled = state
            x, layer_cache = layer(x, turn, seen, cache[index])
            x = add_behind(added, index, x)
            return x, (*filled, layer_cache)

        calls = [partial(call, index) for index in range(self.text.num_layers)]
        x, filled = unrolled(self.layers, calls, (embeds, ()))[-1]
        return self.norm(x), filled
