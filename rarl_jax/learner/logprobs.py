"""Log-probabilities and entropy of the tokens that a policy chose, without ever holding the logits of a whole batch.

Positions that count are gathered first (prompts, pages and crops need no logits), then go through the head in chunks whose logits are recomputed in
the backward pass. [B, T, V] at 16k tokens and 152k entries is 10 GB; a chunk of 1k tokens is 0.6 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int

Head = Callable[[Float[Array, 'B C D']], Float[Array, 'B C V']]  # hidden states -> logits


def plan_chosen(loss_mask: Bool[np.ndarray, 'B T'], buckets: Sequence[int]) -> Int[np.ndarray, 'B R']:
    """Where each row's chosen tokens stand, padded with T + 1; R is the smallest bucket that holds every row. Runs on the host.

    ValueError if a first token is marked as chosen (nothing precedes it that could have chosen it) or no bucket is large enough.
    """
    loss_mask = np.asarray(loss_mask, bool)
    if loss_mask[:, 0].any():
        raise ValueError(
            f'The first token of row {int(loss_mask[:, 0].argmax())} is marked as chosen by the policy: a prompt must come first.'
        )
    counts = loss_mask.sum(1)
    longest = int(counts.max(initial=0))
    fitting = [size for size in buckets if size >= longest]
    if not fitting:
        raise ValueError(
            f'An episode has {longest} chosen tokens, the largest bucket holds {max(buckets)}: add a larger one to the buckets.'
        )
    chosen = np.full((len(loss_mask), min(fitting)), loss_mask.shape[1] + 1, np.int32)
    chosen[np.arange(chosen.shape[1]) < counts[:, None]] = np.nonzero(loss_mask)[1]
    return chosen


def chosen_logprobs(
    head: Head,
    hidden: Float[Array, 'B T D'],
    ids: Int[Array, 'B T'],
    chosen: Int[Array, 'B R'],
    temperature: float | Float[Array, ''] = 1.0,
    chunk: int = 1024,
    entropy_gradient: bool = True,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
    """log p(ids[t] | before t) and the entropy of that distribution, in float32 at the places in `chosen` (see `plan_chosen`), 0 elsewhere.

    ids[t] was chosen from the logits of hidden[t - 1], divided by `temperature`, nothing truncated. About `chunk` tokens' logits exist at a
    time, counted over all devices. Without `entropy_gradient` the entropy is a number to look at, and
    the backward pass is cheaper.
    """
    states = jnp.take_along_axis(hidden, chosen[..., None] - 1, axis=1, mode='fill', fill_value=0)
    return score_states(head, states, ids, chosen, temperature, chunk, entropy_gradient)


def score_states(
    head: Head,
    states: Float[Array, 'B R D'],
    ids: Int[Array, 'B T'],
    chosen: Int[Array, 'B R'],
    temperature: float | Float[Array, ''] = 1.0,
    chunk: int = 1024,
    entropy_gradient: bool = True,
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
    """`chosen_logprobs` where the hidden states that chose the tokens are at hand already."""
    batch, places = chosen.shape
    width = min(places, max(1, chunk // batch))  # places of each row in a chunk
    padding = -places % width
    chosen = jnp.pad(chosen, ((0, 0), (0, padding)), constant_values=ids.shape[1] + 1)
    states = jnp.pad(states, ((0, 0), (0, padding), (0, 0)))
    targets = jnp.take_along_axis(ids, chosen, axis=1, mode='fill', fill_value=0)

    def score(piece):
        logits = head(piece[0]).astype(jnp.float32) / temperature
        return _score(logits, piece[1], entropy_gradient)

    if places + padding == width:  # a single chunk: its logits may live until the backward pass
        logp, entropy = score((states, targets))
    else:
        pieces = (_split(states, width), _split(targets, width))
        logp, entropy = map(_join, jax.lax.map(jax.checkpoint(score), pieces))
    return _spread(logp, chosen, ids.shape[1]), _spread(entropy, chosen, ids.shape[1])


def _score(
    logits: Float[Array, 'B C V'], targets: Int[Array, 'B C'], entropy_gradient: bool
) -> tuple[Float[Array, 'B C'], Float[Array, 'B C']]:
    """log p = logit - logsumexp and -sum exp(log p) log p, over the last axis."""
    total = jax.nn.logsumexp(logits, axis=-1)
    logp = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - total
    if not entropy_gradient:
        logits, total = stop_gradient((logits, total))
    every = logits - total[..., None]
    return logp, -jnp.sum(jnp.exp(every) * every, axis=-1)


def _split(x: Array, width: int) -> Array:
    """[B, n C, ...] -> [n, B, C, ...]: rows stay whole, so that a sharded batch stays where it is."""
    return jnp.moveaxis(x.reshape(x.shape[0], -1, width, *x.shape[2:]), 1, 0)


def _join(x: Float[Array, 'n B C']) -> Float[Array, 'B R']:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def _spread(values: Float[Array, 'B R'], chosen: Int[Array, 'B R'], length: int) -> Float[Array, 'B T']:
    """Values back at their places among the T tokens; padding falls off the end."""
    rows = jnp.arange(len(values))[:, None]
    return jnp.zeros((len(values), length), values.dtype).at[rows, chosen].set(values, mode='drop')
