"""The compiled programs of a rollout. Rows are conversations; the cache is an argument and a result, and donated where it is replaced.

The newest token of a row is `pending`: it is not yet in the cache. A decode step puts it there and chooses the next one, so the last token of a
prompt or an observation, like that of a turn, costs no step of its own, and tokens are chosen in one place alone.

Rows are split in parts over the mesh, and programs that touch some of them are told which by part: `rows` [P n] counts from each part's first.
No row then leaves its device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from rarl_jax.models.interface import Cache, Features, LayerCache, Model
from rarl_jax.models.params import Params
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.runtime.sharding import ACTIVATION_RULES, spec
from rarl_jax.sampler.choice import SamplingMethod, choose, row_keys, uniforms


@dataclass(frozen=True)
class Program:
    """What decoding is specialised on."""

    model: Model
    method: SamplingMethod
    stop_ids: tuple[int, ...]  # tokens that end a turn
    segment: int  # decode steps of one call
    early_exit: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn; arrays, so that they can change without compiling again."""

    key: Key[Array, '']
    banned: Bool[Array, 'V']  # never chosen
    temperature: Float[Array, '']
    top_p: Float[Array, '']


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Chunk:
    """Tokens that are appended to n rows of each part, right-padded; C = P n."""

    rows: Int[Array, 'P n']  # which; the number of a part's rows or more = none
    ids: Int[Array, 'C T']
    positions: Int[Array, '3 C T']
    features: Features  # leaves [C T ...]: an image token's features, in its place
    feature_index: Int[Array, 'C T']  # row of the flattened features, the token's own; -1 = a text token
    start: Int[Array, 'C']  # tokens that the row's cache holds
    lengths: Int[Array, 'C']  # tokens of the chunk that count


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Where the rows stand when a segment of decoding begins."""

    pending: Int[Array, 'B']  # newest token
    positions: Int[Array, 'B']  # its position, on all three axes
    start: Int[Array, 'B']  # tokens that the cache holds, the pending one not among them
    left: Int[Array, 'B']  # tokens that the row may still choose; 0 = it rests
    questions: UInt[Array, 'B']  # numbers of the row's question
    attempts: UInt[Array, 'B']  # and of its attempt, which its random numbers come from


class DecodeState(NamedTuple):
    """What a segment of decoding carries from step to step."""

    step: Int[Array, '']
    cache: Cache
    pending: Int[Array, 'B']
    left: Int[Array, 'B']
    ids: Int[Array, 'N B']  # chosen so far; -1 where a row rested
    logprobs: Float[Array, 'N B']


# ---------------------------------------------------------------- images and chunks


@partial(jax.jit, static_argnums=0)
def encode_images(model: Model, params: Params, images: VisionBatch) -> Features:
    return model.apply({'params': params}, images, method='encode_images')


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def extend(model: Model, fresh: bool, params: Params, cache: Cache, chunk: Chunk) -> Cache:
    """Appends a chunk to some rows of the cache; `fresh` ones hold nothing yet, and their chunk sees itself alone."""
    apply = partial(model.apply, {'params': params})
    embeds = apply(chunk.ids, chunk.features, chunk.feature_index, method='embed')
    if fresh:
        _, new = apply(model.init_cache(*chunk.ids.shape), embeds, chunk.positions, method='prefill')
    else:
        held = jax.tree.map(partial(pick, rows=chunk.rows), cache)
        _, new = apply(held, embeds, chunk.positions, chunk.start, chunk.lengths, method='extend')
    return put_rows(model, cache, chunk.rows, new)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def fork(model: Model, cache: Cache, source: Int[Array, 'P n'], target: Int[Array, 'P n']) -> Cache:
    """Copies rows to other rows of their part: a prompt to the attempts at its question."""
    return put_rows(model, cache, target, jax.tree.map(partial(pick, rows=source), cache))


def pick(x: Float[Array, 'B ...'], rows: Int[Array, 'P n']) -> Float[Array, 'C ...']:
    """Some rows of each part."""
    parts = x.reshape(len(rows), -1, *x.shape[1:])
    picked = jax.vmap(lambda part, at: part.at[at].get(mode='clip'))(parts, rows)
    return picked.reshape(-1, *x.shape[1:])


def put_rows(model: Model, cache: Cache, rows: Int[Array, 'P n'], new: Cache) -> Cache:
    """The cache with new rows, which may be shorter, in the place of some of each part."""

    def put(x, new, axes):
        length = axes.index('length')
        size = min(x.shape[length], new.shape[length])
        new = jax.lax.slice_in_dim(new, 0, size, axis=length)
        window = [slice(size) if axis == 'length' else slice(None) for axis in axes[1:]]
        parts, new = (y.reshape(len(rows), -1, *y.shape[1:]) for y in (x, new))
        return jax.vmap(lambda part, at, new: part.at[(at, *window)].set(new, mode='drop'))(parts, rows, new).reshape(
            x.shape
        )

    return pinned(model, tuple(jax.tree.map(put, *layers, model.cache_axes) for layers in zip(cache, new, strict=True)))


# ---------------------------------------------------------------- the cache's shape


def pinned(model: Model, cache: Cache) -> Cache:
    """The cache where the mesh wants it: rows over data and fsdp, heads over tensor."""
    return tuple(jax.tree.map(model.constrain, layer, model.cache_axes) for layer in cache)


@partial(jax.jit, static_argnums=(0, 1, 2))
def empty_cache(model: Model, rows: int, length: int) -> Cache:
    return pinned(model, model.init_cache(rows, length))


def take_rows(model: Model, layers: list[LayerCache], rows: Int[Array, 'C'], length: int) -> Cache:
    """The cache's `rows`, in a cache of `length` tokens: leaves finished rows out, or makes room.

    Empties `layers` one by one as they are copied, so that never more than one layer exists twice.
    """
    taken = []
    while layers:
        taken.append(take(model, layers.pop(0), rows, length))
    return tuple(taken)


@partial(jax.jit, static_argnums=(0, 3))
def take(model: Model, layer: LayerCache, rows: Int[Array, 'C'], length: int) -> LayerCache:
    """Pinned like what all programs make of the cache: an equal sharding that is spelled otherwise would compile those that follow once more."""

    def fit(x: Array, axes: tuple[str, ...]) -> Array:
        x, axis = x[rows], axes.index('length')
        x = jax.lax.slice_in_dim(x, 0, min(length, x.shape[axis]), axis=axis)
        x = jnp.pad(x, [(0, length - x.shape[axis] if each == axis else 0) for each in range(x.ndim)])
        return model.constrain(x, axes)

    return jax.tree.map(fit, layer, model.cache_axes)


def cache_sharding(shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> NamedSharding:
    """Of a cache's keys or values with these logical axes."""
    return NamedSharding(mesh, spec(shape, axes, mesh, ACTIVATION_RULES))


