"""The compiled programs of a rollout. Rows are conversations; the cache is an argument and a result, and donated where it is replaced.

In the middle of a turn the newest token of a row is `pending`: chosen, but not yet in the cache. A decode step puts it there and
chooses the next one, so a turn's last token costs no step of its own: it goes into the cache with the observation that follows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from rarl_jax.models.cache import Axes
from rarl_jax.models.interface import Cache, Features, LayerCache, Model
from rarl_jax.models.params import Params
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.runtime.sharding import ACTIVATION_RULES, spec
from rarl_jax.sampler.choice import SamplingMethod, choose, uniforms


@dataclass(frozen=True)
class Program:
    """What the programs are specialised on."""

    model: Model
    method: SamplingMethod
    stop_ids: tuple[int, ...]  # tokens that end a turn
    segment: int  # decode steps of one call
    early_exit: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn; arrays, so that they can change without compiling again."""

    keys: Key[Array, 'B']  # of the rows
    banned: Bool[Array, 'V']  # never chosen
    temperature: Float[Array, '']
    top_p: Float[Array, '']


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunk:
    """Tokens that are appended to every row at once, right-padded."""

    ids: Int[Array, 'B T']
    positions: Int[Array, '3 B T']
    feature_index: Int[Array, 'B T']  # row of the flattened features; -1 = a text token
    start: Int[Array, 'B']  # tokens that the row's cache holds
    lengths: Int[Array, 'B']  # tokens of the chunk that count; 0 leaves the row alone


class DecodeState(NamedTuple):
    """What a segment of decoding carries from step to step."""

    step: Int[Array, '']
    cache: Cache
    pending: Int[Array, 'B']  # newest token of each row
    left: Int[Array, 'B']  # tokens that it may still choose; 0 = it rests
    ids: Int[Array, 'N B']  # chosen so far; -1 where a row rested
    logprobs: Float[Array, 'N B']


@partial(jax.jit, static_argnums=0)
def encode_images(model: Model, params: Params, images: VisionBatch) -> Features:
    return model.apply({'params': params}, images, method='encode_images')


@partial(jax.jit, static_argnums=0)
def prefill(model: Model, params: Params, features: Features, chunk: Chunk) -> tuple[Array, Cache]:
    """Prompts into a cache of their own padded length; the hidden state of each prompt's last token [B D]."""
    apply = partial(model.apply, {'params': params})
    embeds = apply(chunk.ids, features, chunk.feature_index, method='embed')
    hidden, cache = apply(model.init_cache(*chunk.ids.shape), embeds, chunk.positions, method='prefill')
    return _last(hidden, chunk.lengths), pinned(model, cache)


def pinned(model: Model, cache: Cache) -> Cache:
    """The cache where the mesh wants it: rows over data and fsdp, heads over tensor."""
    return tuple(jax.tree.map(model.constrain, layer, model.cache_axes) for layer in cache)


def take_rows(model: Model, layers: list[LayerCache], rows: Int[Array, 'C'], length: int, mesh: Mesh) -> Cache:
    """The cache's `rows`, in a cache of `length` tokens: forks a prompt to its group, leaves finished rows out, or makes room.

    Empties `layers` one by one as they are copied, so that never more than one layer exists twice.
    """
    taken = []
    while layers:
        layer = layers.pop(0)
        shardings = jax.tree.map(lambda x, axes: _taken(x, axes, len(rows), length, mesh), layer, model.cache_axes)
        taken.append(_taker(shardings, model.cache_axes)(layer, rows, length))
    return tuple(taken)


def _taken(array: Array, axes: tuple[str, ...], rows: int, length: int, mesh: Mesh) -> NamedSharding:
    sizes = {'batch': rows, 'length': length}
    return cache_sharding(
        tuple(sizes.get(axis, size) for axis, size in zip(axes, array.shape, strict=True)), axes, mesh
    )


