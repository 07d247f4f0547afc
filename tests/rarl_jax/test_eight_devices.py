"""On eight virtual devices: rollouts, gradients and whole updates through the run's own programs equal one device's, and compile once.

Tolerance 1e-5: of a scalar to its value, of an array to the largest number of the same weight's gradient or change. A weight's change is
told by the weight before and after, each rounded: that rounding is allowed on top.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.learner.batches import Buckets, micro_batches
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, reinforcement
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.policy import load_policy
from rarl_jax.runtime.metrics import CompileCounter
from rarl_jax.runtime.sharding import RULES, MeshSettings, batch_parts, constrain, make_mesh, shardings_of
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.programs import empty_cache, fork, take_rows
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.weights import Policy
from tests.commands import on_eight_devices
from tests.rarl_jax.small_policy import BUDGET, SHAPES, acted, folder, follow_script, host, sample

MESHES = (MeshSettings(fsdp=8), MeshSettings(fsdp=4, tensor=2), MeshSettings(data=2, fsdp=2, tensor=2))
CLOSE = 1e-5
STEPS, EPISODES, ROWS = 5, 16, 8  # updates, episodes of each, rows of a micro-batch
# eps: Adam divides by the gradient's size, and would turn what is nothing but rounding into a step of full length.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, eps=1e-2, weight_decay=0.1, frozen=('vision',))
SAMPLER = SamplerSettings(segment=8, lengths=(192,), cache_lengths=(320,))
BOX = (40.0, 60.0, 140.0, 200.0)
ZOOM, ANSWER = (Step(box=BOX), Step(answer='running')), (Step(answer='sitting'),)


@pytest.mark.slow
@pytest.mark.parametrize('family', SHAPES)
def test_on_eight_devices(family):
    done = on_eight_devices(__name__, family)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- runs in a process of its own


def check_on_eight_devices(family):
    """The second family on the mesh that has every axis; its losses and gradients are seen on all of them in models/test_sharded.py."""
    assert jax.device_count() == 8
    alone = everything(family, MeshSettings(), zooms=True)
    for settings in MESHES if family == 'qwen2_5_vl' else MESHES[-1:]:
        found = everything(family, settings, zooms=settings is MESHES[-1])
        for mine, theirs in zip(found['episodes'], alone['episodes'], strict=False):
            assert mine.ids.tolist() == theirs.ids.tolist()
            assert_close(mine.sample_logprobs, theirs.sample_logprobs)
        np.testing.assert_allclose(found['loss'], alone['loss'], rtol=CLOSE)
        jax.tree.map(assert_close, found['gradient'], alone['gradient'])
        rounding = jax.tree.map(lambda x: np.finfo(np.float32).eps * np.abs(x).max(), alone['before'])
        for mine, theirs in zip(found['changes'], alone['changes'], strict=True):
            jax.tree.map(assert_close, mine, theirs, rounding)
        assert found['compiled'] == [], 'a later update compiled something'


def assert_close(mine, theirs, rounding=0.0):
    assert np.abs(mine - theirs).max() <= CLOSE * np.abs(theirs).max() + rounding


def everything(family, settings, zooms):
    """What a mesh makes of the same policy, pages and episodes."""
    mesh = make_mesh(settings)
    model = build_model(read_config(folder(family)), scan=True, remat='attention', constrain=constrain(mesh))
    params = load_policy(Path(folder(family)), model, mesh, RULES)
    policy = Policy.of(model, params, host(family), mesh)
    check_caches(policy)
    episodes = [*sampled(policy), *(zoomed(policy) if zooms else [])]
    return {'episodes': episodes} | updates(model, params, mesh)


def check_caches(policy):
    """However a cache came about, where it lies is spelled alike: otherwise the programs that follow would be compiled once more."""
    model, rows = policy.model, np.zeros((batch_parts(policy.mesh), 1), np.int32)
    fresh = empty_cache(model, 8, 96)
    taken = take_rows(model, [*empty_cache(model, 16, 64)], np.arange(8, dtype=np.int32), 96)
    places = shardings_of(fresh), shardings_of(taken), shardings_of(fork(model, fresh, rows, rows))
    assert places[0] == places[1] == places[2]


def sampled(policy):
    """Conversations of a policy of random weights; five rows of eight or four leave some idle."""
    return rollout(
        policy,
        open_dialogues(policy.host, BUDGET, [sample(0)], crop='oracle'),
        SAMPLER,
        Sampling(samples=5),
        jax.random.key(3),
    )


def zoomed(policy):
    """Conversations that follow a script and append crops."""
    samples = [sample(number) for number in range(5)]
    with pytest.MonkeyPatch.context() as patch:
        follow_script(
            patch,
            [
                acted(s, *(ANSWER if n == 1 else ZOOM), family=policy.model.config.model_type)
                for n, s in enumerate(samples)
            ],
        )
        episodes = rollout(
            policy, open_dialogues(policy.host, BUDGET, samples), SAMPLER, Sampling(temperature=0.7), jax.random.key(0)
        )
    assert [len(e.images) for e in episodes] == [2, 1, 2, 2, 2]
    return episodes


def updates(model, params, mesh):
    """Some updates of two micro-batches each, and the first gradient on its own."""
    optimizer = make_optimizer(OPTIMIZER, params, STEPS)
    learner = Learner.start(params, optimizer, None)
    updater = Updater(
        model, reinforcement(LossSettings(entropy_weight=0.01)), optimizer, learner, frozen=OPTIMIZER.frozen
    )
    before, tokens = jax.device_get(params)['text'], sum(e.loss_mask.sum() for e in episodes(model))
    denominators = Denominators(np.float32(tokens), np.float32(EPISODES), np.float32(1))
    first = next(batches(model, mesh))
    total = updater.nothing(params, updater.metric_names(params, first, denominators))
    gradient, _ = updater.accumulate(params, updater.base, total, first, denominators)
    gradient, counter, changes = jax.device_get(gradient)['text'], CompileCounter(), []
    for step in range(STEPS):
        learner, metrics = updater(learner, batches(model, mesh), float(tokens), EPISODES)
        changes.append(jax.tree.map(np.subtract, jax.device_get(learner.params)['text'], before))
        if step == 0:
            loss = float(metrics['loss'])
            counter.take()
    compiled = counter.names
    counter.close()
    assert all(len(x.sharding.spec) == x.ndim for x in jax.tree.leaves((learner.params, learner.opt_state)))
    return {'loss': loss, 'gradient': gradient, 'changes': changes, 'before': before, 'compiled': compiled}


def episodes(model):
    return [
        acted(sample(n // 4), *(ANSWER if n % 4 == 1 else ZOOM), group=n // 4, family=model.config.model_type)
        for n in range(EPISODES)
    ]


def batches(model, mesh):
    rng = np.random.default_rng(1)
    advantages = rng.standard_normal(EPISODES).astype(np.float32)
    return micro_batches(episodes(model), advantages, model.config, Buckets(), ROWS // batch_parts(mesh), mesh)
