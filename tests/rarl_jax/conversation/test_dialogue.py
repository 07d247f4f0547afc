"""Conversations on the host: what is appended, what is masked, how they end. No model runs here."""

import dataclasses

import numpy as np
import pytest

from input_pipeline.traces import Exchange, Step
from rarl_jax.conversation.dialogue import Budget, Dialogue, view_page
from rarl_jax.conversation.protocol import FAILURE_WORDS, call_text
from rarl_jax.learner.batches import Buckets, round_up
from rarl_jax.models.interface import read_config
from tests.rarl_jax import small_policy
from tests.rarl_jax.small_policy import acted, one_a_row, sample

REGION = (40.0, 60.0, 140.0, 200.0)
OTHER = (200.0, 300.0, 300.0, 440.0)
ZOOM, ANSWER = Step(box=REGION), Step(answer='running')


def said(*turns: str, budget: Budget = small_policy.BUDGET, **settings: object) -> Dialogue:
    """A conversation in which the policy writes these texts, each up to its stop token."""
    host = small_policy.host()
    dialogue = Dialogue(host, view_page(host, small_policy.page()), budget, question_id='q', **settings)
    dialogue.ask('What is the figure in red doing?')
    for text in turns:
        ids = host.chat.encode(text)
        if ids[-1:] != [host.chat.call_close_id]:
            ids.append(host.chat.turn_end_id)
        dialogue.take(ids, [-1.0] * len(ids))
        dialogue.end_turn()
    return dialogue


def chosen_text(episode) -> str:
    return small_policy.host().chat.decode(episode.ids[episode.loss_mask].tolist())


def test_mask_is_on_exactly_the_chosen_tokens():
    """Failure modes 3 and 5: stop tokens are the policy's, the prompt, the crop and the host's words are not."""
    episode = acted(sample(), ZOOM, ANSWER)
    assert chosen_text(episode) == call_text((20, 30, 70, 100)) + '<answer>running</answer><|im_end|>'
    assert tuple(turn.text for turn in episode.turns) == (call_text((20, 30, 70, 100)), '<answer>running</answer>')
    assert (episode.sample_logprobs[~episode.loss_mask] == 0).all()


def test_the_whole_conversation_is_what_the_template_writes():
    episode = acted(sample(), ZOOM, ANSWER)
    chat = small_policy.host().chat
    page, crop = (image.merged(2) for image in episode.images)
    text = (
        chat.decode(episode.ids.tolist())
        .replace('<|image_pad|>' * page, 'PAGE', 1)
        .replace('<|image_pad|>' * crop, 'CROP')
    )
    assert text.partition('<|im_end|>\n')[2] == (
        '<|im_start|>user\n<|vision_start|>PAGE<|vision_end|>What is the figure in red doing?<|im_end|>\n<|im_start|>assistant\n'
        + call_text((20, 30, 70, 100))
        + '<|im_end|>\n<|im_start|>user\n<tool_response>\n<|vision_start|>CROP<|vision_end|>\n</tool_response><|im_end|>\n'
        '<|im_start|>assistant\n<answer>running</answer><|im_end|>'
    )


def test_several_questions_in_one_conversation():
    twice = (
        Exchange('What is the figure in red doing?', (ZOOM, ANSWER)),
        Exchange('How many figures are there?', (ZOOM, Step(answer='2'))),
    )
    episode = acted(sample(), exchanges=twice)
    assert [zoom.status for zoom in episode.zooms] == ['ok', 'ok'] and len(episode.images) == 3
    assert '<|im_start|>user\nHow many figures are there?<|im_end|>' in small_policy.host().chat.decode(
        episode.ids.tolist()
    )
    assert chosen_text(episode).count('</tool_call>') == 2 and chosen_text(episode).count('<|im_end|>') == 2


