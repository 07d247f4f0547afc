"""Rollouts with a real model: the cached path against the full pass, and what a token may depend on."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.conversation.boxes import iou
from rarl_jax.conversation.controls import blank, elsewhere
from rarl_jax.conversation.dialogue import Budget, Dialogue, view_page
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.protocol import call_text
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.params import unstack
from rarl_jax.policy import load_policy
from rarl_jax.runtime.metrics import CompileCounter
from rarl_jax.runtime.sharding import RULES
from rarl_jax.sampler import slots
from rarl_jax.sampler.engine import Usage, rollout
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.slots import Slots, resting_at_end
from tests.rarl_jax.small_policy import BUDGET, SHAPES, acted, folder, follow_script, one_a_row, page, policy, sample

BOX, OTHER = (40.0, 60.0, 140.0, 200.0), (180.0, 200.0, 330.0, 260.0)
SETTINGS = SamplerSettings(segment=8, lengths=(64, 128, 192), cache_lengths=(224,))
SHORT = Budget(max_turns=2, turn_tokens=12, total_tokens=224)
ONE = Sampling()


@pytest.fixture(scope='module', params=SHAPES)
def family(request):
    return request.param


def answered(
    samples, key, sampling=ONE, budget=BUDGET, settings=SETTINGS, progress=None, family='qwen2_5_vl', **opening
):
    dialogues = open_dialogues(policy(family).host, budget, samples, **opening)
    return rollout(policy(family), dialogues, settings, sampling, jax.random.key(key), progress)


def full_pass(episodes, temperature=1.0, change=lambda batch: batch, family='qwen2_5_vl'):
    """Log-probs of the episodes' tokens by one plain pass over whole conversations, [B, T - 1]."""
    own = policy(family)
    batch = change(one_a_row(episodes, family=family))

    @jax.jit
    def logprobs(params, batch):
        logits = own.model.apply({'params': params}, batch.ids, batch.positions, batch.feature_index, batch.images)
        logprobs = jax.nn.log_softmax(logits[:, :-1] / temperature)
        return jnp.take_along_axis(logprobs, batch.ids[:, 1:, None], -1)[..., 0]

    return np.asarray(logprobs(own.params, batch))


def gap(episodes, logprobs):
    """Largest difference to what the sampler recorded, over the tokens that the policy chose."""
    return max(
        np.abs(row[: len(e.ids) - 1] - e.sample_logprobs[1:])[e.loss_mask[1:]].max()
        for e, row in zip(episodes, logprobs, strict=True)
    )


@pytest.fixture(scope='module')
def scripted(family):
    """Three conversations, of one, two and three turns; rolled out with the script's tokens at temperature 0.7."""
    samples = [sample(number) for number in range(3)]
    wanted = [
        acted(samples[0], Step(box=BOX), Step(answer='running'), group=0, family=family),
        acted(samples[1], Step(answer='sitting'), group=1, family=family),
        acted(
            samples[2],
            Step(box=BOX),
            Step(thought='not here', box=OTHER),
            Step(answer='running'),
            group=2,
            family=family,
        ),
    ]
    with pytest.MonkeyPatch.context() as patch:
        follow_script(patch, wanted)
        made = answered(samples, 0, Sampling(temperature=0.7), family=family)
    return wanted, made


def test_a_rollout_is_the_replay_of_its_own_words(scripted):
    """Failure modes 3, 5, 7: one code path; ids are never decoded and encoded again, the mask is on chosen tokens alone."""
    for wanted, made in zip(*scripted, strict=True):
        for field in ('ids', 'loss_mask'):
            np.testing.assert_array_equal(getattr(made, field), getattr(wanted, field))
        for field in ('question_id', 'group', 'zooms', 'turns', 'finish_reason', 'page'):
            assert getattr(made, field) == getattr(wanted, field)
        for mine, theirs in zip(made.images, wanted.images, strict=True):
            np.testing.assert_array_equal(mine.pixels, theirs.pixels)


def test_cached_decode_equals_the_full_pass_at_every_turn(scripted, family):
    """Recorded log-probs of all turns, those after one and two appended crops included, are the trainer's."""
    _, made = scripted
    assert [len(e.turns) for e in made] == [2, 1, 3] and len(made[2].images) == 3
    assert gap(made, full_pass(made, 0.7, family=family)) < 1e-4


def test_the_equality_notices_wrong_positions_and_images(scripted, family):
    """Failure mode 14: 1-D positions, or the page's features in the crop's place, are another model."""
    _, made = scripted

    def one_dimensional(batch):
        return dataclasses.replace(
            batch, positions=np.broadcast_to(np.arange(batch.ids.shape[1]), batch.positions.shape)
        )

    def page_for_crop(batch):
        m = batch.images.image_rows
        return dataclasses.replace(batch, feature_index=np.where(batch.feature_index >= 0, batch.feature_index % m, -1))

    assert gap(made, full_pass(made, 0.7, one_dimensional, family)) > 1e-2
    assert gap(made, full_pass(made, 0.7, page_for_crop, family)) > 1e-2


