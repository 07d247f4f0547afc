"""Policy losses against verl and TRL in value and gradient, under jit and without; and small cases worked by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.learner import losses
from rarl_jax.learner.losses import (
    Denominators,
    LossInputs,
    LossSettings,
    aggregate,
    correction_weight,
    kl,
    policy_loss,
)
from tests.rarl_jax.learner.golden_numbers import load

INPUTS, OUTPUTS = load()
LOGP, MASK = jnp.array(INPUTS['log_prob']), jnp.array(INPUTS['mask'])
OLD, SAMPLE, REFERENCE = (jnp.array(INPUTS[f'{name}_log_prob']) for name in ('old', 'rollout', 'ref'))
ADVANTAGES = jnp.array(INPUTS['adv'])
BATCH = LossInputs(MASK, ADVANTAGES, SAMPLE, OLD)
# One of the 8 episodes has no token in the loss: verl leaves it out of the mean over sequences, TRL counts it.
VERL = Denominators(MASK.sum(), jnp.float32(7), jnp.float32(12))
TRL = Denominators(MASK.sum(), jnp.float32(8), jnp.float32(16))
ENTROPY = jnp.zeros_like(LOGP)
PPO = LossSettings()
AGGREGATIONS = ['token-mean', 'token-sum', 'seq-mean-token-sum', 'seq-mean-token-mean', 'seq-mean-token-sum-norm']
TRL_PPO = replace(PPO, clip_high=0.28, dual_clip=1e9)

CASES = {
    **{f'verl_vanilla/{a}': (replace(PPO, aggregation=a), VERL) for a in AGGREGATIONS},
    **{f'verl_vanilla_cliphigh028/{a}': (replace(PPO, aggregation=a, clip_high=0.28), VERL) for a in AGGREGATIONS},
    'verl_vanilla_tis_token2/token-mean': (replace(PPO, correction='token'), VERL),
    'verl_cispo': (replace(PPO, loss='cispo', clip_high=10.0), VERL),
    'verl_gspo': (replace(PPO, loss='gspo', clip_low=3e-4, clip_high=4e-4, aggregation='seq-mean-token-mean'), VERL),
    'trl/grpo/beta0.0': (replace(TRL_PPO, aggregation='seq-mean-token-mean'), TRL),
    'trl/grpo/beta0.04': (replace(TRL_PPO, aggregation='seq-mean-token-mean', kl_weight=0.04), TRL),
    'trl/grpo/delta4': (replace(TRL_PPO, aggregation='seq-mean-token-mean', dual_clip=4.0), TRL),
    'trl/bnpo/beta0.0': (TRL_PPO, TRL),
    'trl/bnpo/beta0.04': (replace(TRL_PPO, kl_weight=0.04), TRL),
    'trl/dr_grpo/beta0.0': (replace(TRL_PPO, aggregation='seq-mean-token-sum-norm'), TRL),
    'trl/dr_grpo/beta0.04': (replace(TRL_PPO, aggregation='seq-mean-token-sum-norm', kl_weight=0.04), TRL),
    'trl/cispo/eps_high5': (replace(PPO, loss='cispo', clip_low=1.0, clip_high=4.0), TRL),
    'trl/gspo/grpo-seq-3e-4_4e-4': (
        replace(PPO, loss='gspo', clip_low=3e-4, clip_high=4e-4, aggregation='seq-mean-token-mean'),
        TRL,
    ),
}


@pytest.mark.parametrize('jitted', [False, True], ids=['eager', 'jit'])
@pytest.mark.parametrize('key', CASES)
def test_loss_and_gradient_equal_the_reference(key, jitted):
    settings, denominators = CASES[key]
    batch = BATCH._replace(reference_logprobs=REFERENCE) if settings.kl_weight else BATCH
    step = jax.value_and_grad(lambda logp: policy_loss(logp, ENTROPY, batch, denominators, settings), has_aux=True)
    (loss, means), grad = (jax.jit(step) if jitted else step)(LOGP)
    expected = OUTPUTS[key]
    np.testing.assert_allclose(loss, expected['loss'], rtol=1e-6, atol=3e-8)
    np.testing.assert_allclose(grad, np.array(expected['grad']), rtol=1e-5, atol=1e-8)
    if 'vanilla' in key:
        metrics = expected['metrics']
        np.testing.assert_allclose(means['policy/clip_fraction'], metrics['actor/pg_clipfrac'], rtol=1e-6)
        np.testing.assert_allclose(means['policy/update_kl'], metrics['actor/ppo_kl'], rtol=1e-5)


@pytest.mark.parametrize('estimator', ['k1', 'k2', 'k3'])
def test_kl_estimators_equal_the_reference(estimator):
    value, pull = jax.vjp(lambda logp: kl(logp, REFERENCE, estimator), LOGP)
    expected = OUTPUTS[f'verl_kl/{estimator}']
    # atol: the references form k3 as exp(x) - x - 1, which loses an ulp of 1; ours is nearer to float64
    np.testing.assert_allclose(value, expected['value'], rtol=1e-6, atol=1.2e-7)
    np.testing.assert_allclose(pull(jnp.ones_like(value))[0], expected['grad'], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_aggregated_kl_equals_the_reference(aggregation):
    value = aggregate(kl(LOGP, REFERENCE, 'k3'), MASK, aggregation, VERL)
    np.testing.assert_allclose(value, OUTPUTS[f'verl_agg_of_kl_k3/{aggregation}'], rtol=1e-6)


def test_corrections_equal_the_reference():
    for kind in ('token', 'sequence'):
        weight = correction_weight(OLD, SAMPLE, MASK, replace(PPO, correction=kind))
        np.testing.assert_allclose(weight, OUTPUTS[f'verl_is/{kind}/2.0'], rtol=1e-6)
    kept = correction_weight(OLD, SAMPLE, MASK, replace(PPO, correction='mask', correction_band=(0.97, 1.03)))
    np.testing.assert_array_equal(kept, OUTPUTS['verl_rs/seq_mean_k1/0.97_1.03'])


def test_correction_is_capped():
    old, sample, mask = jnp.zeros((1, 2)), jnp.log(jnp.array([[0.25, 0.8]])), jnp.ones((1, 2))
    weight = correction_weight(old, sample, mask, replace(PPO, correction='token'))
    np.testing.assert_allclose(weight, [[2.0, 1.25]], rtol=1e-6)
    np.testing.assert_allclose(correction_weight(old, sample, mask, replace(PPO, correction='sequence')), 2.0)


def test_ppo_by_hand():
    ratio = jnp.array([[1.5, 1.5, 0.5, 0.5, 5.0, 1.0]])
    sign = jnp.array([[1.0, -1.0, 1.0, -1.0, -1.0, 2.0]])
    slope = jax.grad(lambda logp: losses.ppo(logp, jnp.zeros_like(logp), sign, 0.2, 0.2, 3.0).sum())(jnp.log(ratio))
    loss = losses.ppo(jnp.log(ratio), jnp.zeros_like(ratio), sign, 0.2, 0.2, 3.0)
    np.testing.assert_allclose(loss, [[-1.2, 1.5, -0.5, 0.8, 3.0, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(slope, [[0.0, 1.5, -0.5, 0.0, 0.0, -2.0]], rtol=1e-6)  # clipped tokens have none


def test_first_update_on_a_batch_is_plain_policy_gradient():
    for kind in ('ppo', 'cispo'):
        settings = replace(PPO, loss=kind, aggregation='token-sum')
        first = BATCH._replace(old_logprobs=None)
        grad = jax.grad(lambda logp, s=settings, b=first: policy_loss(logp, ENTROPY, b, VERL, s)[0])(LOGP)
        np.testing.assert_allclose(grad, -ADVANTAGES[:, None] * MASK, rtol=1e-6)


def test_micro_batches_add_up():
    settings = replace(PPO, aggregation='seq-mean-token-mean', entropy_weight=0.1, correction='token')
    whole = policy_loss(LOGP, -LOGP, BATCH, VERL, settings)
    rows = [slice(0, 3), slice(3, 4), slice(4, 8)]
    cut = lambda r: LossInputs(*(None if x is None else x[r] for x in BATCH))  # noqa: E731
    parts = [policy_loss(LOGP[r], -LOGP[r], cut(r), VERL, settings) for r in rows]
    summed = jax.tree.map(lambda *x: sum(x), *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), summed, whole)


def test_entropy_bonus_is_subtracted():
    plain = policy_loss(LOGP, -LOGP, BATCH, VERL, PPO)
    bonus = policy_loss(LOGP, -LOGP, BATCH, VERL, replace(PPO, entropy_weight=0.5))
    np.testing.assert_allclose(bonus[0], plain[0] - 0.5 * plain[1]['policy/entropy'], rtol=1e-5)


@pytest.mark.parametrize('jitted', [False, True], ids=['eager', 'jit'])
def test_nothing_outside_the_mask_is_looked_at(jitted):
    spoiled = [jnp.where(MASK > 0, x, jnp.nan) for x in (LOGP, SAMPLE)]
    batch = LossInputs(MASK, ADVANTAGES, spoiled[1])
    run = jax.jit(policy_loss, static_argnums=4) if jitted else policy_loss
    clean = run(LOGP, ENTROPY, BATCH._replace(old_logprobs=None), VERL, PPO)
    dirty = run(spoiled[0], spoiled[0], batch, VERL, PPO)
    np.testing.assert_allclose(dirty[0], clean[0])
    assert np.isfinite(list(dirty[1].values())).all()


def test_sampler_against_trainer_by_hand():
    mask, one = jnp.array([[1.0, 1.0, 0.0]]), jnp.ones((1, 3))
    batch = LossInputs(mask, jnp.ones(1), jnp.log(jnp.array([[0.5, 0.25, 0.1]])))
    means = policy_loss(jnp.log(0.5 * one), one, batch, Denominators(mask.sum(), 1.0, 3.0), PPO)[1]
    np.testing.assert_allclose(means['policy/ratio_gap'], (0 + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(means['policy/sampler_kl'], np.log(0.25 / 0.5) / 2, atol=1e-6)
    assert means['policy/correction'] == 1
    capped = replace(PPO, correction='token', correction_cap=1.5)  # the second token's weight is 2
    means = policy_loss(jnp.log(0.5 * one), one, batch, Denominators(mask.sum(), 1.0, 3.0), capped)[1]
    np.testing.assert_allclose(means['policy/correction'], (1 + 1.5) / 2, atol=1e-6)


def test_settings_that_cannot_learn_are_refused():
    with pytest.raises(ValueError, match='zero-mean gradient'):
        LossSettings(kl_weight=0.1, kl_estimator='k1')
    with pytest.raises(ValueError, match='no reference_logprobs'):
        policy_loss(LOGP, ENTROPY, BATCH, VERL, replace(PPO, kl_weight=0.1))


@pytest.mark.parametrize('wrong', [ADVANTAGES[:, None], ADVANTAGES[:1], ADVANTAGES[:, None] * MASK])
def test_an_advantage_is_one_number_an_episode(wrong):
    with pytest.raises(ValueError, match=r'advantages has shape .*, expected \(8,\) beside a logp of \(8, 12\)'):
        policy_loss(LOGP, ENTROPY, BATCH._replace(advantages=wrong), VERL, PPO)


def test_before_the_first_update_nothing_can_be_clipped():
    first = policy_loss(LOGP, ENTROPY, BATCH._replace(old_logprobs=None), VERL, PPO)[1]
    later = policy_loss(LOGP, ENTROPY, BATCH, VERL, PPO)[1]
    assert later.keys() - first.keys() == {'policy/clip_fraction', 'policy/update_kl'}
    assert later['policy/clip_fraction'] > 0


@pytest.mark.parametrize(
    'change',
    [
        {'clip_low': -0.1},
        {'clip_low': 1.5},
        {'clip_high': float('inf')},
        {'dual_clip': float('nan')},
        {'dual_clip': 0.5},
        {'kl_weight': -1.0},
        {'entropy_weight': float('inf')},
        {'correction_cap': 0.0},
        {'correction_band': (2.0, 0.5)},
        {'correction_band': (0.5, float('nan'))},
    ],
)
def test_ranges(change):
    with pytest.raises(ValueError, match=f'{next(iter(change))} is .*, expected'):
        replace(PPO, **change)
