"""In what proportion a stage asks its tasks and those of the stages before it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rarl_jax.stages.curriculum import earlier_tasks, mixture_of
from rarl_jax.stages.evaluate import EvaluateSettings
from tests.rarl_jax.stages.test_rl import STAGE

ACTION, DEPTH, PANELS, WHO = 'action_recognition', 'depth_comparison', 'panel_reordering', 'character_identification'
FIRST = replace(STAGE, tasks=(ACTION, DEPTH))
STAGES = {'first': FIRST, 'look': EvaluateSettings(tasks=(WHO,), questions=0)}


def settings(**stages):
    return SimpleNamespace(stages=(*STAGES, *stages), stage=STAGES | stages)


def test_every_question_alike_needs_no_mixture():
    assert mixture_of(settings(), 'first') == ()


def test_a_joint_stage_weighs_its_tasks():
    joint = replace(STAGE, tasks=(ACTION, PANELS), task_weights=(3.0, 1.0))
    assert mixture_of(settings(joint=joint), 'joint') == (((ACTION,), 0.75), ((PANELS,), 0.25))


def test_a_share_is_left_to_what_was_taught_before():
    """Neither to what an evaluation has asked, nor to the stage's own tasks."""
    later = replace(STAGE, tasks=(PANELS, DEPTH), replay=0.2)
    assert mixture_of(settings(later=later), 'later') == (((PANELS, DEPTH), 0.8), ((ACTION,), 0.2))
    weighted = replace(later, task_weights=(1.0, 3.0))
    parts = mixture_of(settings(later=weighted), 'later')
    assert parts == (((PANELS,), 0.2), ((DEPTH,), pytest.approx(0.6)), ((ACTION,), 0.2))


def test_a_baseline_that_starts_anew_has_nothing_to_replay():
    anew = replace(STAGE, tasks=(PANELS,), from_start=True)
    assert earlier_tasks(settings(anew=anew, last=replace(STAGE, tasks=(WHO,))), 'last') == (PANELS,)
    with pytest.raises(ValueError, match=r'config\.stage\.anew\.replay is 0\.5, but no stage before'):
        mixture_of(settings(anew=replace(anew, replay=0.5)), 'anew')


@pytest.mark.parametrize('change', [{'task_weights': (1.0,)}, {'task_weights': (1.0, -1.0)}, {'replay': 1.0}])
def test_proportions_that_cannot_be(change):
    with pytest.raises(ValueError, match=f'^{next(iter(change))} is'):
        replace(FIRST, **change)