@pytest.fixture(scope='module')
def sampled():
    """Two questions, three attempts each, of a policy with random weights."""
    return answered([sample(0), sample(1)], 5, Sampling(samples=3), SHORT)


def same(a, b):
    return a.ids.tolist() == b.ids.tolist() and np.allclose(a.sample_logprobs, b.sample_logprobs, atol=1e-5)


def test_random_weights_give_log_probs_of_the_trainer(sampled):
    assert gap(sampled, full_pass(sampled)) < 1e-4


def test_groups_are_those_of_their_questions(sampled):
    """Failure mode 13."""
    assert [(e.group, e.sample, e.question_id) for e in sampled] == [
        (group, attempt, f'page-{group}/q') for group in (0, 1) for attempt in (0, 1, 2)
    ]
    assert len({tuple(e.ids.tolist()) for e in sampled[:3]}) == 3
    assert sampled[0].images[0] is sampled[2].images[0] and sampled[0].images[0] is not sampled[3].images[0]


def test_vision_tokens_are_never_sampled(sampled):
    """Failure mode 2, with weights to which every token is as likely as another."""
    chat = policy().host.chat
    for episode in sampled:
        assert not np.isin(episode.ids[episode.loss_mask], chat.banned_ids).any()
        assert episode.ids[episode.loss_mask].max() < chat.vocab_size
        assert (episode.ids == chat.image_id).sum() == sum(image.merged(2) for image in episode.images)


def test_order_and_batch_change_no_token(sampled):
    turned = answered([sample(1), sample(0), sample(2)], 5, Sampling(samples=3), SHORT)
    assert all(same(a, b) for a, b in zip(sampled, turned[3:6] + turned[:3], strict=True))


def test_forked_equals_unforked(sampled):
    alone = answered([sample(0)], 5, Sampling(samples=1), SHORT)
    assert same(alone[0], sampled[0])


def test_segments_and_cache_sizes_change_no_token(sampled):
    other = dataclasses.replace(
        SETTINGS, segment=3, cache_lengths=(), lengths=(), patches_at_once=256, early_exit=False
    )
    again = answered([sample(0), sample(1)], 5, Sampling(samples=3), SHORT, other)
    assert all(same(a, b) for a, b in zip(sampled, again, strict=True))


def test_another_key_gives_other_tokens(sampled):
    other = answered([sample(0), sample(1)], 6, Sampling(samples=3), SHORT)
    assert not any(same(a, b) for a, b in zip(sampled, other, strict=True))


def test_a_second_rollout_compiles_nothing(monkeypatch):
    """Another number of crops, at other places of the batch, needs no other program."""
    samples = [sample(number) for number in range(8)]
    zoom, answer = (Step(box=BOX), Step(answer='running')), (Step(answer='running'),)
    follow_script(monkeypatch, [acted(s, *(answer if n in (5, 6) else zoom)) for n, s in enumerate(samples)])
    answered(samples[:4], 0)
    counter = CompileCounter()
    made = answered(samples[4:], 1)
    names = counter.names
    counter.close()
    assert names == [] and [len(e.images) for e in made] == [2, 1, 1, 2]


def test_when_a_segment_ends_is_of_one_type():
    """Also where most rows rest: a number of another type would compile decoding once more."""
    for alive, expected in ((32, 4), (30, 6), (2, 32), (1, 32)):
        found = resting_at_end(np.where(np.arange(32) < alive, 5, 0))
        assert found == expected and found.dtype == np.int32


def test_few_slots_give_the_answers_of_many(sampled):
    """A slot that becomes free goes to the next attempt, and its prompt is there already, or comes from a neighbour."""
    usage = Usage()
    few = dataclasses.replace(SETTINGS, rows=2, segment=4, tokens_at_once=64)
    dialogues = open_dialogues(policy().host, SHORT, [sample(0), sample(1)])
    made = rollout(policy(), dialogues, few, Sampling(samples=3), jax.random.key(5), usage=usage)
    assert all(same(a, b) for a, b in zip(sampled, made, strict=True))
    assert usage.chosen == sum(e.loss_mask.sum() for e in sampled) and 0 < usage.utilisation <= 1


def test_streams_in_threads_give_the_same_answers(sampled):
    settings = dataclasses.replace(SETTINGS, streams=2, rows=4)
    made = answered([sample(0), sample(1)], 5, Sampling(samples=3), SHORT, settings)
    assert all(same(a, b) for a, b in zip(sampled, made, strict=True))


