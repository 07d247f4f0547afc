"""Baselines that never look: they find shortcuts where there are some, and none where there are none."""

import random

import pytest

from input_pipeline.baselines import score_baselines, split_items
from input_pipeline.schema import CATEGORY_OF, Question


def question(i, task, prompt, choices, answer):
    return Question(f'q{i}', 'p', task, CATEGORY_OF[task], prompt, choices, answer, ((0, 0, 1, 1),), False, 'train')


def closed(n, make, task='action_recognition'):
    """n questions with shuffled choices; make(rng) gives (prompt, answer, distractors)."""
    rng = random.Random(0)
    made = []
    for i in range(n):
        prompt, answer, others = make(rng)
        choices = [answer, *others]
        rng.shuffle(choices)
        made.append(question(i, task, prompt, tuple(choices), answer))
    return made


def score(questions):
    half = len(questions) // 2
    return score_baselines(questions[:half], questions[half:])[questions[0].task]


def test_fair_questions_stay_at_chance():
    actions = ['run', 'sit', 'wave', 'fall']

    def fair(rng):
        picked = rng.sample(actions, 2)
        return 'What is Ann doing?', picked[0], picked[1:]

    row = score(closed(1200, fair))
    assert row['chance'] == 0.5
    assert all(abs(row[name] - 0.5) < 0.07 for name in ('answer_prior', 'position', 'text')), row


def test_a_frequent_answer_is_found():
    row = score(closed(200, lambda rng: ('What?', 'run', [rng.choice(['sit', 'wave'])])))
    assert row['answer_prior'] == 1.0
    assert row['text'] == 1.0


def test_a_word_of_the_prompt_that_gives_the_answer_away_is_found():
    """Ann always runs and Bob always sits: the prior knows nothing of it, the text does."""

    def leaky(rng):
        ann = rng.random() < 0.5
        return f'What is {"Ann" if ann else "Bob"} doing?', 'run' if ann else 'sit', ['sit' if ann else 'run']

    row = score(closed(400, leaky))
    assert row['text'] == 1.0
    assert row['answer_prior'] < 0.65


def test_a_habit_of_nearer_and_farther_is_found():
    """'nearer' is answered X and 'farther' Y: neither the answers nor the words alone show it, only the two together."""

    def habit(rng):
        near = rng.random() < 0.5
        return f'Which is {"nearer" if near else "farther"}: X or Y?', 'X' if near else 'Y', ['Y' if near else 'X']

    row = score(closed(400, habit, 'depth_comparison'))
    assert row['text'] == 1.0


def test_a_place_that_is_right_too_often_is_found():
    questions = [
        question(
            i, 'action_recognition', 'What?', ('run', 'sit') if i % 2 else ('sit', 'run'), 'run' if i % 2 else 'sit'
        )
        for i in range(40)
    ]
    row = score(questions)
    assert row['position'] == 1.0
    assert row['answer_prior'] == 0.5


def test_open_questions():
    questions = [
        question(i, 'character_counting', f'How many {"Ann" if i % 4 else "Bob"}?', (), '3' if i % 4 else '1')
        for i in range(80)
    ]
    row = score(questions)
    assert row['answer_prior'] == 0.75
    assert row['text'] == 1.0
    assert row['chance'] is None
    assert row['position'] is None


def test_choices_and_open_form_are_scored_apart():
    """Chance has no meaning for the open half, so it must not stand beside an accuracy of both."""
    asked = closed(40, lambda rng: ('What?', 'run', ['sit']))
    asked += [question(100 + i, 'action_recognition', 'What?', (), 'run' if i % 4 else 'sit') for i in range(40)]
    table = score_baselines(asked, asked)
    assert set(table) == {'action_recognition, choices', 'action_recognition, open'}
    assert (table['action_recognition, choices']['n'], table['action_recognition, choices']['chance']) == (40, 0.5)
    assert table['action_recognition, choices']['answer_prior'] == 1.0
    assert (table['action_recognition, open']['chance'], table['action_recognition, open']['position']) == (None, None)
    assert table['action_recognition, open']['answer_prior'] == 0.75


def test_orders():
    """Lines that greet come first whatever their letter."""
    rng = random.Random(0)
    questions = []
    for i in range(300):
        lines = ['hello there', 'as I said', 'good bye']
        shown = rng.sample(range(3), 3)
        prompt = 'Order. ' + ' '.join(f'{"ABC"[place]}: "{lines[k]}"' for place, k in enumerate(shown))
        answer = ', '.join('ABC'[shown.index(k)] for k in range(3))
        questions.append(question(i, 'dialogue_reordering', prompt, (), answer))
    row = score(questions)
    assert row['chance'] == pytest.approx(1 / 6)
    assert row['answer_prior'] < 0.35
    assert row['text'] > 0.9
    assert split_items('Order. A: "x y" B: "z" Answer with the letters.') == {
        'A': '"x y" ',
        'B': '"z" Answer with the letters.',
    }


def test_without_training_questions_there_is_no_baseline():
    row = score_baselines([], closed(3, lambda rng: ('What?', 'run', ['sit'])))['action_recognition']
    assert row.pop('margin') == pytest.approx(0.98 / 3**0.5)
    assert row == {
        'n': 3,
        'split': 'train',
        'n_train': 0,
        'chance': 0.5,
        'answer_prior': None,
        'position': None,
        'text': None,
    }
