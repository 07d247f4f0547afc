"""Rollouts with a real model: the cached path against the full pass, and what a token may depend on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.conversation.boxes import iou
from rarl_jax.conversation.controls import blank, elsewhere
from rarl_jax.conversation.dialogue import Budget
from rarl_jax.conversation.protocol import call_text
from rarl_jax.learner.batches import Buckets, collate
from rarl_jax.runtime.metrics import CompileCounter
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from tests.rarl_jax.small_policy import BUDGET, acted, follow_script, page, policy, sample

BOX, OTHER = (40.0, 60.0, 140.0, 200.0), (180.0, 200.0, 330.0, 260.0)
SETTINGS = SamplerSettings(budget=BUDGET, segment=8, lengths=(64, 128, 192), cache_lengths=(224,))
SHORT = dataclasses.replace(SETTINGS, budget=Budget(max_turns=2, turn_tokens=12, total_tokens=224))


def full_pass(episodes, temperature=1.0, change=lambda batch: batch):
    """Log-probs of the episodes' tokens by one plain pass over whole conversations, [B, T - 1]."""
    own = policy()
    batch = change(collate(episodes, own.model.config, Buckets()))

    @jax.jit
    def logprobs(params, batch):
        logits = own.model.apply({'params': params}, batch.ids, batch.positions, batch.feature_index, batch.vision)
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
def scripted():
    """Three conversations, of one, two and three turns; rolled out with the script's tokens at temperature 0.7."""
    samples = [sample(number) for number in range(3)]
    wanted = [
        acted(samples[0], Step(box=BOX), Step(answer='running'), group=0),
        acted(samples[1], Step(answer='sitting'), group=1),
        acted(samples[2], Step(box=BOX), Step(thought='not here', box=OTHER), Step(answer='running'), group=2),
    ]
    with pytest.MonkeyPatch.context() as patch:
        follow_script(patch, wanted)
        made = rollout(policy(), samples, SETTINGS, Sampling(temperature=0.7), jax.random.key(0))
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


def test_cached_decode_equals_the_full_pass_at_every_turn(scripted):
    """Recorded log-probs of all turns, those after one and two appended crops included, are the trainer's."""
    _, made = scripted
    assert [len(e.turns) for e in made] == [2, 1, 3] and len(made[2].images) == 3
    assert gap(made, full_pass(made, 0.7)) < 1e-4


def test_the_equality_notices_wrong_positions_and_images(scripted):
    """Failure mode 14: 1-D positions, or the page's features in the crop's place, are another model."""
    _, made = scripted

    def one_dimensional(batch):
        return dataclasses.replace(
            batch, positions=np.broadcast_to(np.arange(batch.ids.shape[1]), batch.positions.shape)
        )

    def page_for_crop(batch):
        m = batch.vision.merged_slots.shape[1]
        return dataclasses.replace(batch, feature_index=np.where(batch.feature_index >= 0, batch.feature_index % m, -1))

    assert gap(made, full_pass(made, 0.7, one_dimensional)) > 1e-2
    assert gap(made, full_pass(made, 0.7, page_for_crop)) > 1e-2


@pytest.fixture(scope='module')
def sampled():
    """Two questions, three attempts each, of a policy with random weights."""
    return rollout(policy(), [sample(0), sample(1)], SHORT, Sampling(samples=3), jax.random.key(5))


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
    turned = rollout(policy(), [sample(1), sample(0), sample(2)], SHORT, Sampling(samples=3), jax.random.key(5))
    assert all(same(a, b) for a, b in zip(sampled, turned[3:6] + turned[:3], strict=True))


def test_forked_equals_unforked(sampled):
    alone = rollout(policy(), [sample(0)], SHORT, Sampling(samples=1), jax.random.key(5))
    assert same(alone[0], sampled[0])


def test_segments_and_cache_sizes_change_no_token(sampled):
    other = dataclasses.replace(SHORT, segment=3, cache_lengths=(), lengths=(), patches_at_once=256, early_exit=False)
    again = rollout(policy(), [sample(0), sample(1)], other, Sampling(samples=3), jax.random.key(5))
    assert all(same(a, b) for a, b in zip(sampled, again, strict=True))


def test_another_key_gives_other_tokens(sampled):
    other = rollout(policy(), [sample(0), sample(1)], SHORT, Sampling(samples=3), jax.random.key(6))
    assert not any(same(a, b) for a, b in zip(sampled, other, strict=True))


