"""Judges that need no server, and which answers are judged."""

import dataclasses

from rarl_jax.evaluation.judge import ExactJudge, Item, TokenF1Judge, judge_records
from tests.rarl_jax.evaluation.made import record


def test_plain_judges():
    items = [Item('q', 'the boy runs', 'The boy runs!'), Item('q', 'the boy runs', 'a boy falls')]
    assert ExactJudge().grades(items) == [1.0, 0.0]
    assert TokenF1Judge().grades(items) == [1.0, 0.5]


def test_only_open_answers_of_the_tasks_are_judged():
    open_one = record('a', [None, None], task='panel_understanding', choices=(), answer='he falls', said='he falls')
    silent = record('b', [None], task='panel_understanding', choices=(), answer='he falls', said=None)
    choice, other = (
        record('c', [1.0], task='panel_understanding'),
        record('d', [0.5], task='panel_reordering', choices=()),
    )
    judged = judge_records([choice, silent, other, open_one], ExactJudge())
    assert [each.question_id for each in judged] == ['c', 'b', 'd', 'a']
    assert judged[0] == choice and judged[2] == other
    assert [attempt.grade for each in (judged[1], judged[3]) for attempt in each.attempts] == [0.0, 1.0, 1.0]
    assert (
        judged[3].metric == 'exact'
        and dataclasses.replace(judged[3], metric=open_one.metric, attempts=open_one.attempts) == open_one
    )
