"""Eq. 2 worked by hand, with each of its switches, and the form that a well-formed episode keeps."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.loader import Sample
from input_pipeline.pictures import side_by_side
from input_pipeline.schema import Question
from input_pipeline.traces import Step
from rarl_jax.conversation import dialogue
from rarl_jax.conversation.boxes import PageFrame
from rarl_jax.conversation.protocol import read_turn
from rarl_jax.conversation.rewards import (
    RewardSettings,
    is_well_formed,
    matched_iou,
    overlong_penalty,
    reward,
    zoom_ious,
)
from rarl_jax.conversation.tool import Zoom
from tests.rarl_jax import small_policy

CALL = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 10, 10]}}\n</tool_call>'
ANSWER = '<answer>running</answer>'
PLAIN = RewardSettings()


def zoomed(box, status='ok'):
    return Zoom(requested=box, box=box, frame='original', status=status, turn=0)


def episode_of(zooms=(), turn_texts=(CALL, ANSWER)):
    nothing = np.zeros(0)
    return dialogue.Episode(
        question_id='q',
        group=0,
        sample=0,
        ids=nothing.astype(int),
        loss_mask=nothing.astype(bool),
        sample_logprobs=nothing,
        images=(),
        zooms=tuple(zooms),
        turns=tuple(map(read_turn, turn_texts)),
        finish_reason='answer',
        page=PageFrame(100, 100, 100, 100),
    )


def read(texts):
    return tuple(map(read_turn, texts))


def answer_of(*texts):
    return episode_of(turn_texts=texts).answer


def question(*regions):
    return Question('q', 'p', 'action_recognition', 'recognition', 'What?', (), 'running', regions, True, 'train')


ONE = question((0.0, 0.0, 10.0, 10.0))
RIGHT_BOX = episode_of((zoomed((0, 0, 10, 10)),))
HALF_BOX = episode_of((zoomed((0, 0, 10, 5)),))  # IoU 0.5


@pytest.mark.parametrize(
    ('settings', 'accuracy', 'total'),
    [
        (PLAIN, 1.0, 1 + 1 + 2 * (1 + 0.5)),
        (PLAIN, 0.0, 0 + 1 + 1 * (1 + 0.5)),
        (PLAIN, 0.3, 0.3 + 1 + 2 * (1 + 0.5)),  # the gate asks for more than 0, not for 1
        (replace(PLAIN, gate_threshold=0.3), 0.3, 0.3 + 1 + 1 * (1 + 0.5)),
        (replace(PLAIN, constant=0.0), 0.0, 1.0),  # the paper's ablation: no pay for tools without a right answer
        (replace(PLAIN, constant=0.0), 1.0, 1 + 1 + 1 * (1 + 0.5)),
        (replace(PLAIN, tool_iou=0.0), 1.0, 1 + 1 + 2 * 1),
        (replace(PLAIN, accuracy=2.0, format=0.5, tool_count=0.25, tool_iou=4.0), 1.0, 2 + 0.5 + 2 * (0.25 + 4 * 0.5)),
        (PLAIN.warm_start(), 1.0, 1 + 1),  # format + tool_count, whatever the answer
        (PLAIN.warm_start(), 0.0, 1 + 1),
    ],
)
def test_equation_2(settings, accuracy, total):
    paid = reward(HALF_BOX, ONE, accuracy, settings)
    assert paid.total == pytest.approx(total)
    assert paid.parts == pytest.approx(
        {'accuracy': accuracy, 'format': 1.0, 'tool_count': 1.0, 'tool_iou': 0.5, 'tool': paid.parts['tool']}
    )


def test_zooms_are_paid_once_each_up_to_the_cap():
    zooms = tuple(zoomed((20 * i, 0, 20 * i + 10, 10)) for i in range(4))
    for cap, count in ((0, 0), (1, 1), (3, 3), (9, 4)):
        assert reward(episode_of(zooms), ONE, 1.0, replace(PLAIN, max_paid_zooms=cap)).parts['tool_count'] == count


@pytest.mark.parametrize(
    'status', ['duplicate', 'bad_json', 'bad_arguments', 'bad_box', 'unknown_tool', 'several_calls', 'no_budget']
)
def test_failed_calls_and_duplicates_earn_nothing(status):
    box = (0, 0, 10, 10) if status in ('duplicate', 'no_budget') else None
    alone = reward(episode_of((zoomed(box, status),)), ONE, 1.0, PLAIN)
    assert (alone.parts['tool_count'], alone.parts['tool_iou'], alone.total) == (0.0, 0.0, 2.0)
    beside = reward(episode_of((*RIGHT_BOX.zooms, zoomed(box, status))), ONE, 1.0, PLAIN)
    assert beside.total == reward(RIGHT_BOX, ONE, 1.0, PLAIN).total


def test_matching_by_hand():
    left, right = (0, 0, 10, 10), (20, 0, 30, 10)
    half_left = (0, 0, 10, 5)
    regions = np.array([left, right], float)
    assert matched_iou(np.array([right, left], float), regions) == 1.0  # the order does not matter
    assert matched_iou(np.array([left], float), regions) == 0.5  # one of two regions
    assert matched_iou(np.array([left, half_left], float), regions) == 0.5  # a region is matched once
    assert matched_iou(np.array([left, right, half_left], float), regions) == pytest.approx(2 / 3)  # spraying
    assert matched_iou(np.zeros((0, 4)), regions) == 0.0
    assert matched_iou(regions, np.zeros((0, 4))) == 0.0


def test_matching_is_optimal_where_greed_is_not():
    # box a overlaps both regions, box b only the first: a greedy matching gives a the first region and b nothing
    regions = np.array([[0, 0, 10, 10], [0, 10, 10, 20]], float)
    a, b = [0, 4, 10, 14], [0, 0, 10, 4]
    expected = (40 / 160 + 40 / 100) / 2
    assert matched_iou(np.array([a, b], float), regions) == pytest.approx(expected)


def test_zoom_ious_of_first_and_second_zoom():
    tried = episode_of((zoomed(None, 'bad_box'), zoomed((0, 0, 10, 5)), zoomed((50, 50, 60, 60))))
    assert zoom_ious(tried, ONE) == [0.5, 0.0]
    assert zoom_ious(tried, question()) == [0.0, 0.0]


@pytest.mark.parametrize(
    'turns',
    [
        (ANSWER,),
        (CALL, ANSWER),
        (f'<think>look</think>\n{CALL}', CALL, f'<think>so</think> It is {ANSWER}\n'),
        (CALL.replace('[0, 0, 10, 10]', '[0, 0, -1, 1e300]'), ANSWER),  # a useless box is no matter of form
    ],
)
def test_well_formed(turns):
    assert is_well_formed(read(turns))


@pytest.mark.parametrize(
    'turns',
    [
        (),
        ('',),
        ('running',),
        ('<answer></answer>',),
        ('<answer> \n</answer>',),
        (ANSWER + ANSWER,),
        (ANSWER + ' and so on',),
        ('<answer>running',),
        ('</answer>running<answer>',),
        ('<answer><think>x</think>running</answer>',),
        ('<think>x' + ANSWER,),
        ('<think>x</think><think>y</think>' + ANSWER,),
        ('first <think>x</think>' + ANSWER,),
        (CALL,),  # no answer
        (CALL + ANSWER,),  # both in one turn
        (ANSWER, CALL),
        (ANSWER, ANSWER),
        ('hm', ANSWER),  # a turn that neither calls nor answers
        (CALL + CALL, ANSWER),
        (CALL + ' done', ANSWER),
        (CALL.removesuffix('</tool_call>'), ANSWER),
        (CALL.replace('image_zoom_in_tool', 'zoom'), ANSWER),
        ('<tool_call>{"name": "image_zoom_in_tool"}</tool_call>', ANSWER),
        ('<tool_call>{"name": 1, "arguments": {}}</tool_call>', ANSWER),
        ('<tool_call>{"name": "image_zoom_in_tool", "arguments": {}</tool_call>', ANSWER),
        ('<tool_call>[]</tool_call>', ANSWER),
        ('<tool_call>' + '[' * 100_000 + '</tool_call>', ANSWER),
    ],
)
def test_not_well_formed(turns):
    assert not is_well_formed(read(turns))


def test_required_thoughts():
    assert is_well_formed(read((f'<think>a</think>{CALL}', f'<think>b</think>{ANSWER}')), think='required')
    assert not is_well_formed(read((f'<think>a</think>{CALL}', ANSWER)), think='required')


def test_answer_is_read_from_the_last_turn_only():
    assert answer_of(CALL, '<answer> running </answer>') == 'running'
    assert answer_of(ANSWER, 'hm') is None
    assert answer_of(ANSWER, CALL + ANSWER) is None
    assert answer_of() is None


PIECES = st.sampled_from(
    ['<think>', '</think>', '<tool_call>', '</tool_call>', '<answer>', '</answer>', CALL, ANSWER, ' x ']
)


@given(st.lists(st.one_of(st.text(), st.lists(PIECES, max_size=6).map(''.join)), max_size=4))
def test_any_text_is_judged(turns):
    paid = reward(episode_of((), tuple(turns)), ONE, 0.0, PLAIN)
    assert paid.total in (0.0, 1.0)
    assert is_well_formed(read(turns)) <= (answer_of(*turns) is not None)


def brief(episode, question) -> dict[str, float]:
    """A reward of a user's own: short answers to short questions."""
    return {'brief': 0.5 * (len(episode.answer or '') < len(question.answer) + 3)}


