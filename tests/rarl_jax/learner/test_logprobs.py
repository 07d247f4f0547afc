"""Chunked log-probs and entropy against the plain ones, in value and gradient, and in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.learner.logprobs import by_episode, choosing_states, score_states
from rarl_jax.learner.losses import Denominators, aggregate
from tests.rarl_jax.learner.golden_numbers import load

B, T, D, V = 3, 13, 5, 11
MASK = np.zeros((B, T), bool)
MASK[0, [3, 4, 5, 9, 12]] = MASK[1, 7] = True  # the third row has nothing in the loss
RANDOM = np.random.default_rng(0)
HIDDEN = jnp.array(RANDOM.normal(size=(B, T, D)), jnp.float32)
TABLE = jnp.array(RANDOM.normal(size=(V, D)), jnp.float32)
IDS = jnp.array(RANDOM.integers(0, V, (B, T)))
# The state before each chosen token chose it; T = no token.
SOURCE = np.full((B, 5), T)
SOURCE[0], SOURCE[1, 0] = [2, 3, 4, 8, 11], 6
TARGETS = jnp.take_along_axis(IDS, np.minimum(SOURCE + 1, T - 1), axis=1)
HELD = SOURCE < T


def head(table):
    return lambda hidden: jnp.einsum('...d,vd->...v', hidden, table)


def plain(table, hidden, temperature):
    """At the chosen places, from the logits of every token."""
    logp = jax.nn.log_softmax(head(table)(hidden) / temperature)
    entropy = -jnp.sum(jnp.exp(logp) * logp, -1)
    states = np.minimum(SOURCE, T - 1)
    logp = jnp.take_along_axis(logp, states[..., None], 1)
    logp = jnp.take_along_axis(logp, TARGETS[..., None], -1)[..., 0]
    return tuple(jnp.where(HELD, x, 0) for x in (logp, jnp.take_along_axis(entropy, states, 1)))


def ours(table, hidden, temperature, chunk):
    scores = score_states(head(table), choosing_states(hidden, jnp.array(SOURCE)), TARGETS, temperature, chunk)
    return tuple(jnp.where(HELD, x, 0) for x in scores)


def test_tokens_of_packed_rows_are_scored_by_row_and_told_by_episode():
    """Two episodes in each of two rows; the first of the second row has no token in the loss."""
    hidden = jnp.arange(2 * 4 * 1.0).reshape(2, 4, 1)
    states = choosing_states(hidden, jnp.array([[2, 0, 3], [1, 4, 4]]))[..., 0]
    assert states.tolist() == [[2, 0, 3], [5, 0, 0]]
    scored = jnp.array([[0, 3], [1, 2], [3, 3], [0, 3]])
    assert by_episode(states, scored).tolist() == [[2, 0], [0, 3], [0, 0], [5, 0]]


@pytest.mark.parametrize('chunk', [1, 9, 1000])  # 1, 3 and all places of a row at a time
def test_equal_to_the_plain_path(chunk):
    for temperature in (1.0, 0.7):
        expected = jax.jit(plain)(TABLE, HIDDEN, temperature)
        logp, entropy = jax.jit(ours, static_argnums=3)(TABLE, HIDDEN, temperature, chunk)
        np.testing.assert_allclose(logp, expected[0], rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(entropy, expected[1], rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize('chunk', [6, 1000])
def test_gradients_equal_the_plain_path(chunk):
    weights = jnp.array(RANDOM.normal(size=(2, B, 5)), jnp.float32)

    def total(run, *args):
        logp, entropy = run(*args)
        return jnp.sum(weights[0] * logp) + jnp.sum(weights[1] * entropy)

    expected = jax.jit(jax.grad(lambda t, h: total(plain, t, h, 0.7), (0, 1)))(TABLE, HIDDEN)
    found = jax.jit(jax.grad(lambda t, h: total(ours, t, h, 0.7, chunk), (0, 1)))(TABLE, HIDDEN)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), found, expected)


def test_what_stands_elsewhere_is_not_looked_at():
    seen = np.zeros((B, T), bool)
    seen[:, :-1] = MASK[:, 1:]
    spoiled = jnp.where(seen[..., None], HIDDEN, jnp.nan)
    value, grad = jax.jit(jax.value_and_grad(lambda h: ours(TABLE, h, 1.0, 6)[0].sum()))(spoiled)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_entropy_equals_the_reference():
    inputs, outputs = load()
    logits, mask = jnp.array(inputs['logits']), jnp.array(inputs['mask'])
    entropy = score_states(lambda x: x, logits, jnp.zeros(mask.shape, int), chunk=16)[
        1
    ]  # as if the head were the identity
    denominators = Denominators(jnp.float32(mask.sum()), jnp.float32(7), jnp.float32(12))
    for aggregation in ('token-mean', 'seq-mean-token-mean'):
        value = aggregate(entropy, mask, aggregation, denominators)
        np.testing.assert_allclose(value, outputs[f'verl_entropy/{aggregation}'], rtol=1e-6)


def test_memory_stays_far_below_the_plain_path():
    length, width, entries = 16_384, 32, 152_064
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((entries, width), (1, length, width))]
    ids = jnp.zeros((1, length), int)

    def chunked(table, hidden):
        return score_states(head(table), hidden, ids)[0].sum()

    def whole(table, hidden):
        return jax.nn.log_softmax(head(table)(hidden))[..., 0].sum()

    def memory(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(whole) > 8 * memory(chunked)
