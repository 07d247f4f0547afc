import dataclasses

import pytest

from rarl_jax.conversation.episodes import ZoomRecord
from rarl_jax.evaluation.records import make_record, smallest_share
from tests.rarl_jax.conversation.test_episodes import episode
from tests.rarl_jax.evaluation.made import question


def test_a_record_of_two_attempts():
    asked = question('q0', regions=((10, 20, 30, 60), (0, 0, 100, 100)))
    record = make_record(4, asked, [episode(), episode(zooms=())], ['run', None], [1.0, 0.0], 'zoom', 'sampled')
    first, second = record.attempts
    assert first.zooms == (ZoomRecord('ok', (10.0, 20.0, 30.0, 60.0), 1.0), ZoomRecord('bad_box', None, None))
    assert (first.prediction, first.grade, first.turns, first.finish_reason) == ('run', 1.0, 2, 'answer')
    assert (second.prediction, second.grade, second.zooms) == (None, 0.0, ())
    assert record.score == 0.5 and record.key == ('zoom', 'sampled', 'q0') and record.metric == 'accuracy'
    assert record.region_share == pytest.approx(20 * 40 / (100 * 200))


def test_without_regions_there_is_no_iou():
    record = make_record(0, question('q0', regions=()), [episode()], ['run'], [1.0], 'zoom', 'greedy')
    assert record.attempts[0].zooms[0] == ZoomRecord('ok', (10.0, 20.0, 30.0, 60.0), None)
    assert record.region_share is None


def test_the_hash_is_of_all_that_is_asked():
    hashes = {
        make_record(0, each, [episode()], ['run'], [1.0], 'zoom', 'greedy').doc_hash
        for each in (question('q0'), question('q0', answer='jump'), question('q0', regions=()), question('q0'))
    }
    assert len(hashes) == 3


def test_attempts_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="question 'q0' has 1 episodes, 2 predictions and 1 grades"):
        make_record(0, question('q0'), [episode()], ['a', 'b'], [1.0], 'zoom', 'greedy')
    with pytest.raises(ValueError, match='one of each'):
        make_record(0, question('q0'), [], [], [], 'zoom', 'greedy')


def test_the_smallest_region_counts():
    assert smallest_share([(0, 0, 10, 10), (0, 0, 5, 2)], 100, 10) == 0.01
    assert smallest_share([], 100, 10) is None


def test_an_attempt_that_was_not_judged_has_no_part_in_the_score():
    record = make_record(0, question('q0'), [episode()] * 2, ['a', 'b'], [None, 0.5], 'zoom', 'sampled')
    assert record.score == 0.5
    assert dataclasses.replace(record, attempts=record.attempts[:1]).score is None
