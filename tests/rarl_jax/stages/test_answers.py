"""Which groups a step learns from, and what it tells of all that it has answered."""

from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from input_pipeline.schema import Question
from rarl_jax.conversation.rewards import Reward
from rarl_jax.evaluation.judge import Item
from rarl_jax.stages.answers import Answers, collect, rollout_metrics
from rarl_jax.stages.judging import grades
from rarl_jax.stages.rl import check_verdicts, in_loss
from tests.rarl_jax.conversation.test_rewards import episode_of, zoomed
from tests.rarl_jax.stages.test_rl import STAGE

QUESTION = Question('q', 'p', 'panel_understanding', 'recognition', 'What?', (), 'he runs', (), True, 'train')


def paid(totals, names, judged=()):
    """Groups of two that earned these totals; a sample is its question's name."""
    earned = [Reward(total, {'accuracy': total}, i not in judged) for i, total in enumerate(sum(totals, ()))]
    nothing = np.zeros(0, int)
    episodes = [replace(episode_of(), group=i // 2, sample=i % 2, versions=nothing) for i in range(len(earned))]
    return Answers([SimpleNamespace(question=replace(QUESTION, id=name)) for name in names], episodes, earned)


def drawing(*draws):
    """`draw` and `answer` over these draws, each a dict of name -> the two totals."""
    numbers, asked = count(), []

    def answer(number, names):
        asked.append(number)
        return paid([draws[number][name] for name in names], names)

    return answer, lambda: [*draws[next(numbers)]], asked


FLAT, GOOD = (1.0, 1.0), (0.0, 1.0)


def names_of(answers):
    return [sample.question.id for sample in answers.samples]


def test_without_refills_nothing_is_replaced():
    answer, draw, asked = drawing({'a': FLAT, 'b': GOOD})
    every, kept = collect(answer, draw, 0)
    assert every is kept and names_of(kept) == ['a', 'b'] and asked == [0]


def test_groups_without_variance_are_replaced_in_the_order_of_drawing():
    answer, draw, asked = drawing({'a': FLAT, 'b': GOOD, 'c': FLAT}, {'d': GOOD, 'e': GOOD, 'f': GOOD}, {})
    every, kept = collect(answer, draw, 2)
    assert names_of(every) == [*'abcdef'] and asked == [0, 1], 'a third draw was not needed'
    assert names_of(kept) == ['b', 'd', 'e']
    assert kept.group.tolist() == [0, 0, 1, 1, 2, 2] and kept.total.tolist() == [0, 1] * 3
    assert rollout_metrics(every, 0)['group/zero_variance'] == pytest.approx(2 / 6)
    stage = replace(STAGE, refills=2)
    assert all(e is kept.episodes[i] for i, e in enumerate(in_loss(stage, kept)))


def test_where_refills_do_not_suffice_the_rest_is_out_of_the_loss():
    answer, draw, asked = drawing({'a': FLAT, 'b': FLAT, 'c': FLAT}, {'d': FLAT, 'e': GOOD, 'f': FLAT})
    _, kept = collect(answer, draw, 1)
    assert names_of(kept) == ['e', 'a', 'b'] and asked == [0, 1]
    long = replace(kept, episodes=[replace(e, loss_mask=np.ones(3, bool)) for e in kept.episodes])
    counts = [int(e.loss_mask.sum()) for e in in_loss(replace(STAGE, refills=1), long)]
    assert counts == [3, 3, 0, 0, 0, 0]
    assert [int(e.loss_mask.sum()) for e in in_loss(STAGE, long)] == [3] * 6


def test_a_process_that_has_enough_draws_with_the_others_and_answers_no_more(monkeypatch):
    monkeypatch.setattr('rarl_jax.stages.answers.processes.largest', lambda lacking: np.maximum(lacking, 1))
    answer, draw, asked = drawing({'a': GOOD}, {'b': GOOD}, {'c': GOOD})
    every, kept = collect(answer, draw, 2)
    assert asked == [0] and names_of(every) == names_of(kept) == ['a']
    with pytest.raises(IndexError):
        draw()  # all three draws were made


def test_endings_that_a_stage_masks_are_out_of_the_loss():
    answers = paid([GOOD], ['a'])
    ends = ('turn_limit', 'answer')
    episodes = [
        replace(e, finish_reason=end, loss_mask=np.ones(3, bool)) for e, end in zip(answers.episodes, ends, strict=True)
    ]
    out = in_loss(replace(STAGE, masked_endings=('turn_limit', 'total_length')), replace(answers, episodes=episodes))
    assert [int(e.loss_mask.sum()) for e in out] == [0, 3]


# ---------------------------------------------------------------- judge


class Stub:
    """Has no verdict on 'who knows'."""

    name = 'stub'

    def grades(self, items):
        assert all(isinstance(item, Item) for item in items)
        return [{'he runs': 1.0, 'who knows': None}.get(item.prediction, 0.5) for item in items]


def said(words):
    return episode_of(turn_texts=() if words is None else (f'<answer>{words}</answer>',))


def test_a_judge_grades_open_sentences_alone_and_what_it_misses_is_not_zero():
    closed = replace(QUESTION, choices=('he runs', 'he sits'))
    counted = replace(QUESTION, task='character_counting', answer='3')
    answers = ['he runs', 'who knows', 'he sits', None]
    assert grades([said(a) for a in answers], [QUESTION] * 4, Stub()) == [1.0, None, 0.5, 0.0]
    assert grades([said('he sits'), said('3')], [closed, counted], Stub()) == [0.0, 1.0]
    assert grades([said('he runs fast')], [QUESTION], None)[0] == pytest.approx(0.8)


def test_missing_verdicts_are_counted_and_have_a_limit():
    answers = paid([(0.0, 1.0), (1.0, 0.5)], ['a', 'b'], judged={1})
    answers = replace(answers, episodes=[replace(e, turns=said('x').turns) for e in answers.episodes])
    told = rollout_metrics(answers, 0)
    assert told['judge/missing'] == 0.25 and told['reward/total'] == pytest.approx(0.5)
    assert answers.known.tolist() == [False, False, True, True], 'nobody is left to compare the first with'
    check_verdicts(STAGE, answers)
    strict = replace(STAGE, judge=replace(STAGE.judge, most_missing=0.2))
    with pytest.raises(ValueError, match='no verdict on 1 of the 4 open answers'):
        check_verdicts(strict, answers)


def test_crops_are_counted_in_tokens():
    answers = paid([GOOD], ['a'])
    shown = replace(answers.episodes[0], zooms=(replace(zoomed((0, 0, 9, 9)), tokens=16),))
    told = rollout_metrics(replace(answers, episodes=[shown, answers.episodes[1]]), 0)
    assert (told['zoom/crop_tokens'], told['zoom/rate'], told['zoom/calls']) == (8, 0.5, 0.5)


def test_how_old_the_policy_is_that_chose_is_told_by_token():
    answers = paid([GOOD], ['a'])
    chosen, versions = np.array([False, True, True, True]), np.array([-1, 6, 6, 7])
    fresh, stale = (
        replace(e, loss_mask=chosen, versions=v)
        for e, v in zip(answers.episodes, (versions, versions + 1), strict=True)
    )
    assert rollout_metrics(replace(answers, episodes=[fresh, fresh]), 7)['policy/staleness'] == pytest.approx(2 / 3)
    assert rollout_metrics(replace(answers, episodes=[fresh, stale]), 8)['policy/staleness'] == pytest.approx(7 / 6)
