"""Comparisons over seeds and pages, worked by hand; results that are another arm's are refused."""

from dataclasses import replace

import pandas as pd
import pytest

from experiments import tables
from experiments.arms import Arm, Experiment
from experiments.results import Results, RunResult, first_iou
from tests.rarl_jax.evaluation.made import record

TWO = Experiment('Which?', {'old': Arm('old'), 'new': Arm('new')}, seeds=(0, 1, 2))


def run(arm, seed, grades, metrics=None, **changed):
    """A run whose question number i is on page i."""
    records = tuple(record(f'q{i}', [grade], page=f'p{i}', **changed) for i, grade in enumerate(grades))
    return RunResult(arm, seed, {'commit': 'c0ffee'}, pd.DataFrame(metrics or {}), {}, {'rarl:zoom': records}, ())


def test_a_difference_is_paired_seed_by_seed():
    """New is right on 8 questions more of 20 with each seed, and on two more still with the last."""
    old = [run('old', seed, [0.0] * 16 + [1.0] * 4) for seed in range(3)]
    new = [run('new', seed, [0.0] * (8 - 2 * (seed == 2)) + [1.0] * (12 + 2 * (seed == 2))) for seed in range(3)]
    [found] = Results(TWO, (*old, *new)).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'))
    assert found.by_seed == pytest.approx((0.4, 0.4, 0.5))
    assert (found.first, found.second) == pytest.approx((0.2, 19 / 30))
    assert found.seeds.mean == pytest.approx(13 / 30) and 0.2 < found.seeds.low < 0.4
    assert found.pages.n == 60 and found.is_shown


def test_seeds_that_disagree_show_nothing():
    """Over pages alone the difference would be sure: two seeds say all, one says nothing."""
    old = [run('old', seed, [0.0] * 20) for seed in range(3)]
    new = [run('new', seed, [float(seed > 0)] * 20) for seed in range(3)]
    [found] = Results(TWO, (*old, *new)).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'))
    assert found.pages.p_bootstrap < 0.001 and found.p > 0.1
    assert not found.is_shown
    [row] = tables.paired([found], 'old', 'new').to_dict('records')
    assert row['each seed'] == '+0.0, +100.0, +100.0' and row['shown'] == 'not significant'


def test_seeds_that_only_one_arm_has_are_left_out():
    runs = [run('old', seed, [0.0, 1.0]) for seed in (0, 1, 2)] + [run('new', seed, [1.0, 1.0]) for seed in (0, 1)]
    [found] = Results(TWO, tuple(runs)).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'))
    assert found.by_seed == (0.5, 0.5)


def test_another_question_of_the_same_id_is_refused():
    pair = (run('old', 0, [0.0]), run('new', 0, [1.0], answer='jump'))
    with pytest.raises(ValueError, match="'q0' is no question of both"):
        Results(TWO, pair).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'))


def test_answers_to_other_questions_are_refused():
    """A comparison of what happens to be in common would look like one of all."""
    pair = (run('old', 0, [0.0, 1.0]), run('new', 0, [1.0]))
    with pytest.raises(ValueError, match="'q1' is no question of both"):
        Results(TWO, pair).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'))


def test_tasks_that_are_not_compared_cost_nothing():
    """The same difference on two tasks: Holm doubles its p where both are looked at."""
    depth = {'task': 'depth_comparison'}
    runs = []
    for seed in range(3):
        for arm, right in (('old', 4), ('new', 12 + 2 * seed)):
            one, two = (run(arm, seed, [1.0] * right + [0.0] * (20 - right), **changed) for changed in ({}, depth))
            second = [replace(record, question_id=f'd{record.question_id}') for record in two.answers['rarl:zoom']]
            runs.append(replace(one, answers={'rarl:zoom': (*one.answers['rarl:zoom'], *second)}))
    found, ends = Results(TWO, tuple(runs)), (('old', 'rarl:zoom'), ('new', 'rarl:zoom'))
    [alone] = found.compare(*ends, tasks=('depth_comparison',))
    both = found.compare(*ends)
    assert [each.task for each in both] == ['action_recognition', 'depth_comparison']
    assert both[1].p == pytest.approx(2 * alone.p) and alone.is_shown


def test_other_figures_than_the_grade_can_be_compared():
    pair = (run('old', 0, [0.0], ious=(0.25, 0.9)), run('new', 0, [0.0], ious=(None, 0.75)))
    [found] = Results(TWO, pair).compare(('old', 'rarl:zoom'), ('new', 'rarl:zoom'), first_iou)
    assert found.by_seed == (0.5,)


def test_a_curve_has_a_column_a_seed_and_is_smoothed_backwards():
    metrics = {'step': [1, 2, 3, 3], 'reward/total': [1.0, 2.0, 6.0, None]}  # the last line is an evaluation's
    curve = Results(TWO, (run('old', 0, [], metrics), run('old', 1, [], metrics))).curve(
        'old', 'reward/total', smooth=2
    )
    assert curve.to_dict('list') == {0: [1.0, 1.5, 4.0], 1: [1.0, 1.5, 4.0]}
