"""Advantages against the references' numbers and against groups worked by hand."""

import numpy as np
import pytest

from rarl_jax.learner.advantages import (
    advantages,
    check_groups,
    comparable,
    dr_grpo,
    grpo,
    reinforce_baseline,
    rloo,
    without_variance,
)
from tests.rarl_jax.learner.golden_numbers import load

INPUTS, OUTPUTS = load()
ALL = np.ones(8, bool)
REWARDS, GROUP, MASK = INPUTS['rewards'], INPUTS['group'], INPUTS['mask']


@pytest.mark.parametrize(
    ('ours', 'key'), [(grpo, 'verl_adv/grpo'), (dr_grpo, 'verl_adv/grpo_nostd'), (rloo, 'verl_adv/rloo')]
)
def test_per_episode_estimators_equal_the_reference(ours, key):
    np.testing.assert_allclose(ours(REWARDS, GROUP), OUTPUTS[key], rtol=1e-6, atol=1e-7)


def test_reinforce_baseline_equals_the_reference():
    expected = np.array(OUTPUTS['verl_adv/reinforce_plus_plus_baseline'])
    found = reinforce_baseline(REWARDS, GROUP, MASK.sum(axis=1))
    np.testing.assert_allclose(found[:, None] * MASK, expected * MASK, rtol=1e-6, atol=1e-7)


def test_by_hand():
    rewards, group = np.array([3.0, 0.0, 1.0, 1.0]), np.array([7, 4, 7, 4])  # groups {3, 1} and {0, 1}, interleaved
    np.testing.assert_allclose(dr_grpo(rewards, group), [1, -0.5, -1, 0.5])
    np.testing.assert_allclose(grpo(rewards, group), [0.5**0.5, -(0.5**0.5), -(0.5**0.5), 0.5**0.5], rtol=1e-5)
    np.testing.assert_allclose(rloo(rewards, group), [2, -1, -2, 1])  # a reward less the other's


def test_tokens_of_an_episode_share_its_advantage():
    out = advantages('dr_grpo', np.array([2.0, 0.0]), np.array([0, 0]), 2, np.array([2, 1]), ALL[:2])
    np.testing.assert_array_equal(out, [1, -1])
    assert out.dtype == np.float32
    silent = advantages('reinforce_baseline', np.array([2.0, 0.0]), np.array([0, 0]), 2, np.zeros(2), ALL[:2])
    assert np.isfinite(silent).all()


@pytest.mark.parametrize('group', [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 1]])
def test_mixed_up_or_cut_groups_are_refused(group):
    with pytest.raises(ValueError, match='needs 2 episodes, found'):
        advantages('grpo', np.zeros(len(group)), np.array(group), 2, np.ones(len(group)), ALL[: len(group)])


def test_check_groups_takes_any_order_of_whole_groups():
    check_groups(np.array([5, 1, 5, 1]), 2)


def test_without_variance():
    rewards, group = np.array([1.0, 1.0, 0.0, 1.0, 3.0]), np.array([0, 0, 1, 1, 2])
    assert without_variance(rewards, group, ALL[:5]).tolist() == [True, True, False, False, False]
    lost = np.array([np.nan, 1.0, np.inf, np.inf, 3.0])  # to be told, not to be replaced
    with np.errstate(invalid='ignore'):
        assert not without_variance(lost, group, ALL[:5]).any()
    assert not grpo(np.full(4, 0.1), np.zeros(4, int)).any()  # a tie is worth 0, not the rounding of a mean


def test_what_was_not_judged_has_no_part_in_its_group():
    rewards = np.array([3.0, 9.0, 1.0, 5.0, 9.0, 9.0, 7.0, 2.0])
    group = np.array([0, 0, 0, 1, 1, 1, 2, 3])  # of the first three two are judged, of the next one, then one by itself
    judged = np.array([True, False, True, True, False, False, True, False])
    known = comparable(group, judged)
    assert known.tolist() == [True, False, True, False, False, False, True, False]
    assert without_variance(rewards, group, known).tolist() == [False] * 3 + [True] * 3 + [False, True]
    whole = np.repeat([0, 1], 4)
    found = advantages('dr_grpo', rewards, whole, 4, np.ones(8), np.array([True, True, False, False] * 2))
    np.testing.assert_allclose(found, [-3, 3, 0, 0, 0, 0, 0, 0])
