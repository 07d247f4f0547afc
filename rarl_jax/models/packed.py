"""Attention over packed rows: a beginning that all segments of a row share, then the segments, one behind the other.

    segments    0 0 0 0 0 -1 | 1 1 1 1 2 2 2 3 3 3 3 3 0 0      -1 = room that the beginning leaves, 0 at the end = padding
    layout      prompt = 6   | reach = 5, the longest segment

A token sees the beginning, and its own segment up to itself. Where that is promised by a layout, no token looks anywhere else:

`attend_banded`      on XLA: a block of queries looks at the beginning and at the `reach` tokens before it. T (prompt + reach) scores, not T^2
`attend_unpacked`    for kernels that know causality and no masks: q, k and v are taken apart into one row a segment, and what comes out is packed
                     again. The beginning's attention is computed for every segment; all else of the layer is not
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BLOCK = 32  # queries that look at the same keys
UNSEEN = -1e30  # added to a score: finite, so that a query which sees nothing makes no NaN


@dataclass(frozen=True)
class RowLayout:
    """Where the segments of all rows of a batch lie. Static: few layouts mean few compilations."""

    prompt: int  # P, tokens that the shared beginning has room for; segments begin behind them
    reach: int  # tokens of the longest segment
    count: int  # G, segments of a row


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Segments:
    """Which conversation of its row a token belongs to."""

    numbers: Int[Array, 'B T']  # 0 = a beginning that all conversations of the row share
    # What is known of where they lie; None = nothing, they may even be interleaved.
    layout: RowLayout | None = field(default=None, metadata={'static': True})


def sees(query: Int[Array, '...'], key: Int[Array, '...']) -> Bool[Array, '...']:
    """Whether a token of one segment may look at one of another: its own, and the shared beginning."""
    return (query == key) | (key == 0)


def attend_banded(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    segments: Int[Array, 'B T'],
    layout: RowLayout,
) -> Float[Array, 'B T N H']:
    """softmax(q k' / sqrt(H)) v over what `segments` allows; scores and softmax in float32."""
    p = layout.prompt
    first = jax.nn.dot_product_attention(q[:, :p], k[:, :p], v[:, :p], is_causal=True, implementation='xla')
    padding = ((0, 0), (0, -(q.shape[1] - p) % BLOCK))
    own = [jnp.pad(x[:, p:], (*padding, (0, 0), (0, 0))) for x in (q, k, v)]
    numbers = jnp.pad(segments[:, p:], padding)
    rest = _attend_own(*own, numbers, k[:, :p], v[:, :p], segments[:, :p], -(-layout.reach // BLOCK))
    return jnp.concatenate([first, rest[:, : q.shape[1] - p]], axis=1)


def _attend_own(q, k, v, segments, first_k, first_v, first_segments, before):
    """Queries behind the beginning: each block sees the beginning, `before` blocks of keys before it, and itself."""
    (b, t, n, h), heads = q.shape, k.shape[2]
    blocks, group = t // BLOCK, n // heads
    # One axis for the queries of a key head in a block, as in cache.py: no product then needs its factors in another order.
    queries = q.reshape(b, blocks, BLOCK, heads, group, h).transpose(0, 3, 1, 4, 2, 5)
    queries = queries.reshape(b, heads, blocks, group * BLOCK, h)
    first_k, first_v = first_k.swapaxes(1, 2), first_v.swapaxes(1, 2)
    band_k, band_v = (_band(x.swapaxes(1, 2), before) for x in (k, v))
    wide = {'preferred_element_type': jnp.float32}
    to_first = jnp.einsum('bkqh,bkph->bkqp', queries.reshape(b, heads, -1, h), first_k, **wide) * h**-0.5
    to_first = to_first + jnp.where(first_segments == 0, 0, UNSEEN)[:, None, None]
    to_first = to_first.reshape(b, heads, blocks, group * BLOCK, -1)
    to_band = jnp.einsum('bkiqh,bkish->bkiqs', queries, band_k, **wide) * h**-0.5
    to_band = to_band.reshape(b, heads, blocks, group, BLOCK, -1) + _band_bias(segments, before)[:, None, :, None]
    to_band = to_band.reshape(b, heads, blocks, group * BLOCK, -1)
    # One softmax over both: they are never put side by side in memory.
    highest = jax.lax.stop_gradient(jnp.maximum(to_first.max(-1), to_band.max(-1)))[..., None]
    to_first, to_band = jnp.exp(to_first - highest), jnp.exp(to_band - highest)
    total = to_first.sum(-1) + to_band.sum(-1)
    from_first = jnp.einsum(
        'bkqp,bkph->bkqh', to_first.reshape(b, heads, -1, first_k.shape[2]).astype(v.dtype), first_v
    )
    from_band = jnp.einsum('bkiqs,bkish->bkiqh', to_band.astype(v.dtype), band_v)
    out = (from_first.reshape(from_band.shape) + from_band) / total[..., None]
    out = out.reshape(b, heads, blocks, group, BLOCK, h).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(b, t, n, h).astype(q.dtype)


def _band(x: Float[Array, 'B K T H'], before: int) -> Float[Array, 'B K I S H']:
    """For each block of tokens, those of the `before` blocks before it and its own."""
    b, heads, t, h = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, 0), (before * BLOCK, 0), (0, 0))).reshape(b, heads, -1, BLOCK, h)
    return jnp.concatenate([blocks[:, :, at : at + t // BLOCK] for at in range(before + 1)], axis=3)


def _band_bias(segments: Int[Array, 'B T'], before: int) -> Float[Array, 'B I Q S']:
    """What is added to a block's scores: 0 for keys of the query's own segment that do not come after it."""
    numbers = segments[:, None, :, None]
    keys = _band(numbers + 1, before)[:, 0, ..., 0] - 1  # what lies before the first block is of no segment: -1
    causal = np.arange(BLOCK)[:, None] + before * BLOCK >= np.arange((before + 1) * BLOCK)
    own = segments.reshape(len(segments), -1, BLOCK, 1) == keys[:, :, None]
    return jnp.where(own & causal, 0, UNSEEN)


def attend_unpacked(
    attend: Callable[..., Float[Array, 'E S N H']],
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    segments: Int[Array, 'B T'],
    layout: RowLayout,
) -> Float[Array, 'B T N H']:
    """The same by `attend(q, k, v)`, causal attention over rows of one conversation each, padded on the right.

    A row's place beyond its conversation holds whatever stands there: nothing looks at it, and nobody reads what comes out.
    """
    b, t = segments.shape
    row = jnp.arange(b)[:, None]
    shared = (segments[:, : layout.prompt] == 0).sum(-1)
    each = 1 + jnp.arange(layout.count)
    starts = jnp.argmax(segments[:, None] == each[:, None], axis=-1)  # [B G]; a segment without a token: 0
    place = jnp.arange(layout.prompt + layout.reach)
    own = place - shared[:, None, None]
    there = jnp.where(own < 0, place, jnp.minimum(starts[..., None] + own, t - 1)).reshape(b, -1)
    apart = (x[row, there].reshape(b * layout.count, -1, *x.shape[2:]) for x in (q, k, v))
    out = attend(*apart).reshape(b, -1, *q.shape[2:])
    # The beginning's from the first segment that is there.
    first = jnp.argmax(jnp.any(segments[:, None] == each[:, None], axis=-1), axis=-1)[:, None]
    number, at = jnp.where(segments > 0, segments - 1, first), jnp.arange(t)
    behind = at - jnp.take_along_axis(starts, number, axis=1) + shared[:, None]
    back = jnp.where(segments > 0, behind, jnp.minimum(at, len(place) - 1))
    return out[row, number * len(place) + back]
