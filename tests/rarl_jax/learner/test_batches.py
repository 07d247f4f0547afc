"""Batches by hand; a packed group against one row an episode, in log-probs and gradients; several updates on one batch."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.learner.batches import Buckets, collate, distinct_images, micro_batches, round_up, sizes_of
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, reinforcement
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.models.vision_batch import plan_vision
from rarl_jax.runtime.metrics import CompileCounter
from rarl_jax.runtime.sharding import RULES, MeshSettings, local_rows, make_mesh
from tests.rarl_jax.small_policy import acted, folder, load_policy, sample

BOX, OTHER, ANSWER = Step(box=(40.0, 60.0, 140.0, 200.0)), Step(box=(10.0, 20.0, 90.0, 120.0)), Step(answer='running')
GROUP = 4


@pytest.fixture(scope='module')
def episodes():
    """Two groups of four, of one, two and three turns; one episode is left out of the loss."""
    turns = ((BOX, ANSWER), (ANSWER,), (OTHER, ANSWER), (BOX, OTHER, ANSWER))
    made = [acted(sample(group), *steps, group=group) for group in range(2) for steps in turns]
    # The attempts at a question look at one page.
    made = [dataclasses.replace(e, images=(made[e.group * GROUP].images[0], *e.images[1:])) for e in made]
    made[2] = dataclasses.replace(made[2], loss_mask=np.zeros_like(made[2].loss_mask))
    return made


def collated(episodes, pack, advantages=None):
    config = read_config(folder())
    advantages = np.arange(len(episodes), dtype=np.float32) if advantages is None else advantages
    return collate(episodes, advantages, config, sizes_of(episodes, config, Buckets(), pack), len(episodes), pack)


def test_rows_by_hand(episodes):
    batch = collated(episodes, 1)
    assert batch.segments is None and batch.ids.shape[0] == len(episodes)
    assert batch.advantages.tolist() == [*range(len(episodes))]
    for row, episode in enumerate(episodes):
        chosen = np.flatnonzero(episode.loss_mask)
        assert batch.ids[row, : len(episode.ids)].tolist() == episode.ids.tolist()
        assert batch.source[row, : len(chosen)].tolist() == (chosen - 1).tolist()
        assert (batch.source[row, len(chosen) :] == batch.ids.shape[1]).all()
        assert batch.targets[row, : len(chosen)].tolist() == episode.ids[chosen].tolist()
        assert batch.mask[row].sum() == len(chosen)


def test_a_group_by_hand(episodes):
    batch, rows = collated(episodes, GROUP), collated(episodes, 1)
    prompt = int(episodes[0].loss_mask.argmax())
    held = {n: episodes[n] for n in (0, 1, 3)}
    filled = prompt + sum(len(e.ids) - prompt for e in held.values())
    segments, layout = batch.segments.numbers, batch.segments.layout
    room = layout.prompt - prompt
    assert segments[0, : filled + room].tolist() == (
        [0] * prompt + [-1] * room + [1 + number for number, e in held.items() for _ in e.ids[prompt:]]
    )
    assert not segments[0, filled + room :].any() and layout.count == GROUP
    assert layout.reach == round_up(max(len(e.ids) for e in episodes) - prompt, (), 16)
    for number, episode in held.items():
        here = segments[0] == 1 + number
        assert batch.ids[0, here].tolist() == episode.ids[prompt:].tolist()
        assert (batch.positions[:, 0, here] == rows.positions[:, number, prompt : len(episode.ids)]).all()
        scored = batch.scored[number, : int(episode.loss_mask.sum())]
        places = batch.source[0, scored]
        assert batch.targets[0, scored].tolist() == episode.ids[episode.loss_mask].tolist()
        assert places[0] == prompt - 1, 'the prompt chooses every first token'
        # What stands at the source of a token is what stood before it in its episode.
        before = episode.ids[np.flatnonzero(episode.loss_mask) - 1]
        assert batch.ids[0, places].tolist() == before.tolist()
    assert (batch.scored[2] == batch.source.shape[1]).all() and not batch.mask[2].any()
    count = sum(int(e.loss_mask.sum()) for e in held.values())
    assert (batch.source[0] < batch.ids.shape[1]).tolist() == [n < count for n in range(batch.source.shape[1])]
    for name in ('mask', 'sample_logprobs', 'advantages'):
        np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name))


def test_what_does_not_fit_is_refused(episodes):
    config = read_config(folder())
    sizes = sizes_of(episodes[:1], config, Buckets())
    with pytest.raises(ValueError, match='8 episodes do not fit 4 rows'):
        collate(episodes, np.zeros(8), config, sizes, 4)
    with pytest.raises(ValueError, match=r'does not fit 16: add a larger size to buckets\.lengths'):
        collate(episodes[:1], np.zeros(1), config, dataclasses.replace(sizes, length=16), 1)
    with pytest.raises(ValueError, match=r'room is for 2: add a larger size to buckets\.chosen'):
        collate(episodes[:1], np.zeros(1), config, dataclasses.replace(sizes, chosen=2), 1)
    with pytest.raises(ValueError, match=r'room is for 3: add a larger size to buckets\.scored'):
        collate(episodes[:1], np.zeros(1), config, dataclasses.replace(sizes, scored=3), 1)
    first = dataclasses.replace(episodes[0], loss_mask=np.ones_like(episodes[0].loss_mask))
    with pytest.raises(ValueError, match=r'Episode 0 of question page-0/q has its first token marked as chosen'):
        collate([first], np.zeros(1), config, dataclasses.replace(sizes, chosen=999, scored=999), 1)


def make_updater(model, params):
    optimizer = make_optimizer(OptimizerSettings(1e-3), params, 1)
    learner = Learner.start(params, optimizer, None)
    return Updater(model, reinforcement(LossSettings(entropy_weight=0.01)), optimizer, learner)


def gradient(model, params, mesh, episodes, pack, size, old=None, features=None):
    updater = make_updater(model, params)
    tokens = sum(e.loss_mask.sum() for e in episodes)
    advantages = np.random.default_rng(0).standard_normal(len(episodes)).astype(np.float32)
    denominators = Denominators(np.float32(tokens), np.float32(len(episodes)), np.float32(1))
    total = None
    for batch in micro_batches(episodes, advantages, model.config, Buckets(), size, mesh, pack, old, features):
        total = total or updater.nothing(params, updater.metric_names(params, batch, denominators))
        total = updater.accumulate(params, updater.base, total, batch, denominators)
    return jax.device_get(total)


@pytest.mark.parametrize('size', [0, GROUP])
def test_packed_gradients_are_those_of_plain_rows(episodes, size):
    mesh = make_mesh(MeshSettings())
    model = build_model(read_config(folder()))
    params = load_policy(folder(), model, mesh, RULES)
    plain, metrics = gradient(model, params, mesh, episodes, 1, 0)
    packed, others = gradient(model, params, mesh, episodes, GROUP, size)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), packed, plain)


def test_kept_features_change_nothing_but_that_the_tower_does_not_learn(episodes):
    mesh = make_mesh(MeshSettings())
    model = build_model(read_config(folder()))
    params = load_policy(folder(), model, mesh, RULES)
    kept, images = FeatureCache(), distinct_images(episodes)
    plan = plan_vision(images[::-1], model.config.vision)
    made = jax.jit(partial(model.apply, method='encode_images'))({'params': params}, plan)
    kept.keep(images[::-1], made, model.config.vision.spatial_merge_size)
    plain, metrics = gradient(model, params, mesh, episodes, GROUP, GROUP)
    found, others = gradient(model, params, mesh, episodes, GROUP, GROUP, features=kept)
    for name, value in metrics.items():
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
        found['text'],
        plain['text'],
    )
    assert not any(np.any(x) for x in jax.tree.leaves(found['vision']))
    assert any(np.any(x) for x in jax.tree.leaves(plain['vision']))


def test_old_logprobs_of_the_learner_itself_change_no_gradient(episodes):
    """Computed by its own program, packed, cut off at each episode's end and handed back: the ratio is 1, and nothing is clipped."""
    mesh = make_mesh(MeshSettings())
    model = build_model(read_config(folder()))
    params = load_policy(folder(), model, mesh, RULES)
    updater = make_updater(model, params)
    batches = micro_batches(episodes, np.zeros(8), model.config, Buckets(), GROUP, mesh, GROUP)
    rows = [row for batch in batches for row in local_rows(updater.logprobs(params, updater.base, batch))]
    old = [row[: int(e.loss_mask.sum())] for row, e in zip(rows, episodes, strict=True)]
    first, _ = gradient(model, params, mesh, episodes, GROUP, GROUP)
    again, metrics = gradient(model, params, mesh, episodes, GROUP, GROUP, old)
    assert abs(metrics['policy/update_kl']) < 1e-6 and metrics['policy/clip_fraction'] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()), again, first)