def taken(episode, question) -> dict[str, float]:
    return {'accuracy': 1.0}


def test_rewards_of_a_user_are_added_as_they_are():
    settings = replace(PLAIN, extra=(f'{__name__}:brief',))
    plain, more = (reward(episode_of(), ONE, 1.0, each) for each in (PLAIN, settings))
    assert more.total == plain.total + 0.5 and more.parts == {**plain.parts, 'brief': 0.5}
    assert settings.warm_start().extra == ()


@pytest.mark.parametrize('path', ['nowhere:f', 'json:nothing', 'json', '', f'{__name__}:PLAIN'])
def test_a_reward_that_is_none_is_named_when_settings_are_made(path):
    with pytest.raises(ValueError, match="A reward's module"):
        replace(PLAIN, extra=(path,))


def test_a_part_that_there_is_already_is_refused():
    with pytest.raises(ValueError, match=r"gives the parts \['accuracy'\]"):
        reward(episode_of(), ONE, 1.0, replace(PLAIN, extra=(f'{__name__}:taken',)))


def test_calls_and_what_they_show_cost():
    shown = replace(zoomed((0, 0, 10, 10)), tokens=16)
    episode = episode_of((shown, zoomed((0, 0, 10, 10), 'duplicate')))
    settings = replace(PLAIN, call_cost=0.25, crop_token_cost=0.01)
    free, paid = (reward(episode, ONE, 1.0, each) for each in (PLAIN, settings))
    assert paid.parts['cost'] == pytest.approx(2 * 0.25 + 16 * 0.01)
    assert paid.total == pytest.approx(free.total - paid.parts['cost'])
    assert 'cost' not in free.parts and 'cost' not in reward(episode, ONE, 1.0, settings.warm_start()).parts