@pytest.mark.parametrize(
    ('text', 'status'),
    [
        (call_text((20, 30, 70, 100)), 'ok'),
        ('<tool_call>{"name": </tool_call>', 'bad_json'),
        (call_text((70, 30, 20, 100)), 'bad_box'),
        (call_text((5000, 30, 6000, 100)), 'bad_box'),
        ('<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [NaN, 1, 2, 3]}}</tool_call>', 'bad_box'),
        (
            '<tool_call>{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": ["1", 1, 2, 3]}}</tool_call>',
            'bad_arguments',
        ),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', 'unknown_tool'),
        ('<tool_call>{}<tool_call>{}</tool_call>', 'several_calls'),
    ],
)
def test_every_call_gets_its_reply_and_the_episode_goes_on(text, status):
    """Failure modes 6 and 10: only a call that showed something counts as a zoom."""
    dialogue = said(text)
    (zoom,) = dialogue.zooms
    assert (zoom.status, zoom.succeeded, dialogue.finish_reason) == (status, status == 'ok', None)
    reply = dialogue.host.chat.decode(dialogue.ids[dialogue._turn_start - 40 :])
    assert ('<|vision_start|>' in reply) == (status == 'ok')
    assert status == 'ok' or FAILURE_WORDS[status] in reply


def test_the_same_region_twice_is_no_second_zoom():
    dialogue = said(call_text((20, 30, 70, 100)), call_text((20, 30, 71, 100)))
    assert [zoom.status for zoom in dialogue.zooms] == ['ok', 'duplicate'] and len(dialogue.images) == 2


def test_crops_run_out():
    host = small_policy.host(max_crops=1)
    dialogue = Dialogue(host, view_page(host, small_policy.page()), small_policy.BUDGET, question_id='q')
    dialogue.ask('?')
    for box in ((20, 30, 70, 100), (100, 100, 160, 200)):
        dialogue.take(host.chat.encode(call_text(box)), [0.0] * 11)
        dialogue.end_turn()
    assert [zoom.status for zoom in dialogue.zooms] == ['ok', 'no_budget'] and dialogue.finish_reason is None


def test_a_call_with_an_answer_is_a_call():
    """Failure mode 10: the crop is shown, and the policy is told to answer in a turn of its own."""
    dialogue = said('<answer>running</answer>' + call_text((20, 30, 70, 100)))
    assert dialogue.finish_reason is None and dialogue.zooms[0].succeeded
    assert 'Answer in a turn without a call.' in dialogue.host.chat.decode(dialogue.ids)


def test_where_no_tool_is_offered_a_call_shows_nothing():
    dialogue = said(call_text((20, 30, 70, 100)), offers_tool=False)
    assert dialogue.zooms[0].status == 'unknown_tool' and len(dialogue.images) == 1
    assert '<tools>' not in dialogue.host.chat.decode(dialogue.ids)


@pytest.mark.parametrize(
    ('text', 'reason'), [('<answer>running</answer>', 'answer'), ('I do not know.', 'stop'), ('', 'stop')]
)
def test_a_turn_without_a_call_ends_the_conversation(text, reason):
    assert said(text).finish_reason == reason


def test_the_last_turn_may_not_zoom():
    dialogue = said(call_text((20, 30, 70, 100)), budget=Budget(max_turns=1))
    assert (dialogue.finish_reason, dialogue.zooms[0].status, len(dialogue.images)) == ('turn_limit', 'no_budget', 1)


def test_an_observation_that_does_not_fit_is_left_out_whole():
    """Failure mode 4: ids, image tokens and image stay in step; one token less of budget and all of the observation goes."""
    whole = said(call_text((20, 30, 70, 100)))
    room = len(whole.ids) + 1
    fits = said(call_text((20, 30, 70, 100)), budget=Budget(total_tokens=room))
    assert fits.finish_reason is None and fits.ids == whole.ids
    short = said(call_text((20, 30, 70, 100)), budget=Budget(total_tokens=room - 1))
    assert (short.finish_reason, short.zooms[0].status, len(short.images)) == ('total_length', 'no_budget', 1)
    assert short.chosen[-1] and short.ids.count(short.host.chat.image_id) == short.images[0].merged(2)


def test_a_turn_that_does_not_end_is_broken_off():
    for budget, reason in ((Budget(turn_tokens=3), 'turn_length'), (Budget(total_tokens=1), 'total_length')):
        dialogue = said(budget=budget)
        dialogue.take(dialogue.host.chat.encode('abc'), [0.0] * 3)
        assert dialogue.tokens_left == 0
        dialogue.break_off()
        assert dialogue.finish_reason == reason and [turn.text for turn in dialogue.turns] == ['abc']


def test_a_copy_goes_its_own_way():
    first = said(call_text((20, 30, 70, 100)))
    second = first.copy(sample=1)
    second.take([1], [-1.0])
    assert len(first.ids) + 1 == len(second.ids) and first.episode().images[0] is second.episode().images[0]