def test_an_error_in_a_stream_ends_the_rollout(monkeypatch):
    monkeypatch.setattr(Dialogue, 'advance', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answered([sample(0), sample(1)], 5, settings=dataclasses.replace(SETTINGS, streams=2))


def test_images_are_computed_once(monkeypatch):
    """Two questions about a page, and two attempts that zoom into the same box."""
    shown = sample(0)
    other = dataclasses.replace(shown, question=dataclasses.replace(shown.question, id='page-0/other'))
    zoom = (Step(box=BOX), Step(answer='running'))
    follow_script(monkeypatch, [acted(shown, *zoom), acted(other, *zoom)])
    features = FeatureCache()
    dialogues = open_dialogues(policy().host, BUDGET, [shown, other])
    made = rollout(policy(), dialogues, SETTINGS, Sampling(samples=2), jax.random.key(0), features=features)
    page, crop = made[0].images
    assert all(e.images[0] is page for e in made) and made[1].images[1] is crop
    assert len({id(image) for e in made for image in e.images}) == 3 and all(i in features for i in made[2].images)
    batch = one_a_row([made[0]])
    model, params = policy().model, policy().params
    whole = model.apply({'params': params}, batch.images, method='encode_images')
    np.testing.assert_allclose(features[page], whole[0, : page.merged(2)], atol=1e-5)
    np.testing.assert_allclose(features[crop], whole[1, : crop.merged(2)], atol=1e-5)
    monkeypatch.setattr('rarl_jax.sampler.images.encode_images', None)  # needed no more
    rollout(policy(), dialogues, SETTINGS, Sampling(samples=1), jax.random.key(0), features=features)


def test_joined_maps_equal_plain_ones():
    """The sampler's copy holds q, k, v and gate, up as one matrix each."""
    model = policy().model
    plain = unstack(load_policy(Path(folder()), model, policy().mesh, RULES))
    assert (
        'q_k_v' in policy().params['text']['layers']['0']['attention']
        and 'q' in plain['text']['layers']['0']['attention']
    )
    arguments = model.example()
    whole, joined = (model.apply({'params': params}, *arguments) for params in (plain, policy().params))
    np.testing.assert_allclose(joined, whole, atol=1e-5)


def test_compaction_changes_no_token(monkeypatch):
    """Rows that finish early leave the batch; what the last one chooses is what the whole pass says of it."""
    monkeypatch.setattr(slots, 'SMALLEST', 2)
    kept, plain = [], Slots._take
    monkeypatch.setattr(Slots, '_take', lambda self, rows: kept.append(len(rows)) or plain(self, rows))
    samples, seen = [sample(number) for number in range(8)], []
    zoom, answer = (Step(box=BOX), Step(answer='running')), (Step(answer='running'),)
    wanted = [acted(s, *(zoom if number == 3 else answer), group=number) for number, s in enumerate(samples)]
    follow_script(monkeypatch, wanted)
    settings = dataclasses.replace(SETTINGS, segment=4)
    made = answered(samples, 0, settings=settings, progress=lambda done, all_: seen.append(done))
    assert [e.ids.tolist() for e in made] == [e.ids.tolist() for e in wanted]
    assert gap([made[3]], full_pass([made[3]])) < 1e-4
    assert 2 in kept and seen == sorted(seen) and seen[-1] == 8


def test_greedy_takes_the_likeliest_token():
    first, second = (answered([sample(0)], k, Sampling(greedy=True), SHORT)[0] for k in (0, 1))
    assert same(first, second)


def test_budgets_hold():
    tight = Budget(max_turns=2, turn_tokens=5, total_tokens=100)
    for episode in answered([sample(0)], 2, Sampling(samples=6), tight):
        assert len(episode.ids) <= 100 and len(episode.turns) <= 2
        if episode.finish_reason == 'turn_length':
            assert episode.loss_mask.sum() % 5 == 0


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='Question page-0/q about page page-0: its prompt has 75 tokens'):
        open_dialogues(policy().host, Budget(total_tokens=40), [sample(0)])


def test_a_page_that_cannot_be_shown_is_named():
    odd = dataclasses.replace(sample(0), image=page(width=10, height=4000))
    with pytest.raises(ValueError, match=r'Question page-0/q about page page-0: .*200'):
        open_dialogues(policy().host, BUDGET, [odd])


def test_regions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='Question page-0/q about page page-0: its prompt has'):
        open_dialogues(policy().host, Budget(total_tokens=90), [sample(0)], crop='oracle')


