"""A packed group against one row an episode: by hand, and in log-probs and gradients."""

import dataclasses

import jax
import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.learner.batches import Buckets, collate
from rarl_jax.learner.logprobs import plan_chosen
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.packing import pack_groups, packed_tokens
from rarl_jax.learner.update import Learner, Updater, micro_batches, reinforcement
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.runtime.sharding import RULES, MeshSettings, make_mesh
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


def test_a_group_by_hand(episodes):
    config = read_config(folder())
    rollouts = collate(episodes, config, Buckets())
    chosen = plan_chosen(rollouts.loss_mask, [64])
    tokens = packed_tokens(episodes, GROUP)
    packed = pack_groups(rollouts, chosen, GROUP, tokens)
    prompt = int(episodes[0].loss_mask.argmax())
    held = [episodes[n] for n in (0, 1, 3)]
    assert tokens == prompt + sum(len(e.ids) - prompt for e in episodes[4:])
    assert packed.segments[0].tolist() == (
        [0] * prompt
        + [number for number, e in zip((1, 2, 4), held, strict=True) for _ in e.ids[prompt:]]
        + [0] * (tokens - prompt - sum(len(e.ids) - prompt for e in held))
    )
    assert packed.ids[0][packed.segments[0] == 4].tolist() == held[2].ids[prompt:].tolist()
    before = packed.before.reshape(2, GROUP, -1)
    assert (before[0, :, 0] == [prompt - 1, prompt - 1, tokens, prompt - 1]).all(), (
        'the prompt chooses every first token'
    )
    assert (
        packed.positions[:, 0, packed.segments[0] == 2] == rollouts.positions[:, 1, prompt : len(held[1].ids)]
    ).all()


def gradient(model, params, mesh, episodes, pack, size):
    learner = Learner.start(params, make_optimizer(OptimizerSettings(1e-3), params, 1), None)
    updater = Updater(
        model,
        reinforcement(LossSettings(entropy_weight=0.01)),
        make_optimizer(OptimizerSettings(1e-3), params, 1),
        learner,
    )
    width = max(len(e.ids) for e in episodes)
    mask = np.stack([np.pad(e.loss_mask, (0, width - len(e.ids))) for e in episodes]).astype(np.float32)
    advantages = mask * np.random.default_rng(0).standard_normal((len(mask), 1)).astype(np.float32)
    denominators = Denominators(np.float32(mask.sum()), np.float32(len(mask)), np.float32(1))
    batches = micro_batches(episodes, advantages, model.config, Buckets(), size, mesh, pack)
    total = None
    for batch in batches:
        total = (
            updater.first(params, updater.base, batch, denominators)
            if total is None
            else updater.next(params, updater.base, total, batch, denominators)
        )
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


def test_a_batch_with_its_groups_mixed_up_is_refused(episodes):
    with pytest.raises(ValueError, match='their prompts differ'):
        mixed = [episodes[n] for n in (0, 4, 1, 5)]
        rollouts = collate(mixed, read_config(folder()), Buckets())
        pack_groups(rollouts, plan_chosen(rollouts.loss_mask, [64]), GROUP, 1024)


def test_a_micro_batch_holds_whole_groups(episodes):
    model = build_model(read_config(folder()))
    with pytest.raises(ValueError, match='micro_batch is 6 rows, expected a multiple of 4'):
        next(micro_batches(episodes, np.zeros((8, 1)), model.config, Buckets(), 6, make_mesh(MeshSettings()), GROUP))