def test_a_batch_with_its_groups_mixed_up_is_refused(episodes):
    with pytest.raises(ValueError, match='their prompts differ'):
        collated([episodes[n] for n in (0, 4, 1, 5)], GROUP)


def test_a_micro_batch_holds_whole_groups(episodes):
    model = build_model(read_config(folder()))
    with pytest.raises(ValueError, match='micro_batch is 6 episodes, expected a multiple of the 4 of a row'):
        next(micro_batches(episodes, np.zeros(8), model.config, Buckets(), 6, make_mesh(MeshSettings()), GROUP))


def test_an_update_on_other_episodes_compiles_nothing(episodes):
    """Within the buckets, and however many micro-batches they make; scoring them likewise."""
    mesh, config = make_mesh(MeshSettings()), read_config(folder())
    model, most = build_model(config), sizes_of(episodes, config, Buckets(), GROUP)
    params = load_policy(folder(), model, mesh, RULES)
    optimizer = make_optimizer(OptimizerSettings(1e-3), params, 2)
    learner = Learner.start(params, optimizer, None)
    updater = Updater(model, reinforcement(LossSettings()), optimizer, learner)
    buckets = Buckets(
        lengths=(most.length,),
        prompts=(most.prompt,),
        segments=(most.segment,),
        images=(most.images,),
        windows=(most.windows,),
        patches=(most.patches,),
        chosen=(most.chosen,),
        scored=(most.scored,),
    )
    counter, told = CompileCounter(), []
    for part in (episodes, episodes[GROUP:], [dataclasses.replace(episodes[1], sample=n) for n in range(GROUP)]):
        batches = list(micro_batches(part, np.ones(len(part)), config, buckets, GROUP, mesh, GROUP))
        for batch in batches:
            jax.device_get(updater.logprobs(learner.params, updater.base, batch))
        learner, metrics = updater(learner, batches, 100, len(part))
        jax.device_get(metrics)
        told.append(counter.take())
    counter.close()
    assert told[0] and told[1:] == [0, 0], told
