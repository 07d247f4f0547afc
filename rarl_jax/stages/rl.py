"""A stage of GRPO: questions, rollouts, rewards, advantages, an update or several; and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Float, Int

from input_pipeline.loader import LoaderSettings, load
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.episodes import write_rollouts
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.learner.advantages import without_variance
from rarl_jax.learner.batches import Batch, micro_batches
from rarl_jax.learner.optim import make_optimizer
from rarl_jax.learner.update import Learner, ReferencePolicy, Updater, reinforcement
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.runtime.sharding import local_rows
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.stages.context import Run
from rarl_jax.stages.judging import judge, rollout_metrics, shared_advantages, without_loss
from rarl_jax.stages.registry import StageKind
from rarl_jax.stages.rl_settings import RlSettings
from rarl_jax.stages.training import Training


def train(run: Run, name: str, stage: RlSettings) -> None:
    """Trains the run's policy for `stage.steps` steps, from wherever the stage stands."""
    training = Training(run, name, stage)
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps * stage.updates)
    questions = processes.share(stage.questions, f'config.stage.{name}.questions')
    processes.share(stage.questions // stage.mini_batches, f'config.stage.{name}: questions / mini_batches')
    loader = LoaderSettings(batch_size=questions, tasks=stage.tasks, seed=run.settings.seed, drop_remainder=True)
    learner = training.begin(optimizer, iter(load(run.data_dir, loader, *run.processes)))
    updater = Updater(
        run.model,
        reinforcement(stage.loss),
        optimizer,
        learner,
        run.adapted,
        temperature=stage.temperature,
        frozen=stage.optimizer.frozen,
        length=run.settings.conversation.budget.turn_tokens,
    )
    reference = ReferencePolicy(run.model, run.base_weights(), stage.temperature) if stage.loss.kl_weight else None
    sampling = Sampling(samples=stage.group_size, temperature=stage.temperature)
    with training.progress(learner.step) as bar:
        while learner.step < stage.steps:
            clock = Clock()

            # ---- answer a group of times each, with the policy as it is
            samples = next(learner.batches)
            policy = Policy.of(run.model, run.weights(learner.params), run.host, run.mesh)
            dialogues = open_dialogues(
                run.host, run.settings.conversation.budget, samples, offers_tool=stage.offer_tool
            )
            episodes = rollout(policy, dialogues, run.settings.sampler, sampling, run.key(name, learner.step))
            del policy  # the update needs the room of the sampler's weights
            clock.lap('rollout')

            # ---- judge
            earned = [judge(e, samples[e.group], stage.reward) for e in episodes]
            learned = [without_loss(e) if stage.drop_cut_off and e.cut_off else e for e in episodes]
            total = np.array([reward.total for reward in earned])
            group = np.array([e.group for e in episodes])
            advantage = shared_advantages(stage, total, group, np.array([e.loss_mask.sum() for e in learned]))
            clock.lap('reward')

            # ---- learn
            cut = partial(cut_batches, run, stage)
            old = chosen_logprobs(updater, learner, cut(learned, advantage), learned) if stage.updates > 1 else None
            told: list[dict[str, float]] = []
            for part in mini_batches(stage, group):
                episodes_of, old_of = [learned[i] for i in part], None if old is None else [old[i] for i in part]
                batches = cut(episodes_of, advantage[part], old_of)
                if reference is not None:
                    batches = map(reference.annotate, batches)
                tokens = processes.total(sum(int(e.loss_mask.sum()) for e in episodes_of))
                learner, metrics = updater(learner, batches, tokens, processes.total(len(part)))
                told.append({key: float(value) for key, value in jax.device_get(metrics).items()})
            learner = learner.next_step()
            metrics = {key: float(np.mean([each[key] for each in told])) for key in told[0]}
            clock.lap('update')

            # ---- tell and save
            if processes.is_first() and (learner.step - 1) % stage.show_every == 0:
                show(run, name, learner.step, samples, episodes, earned, advantage)
            metrics |= rollout_metrics(episodes, earned, samples, without_variance(total, group))
            metrics |= clock.metrics(processes.total(sum(len(e.ids) for e in episodes)))
            training.after_step(learner, metrics)
            bar.advance(reward=metrics['reward/total'], iou=metrics['zoom/iou_first'])


def cut_batches(
    run: Run, stage: RlSettings, episodes: Sequence[Episode], advantage: Float[np.ndarray, 'E'], old=None
) -> Iterator[Batch]:
    """The micro-batches of an update on these episodes."""
    return micro_batches(
        episodes, advantage, run.model.config, stage.buckets, stage.micro_batch, run.mesh, stage.pack, old
    )


def mini_batches(stage: RlSettings, group: Int[np.ndarray, 'E']) -> Iterator[Int[np.ndarray, 'n']]:
    """Places of the episodes of each update of a step: whole groups, in the order in which they were drawn.

    With several processes each cuts its own groups; they take turns in drawing them, so an update sees the groups that one process would give it.
    """
    for _ in range(stage.epochs):
        for part in np.split(np.unique(group), stage.mini_batches):
            yield np.flatnonzero(np.isin(group, part))


def chosen_logprobs(
    updater: Updater, learner: Learner, batches: Iterable[Batch], episodes: Sequence[Episode]
) -> list[Float[np.ndarray, 'n']]:
    """The learner's own log-probs of each episode's chosen tokens, as it is before its first update on them."""
    scored = [local_rows(updater.logprobs(learner.params, updater.base, batch)) for batch in batches]
    rows = [row for part in scored for row in part]
    return [row[: int(e.loss_mask.sum())] for row, e in zip(rows, episodes, strict=False)]


def show(run: Run, name: str, step: int, samples, episodes, earned, advantage) -> None:
    """Keeps the first two groups of a step for the report."""
    kept = [i for i, episode in enumerate(episodes) if episode.group < 2]
    shown = [samples[group] for group in range(min(2, len(samples)))]
    write_rollouts(
        run.workdir / 'rollouts',
        step,
        name,
        [episodes[i] for i in kept],
        questions={sample.question.id: sample.question for sample in shown},
        rewards=[earned[i] for i in kept],
        advantages=[float(advantage[i]) for i in kept],
        pages={sample.question.page_id: sample.image for sample in shown},
        decode=run.host.chat.decode,
    )


STAGE = StageKind(RlSettings, train)
