"""Warnings of a policy that goes wrong: each by itself, told when it begins, and none of a policy that does well."""

from __future__ import annotations

import pytest

from rarl_jax.stages.symptoms import new_symptoms, symptoms

WELL = {'reward/total': 1.0, 'zoom/calls': 1.0, 'policy/entropy': 0.5, 'group/zero_variance': 0.5, 'length/cut_off': 0.1, 'policy/ratio_gap': 0.01}  # fmt: skip


def rows(name, *values):
    return [WELL | {name: value} for value in values]


@pytest.mark.parametrize(
    ('name', 'good', 'bad', 'told'),
    [
        ('zoom/calls', 1.2, 0.1, '0.10 calls an episode, 1.20 at most'),
        ('policy/entropy', 0.5, 0.01, '0.01 nats a token, 0.5 at the start'),
        ('group/zero_variance', 0.8, 0.95, '95 % of the groups'),
        ('length/cut_off', 0.1, 0.3, '30 % of the answers are cut off'),
        ('policy/ratio_gap', 0.02, 0.07, '7 % is how far'),
    ],
)
def test_each_is_told_with_its_likely_cause_when_it_begins(name, good, bad, told):
    history = rows(name, *[good] * 6, *[bad] * 8)
    assert not symptoms(history[:6])
    assert list(symptoms(history)) == [name]
    assert told in symptoms(history)[name] and 'Likely, ' in symptoms(history)[name]
    begun = [step for step in range(1, len(history) + 1) if new_symptoms(history[:step])]
    assert len(begun) == 1 and 6 < begun[0] <= 11
    assert not symptoms(history + rows(name, *[good] * 5))


def test_a_single_step_and_a_stage_without_a_tool_are_no_symptom():
    assert not symptoms(rows('group/zero_variance', *[0.5] * 6, 1.0))
    assert not symptoms(rows('zoom/calls', *[0.0] * 9))
    assert not symptoms([]) and not symptoms([{'loss': 1.0}] * 9)


def test_a_policy_that_is_taught_may_become_sure():
    """Supervised stages write entropy too, and bring it down on purpose."""
    assert not symptoms([{'loss': 1.0, 'policy/entropy': entropy} for entropy in (3.5,) * 6 + (0.01,) * 8])
