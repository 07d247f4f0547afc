"""Grades of right, nearly right and wrong answers, and of anything else that a policy may write."""

import ast
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import grading
from input_pipeline.grading import normalize, parse_number, pick_choice, read_answer, token_f1
from input_pipeline.schema import TASKS
from input_pipeline.tasks import METRICS, grade
from rarl_jax.conversation.protocol import read_turn

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
        # As people frame an answer.
        ('The answer is B.', 1),
        ('The correct answer is (B)', 1),
        ('the answer is: b', 1),
        ('So my final answer is option B: sitting down.', 1),
        ('I choose B', 1),
        ("I'd go with option C", 2),
        ('I’m going with (d).', 3),
        ("It's D.", 3),
        ('Option B', 1),
        ("I'm confident the correct option is B!", 1),
        ('Ans: (b)', 1),
        ('Definitely B', 1),
        ('either A or B', None),
        ('Both A and B', None),
        ('B is correct', 1),
        ('B is the right choice.', 1),
        ('The answer is a', 0),
        ('The answer is a man waving', 2),
        ('man waving', 2),
        # As they are written elsewhere.
        ('Ｂ', 1),
        ('（Ｂ）', 1),
        ('Ⓑ', 1),
        ('ｓｉｔｔｉｎｇ ｄｏｗｎ', 1),
        ('**B**', 1),
        ('__(B) sitting down__', 1),
        ('`B`', 1),
        ('<b>B</b>', 1),
        (r'\boxed{B}', 1),
        (r'$\boxed{\text{(B) sitting down}}$', 1),
        # Several, or none.
        ('The answer is B or C', None),
        ('A and B', None),
        ('A/B', None),
        ('A B C D', None),
        ('B. C.', None),
        ('option A, option B', None),
        ('The answer is not B', None),
        ('I would not choose B', None),
        ('running, sitting down, a man waving, sitting', None),
        ('The answer is', None),
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
        ('-3', -3),
        ('−3', -3),
        ('–3', -3),
        ('minus three', None),
        ('3–4', None),
        ('three', 3),
        ('Three.', 3),
        ('03', 3),
        ('3rd', 3),
        ('٣', 3),
        ('seventeen', 17),
        ('twenty-five', 25),
        ('Forty two', 42),
        ('two dozen', None),
        ('Twice.', 2),
        ('She is never drawn.', 0),
        ('3 times, once in each panel', 3),
        ('once or twice', None),
        ('one hundred', None),
        ('two and a half', None),
        (r'\boxed{3}', 3),
        ('**3**', 3),
        ('3 of 5', None),
        ('x3', None),
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
        ('CABD', 1.0),
        ('Ｃ＞Ａ＞Ｂ＞Ｄ', 1.0),
        (r'\boxed{C, A, B, D}', 1.0),
        ('CABDCABD', 0.0),
        ('bad', 0.0),
        ('cabbed', 0.0),
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


def test_choices_may_be_words_that_frame_an_answer():
    sides = ('right', 'left', 'the tree', 'a tree house')
    assert pick_choice('The right answer is left.', sides) == 1
    assert pick_choice('right', sides) == pick_choice('The answer is right.', sides) == 0
    assert pick_choice("It's a tree.", sides) == 2
    assert pick_choice('left or right', sides) is None
    assert pick_choice('I', tuple('zyxwvutsr')) == 8  # the ninth letter, where there are nine


HOSTILE = {
    'digits': '1' * 10**6 + '.1',
    'numbers': '1.' * 500_000,
    'marks': 'a' + '\u0301\u0323' * 500_000,
    'signs': '!' * 10**6,
    'frames': 'the answer is ' * 80_000,
    'contractions': "i'" * 500_000,
    'markup': '<b' * 500_000,
    'number words': 'twenty ' * 150_000,
    'thoughts': '<think>' * 150_000,
    'answers': '<answer>' * 100_000 + '</answer>' * 100_000,
}


@pytest.mark.parametrize('kind', HOSTILE)
def test_a_million_characters_are_graded_in_no_time(kind):
    text, start = HOSTILE[kind], time.process_time()
    for metric in grading.OPEN_METRICS:
        grading.grade(metric, 'B, A, C', text)
    grading.grade('', 'running', text, ACTIONS)
    read_answer(text)
    assert time.process_time() - start < 10  # about 1 s


PIECES = ('<think>', '</think>', '<answer>', '</answer>', '<tool_call>', '</tool_call>', 'B', ' ', '\n', '{"name": 1}')


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(''.join))
def test_an_answer_is_read_as_a_turn_is(text):
    turn = read_turn(text)
    assert read_answer(text) == (None if turn.call is not None else turn.answer)


def test_grading_needs_python_alone():
    """Exports carry the file as it is."""
    tree = ast.parse(Path(grading.__file__).read_text(encoding='utf-8'))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [name.name for node in imports if isinstance(node, ast.Import) for name in node.names]
    names += [node.module for node in imports if isinstance(node, ast.ImportFrom)]
    assert {name.partition('.')[0] for name in names} <= sys.stdlib_module_names


def test_every_task_declares_a_metric():
    assert set(METRICS) == set(TASKS)
    assert set(METRICS.values()) <= set(grading.OPEN_METRICS)
