"""Which token comes next: truncation, one uniform number a row, and the log-prob that is recorded."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

BLOCK = 128  # entries of the vocabulary that the first level of the inverse CDF takes together
NUCLEUS_STEPS = 24  # halvings of the probability threshold: exact to float32's precision


@dataclass(frozen=True)
class SamplingMethod:
    """What a compiled program is specialised on."""

    greedy: bool = False
    top_k: int = 0  # 0 = all
    nucleus: bool = False  # whether top_p cuts anything


def choose(
    logits: Float[Array, 'B V'],
    uniform: Float[Array, 'B'],
    banned: Bool[Array, 'V'],
    temperature: Float[Array, ''],
    top_p: Float[Array, ''],
    method: SamplingMethod,
) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """The chosen ids and their log-probs under softmax(logits / temperature) over the whole vocabulary, as a trainer computes it."""
    scaled = logits / temperature
    allowed = jnp.where(banned, -jnp.inf, scaled)
    if method.greedy:
        ids = jnp.argmax(allowed, axis=-1)
    else:
        if method.top_k:
            allowed = jnp.where(allowed >= jax.lax.top_k(allowed, method.top_k)[0][:, -1:], allowed, -jnp.inf)
        weights = jnp.exp(allowed - allowed.max(-1, keepdims=True))
        if method.nucleus:
            weights = nucleus(weights, top_p)
        ids = inverse_cdf(weights, uniform)
    picked = jnp.take_along_axis(scaled, ids[:, None], axis=-1)[:, 0]
    return ids, picked - jax.nn.logsumexp(scaled, axis=-1)


def nucleus(weights: Float[Array, 'B V'], top_p: Float[Array, '']) -> Float[Array, 'B V']:
    """Zeroes all but the smallest set of largest weights that holds `top_p` of the mass (arXiv 1904.09751); ties stay together.

    The threshold is found by halving, without a sort: `low` always keeps enough mass, `high` never does.
    """
    wanted = top_p * weights.sum(-1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.where(weights >= middle, weights, 0).sum(-1, keepdims=True) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = (jnp.zeros_like(wanted), weights.max(-1, keepdims=True))
    low, high = jax.lax.fori_loop(0, NUCLEUS_STEPS, halve, start)
    keeps_top = jnp.where(weights >= high, weights, 0).sum(-1, keepdims=True) >= wanted  # the largest weight alone
    return jnp.where(weights >= jnp.where(keeps_top, high, low), weights, 0)


def inverse_cdf(weights: Float[Array, 'B V'], uniform: Float[Array, 'B']) -> Int[Array, 'B']:
    """Index i with probability weights[i] / sum: the block that the uniform number falls into, then the entry inside it."""
    b, v = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -v % BLOCK))).reshape(b, -1, BLOCK)
    sums = blocks.sum(-1)
    block, rest = _fall(sums, uniform * sums.sum(-1))
    entries = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + _fall(entries, rest)[0]


def _fall(weights: Float[Array, 'B n'], target: Float[Array, 'B']) -> tuple[Int[Array, 'B'], Float[Array, 'B']]:
    """The entry at which the running sum passes `target`, and how far into it. Never one of weight 0, whatever the rounding."""
    ends = jnp.cumsum(weights, axis=-1)
    passes = (ends > target[:, None]) & (weights > 0)
    last = jnp.argmax(jnp.where(weights > 0, jnp.arange(weights.shape[-1]), -1), axis=-1)
    index = jnp.where(passes.any(-1), jnp.argmax(passes, axis=-1), last)
    before = jnp.take_along_axis(ends - weights, index[:, None], axis=-1)[:, 0]
    return index, target - before


def row_keys(key: Key[Array, ''], questions: Int[Array, 'B'], samples: Int[Array, 'B']) -> Key[Array, 'B']:
    """One key a row, of its question and its attempt alone: neither batch nor order matters."""
    return jax.vmap(lambda question, sample: jax.random.fold_in(jax.random.fold_in(key, question), sample))(
        questions, samples
    )


def uniforms(keys: Key[Array, 'B'], start: Int[Array, 'B'], count: int) -> Float[Array, 'count B']:
    """Uniform numbers in [0, 1) for the tokens at `start`, start + 1, ... of each row."""
    draw = jax.vmap(lambda key, index: jax.random.uniform(jax.random.fold_in(key, index)))
    return jax.vmap(lambda step: draw(keys, start + step))(jnp.arange(count))