def test_length_is_punished_softly():
    """DAPO's example: a limit of 20 tokens, the last 8 of them the buffer."""
    lengths = (0, 12, 13, 16, 20, 21)
    assert [overlong_penalty(n, 20, 8) for n in lengths] == [0, 0, -1 / 8, -1 / 2, -1, -1]
    assert [overlong_penalty(n, 20, 0) for n in (20, 21)] == [0, -1]  # no buffer: a step
    episode = replace(episode_of(), loss_mask=np.arange(30) < 16)
    paid = reward(episode, ONE, 1.0, replace(PLAIN, overlong_limit=20, overlong_buffer=8, overlong=0.5))
    assert paid.total == pytest.approx(reward(episode, ONE, 1.0, PLAIN).total - 0.25)


@pytest.mark.parametrize(
    'change', [{'call_cost': -1.0}, {'crop_token_cost': -0.1}, {'overlong_limit': -1}, {'overlong_buffer': 3}]
)
def test_costs_that_cannot_be_are_named(change):
    with pytest.raises(ValueError, match=f'^{next(iter(change))} is'):
        replace(PLAIN, **change)


def test_a_zoom_into_the_second_of_two_pages_shows_that_page_and_is_paid():
    """One picture of both: the policy's boxes, what the tool cuts, and the regions are all in its pixels."""
    pages = [Image.new('RGB', (336, 448), colour) for colour in ('red', 'blue')]
    region = (336 + 40.0, 60.0, 336 + 140.0, 200.0)
    asked = replace(small_policy.sample(regions=(region,)).question, second_page_id='page-1')
    sample = Sample(asked, side_by_side(pages))
    seen = small_policy.acted(sample, Step(box=region), Step(answer='running'))
    assert (seen.page.width, seen.page.height) == (672, 448)
    crop = seen.images[1].pixels.reshape(-1, 3, 2 * 14 * 14).mean(axis=(0, 2))  # normalised, by colour
    assert crop.argmax() == 2 and crop[0] < 0 < crop[2], 'blue, the second page'
    paid = reward(seen, asked, 1.0, PLAIN)
    assert paid.parts['tool_iou'] > 0.9  # but for the grid of the page as resized
    assert reward(seen, replace(asked, regions=((40.0, 60.0, 140.0, 200.0),)), 1.0, PLAIN).parts['tool_iou'] == 0
