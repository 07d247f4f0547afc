"""Log-probabilities and entropy of the tokens that a policy chose, without ever holding the logits of a whole batch.

The hidden states that chose them are gathered first (prompts, pages and crops need no logits), then go through the head in chunks whose logits are
recomputed in the backward pass. [B, T, V] at 16k tokens and 152k entries is 10 GB; a chunk of 1k tokens is 0.6 GB.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Head = Callable[[Float[Array, 'B C D']], Float[Array, 'B C V']]  # hidden states -> logits


def choosing_states(hidden: Float[Array, 'B T D'], source: Int[Array, 'B N']) -> Float[Array, 'B N D']:
    """The hidden states at `source`, the places in each row that its tokens were chosen from; 0 for place T."""
    return jnp.take_along_axis(hidden, source[..., None], axis=1, mode='fill', fill_value=0)


def by_episode(scores: Float[Array, 'B N'], scored: Int[Array, 'E R']) -> Float[Array, 'E R']:
    """The scores of each row's tokens by the E / B episodes that stand in it, R to each; 0 for number N."""
    by_row = scored.reshape(len(scores), -1)
    return jnp.take_along_axis(scores, by_row, axis=1, mode='fill', fill_value=0).reshape(scored.shape)


def score_states(
    head: Head,
    states: Float[Array, 'B N D'],
    targets: Int[Array, 'B N'],
    temperature: float | Float[Array, ''] = 1.0,
    chunk: int = 1024,
) -> tuple[Float[Array, 'B N'], Float[Array, 'B N']]:
    """log p(target | state) and the entropy of that distribution, in float32.

    The distribution is that of the head's logits divided by `temperature`, nothing truncated. About `chunk` tokens' logits exist at a time, counted
    over all devices.
    """
    rows, count = targets.shape
    width = min(count, max(1, chunk // rows))  # tokens of each row in a chunk
    padding = -count % width
    states = jnp.pad(states, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, padding)))

    def score(piece):
        logits = head(piece[0]).astype(jnp.float32) / temperature
        return _score(logits, piece[1])

    if count + padding == width:  # a single chunk: its logits may live until the backward pass
        return score((states, targets))
    scores = jax.lax.map(jax.checkpoint(score), (_split(states, width), _split(targets, width)))
    return tuple(_join(x)[:, :count] for x in scores)


def _score(
    logits: Float[Array, 'B C V'], targets: Int[Array, 'B C']
) -> tuple[Float[Array, 'B C'], Float[Array, 'B C']]:
    """log p = logit - logsumexp and -sum exp(log p) log p, over the last axis."""
    total = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - total
    every = logits - total[..., None]
    return logp, -jnp.sum(jnp.exp(every) * every, axis=-1)


def _split(x: Array, width: int) -> Array:
    """[B, n C, ...] -> [n, B, C, ...]: rows stay whole, so that a sharded batch stays where it is."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)


def _join(x: Float[Array, 'n B C']) -> Float[Array, 'B N']:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)
