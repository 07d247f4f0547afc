"""Steps leave nothing behind: neither arrays on a device nor objects of Python. `tests/memory.py` watches a whole run from outside."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path

import jax
import numpy as np

from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.learner.batches import Buckets, micro_batches
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, chosen_logprobs, reinforcement
from rarl_jax.policy import load_policy
from rarl_jax.runtime.sharding import RULES
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from tests.rarl_jax.small_policy import BUDGET, folder, host, policy, sample

SAMPLER = SamplerSettings(segment=8, lengths=(192,), cache_lengths=(320,))
STEPS = 4  # between two counts


def test_steps_leave_no_array_and_no_object_behind():
    asked, model = [sample(0), sample(1)], policy().model
    params = load_policy(Path(folder()), model, policy().mesh, RULES)
    optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-3), params, 10)
    learner = Learner.start(params, optimizer, None)
    updater = Updater(model, reinforcement(LossSettings()), optimizer, learner)

    def step(learner: Learner) -> Learner:
        """The same answers each time, so that no new shape is compiled."""
        dialogues = open_dialogues(host(), BUDGET, asked)
        episodes = rollout(policy(), dialogues, SAMPLER, Sampling(samples=2), jax.random.key(0))
        advantage = np.array([1.0, -1.0, 0.5, -0.5])
        batches = [*micro_batches(episodes, advantage, model.config, Buckets(), 0, policy().mesh)]
        chosen_logprobs(updater, learner.params, batches, episodes)
        tokens = sum(int(e.loss_mask.sum()) for e in episodes)
        learner, told = updater(learner, batches, tokens, len(episodes))
        jax.device_get(told)
        return learner.next_step()

    counts = []
    for _ in range(3):  # the first steps compile, and fill caches
        for _ in range(STEPS):
            learner = step(learner)
        counts.append(alive())
    (_, first), (arrays, second), (more_arrays, third) = counts
    assert more_arrays == arrays
    # What comes once is no leak: one leaves something behind at every step.
    grown = {name: min(third[name] - second[name], second[name] - first[name]) for name in third}
    assert not {name: count for name, count in grown.items() if count >= STEPS}


def alive() -> tuple[int, Counter[str]]:
    """How many arrays live on devices, and how many objects of each type in Python."""
    gc.collect()
    return len(jax.live_arrays()), Counter(type(each).__name__ for each in gc.get_objects())
