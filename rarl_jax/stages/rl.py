"""A stage of GRPO: questions, rollouts, rewards, advantages, an update or several; and again."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

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
from rarl_jax.learner.batches import Batch, Buckets, micro_batches
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, ReferencePolicy, Updater, reinforcement
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.runtime.sharding import local_rows
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
    # Updates of a step: its groups are cut into so many mini-batches, so many times. One of each is strictly on-policy: the ratio of the policy that
    # learns to the one that sampled is 1, and the loss's clips have nothing to cut.
    mini_batches: int = 1
    epochs: int = 1
    micro_batch: int = 0  # episodes a device pass; 0 = the whole mini-batch
    # Episodes of a group that share a row, and their prompt, in an update: pays where prompts are longer than answers.
    pack: int = 1
    save_every: int = 20  # steps
    show_every: int = 10  # steps between the episodes that are kept for the report

    def __post_init__(self):
        super().__post_init__()
        self.check_least(questions=1, group_size=1, pack=1, mini_batches=1, epochs=1, show_every=1)
        if self.micro_batch < 0 or not 0 < self.temperature < float('inf'):
            raise ValueError(
                f'micro_batch is {self.micro_batch} and temperature {self.temperature}, expected 0 or more and a positive number.'
            )
        if self.questions % self.mini_batches:
            raise ValueError(
                f'mini_batches is {self.mini_batches}, expected a number that divides questions, {self.questions}.'
            )
        if self.group_size % self.pack:
            raise ValueError(
                f'pack is {self.pack}, expected a number that divides group_size, {self.group_size}: episodes of one group share a row.'
            )

    @property
    def updates(self) -> int:
        """Updates of the policy in a step."""
        return self.mini_batches * self.epochs


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


def judge(episode: Episode, sample: Sample, settings: RewardSettings) -> Reward:
    """Grades the answer and pays the episode."""
    question = sample.question
    accuracy = grade(question.task, question.answer, episode.answer, question.choices)
    return rewards.reward(episode, question, accuracy, settings)


def without_loss(episode: Episode) -> Episode:
    """The episode with no token in the loss."""
    return dataclasses.replace(episode, loss_mask=np.zeros_like(episode.loss_mask))


def shared_advantages(
    stage: RlSettings, total: Float[np.ndarray, 'E'], group: Int[np.ndarray, 'E'], counts: Int[np.ndarray, 'E']
) -> Float[np.ndarray, 'E']:
    """The advantages of this process's episodes in the batch of all processes: groups are whole on each, but an estimator may whiten over all."""
    parts = processes.gather([total.tolist(), group.tolist(), counts.tolist()])
    every_total, every_count = (np.concatenate([part[at] for part in parts]) for at in (0, 2))
    every_group = np.concatenate([np.array(part[1]) + number * len(total) for number, part in enumerate(parts)])
    every = advantages(stage.advantage, every_total, every_group, stage.group_size, every_count)
    first = sum(len(part[0]) for part in parts[: jax.process_index()])
    return every[first : first + len(total)]


def rollout_metrics(
    episodes: Sequence[Episode], earned: Sequence[Reward], samples: Sequence[Sample], alike: Bool[np.ndarray, 'B']
) -> dict[str, float]:
    """Means over all processes' episodes, and of each reward part over each task's; `alike` marks those of groups without variance."""
    values: dict[str, list[float]] = defaultdict(list)
    for episode, reward in zip(episodes, earned, strict=True):
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
    for part in processes.gather(values):
        for name, numbers in part.items():
            every[name] += numbers
    every.setdefault('zoom/iou_first', [0.0])
    return {name: float(np.mean(each)) for name, each in every.items()}


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