def test_every_token_knows_which_policy_chose_it():
    """The weights change between two turns: what a sampler that runs ahead of the learner does."""
    dialogue = said(call_text((20, 30, 70, 100)), version=3)
    first = len(dialogue.ids)
    dialogue.version = 4
    dialogue.take([1, 2], [-1.0] * 2)
    versions = dialogue.episode().versions
    chosen = dialogue.episode().loss_mask
    assert set(versions[:first][chosen[:first]]) == {3} and versions[first:].tolist() == [4, 4]
    assert (versions[~chosen] == -1).all()


def test_a_supervised_zoom_that_is_refused_is_an_error():
    with pytest.raises(ValueError, match='duplicate'):
        acted(sample(), ZOOM, ZOOM, ANSWER)


def test_a_page_that_cannot_be_shown_is_named():
    odd = dataclasses.replace(sample(), image=small_policy.page(width=10, height=4000))
    with pytest.raises(ValueError, match=r'Question page-0/q about page page-0: .*200'):
        acted(odd, ANSWER)


def test_a_supervised_conversation_that_is_too_long_is_an_error():
    with pytest.raises(ValueError, match='at most 60 fit'):
        acted(sample(), ANSWER, budget=Budget(total_tokens=60))
    with pytest.raises(ValueError, match='total_length'):
        acted(sample(), ZOOM, ANSWER, budget=Budget(total_tokens=100))


def test_oracle_zooms_are_not_the_policys():
    dialogue = said()
    dialogue.point_at(REGION)
    episode = dialogue.episode()
    assert (
        not episode.loss_mask.any() and episode.turns == () and episode.zooms[0].succeeded and len(episode.images) == 2
    )


# ---- batches ----


def test_a_group_shares_its_page_and_rows_know_their_group():
    """Failure modes 13 and 14: features of a row are its own images' in order, positions those of its own grids."""
    config = read_config(small_policy.folder())
    first = said(call_text((20, 30, 70, 100)), '<answer>running</answer>', group=3)
    second = said(call_text((20, 30, 70, 100)), call_text((100, 100, 160, 200)), group=3)
    second = second.copy(1)
    episodes = [first.episode(), second.episode()]
    shared = episodes[1].images[0]
    episodes[0] = type(episodes[0])(**{**vars(episodes[0]), 'images': (shared, *episodes[0].images[1:])})
    batch = one_a_row(episodes, rows=3)
    assert batch.mask.sum(axis=1).tolist() == [*(e.loss_mask.sum() for e in episodes), 0]
    assert (batch.images.image_lengths > 1).sum() == 4  # one page, three crops
    m = batch.images.merged_slots.shape[1]
    for row, (episode, images) in enumerate(zip(episodes, ([0, 1], [0, 2, 3]), strict=True)):
        expected = np.concatenate([i * m + np.arange(p.merged(2)) for i, p in zip(images, episode.images, strict=True)])
        assert batch.feature_index[row][batch.feature_index[row] >= 0].tolist() == expected.tolist()
        assert ((batch.ids[row] == config.image_token_id) == (batch.feature_index[row] >= 0)).all()
    is_image = batch.feature_index[0] >= 0
    assert (batch.positions[1, 0][is_image] != batch.positions[2, 0][is_image]).any()  # rows and columns are told apart
    assert (batch.mask[2] == 0).all() and (batch.feature_index[2] == -1).all()


def test_sizes_are_few():
    assert {round_up(n) for n in range(129, 257)} == {160, 192, 224, 256}
    assert round_up(5, (4, 8)) == 8 and round_up(3, least=16) == 16
    assert round_up(9, (4, 8)) == 10


def test_a_batch_beyond_the_planned_sizes_is_made_all_the_same():
    """A quickstart ended at its seventh update, whose attempts zoomed more often than was planned for."""
    episode = said(call_text((20, 30, 70, 100)), call_text((100, 100, 160, 200)), group=0).episode()
    images = len(episode.images)
    batch = one_a_row([episode], Buckets(lengths=(16,), images=(1, images - 1)))
    assert (batch.images.image_lengths > 0).sum() >= images
    assert batch.ids.shape[1] >= len(episode.ids)