def cache_sharding(shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> NamedSharding:
    """Of a cache's keys or values with these logical axes."""
    return NamedSharding(mesh, spec(shape, axes, mesh, ACTIVATION_RULES))


@functools.cache
def _taker(shardings: LayerCache, axes: Axes) -> Callable[[LayerCache, Array, int], LayerCache]:
    """Leaves its results at `shardings`, which are spelled out: an equal but shorter spec would compile the programs that follow once more."""

    def take(layer, rows, length):
        def fit(x, names):
            x, axis = x[rows], names.index('length')
            x = jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
            return jnp.pad(x, [(0, length - x.shape[axis] if each == axis else 0) for each in range(x.ndim)])

        return jax.tree.map(fit, layer, axes)

    return jax.jit(take, static_argnums=2, out_shardings=shardings)


@partial(jax.jit, static_argnums=0)
def first_tokens(
    program: Program,
    params: Params,
    hidden: Float[Array, 'Q D'],
    rows: Int[Array, 'B'],
    lengths: Int[Array, 'B'],
    sampling: SamplingParams,
) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """The first token of each row after its prompt, and its log-prob; `rows` says whose prompt, `lengths` its tokens."""
    return _choose(program, params, hidden[rows], uniforms(sampling.keys, lengths, 1)[0], sampling)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def append(
    program: Program,
    params: Params,
    cache: Cache,
    features: Features,
    chunk: Chunk,
    sampling: SamplingParams,
) -> tuple[Int[Array, 'B'], Float[Array, 'B'], Cache]:
    """Puts observations into the cache and chooses the first token of each row's next turn."""
    apply = partial(program.model.apply, {'params': params})
    embeds = apply(chunk.ids, features, chunk.feature_index, method='embed')
    hidden, cache = apply(cache, embeds, chunk.positions, chunk.start, chunk.lengths, method='extend')
    uniform = uniforms(sampling.keys, chunk.start + chunk.lengths, 1)[0]
    return *_choose(program, params, _last(hidden, chunk.lengths), uniform, sampling), pinned(program.model, cache)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    program: Program,
    params: Params,
    cache: Cache,
    pending: Int[Array, 'B'],
    positions: Int[Array, 'B'],
    start: Int[Array, 'B'],
    left: Int[Array, 'B'],
    sampling: SamplingParams,
) -> tuple[Int[Array, 'N B'], Float[Array, 'N B'], Cache]:
    """Up to `segment` tokens for every row.

    Args:
        pending: newest token of each row, and `positions` its position on all three axes.
        start: tokens that the cache holds, the pending one not among them.
        left: tokens that the row may still choose; 0 = it rests.
    Returns: chosen ids (-1 where a row had stopped), their log-probs, the cache.
    """
    uniform = uniforms(sampling.keys, start + 1, program.segment)
    ids = jnp.full((program.segment, len(pending)), -1, jnp.int32)
    logprobs = jnp.zeros(ids.shape, jnp.float32)

    def step(state):
        t, cache, pending, left, ids, logprobs = state
        active = left > 0
        hidden, cache = _decode_step(program.model, params, cache, pending, positions + t, start + t, active)
        chosen, logprob = _choose(program, params, hidden, uniform[t], sampling)
        ids = ids.at[t].set(jnp.where(active, chosen, -1))
        logprobs = logprobs.at[t].set(jnp.where(active, logprob, 0))
        stopped = jnp.isin(chosen, jnp.array(program.stop_ids))
        left = jnp.where(active & ~stopped, left - 1, 0)
        return DecodeState(t + 1, cache, jnp.where(active, chosen, pending), left, ids, logprobs)

    def goes_on(state):
        return (state.step < program.segment) & ((state.left > 0).any() | (not program.early_exit))

    state = jax.lax.while_loop(goes_on, step, DecodeState(0, cache, pending, left, ids, logprobs))
    return state.ids, state.logprobs, pinned(program.model, state.cache)


def _decode_step(model, params, cache, pending, positions, start, active):
    """One token a row into the cache; its hidden state [B D]."""
    apply = partial(model.apply, {'params': params})
    embeds = apply(pending[:, None], method='embed')
    positions = jnp.broadcast_to(positions[None, :, None], (3, len(pending), 1))
    hidden, cache = apply(cache, embeds, positions, start, active.astype(jnp.int32), method='extend')
    return hidden[:, 0], cache


def _choose(program, params, hidden, uniform, sampling):
    logits = program.model.apply({'params': params}, hidden, method='logits')
    ids, logprobs = choose(logits, uniform, sampling.banned, sampling.temperature, sampling.top_p, program.method)
    return ids.astype(jnp.int32), logprobs


def _last(hidden: Float[Array, 'B T D'], lengths: Int[Array, 'B']) -> Float[Array, 'B D']:
    return jnp.take_along_axis(hidden, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