# ---------------------------------------------------------------- decoding


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    program: Program, params: Params, cache: Cache, rows: Rows, resting: Int[Array, ''], sampling: SamplingParams
) -> tuple[Int[Array, 'N B'], Float[Array, 'N B'], Cache]:
    """Up to `segment` tokens for every row.

    Args:
        resting: with early_exit the segment ends once so many rows rest, or all.
    Returns: chosen ids (-1 where a row had stopped), their log-probs, the cache.
    """
    keys = row_keys(sampling.key, rows.questions, rows.attempts)
    uniform = uniforms(keys, rows.start + 1, program.segment)
    shape = (program.segment, len(rows.pending))
    state = DecodeState(
        step=0,
        cache=cache,
        pending=rows.pending,
        left=rows.left,
        ids=jnp.full(shape, -1, jnp.int32),
        logprobs=jnp.zeros(shape, jnp.float32),
    )

    def step(state: DecodeState) -> DecodeState:
        t, active = state.step, state.left > 0
        hidden, cache = _decode_step(
            program.model, params, state.cache, state.pending, rows.positions + t, rows.start + t, active
        )
        chosen, logprob = _choose(program, params, hidden, uniform[t], sampling)
        stopped = jnp.isin(chosen, jnp.array(program.stop_ids))
        return DecodeState(
            step=t + 1,
            cache=cache,
            pending=jnp.where(active, chosen, state.pending),
            left=jnp.where(active & ~stopped, state.left - 1, 0),
            ids=state.ids.at[t].set(jnp.where(active, chosen, -1)),
            logprobs=state.logprobs.at[t].set(jnp.where(active, logprob, 0)),
        )

    def goes_on(state: DecodeState) -> Bool[Array, '']:
        return (state.step < program.segment) & (((state.left == 0).sum() < resting) | (not program.early_exit))

    state = jax.lax.while_loop(goes_on, step, state)
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
