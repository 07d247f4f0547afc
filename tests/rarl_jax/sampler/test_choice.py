import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.sampler.choice import SamplingMethod, choose, inverse_cdf, nucleus, row_keys, uniforms

PLAIN = SamplingMethod(greedy=False, top_k=0, nucleus=False)


def pick(logits, uniform, choice=PLAIN, banned=(), temperature=1.0, top_p=1.0):
    logits = jnp.asarray(logits, jnp.float32)
    mask = np.isin(np.arange(logits.shape[-1]), banned)
    return choose(logits, jnp.asarray(uniform, jnp.float32), mask, jnp.float32(temperature), jnp.float32(top_p), choice)


def test_inverse_cdf_over_two_levels_equals_the_flat_one():
    rng = np.random.default_rng(0)
    weights = rng.random((64, 300)).astype(np.float32) * (rng.random((64, 300)) < 0.3)
    uniform = rng.random(64).astype(np.float32)
    flat = weights.astype(np.float64).cumsum(1)
    expected = (flat <= uniform[:, None] * flat[:, -1:]).sum(1)
    np.testing.assert_array_equal(jax.jit(inverse_cdf)(weights, uniform), expected)


@pytest.mark.parametrize('uniform', [0.0, 0.5, 1 - 2**-24])
def test_a_weight_of_zero_is_never_chosen(uniform):
    weights = np.zeros((1, 260), np.float32)
    weights[0, [130, 257]] = 1e-30, 1e-30
    assert int(inverse_cdf(jnp.asarray(weights), jnp.array([uniform]))[0]) in (130, 257)


def test_frequencies_follow_the_softmax():
    logits = np.tile(np.log([[0.5, 0.2, 0.2, 0.1]]), (4096, 1))
    ids, _ = pick(logits, (np.arange(4096) + 0.5) / 4096)
    np.testing.assert_allclose(np.bincount(ids) / 4096, [0.5, 0.2, 0.2, 0.1], atol=1e-3)


def test_nucleus_keeps_the_smallest_sufficient_set():
    weights = np.random.default_rng(1).random((8, 50)).astype(np.float32)
    kept = np.asarray(nucleus(jnp.asarray(weights), jnp.float32(0.6))) > 0
    for row, mask in zip(weights, kept, strict=True):
        order = np.argsort(-row)
        count = int((row[order].cumsum() < 0.6 * row.sum()).sum()) + 1
        assert set(np.flatnonzero(mask)) == set(order[:count])


def test_nucleus_of_one_likely_token():
    kept = nucleus(jnp.array([[0.97, 0.02, 0.01]]), jnp.float32(0.9))
    np.testing.assert_array_equal(kept > 0, [[True, False, False]])


def test_top_k_and_top_p_cut_the_tail():
    logits = np.tile([[3.0, 2.0, 1.0, 0.0]], (64, 1))
    uniform = (np.arange(64) + 0.5) / 64
    assert set(pick(logits, uniform, SamplingMethod(False, 2, False))[0].tolist()) == {0, 1}
    assert set(pick(logits, uniform, SamplingMethod(False, 0, True), top_p=0.5)[0].tolist()) == {0}


@pytest.mark.parametrize('greedy', [True, False])
def test_banned_ids_are_never_chosen(greedy):
    """Failure mode 2: however much the policy wants an image token, only the host writes it."""
    logits = np.tile([[0.0, 50.0, 0.5, 40.0]], (64, 1))
    ids, logprobs = pick(logits, np.linspace(0, 0.999, 64), SamplingMethod(greedy, 0, False), banned=(1, 3))
    assert not np.isin(ids, (1, 3)).any()
    np.testing.assert_allclose(
        logprobs, logits[0][np.asarray(ids)] - 50, atol=1e-3
    )  # under the whole distribution, as a trainer has it


@pytest.mark.parametrize('choice', [PLAIN, SamplingMethod(False, 2, False), SamplingMethod(False, 0, True)])
def test_logprob_is_of_the_scaled_untruncated_distribution(choice):
    logits = np.random.default_rng(2).normal(size=(16, 40))
    ids, logprobs = pick(logits, np.linspace(0, 0.99, 16), choice, banned=(0,), temperature=0.7, top_p=0.8)
    expected = jax.nn.log_softmax(logits / 0.7)[np.arange(16), ids]
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_a_draw_depends_on_question_attempt_and_place_alone():
    key = jax.random.key(0)
    questions, attempts, places = np.array([7, 7, 9], np.uint32), np.array([0, 1, 0], np.uint32), np.array([5, 5, 11])
    together = uniforms(row_keys(key, questions, attempts), places, 4)
    alone = uniforms(row_keys(key, questions[2:], attempts[2:]), places[2:] + 1, 1)
    assert float(together[1, 2]) == float(alone[0, 0])
    assert len(np.unique(together)) == together.size
