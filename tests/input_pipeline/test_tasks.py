"""The seven tasks on pages made by hand."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from input_pipeline.balance import BalanceSettings, balance
from input_pipeline.schema import TASKS, Balloon, Character, Page, Panel, Question, Region
from input_pipeline.tasks import Skip, TaskSettings, collect_vocabulary, make_questions
from input_pipeline.tasks.common import zoom_needed
from input_pipeline.tasks.distractors import balanced_weights, draw_among, draw_balanced, inclusion
from input_pipeline.tasks.naming import kind_of

# Two rows: two panels, then one. Ann is in the first two panels, Bob in the last two.
PANELS = (Panel('p0', (0, 0, 190, 200)), Panel('p1', (200, 0, 400, 200)), Panel('p2', (0, 210, 400, 400)))
ANN0 = Character('c0', (10, 50, 60, 150), identity='Ann', action='running', depth=1)
ANN1 = Character('c1', (210, 50, 260, 150), identity='Ann', action='sitting', depth=1)
BOB1 = Character('c2', (320, 50, 380, 150), identity='Bob', action='waving', depth=4)
BOB2 = Character('c3', (100, 250, 180, 390), identity='Bob', action='falling')
BALLOONS = (
    Balloon('b0', (10, 5, 100, 40), text='Hello!'),
    Balloon('b1', (210, 5, 300, 40), text='Who is there?'),
    Balloon('b2', (10, 215, 100, 250), text='Me.'),
)
TREE = Region('r0', (150, 100, 180, 190), 'tree', depth=3)


def make_page(**known):
    values = {
        'panels': PANELS,
        'characters': (ANN0, ANN1, BOB1, BOB2),
        'balloons': BALLOONS,
        'regions': (TREE,),
        'split': 'train',
        **known,
    }
    return Page('page', 'page.png', 400, 400, 'test', 'series', **values)


def ask(task, page=None, seed=0, **settings):
    """(questions, reasons of what was skipped) of one task."""
    page = page or make_page()
    made = make_questions(page, seed, TaskSettings(tasks=(task,), per_page=50, **settings), collect_vocabulary([page]))
    return [m for m in made if isinstance(m, Question)], [m.reason for m in made if isinstance(m, Skip)]


def words(questions):
    """Prompts without their choices."""
    return [question.prompt.split(' Choices:')[0] for question in questions]


def test_every_question_has_its_answer_among_its_choices_and_its_regions_on_the_page():
    for seed in range(20):
        for task in TASKS:
            questions, _ = ask(task, seed=seed, panel_open_share=seed % 2)
            assert questions
            for question in questions:
                assert not question.choices or (
                    question.answer in question.choices and len(set(question.choices)) == len(question.choices)
                )
                assert all(choice in question.prompt for choice in question.choices)
                assert question.regions
                assert all(0 <= x1 < x2 <= 400 and 0 <= y1 < y2 <= 400 for x1, y1, x2, y2 in question.regions)
            assert len({question.id for question in questions}) == len(questions)


def test_questions_depend_on_seed_page_and_task_alone():
    alone = ask('action_recognition', seed=3)[0]
    page = make_page()
    together = make_questions(page, 3, TaskSettings(per_page=50), collect_vocabulary([page]))
    assert alone == [made for made in together if isinstance(made, Question) and made.task == 'action_recognition']
    assert alone != ask('action_recognition', seed=4)[0]


def test_a_page_without_a_split_is_refused():
    with pytest.raises(ValueError, match='page page has no split'):
        ask('action_recognition', make_page(split=None))


def test_per_page_thins_candidates():
    page = make_page()
    made = make_questions(page, 0, TaskSettings(tasks=('action_recognition',), per_page=2), collect_vocabulary([page]))
    assert len(made) == 2


# --- Naming


def test_action_names_a_figure_by_identity_panel_or_both():
    assert words(ask('action_recognition', naming=('both',))[0]) == [
        'What is Ann in panel 1 doing?',
        'What is Ann in panel 2 doing?',
        'What is Bob in panel 2 doing?',
        'What is Bob in panel 3 doing?',
    ]
    assert words(ask('action_recognition', naming=('panel',), panel_naming='place')[0]) == [
        'What is the character in the left panel of row 1 doing?',
        'What is the leftmost character in the right panel of row 1 doing?',
        'What is the rightmost character in the right panel of row 1 doing?',
        'What is the character in the panel of row 2 doing?',
    ]
    questions, reasons = ask('action_recognition', naming=('identity',))
    assert questions == []  # both are drawn twice
    assert reasons == ['the figure cannot be named without doubt'] * 4


def test_a_figure_that_does_not_stand_apart_has_no_side():
    near = Character('c9', (215, 50, 262, 150), identity='Ann', action='sitting')
    names = words(ask('action_recognition', make_page(characters=(ANN1, near, BOB1)), naming=('panel',))[0])
    assert names == ['What is the rightmost character in panel 2 doing?']


def test_right_to_left_turns_the_numbers_of_panels_but_not_left_and_right():
    page = make_page(right_to_left=True)
    assert words(ask('action_recognition', page, naming=('both',))[0])[0] == 'What is Ann in panel 1 doing?'
    by_panel = {
        q.prompt.split(' Choices')[0]: q.regions[0] for q in ask('action_recognition', page, naming=('both',))[0]
    }
    assert by_panel['What is Ann in panel 1 doing?'] == ANN1.box
    by_place = ask('action_recognition', page, naming=('panel',), panel_naming='place')[0]
    assert {q.answer for q in by_place if 'the left panel of row 1' in q.prompt} == {'running'}


# --- Single tasks


def test_action_regions_and_open_form():
    question = ask('action_recognition', naming=('both',))[0][0]
    assert (question.answer, question.regions, question.category) == ('running', (ANN0.box,), 'recognition')
    assert set(question.choices) == {'running', 'sitting', 'waving', 'falling'}
    assert ask('action_recognition', naming=('both',), action_region='panel')[0][0].regions == (PANELS[0].box,)
    assert ask('action_recognition', open_share=1)[0][0].choices == ()


def test_identification_asks_for_each_identity_once_and_never_says_it():
    for seed in range(10):
        questions, _ = ask('character_identification', seed=seed)
        assert sorted(question.answer for question in questions) == ['Ann', 'Bob']
        assert all(
            question.prompt.startswith('Who is the ') and set(question.choices) == {'Ann', 'Bob'}
            for question in questions
        )
        assert not any('Ann' in word or 'Bob' in word for word in words(questions))


def test_depth_compares_within_a_panel_beyond_the_gap():
    questions, reasons = ask('depth_comparison', depth_polarity=('nearer',))
    assert {(frozenset(q.choices), q.answer) for q in questions} == {
        (frozenset({'Ann', 'the tree'}), 'Ann'),
        (frozenset({'Ann', 'Bob'}), 'Ann'),
    }
    assert {q.regions for q in questions} == {((10, 50, 180, 190),), ((210, 50, 380, 150),)}
    assert reasons == []
    assert ask('depth_comparison', depth_gap=2.5)[1] == ['the depths differ too little']
    assert ask('depth_comparison', depth_region='both')[0][0].regions == (ANN0.box, TREE.box)
    farther = ask('depth_comparison', depth_polarity=('farther',))[0]
    assert {q.answer for q in farther} == {'the tree', 'Bob'}
    assert all('farther from the reader' in q.prompt for q in farther)
    assert len(ask('depth_comparison', depth_things=('character',))[0]) == 1


def test_depth_says_when_the_source_has_none():
    page = make_page(characters=(Character('a', ANN1.box, 'Ann'), Character('b', BOB1.box, 'Bob')), regions=())
    assert ask('depth_comparison', page) == ([], ['the source gives no depth'])


def test_counting():
    questions, _ = ask('character_counting', count_absent=0)
    assert {q.prompt: q.answer for q in questions} == {
        'How many times is Ann drawn on this page?': '2',
        'How many times is Bob drawn on this page?': '2',
        'How many characters are drawn on this page?': '4',
    }
    assert questions[0].regions == tuple(panel.box for panel in PANELS)
    counted = ask('character_counting', count_absent=0, count_region='characters')[0]
    assert counted[0].regions == (ANN0.box, ANN1.box)
    stray = Character('c9', (385, 200, 399, 209), identity='Ann', action='running')  # in the gutter
    assert ask('character_counting', make_page(characters=(ANN0, stray)))[0][-1].regions[-1] == stray.box
    nameless = make_page(characters=(ANN0, Character('x', BOB1.box)))
    assert ask('character_counting', nameless)[1] == ['not every character has an identity']
    assert ask('character_counting', make_page(characters=())) == ([], ['the page has no characters'])


def test_counting_asks_for_somebody_absent():
    other = make_page(characters=(Character('z', BOB2.box, 'Zoe', 'running'),))
    vocabulary = collect_vocabulary([make_page(), other])
    made = make_questions(
        make_page(), 0, TaskSettings(tasks=('character_counting',), per_page=50, count_absent=1), vocabulary
    )
    assert {m.prompt: m.answer for m in made}['How many times is Zoe drawn on this page?'] == '0'


def test_dialogue_follows_panels_and_is_answered_by_letters():
    question = ask('dialogue_reordering')[0][0]
    shown = dict(zip('ABC', question.prompt.split('"')[1::2], strict=True))
    assert [shown[label] for label in question.answer.split(', ')] == ['Hello!', 'Who is there?', 'Me.']
    assert question.regions == tuple(balloon.box for balloon in BALLOONS)
    ordered = tuple(Balloon(b.id, b.box, b.text, order) for b, order in zip(BALLOONS, (2, 0, 1), strict=True))
    question = ask('dialogue_reordering', make_page(balloons=ordered))[0][0]
    shown = dict(zip('ABC', question.prompt.split('"')[1::2], strict=True))
    assert [shown[label] for label in question.answer.split(', ')] == ['Who is there?', 'Me.', 'Hello!']


@pytest.mark.parametrize(
    ('balloons', 'reason'),
    [
        ((), 'the page has no balloons'),
        (tuple(Balloon(b.id, b.box) for b in BALLOONS), 'the source gives no text of balloons'),
        (tuple(Balloon(b.id, b.box, 'Ha!') for b in BALLOONS), 'too few lines of dialogue that differ'),
        (BALLOONS[:2], 'too few lines of dialogue that differ'),
    ],
)
def test_dialogue_says_why_not(balloons, reason):
    assert ask('dialogue_reordering', make_page(balloons=balloons)) == ([], [reason])


def test_panels_are_told_by_what_they_show():
    page = make_page(panels=(Panel('p0', PANELS[0].box, description='A storm rises.'), *PANELS[1:]))
    question = ask('panel_reordering', page)[0][0]
    parts = dict(
        part.split(': ', 1)
        for part in question.prompt.removesuffix(' Answer with the letters.').split('order. ')[1].split('. ')
        if part
    )
    told = [parts[label].rstrip('.') for label in question.answer.split(', ')]
    assert told[0] == 'the panel showing this: A storm rises'
    assert told[1].startswith('the panel that says "Who is there?')
    bare = make_page(balloons=(), characters=())
    assert ask('panel_reordering', bare) == ([], ['the source does not say what panels show'])
    same = make_page(balloons=(), characters=(ANN0, ANN1, BOB2))
    assert ask('panel_reordering', same) == ([], ['too few panels that can be told apart'])


def test_panel_understanding_composes_who_does_what():
    questions, _ = ask('panel_understanding')
    assert {q.prompt: q.answer for q in questions} == {
        'What happens in the left panel of row 1?': 'Ann is running',
        'What happens in the right panel of row 1?': 'Ann is sitting and Bob is waving',
        'What happens in the panel of row 2?': 'Bob is falling',
    }
    closed, _ = ask('panel_understanding', panel_open_share=0)
    assert {frozenset(q.choices) for q in closed} == {frozenset(q.answer for q in questions)}
    assert (
        ask('panel_understanding', make_page(characters=()))[1] == ['the source does not say what the panel shows'] * 3
    )


def test_pages_without_what_a_task_needs_say_so():
    bare = tuple(Character(c.id, c.box) for c in (ANN0, ANN1))
    assert ask('action_recognition', make_page(characters=bare))[1] == ['the source gives no action'] * 2
    assert ask('character_identification', make_page(characters=bare))[1] == ['the source gives no identity'] * 2
    lonely = make_page(characters=(ANN0,))
    assert ask('action_recognition', lonely) == ([], ['the source knows no second action'])


def test_what_stands_in_no_panel_is_counted():
    stray = Character('c9', (385, 200, 399, 209), identity='Zoe', action='running')  # in the gutter
    page = make_page(
        characters=(ANN0, BOB2, stray), balloons=(*BALLOONS, Balloon('b9', (192, 30, 199, 60), text='Psst.'))
    )
    assert ask('action_recognition', page)[1] == ['the figure stands in no panel']
    assert ask('character_identification', page)[1] == ['the figure stands in no panel']
    assert ask('dialogue_reordering', page)[1] == ['the balloon stands in no panel']


# --- Zoom, choices, balance


def test_zoom_is_needed_when_the_shrunk_detail_is_small():
    page = make_page()  # 400 x 400
    box = (0, 0, 80, 20)  # as large as a square of 40 px
    assert not zoom_needed(page, [box], 40, 400 * 400)
    assert not zoom_needed(page, [box], 40, 10_000_000)  # a page is never enlarged
    assert zoom_needed(page, [box], 40, 200 * 200)
    assert zoom_needed(page, [(0, 0, 400, 400), box], 41, 400 * 400)  # one small detail is enough


@pytest.mark.parametrize('number', [2, 3])
def test_an_answer_is_as_often_wrong_as_right(number):
    """Actions as frequent as 5:4:3:3:2 are offered so that the frequent ones are right no more often than chance allows."""
    counts = {'run': 250, 'sit': 200, 'wave': 150, 'fall': 150, 'jump': 100}
    rng = np.random.default_rng(0)
    right, offered = Counter(), Counter()
    for answer, times in counts.items():
        for _ in range(times * 4):
            right[answer] += 1
            offered.update(draw_balanced(rng, answer, counts, number))
    shares = {answer: right[answer] / offered[answer] for answer in counts}
    assert all(abs(share - 1 / number) < 0.025 for share in shares.values()), shares


def test_balanced_weights_reach_their_inclusion_probabilities():
    assert np.allclose(inclusion(balanced_weights((4, 3, 2, 1), 2), 2), [0.8, 0.6, 0.4, 0.2], atol=1e-4)
    assert np.allclose(inclusion(np.array([1.0, 2.0, 3.0]), 2), [5 / 11, 8 / 11, 9 / 11])  # products 2, 3 and 6
    dominant = inclusion(balanced_weights((8, 1, 1), 2), 2)  # right in 80 %: can only be offered every time
    assert dominant[0] > 0.99
    assert dominant[1] == pytest.approx(dominant[2])


def test_choices_without_a_second_answer_are_none():
    rng = np.random.default_rng(0)
    assert draw_balanced(rng, 'run', {'run': 3}, 4) is None
    assert draw_among(rng, 'run', ['run'], 4) is None
    assert sorted(draw_balanced(rng, 'run', {'run': 3, 'sit': 1}, 4)) == ['run', 'sit']
    assert draw_balanced(rng, 'run', {'run': 3, 'Run': 1}, 4) is None  # no wrong answer
    assert draw_among(rng, 'Ann', ['ann', 'Bob'], 4) in (('Ann', 'Bob'), ('Bob', 'Ann'))


def depth_question(i, answer, prompt='In panel 1, which is nearer to the reader: X or Y?'):
    return Question(
        f'q{i}', 'p', 'depth_comparison', 'recognition', prompt, ('X', 'Y'), answer, ((0, 0, 1, 1),), False, 'train'
    )


def test_balance_thins_the_frequent_answer_of_a_pair():
    questions = [depth_question(i, 'X' if i % 5 else 'Y') for i in range(50)]  # 40 X, 10 Y
    kept, dropped = balance(questions, BalanceSettings(), seed=0)
    assert Counter(question.answer for question in kept) == {'X': 15, 'Y': 10}
    assert dropped == {'depth_comparison': 25}
    assert kept == balance(questions, BalanceSettings(), seed=0)[0]
    assert balance(questions[:9], BalanceSettings(), seed=0)[0] == questions[:9]
    one_sided = [depth_question(i, 'X') for i in range(20)]
    assert balance(one_sided, BalanceSettings(), seed=0) == ([], {'depth_comparison': 20})  # nobody needs to look


def test_balance_looks_at_kinds_whatever_their_names():
    """A figure is nearer than a tree on every page; no two questions name the same two things."""
    questions = [
        dataclasses.replace(depth_question(i, who), choices=(who, tree), answer=who if i % 5 else tree)
        for i in range(50)
        for who, tree in [
            (f'Hero {i}' if i % 2 else 'the leftmost character', 'the tree' if i % 3 else 'the rightmost tree')
        ]
    ]
    kept, dropped = balance(questions, BalanceSettings(pair_share=0.6), 0)
    near = sum('tree' not in question.answer for question in kept)
    assert (near, len(kept) - near) == (15, 10)
    assert dropped == {'depth_comparison': 25}


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('Placid', 'character'),
        ('the character', 'character'),
        ('the leftmost character', 'character'),
        ('the rightmost text block', 'text block'),
        ('the tree', 'tree'),
    ],
)
def test_a_name_tells_its_kind(name, kind):
    assert kind_of(name) == kind


def test_balance_looks_at_each_question_asked():
    """X is always nearer: 'nearer' is answered X and 'farther' Y, which evens out overall but not for who reads the question."""
    far = 'In panel 1, which is farther from the reader: X or Y?'
    questions = [depth_question(i, 'X' if i < 19 else 'Y') for i in range(20)] + [
        depth_question(20 + i, 'Y' if i < 19 else 'X', far) for i in range(20)
    ]
    kept, _ = balance(questions, BalanceSettings(), seed=0)
    assert len(kept) == 4  # 1 of the 19 and the 1 that differs, twice


def test_balance_thins_the_most_frequent_count_of_each_form():
    def counted(i, answer, prompt):
        return Question(
            f'q{i}', 'p', 'character_counting', 'character', prompt, (), answer, ((0, 0, 1, 1),), False, 'train'
        )

    times = [
        counted(i, '1' if i < 40 else '2' if i < 52 else '3', 'How many times is Ann drawn on this page?')
        for i in range(60)
    ]
    people = [counted(100 + i, str(i % 4), 'How many characters are drawn on this page?') for i in range(20)]
    kept, dropped = balance(times + people, BalanceSettings(), seed=0)
    assert Counter(question.answer for question in kept if 'times' in question.prompt) == {'1': 13, '2': 12, '3': 8}
    assert kept[-20:] == people
    assert dropped == {'character_counting': 27}
