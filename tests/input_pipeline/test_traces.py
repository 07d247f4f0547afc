"""Supervised conversations: each kind as its settings say, true answers after a zoom, guesses without one, reproducible from the generator alone."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from input_pipeline.schema import Question
from input_pipeline.traces import TraceSettings, loosen, make_conversation

SIZE = (600, 800)


def only(**settings):
    return TraceSettings(**{'crop': 0, 'point': 0, 'answer': 0, 'direct': 0, **settings})


ANSWERS = {
    'action_recognition': ('running', 'reading', 'waving', 'sleeping'),
    'depth_comparison': ('Ruby', 'Fern', 'Azur'),
}


def ask(number, box, task='action_recognition', answer='running', choices=()):
    return Question(
        id=f'page/{task}/{number}',
        page_id='page',
        task=task,
        category='recognition',
        prompt=f'Question {number}?',
        choices=choices,
        answer=answer,
        regions=(box,),
        zoom_needed=True,
        split='train',
    )


QUESTIONS = [
    ask(i, (100.0 * i, 200.0, 100.0 * i + 80, 300.0), answer=answer)
    for i, answer in enumerate(('running', 'reading', 'waving'))
]


def conversations(settings, count, questions=QUESTIONS):
    rng = np.random.default_rng(0)
    return [make_conversation(questions, SIZE, ANSWERS, settings, rng) for _ in range(count)]


def steps(conversation):
    return [step for exchange in conversation.exchanges for step in exchange.steps]


def test_the_generator_decides_everything():
    settings = TraceSettings(crop=1, point=1, answer=1, direct=1, box_scale=(1.0, 2.0), box_shift=0.1, zoom_rate=0.5)
    assert conversations(settings, 20) == conversations(settings, 20)


def test_of_many_regions_the_first_few_are_looked_at():
    counted = replace(QUESTIONS[0], regions=tuple((0.0, 100.0 * i, 50.0, 100.0 * i + 50) for i in range(6)))
    (told,) = conversations(TraceSettings(looks=4), 1, [counted])
    assert [step.box for step in steps(told)] == [*counted.regions[:4], None]


def test_an_answering_conversation_zooms_into_the_region_and_answers_truly():
    for made in conversations(only(answer=1), 10):
        question = next(q for q in QUESTIONS if q.id == made.question_id)
        zoom, answer = steps(made)
        assert made.offers_tool
        assert made.exchanges[0].prompt == question.prompt
        assert zoom.box == question.regions[0]
        assert zoom.shown
        assert answer.answer == question.answer


def test_a_question_with_two_regions_is_zoomed_twice():
    both = replace(QUESTIONS[0], regions=((0.0, 0.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)))
    made = conversations(only(answer=1), 1, [both])[0]
    assert [step.box for step in steps(made)] == [*both.regions, None]


def test_pointing_asks_for_each_region_once_and_shows_no_crop():
    twin = ask(9, QUESTIONS[0].regions[0])  # another question about the same region: its box could be copied
    for made in conversations(only(point=1), 10, [*QUESTIONS, twin]):
        boxes = [step.box for step in steps(made)]
        assert len(boxes) == len(set(boxes)) == 3
        assert not any(step.shown for step in steps(made))
    assert max(len(made.exchanges) for made in conversations(only(point=1, questions=2), 5)) == 2


def test_a_crop_conversation_shows_a_box_around_the_region():
    for made in conversations(only(crop=1, crop_scale=(1.5, 1.5), crop_shift=0.0), 10):
        question = next(q for q in QUESTIONS if q.id == made.question_id)
        x1, y1, x2, y2 = question.regions[0]
        assert made.crop == pytest.approx((max(x1 - 20, 0), y1 - 25, x2 + 20, y2 + 25))
        assert [step.answer for step in steps(made)] == [question.answer]


def test_a_direct_conversation_has_no_tool_and_guesses_evenly():
    made = conversations(only(direct=1), 400)
    assert not any(each.offers_tool for each in made)
    guesses = Counter(steps(each)[0].answer for each in made)
    assert set(guesses) == set(ANSWERS['action_recognition'])
    assert max(guesses.values()) < 140


@pytest.mark.parametrize(('rate', 'low', 'high'), [(0.0, 200, 200), (0.5, 105, 145)])
def test_an_answer_at_once_is_true_where_it_is_no_guess(rate, low, high):
    """A guess is right by chance one time in four."""
    made = conversations(only(direct=1, guess_rate=rate), 200)
    true = {question.id: question.answer for question in QUESTIONS}
    assert low <= sum(steps(each)[0].answer == true[each.question_id] for each in made) <= high


def test_guesses_come_from_the_choices_of_the_question():
    question = ask(0, (0.0, 0.0, 50.0, 50.0), 'depth_comparison', 'Ruby', ('Ruby', 'Fern'))
    made = conversations(only(direct=1), 60, [question])
    assert {steps(each)[0].answer for each in made} == {'Ruby', 'Fern'}


@pytest.mark.parametrize(('rate', 'low', 'high'), [(0.0, 0, 0), (0.4, 60, 100), (1.0, 200, 200)])
def test_zoom_rate_is_the_share_that_zooms(rate, low, high):
    made = conversations(only(answer=1, zoom_rate=rate), 200)
    assert low <= sum(len(steps(each)) == 2 for each in made) <= high


def test_malformed_answers_lack_a_tag():
    made = conversations(only(answer=1, malformed_rate=0.5), 200)
    wrong = [steps(each)[-1].text for each in made if steps(each)[-1].text is not None]
    assert 70 <= len(wrong) <= 130
    assert not any('<answer>' in text and '</answer>' in text for text in wrong)


def test_some_calls_are_exact_among_loose_ones():
    settings = only(answer=1, box_scale=(1.5, 1.8), box_shift=0.05, exact_rate=0.3)
    exact = sum(steps(each)[0].box in {q.regions[0] for q in QUESTIONS} for each in conversations(settings, 200))
    assert 40 <= exact <= 80


def test_kinds_come_as_often_as_they_weigh():
    made = conversations(TraceSettings(crop=1, point=0, answer=2, direct=1), 400)
    crops, direct = sum(each.crop is not None for each in made), sum(not each.offers_tool for each in made)
    assert 70 <= crops <= 130
    assert 70 <= direct <= 130


def test_loose_boxes_stay_on_the_page_and_keep_their_scale():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x1, y1, x2, y2 = loosen((560.0, 0.0, 600.0, 40.0), (1.0, 3.0), 0.5, SIZE, rng)
        assert 0 <= x1 < x2 <= SIZE[0]
        assert 0 <= y1 < y2 <= SIZE[1]
    assert loosen((300.0, 300.0, 340.0, 360.0), (2.0, 2.0), 0.0, SIZE, rng) == (280.0, 270.0, 360.0, 390.0)


# ---------------------------------------------------------------- several looks


def many(task, answer, boxes, number=0):
    return replace(ask(number, boxes[0], task=task, answer=answer), regions=tuple(boxes))


LEFT, RIGHT, LOW = (0.0, 0.0, 90.0, 90.0), (300.0, 0.0, 390.0, 90.0), (0.0, 400.0, 90.0, 490.0)


def test_items_are_looked_at_as_the_question_names_them():
    """Regions stand in reading order, which the answer names: C is the first, A the second, B the last."""
    question = many('panel_reordering', 'C, A, B', [LEFT, RIGHT, LOW])
    [told] = conversations(only(answer=1.0), 1, [question])
    assert [step.box for step in steps(told)] == [RIGHT, LOW, LEFT, None]
    assert steps(told)[-1].answer == 'C, A, B'


def test_figures_are_counted_aloud_from_top_to_bottom():
    question = many('character_counting', '3', [LOW, RIGHT, LEFT])
    [told] = conversations(only(answer=1.0, count_aloud=True), 1, [question])
    assert [(step.box, step.thought) for step in steps(told)] == [(LEFT, '0'), (RIGHT, '1'), (LOW, '2'), (None, '3')]
    [silent] = conversations(only(answer=1.0), 1, [question])
    assert {step.thought for step in steps(silent)} == {None}


def test_pointing_is_a_first_look_and_a_crop_alone_answers_its_question():
    questions = [*QUESTIONS, many('character_counting', '2', [LOW, LEFT], number=9)]
    pointed = [exchange for told in conversations(only(point=1.0), 40, questions) for exchange in told.exchanges]
    assert {exchange.steps[0].box for exchange in pointed if exchange.prompt == 'Question 9?'} == {LEFT}
    shown = {told.exchanges[0].prompt for told in conversations(only(crop=1.0), 40, questions)}
    assert shown == {question.prompt for question in QUESTIONS}


def test_a_rare_task_gets_its_share():
    questions = [*QUESTIONS, many('character_counting', '2', [LEFT, LOW], number=9)]
    times = Counter(told.question_id for told in conversations(only(answer=1.0, by_task=True), 400, questions))
    assert 160 < times['page/character_counting/9'] < 240
    times = Counter(told.question_id for told in conversations(only(answer=1.0), 400, questions))
    assert 70 < times['page/character_counting/9'] < 130