def test_a_second_rollout_compiles_nothing(monkeypatch):
    """Another number of crops, at other places of the batch, needs no other program."""
    samples = [sample(number) for number in range(8)]
    zoom, answer = (Step(box=BOX), Step(answer='running')), (Step(answer='running'),)
    follow_script(monkeypatch, [acted(s, *(answer if n in (5, 6) else zoom)) for n, s in enumerate(samples)])
    rollout(policy(), samples[:4], SETTINGS, Sampling(), jax.random.key(0))
    counter = CompileCounter()
    made = rollout(policy(), samples[4:], SETTINGS, Sampling(), jax.random.key(1))
    names = counter.names
    counter.close()
    assert names == [] and [len(e.images) for e in made] == [2, 1, 1, 2]


def test_compaction_changes_no_token():
    """Rows that finish early leave the batch; those that stay are what they would have been alone."""
    seen = []
    settings = dataclasses.replace(SHORT, segment=2)
    samples = [sample(number) for number in range(16)]
    together = rollout(
        policy(), samples, settings, Sampling(temperature=3.0), jax.random.key(1), lambda done, all_: seen.append(done)
    )
    longest = max(range(16), key=lambda number: together[number].loss_mask.sum())
    alone = rollout(policy(), [samples[longest]], settings, Sampling(temperature=3.0), jax.random.key(1))
    assert same(alone[0], together[longest]) and seen == sorted(seen) and seen[-1] == 16


def test_greedy_takes_the_likeliest_token():
    first, second = (rollout(policy(), [sample(0)], SHORT, Sampling(greedy=True), jax.random.key(k))[0] for k in (0, 1))
    assert same(first, second)


def test_budgets_hold():
    tight = dataclasses.replace(SHORT, budget=Budget(max_turns=2, turn_tokens=5, total_tokens=100))
    for episode in rollout(policy(), [sample(0)], tight, Sampling(samples=6), jax.random.key(2)):
        assert len(episode.ids) <= 100 and len(episode.turns) <= 2
        if episode.finish_reason == 'turn_length':
            assert episode.loss_mask.sum() % 5 == 0


def test_a_prompt_that_does_not_fit_is_refused():
    tight = dataclasses.replace(SETTINGS, budget=Budget(total_tokens=40))
    with pytest.raises(ValueError, match='page-0/q: its prompt has 75 tokens'):
        rollout(policy(), [sample(0)], tight, Sampling(), jax.random.key(0))


@pytest.mark.parametrize('bad', [{'samples': 0}, {'temperature': 0.0}, {'samples': 2, 'greedy': True}])
def test_nonsense_is_refused(bad):
    with pytest.raises(ValueError, match='Sampling'):
        Sampling(**bad)


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
    made = rollout(policy(), [sample(0)], SETTINGS, Sampling(crop=control), jax.random.key(0))[0]
    assert made.ids.tolist() == wanted.ids.tolist() and made.zooms == wanted.zooms
    assert not np.array_equal(made.images[1].pixels, wanted.images[1].pixels)


def test_oracle_shows_the_right_region_first():
    made = rollout(policy(), [sample(0)], SHORT, Sampling(crop='oracle'), jax.random.key(0))[0]
    assert made.zooms[0].box == sample(0).question.regions[0] and made.zooms[0].succeeded
    assert len(made.images) >= 2 and made.turns[0].text.count('<tool_call>') <= 1
    assert gap([made], full_pass([made])) < 1e-4


def test_without_the_tool_the_prompt_does_not_name_it():
    made = rollout(policy(), [sample(0)], SHORT, Sampling(offers_tool=False), jax.random.key(0))[0]
    assert 'image_zoom_in_tool' not in policy().host.chat.decode(made.ids.tolist())[:400] and len(made.images) == 1


def test_a_draft_of_a_call_inside_a_thought_does_not_end_the_turn(monkeypatch):
    """The row rests at the draft's `</tool_call>` until the segment ends; its tokens, its cache and its log-probs are those of one turn."""
    draft = f'perhaps {call_text((1, 2, 30, 40))}'
    wanted = [
        acted(sample(0), Step(thought=draft, box=BOX), Step(thought=draft, answer='running'), group=0),
        acted(sample(1), Step(text=f'<think>{draft} or'), group=1),
    ]
    follow_script(monkeypatch, wanted)
    made = rollout(policy(), [sample(0), sample(1)], SETTINGS, Sampling(), jax.random.key(0))
    for mine, theirs in zip(made, wanted, strict=True):
        assert mine.ids.tolist() == theirs.ids.tolist() and mine.turns == theirs.turns and mine.zooms == theirs.zooms
    assert [len(e.turns) for e in made] == [2, 1] and made[0].zooms[0].succeeded and len(made[0].zooms) == 1
    assert (made[1].finish_reason, made[1].answer, made[1].zooms) == ('stop', None, ())
    assert gap(made, full_pass(made)) < 1e-4