def test_a_dialogue_needs_no_question():
    """A server or another environment opens conversations of its own, numbered as it likes."""
    host = policy().host
    opened = []
    for name in ('page-0/q', 'other'):
        opened.append(Dialogue(host, view_page(host, page()), SHORT, question_id=name, group=7))
        opened[-1].ask('What is the figure in red doing?')
    first, second = rollout(policy(), opened, SETTINGS, Sampling(), jax.random.key(5))
    assert same(first, answered([sample(0)], 5, budget=SHORT)[0]) and (first.group, second.group) == (7, 7)
    spent = Dialogue(host, view_page(host, page()), Budget(total_tokens=75), question_id='spent')
    spent.ask('What is the figure in red doing?')
    with pytest.raises(ValueError, match='Question spent: its prompt has 75 tokens'):
        rollout(policy(), [spent], SETTINGS, Sampling(), jax.random.key(0))


@pytest.mark.parametrize(
    'bad',
    [
        {'samples': 0},
        {'temperature': 0.0},
        {'samples': 2, 'greedy': True},
        {'top_p': 0.0},
        {'top_p': 1.5},
        {'top_k': -1},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match='Sampling'):
        Sampling(**bad)


@pytest.mark.parametrize(
    ('kind', 'bad'),
    [
        (SamplerSettings, {'rows': -1}),
        (SamplerSettings, {'segment': 0}),
        (SamplerSettings, {'streams': 0}),
        (SamplerSettings, {'streams': 3, 'rows': 2}),
        (SamplerSettings, {'tokens_at_once': 0}),
        (SamplerSettings, {'patches_at_once': 0}),
        (SamplerSettings, {'lengths': (64, 0)}),
        (SamplerSettings, {'cache_lengths': (-1,)}),
        (Budget, {'max_turns': 0}),
        (Budget, {'turn_tokens': -5}),
        (Budget, {'total_tokens': 0}),
        (ZoomTool, {'max_crops': -1}),
        (ZoomTool, {'min_side': 0}),
        (ZoomTool, {'duplicate_iou': float('nan')}),
        (RewardSettings, {'format': float('nan')}),
        (RewardSettings, {'max_paid_zooms': -1}),
    ],
)
def test_settings_out_of_range_are_named(kind, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)


# ---- controls ----


def test_controls_show_something_else():
    """Failure mode 9: crops of the same size that hold nothing, or another place."""
    whole, question = page(), sample().question
    assert blank(whole, BOX).size == (100, 140) and blank(whole, BOX).getcolors() == [(14000, (128, 128, 128))]
    box = elsewhere(whole, BOX, question)
    assert (box[2] - box[0], box[3] - box[1]) == pytest.approx((100, 140))
    assert iou(np.array([box]), np.array([BOX, *question.regions])).max() < 0.1
    assert box == elsewhere(whole, BOX, question)


@pytest.mark.parametrize('control', ['blank', 'shuffled'])
def test_controls_change_the_crop_and_nothing_else(monkeypatch, control):
    wanted = acted(sample(0), Step(box=BOX), Step(answer='running'))
    follow_script(monkeypatch, [wanted])
    made = answered([sample(0)], 0, crop=control)[0]
    assert made.ids.tolist() == wanted.ids.tolist() and made.zooms == wanted.zooms
    assert not np.array_equal(made.images[1].pixels, wanted.images[1].pixels)


def test_oracle_shows_the_right_region_first():
    made = answered([sample(0)], 0, budget=SHORT, crop='oracle')[0]
    assert made.zooms[0].box == sample(0).question.regions[0] and made.zooms[0].succeeded
    assert len(made.images) >= 2 and made.turns[0].text.count('<tool_call>') <= 1
    assert gap([made], full_pass([made])) < 1e-4


def test_without_the_tool_the_prompt_does_not_name_it():
    made = answered([sample(0)], 0, budget=SHORT, offers_tool=False)[0]
    assert 'image_zoom_in_tool' not in policy().host.chat.decode(made.ids.tolist())[:400] and len(made.images) == 1


def test_a_draft_of_a_call_inside_a_thought_does_not_end_the_turn(monkeypatch):
    """The row rests at the draft's `</tool_call>` until the segment ends; its tokens, its cache and its log-probs are those of one turn."""
    draft = f'perhaps {call_text((1, 2, 30, 40))}'
    turns = (f'<think>{draft}</think>{call_text((20, 30, 70, 100))}', f'<think>{draft}</think><answer>running</answer>')
    wanted = [
        acted(sample(0), *(Step(text=text) for text in turns), group=0),
        acted(sample(1), Step(text=f'<think>{draft} or'), group=1),
    ]
    follow_script(monkeypatch, wanted)
    made = answered([sample(0), sample(1)], 0)
    for mine, theirs in zip(made, wanted, strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist() and mine.turns == theirs.turns and mine.zooms == theirs.zooms
    assert [len(e.turns) for e in made] == [2, 1] and made[0].zooms[0].succeeded and len(made[0].zooms) == 1
    assert (made[1].finish_reason, made[1].answer, made[1].zooms) == ('stop', None, ())
    assert gap(made, full_pass(made)) < 1e-4
