"""What the towers of every family are built of: linear maps, norms, attention, and stacks of layers.

A stack of L layers is one module of a layer's class whose params are those of all: stacked [L, ...], as training and checkpoints keep them, or
apart, {'0': ..., '1': ...} (`params.unstack`), as decoding wants them, which would otherwise slice every weight at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from rarl_jax.models.cache import AttentionKind
from rarl_jax.models.packed import Segments, attend_banded, attend_unpacked, sees
from rarl_jax.models.params import LAYERS, Params, joined_name, unstack_layers

# What the backward pass recomputes of a layer: nothing, all but q, k, v and attention's output, all.
Remat = Literal['none', 'attention', 'full']
# (activation, logical axes) -> the same with a sharding constraint.
Constrain = Callable[[Array, tuple[str, ...]], Array]
SAVED = ('query', 'key', 'value', 'attended')
SCORES_AT_ONCE = 1 << 30  # attention scores that 'xla' holds, over all devices; cudnn holds none


def unconstrained(x: Array, axes: tuple[str, ...]) -> Array:
    """The Constrain of a single device."""
    del axes
    return x


# ---------------------------------------------------------------- linear maps and norms


class Dense(nn.Module):
    """x w + b in x's dtype; with low-rank factors among its params (lora.py), x w + b + (x a) b'. `axes`: logical names of input and output."""

    features: int
    axes: tuple[str, str]
    # Standard deviation of fresh weights.
    init_scale: float
    bias: bool = False
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... F']:
        start = nn.with_logical_partitioning(nn.initializers.normal(self.init_scale), self.axes)
        y = x @ self.param('w', start, (x.shape[-1], self.features), self.param_dtype).astype(x.dtype)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            y = y + self.param('b', zeros, (self.features,), self.param_dtype).astype(x.dtype)
        if self.has_variable('params', 'lora_a'):
            a, b = (self.get_variable('params', name).astype(x.dtype) for name in ('lora_a', 'lora_b'))
            y = y + (x @ a) @ b
        return y


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale (arXiv 1910.07467), the statistics in float32."""

    eps: float
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        ones = nn.with_logical_partitioning(nn.initializers.ones, ('norm',))
        weight = self.param('scale', ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(x.dtype) * weight.astype(x.dtype)


def maps_of_one_input(
    owner: nn.Module,
    dense: Callable[..., Dense],
    x: Float[Array, '... D'],
    maps: Sequence[tuple[str, int, tuple[str, str]]],
) -> list[Float[Array, '... F']]:
    """What linear maps make of x, each of `maps` being name, width and axes: by a single product where the owner's params hold them as one matrix
    (`params.join_maps`)."""
    joined = joined_name([name for name, _, _ in maps])
    if not owner.has_variable('params', joined):
        return [dense(width, axes, name=name)(x) for name, width, axes in maps]
    widths = [width for _, width, _ in maps]
    y = dense(sum(widths), maps[0][2], name=joined)(x)
    return jnp.split(y, np.cumsum(widths)[:-1], axis=-1)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202). `axes`: logical names of the outer and the inner width."""

    # Of what is inside.
    width: int
    axes: tuple[str, str]
    # Dense with what all maps of a tower share.
    dense: Callable[..., Dense]

    @nn.compact
    def __call__(self, x: Float[Array, '... D']) -> Float[Array, '... D']:
        gate, up = maps_of_one_input(
            self, self.dense, x, [('gate', self.width, self.axes), ('up', self.width, self.axes)]
        )
        return self.dense(x.shape[-1], self.axes[::-1], name='down')(jax.nn.silu(gate) * up)


# ---------------------------------------------------------------- stacks of layers

Call = Callable[[nn.Module, Any], Any]  # (a layer, what goes through it) -> the same, changed


class Run(NamedTuple):
    """Layers [start, end) of a stack, and what each of them does."""

    start: int
    end: int
    call: Call


def run_layers(stack: nn.Module, runs: Sequence[Run], x: Any, scan: bool, remat: Remat) -> list[Any]:
    """x through all layers of a stack, one run of them after the other. Returns what it is behind each run.

    Args:
        stack: a module of one layer's class, whose params are those of all.
        scan: True = a run is one compiled layer, looped over, and the params are stacked; False = layer by layer.
    """
    if stack.is_initializing():  # makes the params of all layers: which call is made does not matter
        return [_scanned(Run(0, runs[-1].end, runs[0].call), remat)(stack, x)] * len(runs)
    if not scan:
        calls = [rematerialised(run.call, remat) for run in runs for _ in range(run.start, run.end)]
        behind = unrolled(stack, calls, x)
        return [behind[run.end - 1] for run in runs]
    behind = []
    for run in runs:
        cut = partial(jax.tree.map, lambda stacked, run=run: stacked[run.start : run.end])
        x = nn.map_variables(_scanned(run, remat), 'params', trans_in_fn=cut)(stack, x)
        behind.append(x)
    return behind


def unrolled(stack: nn.Module, calls: Sequence[Call], x: Any) -> list[Any]:
    """What x is behind each layer of a stack, by a call each. Stacked params are taken apart once: the gradient is one concatenation a weight."""

    def all_layers(stack, x):
        behind = []
        for index, call in enumerate(calls):
            x = nn.map_variables(call, 'params', trans_in_fn=partial(_layer, index))(stack, x)
            behind.append(x)
        return behind

    return nn.map_variables(all_layers, 'params', trans_in_fn=_apart)(stack, x)


def _scanned(run: Run, remat: Remat) -> Call:
    step = rematerialised(run.call, remat)
    loop = nn.scan(
        lambda layer, x, _: (step(layer, x), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=run.end - run.start,
        metadata_params={nn.PARTITION_NAME: LAYERS},
    )
    return lambda stack, x: loop(stack, x, None)[0]


def _apart(variables: Params) -> Params:
    params = variables['params']
    return variables if '0' in params else {'params': unstack_layers(params)}


def _layer(index: int, variables: Params) -> Params:
    return {'params': variables['params'][str(index)]}


def rematerialised(call: Call, remat: Remat) -> Call:
    """`call` so that its backward pass recomputes what `remat` says."""
    if remat == 'none':
        return call
    policy = jax.checkpoint_policies.save_only_these_names(*SAVED) if remat == 'attention' else None
    return nn.remat(call, policy=policy)


# ---------------------------------------------------------------- attention


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
    implementation: AttentionKind,
    causal: bool = False,
    key_lengths: Int[Array, 'B'] | None = None,
    segments: Segments | None = None,
) -> Float[Array, 'B T N H']:
    """softmax(q k' / sqrt(H)) v with grouped heads, scores and softmax in float32; `segments` go with causality alone.

    'fa3' is a kernel over the cache: here it is cuDNN's.
    """
    implementation = 'cudnn' if implementation == 'fa3' else implementation
    q, k, v = (checkpoint_name(x, name) for x, name in zip((q, k, v), SAVED, strict=False))
    layout = None if segments is None else segments.layout
    width = k.shape[1] if layout is None else layout.prompt + layout.reach
    queries_at_once = SCORES_AT_ONCE // (q.shape[0] * q.shape[2] * width)
    if implementation == 'xla' and queries_at_once < q.shape[1]:
        out = attend_in_blocks(q, k, v, causal, key_lengths, segments, max(queries_at_once, 1))
    elif layout is None:
        out = attend_at_once(q, k, v, implementation, causal, key_lengths, segments)
    elif implementation == 'xla':
        out = attend_banded(q, k, v, segments.numbers, layout)
    else:
        alone = partial(jax.nn.dot_product_attention, is_causal=True, implementation=implementation)
        out = attend_unpacked(alone, q, k, v, segments.numbers, layout)
    return checkpoint_name(out, SAVED[3])


def attend_at_once(q, k, v, implementation, causal, key_lengths, segments) -> Float[Array, 'B T N H']:
    """Attention whose scores may all exist at a time; segments become a mask."""
    mask = None
    if segments is not None:
        mask = sees(segments.numbers[:, None, :, None], segments.numbers[:, None, None, :])
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=key_lengths, implementation=implementation
    )


def attend_in_blocks(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    causal: bool,
    key_lengths: Int[Array, 'B'] | None,
    segments: Segments | None,
    size: int,
) -> Float[Array, 'B T N H']:
    """Attention, `size` queries at a time and their scores recomputed in the backward pass: those of a long row would fill any memory."""
    t, s = q.shape[1], k.shape[1]
    padding = -t % size
    starts = jnp.arange(0, t + padding, size)

    def cut(x: Array) -> Float[Array, 'blocks B size ...']:
        x = jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    def one(block):
        start, queries, numbers = block
        seen = None
        if causal:
            seen = (jnp.arange(s) <= start + jnp.arange(size)[:, None])[None, None]
        if numbers is not None:
            seen &= sees(numbers[:, None, :, None], segments.numbers[:, None, None, :])
        return jax.nn.dot_product_attention(
            queries, k, v, mask=seen, key_value_seq_lengths=key_lengths, implementation='xla'
        )

    numbers = None if segments is None else cut(segments.numbers)
    out = jax.lax.map(jax.checkpoint(one), (starts, cut(q), numbers))
    return jnp.moveaxis(out, 0, 1).reshape(len(q), t + padding, *q.shape[2:])[:, :t]


# ---------------------------------------------------------------- moving rows


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
