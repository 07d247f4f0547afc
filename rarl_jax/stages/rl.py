"""A stage of GRPO: questions, rollouts, rewards, advantages, one update; and again."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.loader import LoaderSettings, Sample, load
from input_pipeline.schema import Task
from input_pipeline.tasks import grade
from rarl_jax.conversation import rewards
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.episodes import write_rollouts
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.rewards import Reward, RewardSettings
from rarl_jax.learner.advantages import Estimator, advantages, without_variance
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import ReferencePolicy, Updater, micro_batches, reinforcement
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import StageKind, TrainingSettings
from rarl_jax.stages.training import Training


@dataclass(frozen=True, kw_only=True)
class RlSettings(TrainingSettings):
    """A stage of GRPO."""

    kind: str = 'rl'
    questions: int  # questions a step
    group_size: int  # episodes a question
    tasks: tuple[Task, ...]
    reward: RewardSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    buckets: Buckets = field(default_factory=Buckets)  # sizes that batches are padded to
    offer_tool: bool = True  # False = plain RL: the policy answers from the page alone
    temperature: float = 1.0
    advantage: Estimator = 'grpo'
    drop_cut_off: bool = False  # leave episodes that a budget ended out of the loss
    micro_batch: int = 0  # episodes a device pass, a multiple of group_size; 0 = the whole batch
    # Episodes of a group that share a row, and their prompt, in an update: pays where prompts are longer than answers.
    pack: int = 1
    save_every: int = 20  # steps
    show_every: int = 10  # steps between the episodes that are kept for the report

    def __post_init__(self):
        super().__post_init__()
        if self.show_every < 1:
            raise ValueError(f'show_every is {self.show_every}, expected at least 1.')
        if self.group_size % self.pack:
            raise ValueError(
                f'pack is {self.pack}, expected a number that divides group_size, {self.group_size}: episodes of one group share a row.'
            )


def train(run: Run, name: str, stage: RlSettings) -> None:
    """Trains the run's policy for `stage.steps` updates, from wherever the stage stands."""
    training = Training(run, name, stage)
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps)
    questions = processes.share(stage.questions, f'config.stage.{name}.questions')
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
            paid = [judge(e, samples[e.group], stage.reward) for e in episodes]
            mask = loss_masks(episodes, stage.drop_cut_off)
            total = np.array([reward.total for reward in paid])
            group = np.array([e.group for e in episodes])
            advantage = shared_advantages(stage, total, group, mask)
            clock.lap('reward')

            # ---- learn
            learned = [
                dataclasses.replace(e, loss_mask=m[: len(e.ids)] > 0) for e, m in zip(episodes, mask, strict=True)
            ]
            batches = micro_batches(
                learned, advantage, run.model.config, stage.buckets, stage.micro_batch, run.mesh, stage.pack
            )
            if reference is not None:
                batches = map(reference.annotate, batches)
            tokens, sequences = processes.total(float(mask.sum())), processes.total(len(episodes))
            learner, metrics = updater(learner, batches, tokens, sequences)
            metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
            clock.lap('update')

            # ---- tell and save
            if processes.is_first() and (learner.step - 1) % stage.show_every == 0:
                show(run, name, learner.step, samples, episodes, paid, advantage)
            metrics |= rollout_metrics(episodes, paid, samples, without_variance(total, group))
            metrics |= clock.metrics(processes.total(sum(len(e.ids) for e in episodes)))
            training.after_step(learner, metrics)
            bar.advance(reward=metrics['reward/total'], iou=metrics['zoom/iou_first'])


def judge(episode: Episode, sample: Sample, settings: RewardSettings) -> Reward:
    """Grades the answer and pays the episode."""
    question = sample.question
    accuracy = grade(question.task, question.answer, episode.answer, question.choices)
    return rewards.reward(episode, question, accuracy, settings)


