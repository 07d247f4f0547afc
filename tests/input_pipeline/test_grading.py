"""Grades of right, nearly right and wrong answers, and of anything else that a policy may write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.grading import grade, normalize, parse_number, pick_choice, token_f1
from input_pipeline.schema import TASKS

ACTIONS = ('running', 'sitting down', 'a man waving', 'sitting')


@pytest.mark.parametrize(
    ('prediction', 'index'),
    [
        ('running', 0),
        ('  Running. ', 0),
        ('A', 0),
        ('(b)', 1),
        ('C.', 2),
        ('D) sitting', 3),
        ('option b: sitting down', 1),
        ('The figure is running.', 0),
        ('he is sitting down', 1),  # the longer text that holds a shorter one
        ('a man waving', 2),  # an article is no letter
        ('B) running', 0),  # letter and text disagree: the words decide
        ('running or sitting', None),
        ('A, B, C or D', None),
        ('E', None),
        ('', None),
        ('!!', None),
    ],
)
def test_pick_choice(prediction, index):
    assert pick_choice(prediction, ACTIONS) == index


def test_choices_that_are_letters_or_symbols():
    assert pick_choice('A', ('B', 'A')) == 1  # the text comes before the letter
    assert pick_choice('!?', ('!!', '!?')) == 1


def test_grade_of_choices():
    assert grade('action_recognition', 'sitting', 'd', ACTIONS) == 1.0
    assert grade('action_recognition', 'sitting', 'sitting down', ACTIONS) == 0.0
    assert grade('action_recognition', 'sitting', None, ACTIONS) == 0.0


@pytest.mark.parametrize(
    ('text', 'number'),
    [
        ('4', 4),
        ('There are four.', 4),
        ('4 (four) characters', 4),
        ('4.0', 4),
        ('４', 4),
        ('3.5', None),
        ('3-4', None),
        ('-2', -2),
        ('', None),
        ('9' * 5000, None),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(('said', 'score'), [('5', 1.0), ('4', 0.5), ('six', 0.5), ('3', 0.0), ('4 or 5', 0.0)])
def test_counts_pay_off_by_one(said, score):
    assert grade('character_counting', '5', said) == score


@pytest.mark.parametrize(
    ('said', 'score'),
    [
        ('C, A, B, D', 1.0),
        ('c -> a -> b -> d', 1.0),
        ('The order is C A B D.', 1.0),
        ('A, C, B, D', 4 / 6),  # one of six pairs the wrong way: (5 - 1) / 6
        ('D, B, A, C', 0.0),
        ('C, A', 1 / 6),  # one pair known of six
        ('C', 0.0),
        ('C, A, B, D, C, A, B, D', 0.0),
        ('E, F', 0.0),
    ],
)
def test_orders_are_graded_by_kendall_tau(said, score):
    assert grade('panel_reordering', 'C, A, B, D', said) == pytest.approx(score)


def test_labels_of_several_digits_are_whole_words():
    assert grade('panel_reordering', '1, 13, 3', '1, 13, 3') == 1.0
    assert grade('panel_reordering', '1, 13, 3', '1133') == 0.0


def test_token_f1_by_hand():
    assert token_f1('The red cat', 'a RED cat!') == 1.0
    assert token_f1('red cat', 'red dog runs') == pytest.approx(2 * 1 / (2 + 3))
    assert token_f1('red cat', '') == 0.0


@given(st.sampled_from(TASKS), st.text(), st.text(), st.lists(st.text(), max_size=5))
def test_any_string_is_graded(task, answer, prediction, choices):
    assert 0.0 <= grade(task, answer, prediction, choices) <= 1.0
    assert normalize(normalize(prediction)) == normalize(prediction)
