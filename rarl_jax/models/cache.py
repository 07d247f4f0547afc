"""The KV cache, and attention over it through one seam, `attend_cached`: no kernel is handed a mask.

'xla'     keys [B K H S], values [B K S H]: the scores of a token are one batched product over memory in its order, which a CPU does near the
          rate at which it copies (5 times as fast as jax.nn.dot_product_attention with a mask)
'cudnn'   keys and values [B S K H], as the kernels take them, and lengths. A chunk of several tokens looks at the cache and at itself apart, and
          the two are joined by their log-sum-exp: cuDNN's causal rule is aligned to the top left
'fa3'     the same with FlashAttention-3 over the cache, see flash.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rarl_jax.models.flash import attend_lengths

AttentionKind = Literal['xla', 'cudnn', 'fa3']  # all but 'xla' want a GPU and bf16
LayerCache = tuple[Float[Array, 'B ...'], Float[Array, 'B ...']]  # rotated keys, values
Cache = tuple[LayerCache, ...]  # one per layer
Axes = tuple[tuple[str, ...], tuple[str, ...]]  # logical axes of keys and of values
AXES: dict[AttentionKind, Axes] = {
    'xla': (('batch', 'kv_heads', 'head', 'length'), ('batch', 'kv_heads', 'length', 'head')),
    'cudnn': (('batch', 'length', 'kv_heads', 'head'),) * 2,
    'fa3': (('batch', 'length', 'kv_heads', 'head'),) * 2,
}
OverCache = Callable[..., tuple[Array, Array | None]]  # as attend_by_lengths, but for its first argument
SCORES_AT_ONCE = 1 << 28  # scores that 'xla' holds: a chunk of more queries goes piece by piece


def empty_layer(kind: AttentionKind, sizes: dict[str, int], dtype: DTypeLike) -> LayerCache:
    """A layer's empty cache; `sizes` of the axes batch, length, kv_heads and head."""
    return tuple(jnp.zeros([sizes[axis] for axis in axes], dtype) for axes in AXES[kind])


def write(
    kind: AttentionKind,
    layer: LayerCache,
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    slots: Int[Array, 'B T'] | None,
) -> LayerCache:
    """The cache with a chunk in it: at `slots`, those beyond its end left out, or at its beginning if None."""
    rows = None if slots is None else jnp.arange(len(slots))[:, None]

    def put(old: Array, new: Float[Array, 'B T K H'], axes: tuple[str, ...]) -> Array:
        new, length = new.astype(old.dtype), axes.index('length')
        if slots is None:
            order = [('batch', 'length', 'kv_heads', 'head').index(axis) for axis in axes]
            return jax.lax.dynamic_update_slice_in_dim(old, new.transpose(order), 0, axis=length)
        # Indices of two axes with others between them: numpy's rule puts theirs first, so that `new` fits as it is.
        return old.at[(rows, *[slice(None)] * (length - 1), slots)].set(new, mode='drop')

    return tuple(put(old, new, axes) for old, new, axes in zip(layer, (k, v), AXES[kind], strict=True))


def attend_cached(
    kind: AttentionKind,
    q: Float[Array, 'B T N H'],
    layer: LayerCache,
    start: Int[Array, 'B'],
    chunk: LayerCache,
) -> Float[Array, 'B T N H']:
    """softmax(q k' / sqrt(H)) v over what a row's cache holds: query t sees the first start + t + 1 tokens. Scores and softmax in float32.

    Args:
        layer: the cache with the chunk written into it.
        start: tokens that it held before.
        chunk: the chunk's own keys and values [B T K H].
    """
    if kind != 'xla':
        layer = tuple(array.astype(q.dtype) for array in layer)
        over_cache = attend_lengths if kind == 'fa3' else partial(attend_by_lengths, 'cudnn')
        return attend_apart(q, layer, start, chunk, over_cache, 'cudnn')
    pieces = -(-q.shape[0] * q.shape[1] * q.shape[2] * layer[0].shape[-1] // SCORES_AT_ONCE)
    if pieces == 1:
        return _attend_transposed(q, layer, start)
    (b, t, n, h), width = q.shape, -(-q.shape[1] // pieces)
    parts = jnp.arange(0, t, width)
    cut = jnp.pad(q, [(0, 0), (0, len(parts) * width - t), (0, 0), (0, 0)]).reshape(b, -1, width, n, h)
    # A loop: written out, a long chunk's thousands of pieces would take a compiler half an hour.
    out = jax.lax.map(lambda piece: _attend_transposed(piece[0], layer, start + piece[1]), (cut.swapaxes(0, 1), parts))
    return out.swapaxes(0, 1).reshape(b, -1, n, h)[:, :t]


def _attend_transposed(
    q: Float[Array, 'B T N H'], layer: LayerCache, start: Int[Array, 'B']
) -> Float[Array, 'B T N H']:
    """Over keys [B K H S] and values [B K S H]."""
    keys, values = (array.astype(q.dtype) for array in layer)
    (b, t, n, h), (_, k, _, s) = q.shape, keys.shape
    # One axis for the queries of a key head, whichever head and token they are of: with two, XLA would copy the cache into another order at every step.
    queries = q.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4).reshape(b, k, -1, h)
    scores = jnp.einsum('bkqh,bkhs->bkqs', queries, keys, preferred_element_type=jnp.float32) * h**-0.5
    last = start[:, None] + jnp.tile(jnp.arange(t), n // k)  # what query q sees last
    weights = jax.nn.softmax(jnp.where(jnp.arange(s) <= last[:, None, :, None], scores, -jnp.inf), axis=-1)
    out = jnp.einsum('bkqs,bksh->bkqh', weights.astype(q.dtype), values)
    return out.reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4).reshape(q.shape)


def attend_by_lengths(
    implementation: Literal['xla', 'cudnn'],
    q: Float[Array, 'B T N H'],
    keys: Float[Array, 'B S K H'],
    values: Float[Array, 'B S K H'],
    lengths: Int[Array, 'B'],
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T N'] | None]:
    """What `flash.attend_lengths` does, by a kernel that comes with JAX; a single query, which is joined with nothing, has no log-sum-exp."""
    attend = partial(jax.nn.dot_product_attention, implementation=implementation, key_value_seq_lengths=lengths)
    if q.shape[1] == 1:
        return attend(q, keys, values), None
    return attend(q, keys, values, return_residual=True)


def attend_apart(
    q: Float[Array, 'B T N H'],
    layer: tuple[Float[Array, 'B S K H'], Float[Array, 'B S K H']],
    start: Int[Array, 'B'],
    chunk: LayerCache,
    over_cache: OverCache,
    implementation: Literal['xla', 'cudnn'],
) -> Float[Array, 'B T N H']:
    """`attend_cached` by kernels that return their log-sum-exp: `over_cache` knows lengths, `implementation` causality."""
    if q.shape[1] == 1:
        return over_cache(q, *layer, start + 1)[0]
    before, weight = over_cache(q, *layer, jnp.maximum(start, 1))
    weight = jnp.where(start[:, None, None] > 0, weight, -jnp.inf)
    attend = partial(jax.nn.dot_product_attention, implementation=implementation)
    within, other = attend(q, *chunk, is_causal=True, return_residual=True)
    share = jax.nn.sigmoid(other - weight)[..., None]  # of the chunk itself: exp(other) / (exp(weight) + exp(other))
    return (before * (1 - share) + within * share).astype(q.dtype)