def loss_masks(episodes: Sequence[Episode], drop_cut_off: bool) -> Float[np.ndarray, 'B T']:
    """The chosen tokens that count, padded to the longest episode; with `drop_cut_off` none of an episode that a budget ended."""
    mask = np.zeros((len(episodes), max(len(e.ids) for e in episodes)), np.float32)
    for row, episode in enumerate(episodes):
        if not (drop_cut_off and episode.cut_off):
            mask[row, : len(episode.ids)] = episode.loss_mask
    return mask


def shared_advantages(
    stage: RlSettings, total: Float[np.ndarray, 'B'], group: Int[np.ndarray, 'B'], mask: Float[np.ndarray, 'B T']
) -> Float[np.ndarray, 'B T']:
    """The advantages of this process's episodes in the batch of all processes: groups are whole on each, but an estimator may whiten over all."""
    if jax.process_count() == 1:
        return advantages(stage.advantage, total, group, stage.group_size, mask)
    counts = mask.sum(axis=1).astype(int).tolist()
    parts = processes.gather([total.tolist(), group.tolist(), counts])
    every_total = np.concatenate([part[0] for part in parts])
    every_group = np.concatenate([np.array(part[1]) + number * len(total) for number, part in enumerate(parts)])
    every_count = np.concatenate([part[2] for part in parts])
    # An estimator looks at how many tokens an episode has, not at where they stand.
    stand_in = (np.arange(max(every_count.max(), 1)) < every_count[:, None]).astype(np.float32)
    every = advantages(stage.advantage, every_total, every_group, stage.group_size, stand_in)[:, 0]
    first = sum(len(part[0]) for part in parts[: jax.process_index()])
    return every[first : first + len(total), None] * mask


def rollout_metrics(
    episodes: Sequence[Episode], paid: Sequence[Reward], samples: Sequence[Sample], alike: Bool[np.ndarray, 'B']
) -> dict[str, float]:
    """Means over all processes' episodes, and of each reward part over each task's; `alike` marks those of groups without variance."""
    values: dict[str, list[float]] = defaultdict(list)
    for episode, reward in zip(episodes, paid, strict=True):
        question = samples[episode.group].question
        values['reward/total'].append(reward.total)
        for part, value in reward.parts.items():
            values[f'reward/{part}'].append(value)
            values[f'reward/{part}/{question.task}'].append(value)
        for place, iou in zip(('first', 'second'), rewards.zoom_ious(episode, question), strict=False):
            values[f'zoom/iou_{place}'].append(iou)
        values['zoom/calls'].append(len(episode.zooms))
        values['zoom/failed'].append(sum(not zoom.succeeded for zoom in episode.zooms))
        values['length/response'].append(float(episode.loss_mask.sum()))
        values['length/turns'].append(len(episode.turns))
        values['length/cut_off'].append(episode.cut_off)
    values['group/zero_variance'] = alike.astype(float).tolist()
    every: dict[str, list[float]] = defaultdict(list)
    for own in processes.gather(values):
        for name, each in own.items():
            every[name] += each
    every.setdefault('zoom/iou_first', [0.0])
    return {name: float(np.mean(each)) for name, each in every.items()}


def show(run: Run, name: str, step: int, samples, episodes, paid, advantage) -> None:
    """Keeps the first two groups of a step for the report."""
    kept = [i for i, episode in enumerate(episodes) if episode.group < 2]
    shown = [samples[group] for group in range(min(2, len(samples)))]
    write_rollouts(
        run.workdir / 'rollouts',
        step,
        name,
        [episodes[i] for i in kept],
        questions={sample.question.id: sample.question for sample in shown},
        rewards=[paid[i] for i in kept],
        advantages=[float(advantage[i].sum() / max(1, (advantage[i] != 0).sum())) for i in kept],
        pages={sample.question.page_id: sample.image for sample in shown},
        decode=run.host.chat.decode,
    )


STAGE = StageKind(RlSettings, train)
