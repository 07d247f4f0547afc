"""The decoder: a full causal pass for training, and passes over an explicit key-value cache for sampling.

Both are the same layer function. `params` is the 'text' part of the params; its layers may be stacked [L, ...] or, after
`params.unstack`, a tuple of per-layer dicts, which is what decoding should be given.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from rarl_jax.models.layers import (
    Attention,
    Constrain,
    Remat,
    attend,
    dense,
    gated_mlp,
    rematerialised,
    rms_norm,
    rotate,
    unconstrained,
)
from rarl_jax.models.params import Params, unstack_layers
from rarl_jax.models.qwen2_5_vl.config import TextConfig

Rope = tuple[Float[Array, 'B T H/2'], Float[Array, 'B T H/2']]  # cos, sin
LayerCache = tuple[Float[Array, 'B S K H'], Float[Array, 'B S K H']]  # rotated keys, values
Cache = tuple[LayerCache, ...]  # one per layer
ACTIVATION = ('batch', 'length', 'embed')
CACHE = ('batch', 'length', 'kv_heads', 'head')


def embed_tokens(
    params: Params,
    ids: Int[Array, 'B T'],
    features: Float[Array, 'I M D'] | None,
    feature_index: Int[Array, 'B T'] | None,
    dtype: DTypeLike,
) -> Float[Array, 'B T D']:
    """Embeddings of text tokens, and image features where feature_index (into the flattened I * M) is not negative."""
    x = params['embed'][ids].astype(dtype)
    if features is None:
        return x
    rows = features.reshape(-1, features.shape[-1]).astype(dtype)
    return jnp.where(feature_index[..., None] >= 0, rows[jnp.maximum(feature_index, 0)], x)


def logits(params: Params, hidden: Float[Array, '... D']) -> Float[Array, '... V']:
    """float32 logits; the head is the embedding table where the weights are tied."""
    head = params['head'] if 'head' in params else params['embed']
    return jnp.einsum('...d,vd->...v', hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def rope(text: TextConfig, positions: Int[Array, '3 B T']) -> Rope:
    """cos and sin of M-RoPE (arXiv 2409.12191): each frequency turns with one of time, height, width, in three contiguous sections."""
    half = text.head_dim // 2
    frequencies = (1.0 / text.rope_theta ** (np.arange(half, dtype=np.float32) / half)).astype(np.float32)
    ends = np.cumsum(text.mrope_section)
    parts = [
        axis[..., None].astype(jnp.float32) * frequencies[end - size : end]
        for axis, size, end in zip(positions, text.mrope_section, ends, strict=True)
    ]
    angles = jnp.concatenate(parts, axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def forward(
    text: TextConfig,
    params: Params,
    embeds: Float[Array, 'B T D'],
    positions: Int[Array, '3 B T'],
    segments: Int[Array, 'B T'] | None,
    scan: bool,
    remat: Remat,
    attention: Attention,
    constrain: Constrain = unconstrained,
) -> Float[Array, 'B T D']:
    """The full causal pass, to the final norm.

    Args:
        segments: None = every row is one conversation, padded on the right (padding can't be seen from the left, so it needs no mask);
            else the conversation of each token: tokens see their own, and 0, a beginning that all conversations of the row share.
    """
    turn = rope(text, positions)
    mask = None if segments is None else _sees(segments[:, None, :, None], segments[:, None, None, :])

    def see(q, k, v):
        return attend(q, k, v, attention, mask=mask, causal=True), None

    step = rematerialised(lambda weights, x: constrain(_layer(text, weights, x, turn, see)[0], ACTIVATION), remat)
    x, layers = constrain(embeds, ACTIVATION), params['layers']
    if scan:
        x, _ = jax.lax.scan(lambda x, weights: (step(weights, x), None), x, layers)
    else:
        for weights in layers if isinstance(layers, tuple) else unstack_layers(layers):
            x = step(weights, x)
    return rms_norm(params['norm'], x, text.rms_norm_eps)


def _sees(own: Int[Array, 'B 1 T 1'], other: Int[Array, 'B 1 1 T']) -> Bool[Array, 'B 1 T T']:
    return (own == other) | (other == 0)


def init_cache(text: TextConfig, batch: int, length: int, dtype: DTypeLike) -> Cache:
    """An empty cache for `batch` rows of at most `length` tokens."""
    shape = (batch, length, text.num_kv_heads, text.head_dim)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(text.num_layers))


def prefill(
    text: TextConfig,
    params: Params,
    cache: Cache,
    embeds: Float[Array, 'B T D'],
    positions: Int[Array, '3 B T'],
    attention: Attention = 'xla',
) -> tuple[Float[Array, 'B T D'], Cache]:
    """The first chunk of every row, right-padded, into an empty cache: `extend` from 0, without looking at the empty slots.

    What padding leaves in the cache is never read (a row sees only its own length) and is written over by what is appended.
    """

    def see(layer_cache, q, k, v):
        filled = tuple(
            jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), 0, axis=1)
            for old, new in zip(layer_cache, (k, v), strict=True)
        )
        return attend(q, k, v, attention, causal=True), filled

    return _cached_layers(text, params, cache, embeds, positions, see)


def extend(
    text: TextConfig,
    params: Params,
    cache: Cache,
    embeds: Float[Array, 'B T D'],
    positions: Int[Array, '3 B T'],
    start: Int[Array, 'B'],
    lengths: Int[Array, 'B'],
    attention: Attention = 'xla',
) -> tuple[Float[Array, 'B T D'], Cache]:
    """Appends a right-padded chunk to each row at its own length; a decode step is T = 1.

    Args:
        start: tokens that the row's cache holds.
        lengths: tokens of the chunk that count, 0 leaves the row as it is. Nothing is written past the cache's end: keep start + lengths <= S.
    """
    t, s = embeds.shape[1], cache[0][0].shape[1]
    place = start[:, None] + jnp.arange(t)
    slots = jnp.where(jnp.arange(t) < lengths[:, None], place, s)  # slot S does not exist: dropped
    mask = (jnp.arange(s) <= place[:, :, None])[:, None]

    def see(layer_cache, q, k, v):
        filled = tuple(_write(old, slots, new) for old, new in zip(layer_cache, (k, v), strict=True))
        return attend(q, *(array.astype(q.dtype) for array in filled), attention, mask=mask), filled

    return _cached_layers(text, params, cache, embeds, positions, see)


def _write(
    old: Float[Array, 'B S K H'], slots: Int[Array, 'B T'], new: Float[Array, 'B T K H']
) -> Float[Array, 'B S K H']:
    rows = jnp.arange(len(old))[:, None]
    return old.at[rows, slots].set(new.astype(old.dtype), mode='drop')


def _cached_layers(
    text: TextConfig, params: Params, cache: Cache, embeds: Array, positions: Array, see: Callable
) -> tuple[Float[Array, 'B T D'], Cache]:
    """All layers, each with its own cache as the first argument of `see`."""
    turn, x, filled = rope(text, positions), embeds, []
    layers = params['layers'] if isinstance(params['layers'], tuple) else unstack_layers(params['layers'])
    for weights, layer_cache in zip(layers, cache, strict=True):
        x, layer_cache = _layer(text, weights, x, turn, partial(see, layer_cache))
        filled.append(layer_cache)
    return rms_norm(params['norm'], x, text.rms_norm_eps), tuple(filled)


def _layer(
    text: TextConfig, weights: Params, x: Float[Array, 'B T D'], turn: Rope, see: Callable
) -> tuple[Float[Array, 'B T D'], LayerCache | None]:
    """One decoder layer. `see(q, k, v)` is its attention, over the chunk itself or over a cache: what was seen, and the filled cache."""
    b, t, _ = x.shape
    y = rms_norm(weights['input_norm'], x, text.rms_norm_eps)
    q = dense(weights['q'], y).reshape(b, t, text.num_heads, text.head_dim)
    k = dense(weights['k'], y).reshape(b, t, text.num_kv_heads, text.head_dim)
    v = dense(weights['v'], y).reshape(b, t, text.num_kv_heads, text.head_dim)
    seen, filled = see(rotate(q, *turn), rotate(k, *turn), v)
    x = x + dense(weights['o'], seen.reshape(b, t, -1))
    return x + gated_mlp(weights, rms_norm(weights['post_norm'], x, text.rms_norm_eps)), filled
