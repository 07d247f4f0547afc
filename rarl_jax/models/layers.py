"""The few operations that both towers are built of, as pure functions of a weight dict and an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from rarl_jax.models.params import Params

Attention = Literal['xla', 'cudnn']  # jax.nn.dot_product_attention's implementation; 'cudnn' wants a GPU and bf16
Remat = Literal[
    'none', 'attention', 'full'
]  # what the backward pass recomputes of a layer: nothing, all but q, k, v and attention's output, all
Constrain = Callable[
    [Array, tuple[str, ...]], Array
]  # (activation, logical axes) -> the same with a sharding constraint
SAVED = ('query', 'key', 'value', 'attended')
SCORES_AT_ONCE = 1 << 30  # attention scores that 'xla' holds, over all devices; cudnn holds none


def unconstrained(x: Array, axes: tuple[str, ...]) -> Array:
    """The Constrain of a single device."""
    del axes
    return x


def dense(weights: Params, x: Float[Array, '... D']) -> Float[Array, '... F']:
    """x w + b in x's dtype; with low-rank factors in the dict (lora.py), x w + b + (x a) b'."""
    y = x @ weights['w'].astype(x.dtype)
    if 'b' in weights:
        y = y + weights['b'].astype(x.dtype)
    if 'lora_a' in weights:
        y = y + (x @ weights['lora_a'].astype(x.dtype)) @ weights['lora_b'].astype(x.dtype)
    return y


def rms_norm(weight: Float[Array, 'D'], x: Float[Array, '... D'], eps: float) -> Float[Array, '... D']:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467), the statistics in float32."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight.astype(x.dtype)


def gated_mlp(weights: Params, x: Float[Array, '... D']) -> Float[Array, '... D']:
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202)."""
    return dense(weights['down'], jax.nn.silu(dense(weights['gate'], x)) * dense(weights['up'], x))


def rotate(
    x: Float[Array, '... N H'], cos: Float[Array, '... H/2'], sin: Float[Array, '... H/2']
) -> Float[Array, '... N H']:
    """Rotary embedding (arXiv 2104.09864) of the pairs (i, i + H/2), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    implementation: Attention,
    mask: Bool[Array, 'B 1 T S'] | None = None,
    causal: bool = False,
    key_lengths: Int[Array, 'B'] | None = None,
) -> Float[Array, 'B T N H']:
    """softmax(q k' / sqrt(H)) v with grouped heads, scores and softmax in float32."""
    q, k, v = (checkpoint_name(x, name) for x, name in zip((q, k, v), SAVED, strict=False))
    rows_at_once = SCORES_AT_ONCE // (q.shape[0] * q.shape[2] * k.shape[1])
    if implementation == 'xla' and rows_at_once < q.shape[1]:
        out = attend_in_blocks(q, k, v, mask, causal, key_lengths, max(rows_at_once, 1))
    else:
        out = jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=key_lengths, implementation=implementation
        )
    return checkpoint_name(out, SAVED[3])


def attend_in_blocks(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    mask: Bool[Array, 'B 1 T S'] | None,
    causal: bool,
    key_lengths: Int[Array, 'B'] | None,
    size: int,
) -> Float[Array, 'B T N H']:
    """Attention, `size` queries at a time and their scores recomputed in the backward pass: those of a long row would fill any memory."""
    t, s = q.shape[1], k.shape[1]
    padding = -t % size
    starts = jnp.arange(0, t + padding, size)
    blocks = jnp.moveaxis(_pad_queries(q, 1, padding).reshape(len(q), -1, size, *q.shape[2:]), 1, 0)
    masks = (
        None if mask is None else jnp.moveaxis(_pad_queries(mask, 2, padding).reshape(len(mask), 1, -1, size, s), 2, 0)
    )

    def one(block):
        start, queries, seen = block
        if causal:
            earlier = (jnp.arange(s) <= start + jnp.arange(size)[:, None])[None, None]
            seen = earlier if seen is None else seen & earlier
        return jax.nn.dot_product_attention(
            queries, k, v, mask=seen, key_value_seq_lengths=key_lengths, implementation='xla'
        )

    out = jax.lax.map(jax.checkpoint(one), (starts, blocks, masks))
    return jnp.moveaxis(out, 0, 1).reshape(len(q), t + padding, *q.shape[2:])[:, :t]


def _pad_queries(x: Array, axis: int, padding: int) -> Array:
    return jnp.pad(x, [(0, padding if each == axis else 0) for each in range(x.ndim)])


def rematerialised(layer: Callable, remat: Remat) -> Callable:
    """`layer` so that its backward pass recomputes what `remat` says."""
    if remat == 'none':
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED) if remat == 'attention' else None
    return jax.checkpoint(layer, policy=policy)


@jax.custom_vjp
def move_rows(x: Float[Array, 'R D'], there: Int[Array, 'Q'], back: Int[Array, 'R']) -> Float[Array, 'Q D']:
    """y[q] = x[there[q]], and zero where there[q] is R or more. No row of x is read twice, `back` is the inverse of `there`
    (Q or more where a row is not read), so that the gradient is a gather too: a scatter is slow on every device."""
    del back
    return x.at[there].get(mode='fill', fill_value=0)


def _move_rows_forward(x, there, back):
    return move_rows(x, there, back), back


def _move_rows_backward(back, gradient):
    return gradient.at[back].get(mode='fill', fill_value=0), None, None


move_rows.defvjp(_move_rows_forward, _move_rows_backward)
