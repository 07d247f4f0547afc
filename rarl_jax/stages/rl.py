"""A stage of GRPO: questions, rollouts, rewards, advantages, an update or several; and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float, Int

from input_pipeline.loader import Sample, load
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.episodes import write_rollouts
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.evaluation.judge import is_judged
from rarl_jax.learner.batches import Batch, micro_batches
from rarl_jax.learner.invariants import check_groups, name_of, widest_gap
from rarl_jax.learner.kept import Update
from rarl_jax.learner.optim import equal, make_optimizer, stands
from rarl_jax.learner.update import Learner, ReferencePolicy, Updater, chosen_logprobs, reinforcement
from rarl_jax.models.features import FeatureCache
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.sampler.engine import Usage, rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.stages.answers import Answers, collect, rollout_metrics
from rarl_jax.stages.context import Run
from rarl_jax.stages.curriculum import mixture_of
from rarl_jax.stages.ends import Row, collapsed, is_stable
from rarl_jax.stages.held_out import HeldOut
from rarl_jax.stages.judging import Pay, make_pay, shared_advantages, without_loss
from rarl_jax.stages.registry import StageKind
from rarl_jax.stages.repeat import Repeated, repeat_update, restore_learner
from rarl_jax.stages.rl_settings import RlSettings
from rarl_jax.stages.training import Training


def train(run: Run, name: str, stage: RlSettings) -> None:
    """Trains the run's policy for `stage.steps` steps, from wherever the stage stands."""
    training = Training(run, name, stage)
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps * stage.updates)
    loader = replace(run.loading(questions_of(name, stage), stage.tasks), mixture=mixture_of(run.settings, name))
    learner = training.begin(optimizer, iter(load(run.data_dir, loader, *run.processes)))
    updater, reference = make_updater(run, stage, optimizer, learner)
    keeps = keeps_features(run, stage, learner, reference)
    pay, held_out = make_pay(run, stage), HeldOut(run, stage)
    with training.progress(learner.step) as bar:
        ends = False
        while learner.step < stage.steps and not ends:
            clock = training.clock()

            # ---- answer a group of times each, with the policy as it is, and judge
            version = run.global_step(name, learner.step)
            every, answers, usage, seen = answer_all(run, name, stage, learner, pay, clock)
            if stage.judge.kind == 'endpoint':
                check_verdicts(stage, every)
            check_groups(answers.episodes, stage.group_size)
            learned = in_loss(stage, answers)
            counts = np.array([e.loss_mask.sum() for e in learned])
            advantage = shared_advantages(stage, answers.total, answers.group, counts, answers.known)
            clock.lap('reward')

            # ---- learn
            kept, score = seen if keeps else None, partial(chosen_logprobs, updater)
            cut = partial(cut_batches, run, stage, kept)
            old = score(learner.params, cut(learned, advantage), learned) if stage.updates > 1 else None
            told: list[dict[str, float]] = []
            for part in mini_batches(stage, answers.group):
                update = make_update([learned[i] for i in part], advantage[part], old and [old[i] for i in part], kept)
                batches = batches_of(run, stage, reference, update)
                learner, metrics = updater(learner, batches, update.tokens, update.sequences)
                numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
                told.append(numbers if update.tokens else without_policy(numbers))
                if numbers['optimizer/skipped']:  # the step ends: its checkpoint holds the policy that this update met
                    own = score(learner.params, cut(update.episodes, update.advantages), update.episodes)
                    training.keep(learner.step + 1, update, numbers, own)
                    break
            learner = learner.next_step()
            metrics = mean_of(told)
            if metrics.get('policy/ratio_gap', 0.0) > stage.most_gap:
                own = score(learner.params, cut(learned, advantage), learned) if old is None else old
                raise gap_error(learner.step, stage.most_gap, metrics['policy/ratio_gap'], widest_gap(learned, own))
            clock.lap('update')

            # ---- tell and save
            if processes.is_first() and (learner.step - 1) % stage.show_every == 0:
                show(run, name, learner.step, answers, advantage)
            metrics |= rollout_metrics(every, version)
            metrics['group/answered'] = processes.total(len(every.samples)) / stage.questions
            metrics['sampler/utilisation'] = processes.total(usage.chosen) / processes.total(usage.room)
            if held_out.is_due(learner.step):
                metrics |= held_out.measure(learner.params)
                clock.lap('held_out')
            metrics |= clock.metrics(processes.total(sum(len(e.ids) for e in every.episodes)))
            is_best = 'held_out/score' in metrics and training.note_score(learner, metrics['held_out/score'])
            ends = has_ended(run, name, stage, training.notes, metrics)
            training.after_step(learner, metrics, ends=ends, saves=is_best, takes_best=stage.held_out.take_best)
            bar.advance(reward=metrics['reward/total'], iou=metrics['zoom/iou_first'])


def questions_of(name: str, stage: RlSettings) -> int:
    """Questions of a step that fall to each process. ValueError where processes cannot share them evenly, or those of a mini-batch."""
    share = processes.share(stage.questions, f'config.stage.{name}.questions')
    processes.share(stage.questions // stage.mini_batches, f'config.stage.{name}: questions / mini_batches')
    return share


def has_ended(run: Run, name: str, stage: RlSettings, notes: dict[str, Any], metrics: Mapping[str, float]) -> bool:
    """Whether the stage is done after this step, though it may have steps left; `notes` keep what is looked at of the steps so far."""
    figures = ('zoom/rate', 'reward/format', 'reward/total', 'policy/entropy')
    rows = notes.setdefault('rows', [])
    rows.append([metrics.get(figure) for figure in figures])
    rows = [Row(*row) for row in rows]
    if is_stable(rows, stage.adaptive_end):
        run.say(f'{name} has taught calls and form and ends after {len(rows)} of {stage.steps} steps.')
        return True
    if problem := collapsed(rows, stage.collapse):
        run.say(f'{name} ends after {len(rows)} of {stage.steps} steps, as the policy collapses: {problem}.')
    return problem is not None


def make_updater(
    run: Run, stage: RlSettings, optimizer: optax.GradientTransformation, learner: Learner
) -> tuple[Updater, ReferencePolicy | None]:
    """What updates the policy as the stage says, and the policy that it is held to, if to any."""
    updater = Updater(
        run.model,
        reinforcement(stage.loss),
        optimizer,
        learner,
        run.adapted,
        temperature=stage.temperature,
        frozen=stage.optimizer.frozen,
        length=stage.budget.over(run.settings.conversation.budget).turn_tokens,
    )
    weighed = stage.loss.kl_weight
    return updater, ReferencePolicy(run.model, run.base_weights(), stage.temperature) if weighed else None


class Answered(NamedTuple):
    """What a step's questions were answered."""

    every: Answers
    answers: Answers  # the groups of them that the policy learns from
    usage: Usage  # of the sampler's slots
    seen: FeatureCache  # features of the images that were shown


def answer_all(run: Run, name: str, stage: RlSettings, learner: Learner, pay: Pay, clock: Clock) -> Answered:
    """A group of episodes for each question of a step, chosen by the learner's policy, and what they earned.

    The sampler's copy of the weights is gone when this returns: the update needs its room.
    """
    policy = Policy.of(run.model, run.weights(learner.params), run.host, run.mesh)
    version, step_key = run.global_step(name, learner.step), run.key(name, learner.step)
    budget = stage.budget.over(run.settings.conversation.budget)
    sampling = Sampling(samples=stage.group_size, temperature=stage.temperature)
    usage, seen = Usage(), FeatureCache()

    def answer(number: int, samples: list[Sample]) -> Answers:
        dialogues = open_dialogues(run.host, budget, samples, offers_tool=stage.offer_tool, version=version)
        key = jax.random.fold_in(step_key, number) if number else step_key
        episodes = rollout(policy, dialogues, run.settings.sampler, sampling, key, usage=usage, features=seen)
        clock.lap('rollout')
        earned = pay(episodes, [samples[e.group] for e in episodes])
        clock.lap('reward')
        return Answers(samples, episodes, earned)

    every, answers = collect(answer, partial(next, learner.batches), stage.refills)
    return Answered(every, answers, usage, seen)


def in_loss(stage: RlSettings, answers: Answers) -> list[Episode]:
    """The episodes, with no token in the loss where they ended as they should not, have no verdict, or fill the place of a group with variance."""
    out = [e.finish_reason in stage.masked_endings for e in answers.episodes]
    out |= ~answers.known
    if stage.refills:
        out |= answers.alike
    return [without_loss(e) if left else e for e, left in zip(answers.episodes, out, strict=True)]


def check_verdicts(stage: RlSettings, answers: Answers) -> None:
    """ValueError where more of a step's answers lack a verdict than the stage allows."""
    questions = [answers.samples[e.group].question for e in answers.episodes]
    asked = [
        is_judged(q.task, q.choices) and e.answer is not None for q, e in zip(questions, answers.episodes, strict=True)
    ]
    missing = processes.total(sum(not reward.judged for reward in answers.earned))
    if missing > stage.judge.most_missing * (total := processes.total(sum(asked))):
        raise ValueError(
            f'The judge gave no verdict on {missing} of the {total} open answers of a step: see that it runs, or raise judge.most_missing; '
            'verdicts that were reached are kept, and the run goes on from its last checkpoint.'
        )


def gap_error(step: int, most: float, gap: float, worst: tuple[Episode, float] | None) -> ValueError:
    """What to raise where the sampler's log-probs are not the trainer's; `worst` is the episode in which they differ most."""
    where = f' {name_of(worst[0])} has the widest, {worst[1]:.3g}.' if worst else ''
    return ValueError(
        f'Step {step}: the probabilities of the sampler and the trainer differ by {gap:.3g} in the mean, at most {most} is allowed (most_gap).{where} '
        'They compute the same in another order: use a wider dtype, or look for what the one sees and the other does not.'
    )


def keeps_features(run: Run, stage: RlSettings, learner: Learner, reference: ReferencePolicy | None) -> bool:
    """Whether updates take the tower's features from the rollout: nothing of it learns, and the policy that they are held to has the same tower.

    The sampler's weights are the trainer's in the dtype that the trainer, too, computes in: also in bfloat16 only the order of sums may differ.
    """
    if not stands(learner.params, stage.optimizer.frozen, 'vision'):
        return False
    return reference is None or bool(equal(reference.params['vision'], run.weights(learner.params)['vision']))


def make_update(
    episodes: Sequence[Episode],
    advantage: Float[np.ndarray, 'E'],
    old: Sequence[Float[np.ndarray, 'n']] | None,
    features: FeatureCache | None,
) -> Update:
    """An update on these episodes and, with several processes, on those of the others."""
    tokens = processes.total(sum(int(e.loss_mask.sum()) for e in episodes))
    return Update(episodes, advantage, old, tokens, processes.total(len(episodes)), features)


def without_policy(numbers: Mapping[str, float]) -> dict[str, float]:
    """What an update tells that looked at no token, as no group had variance: its entropy would be 0."""
    return {name: value for name, value in numbers.items() if not name.startswith('policy/')}


def mean_of(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over a step's updates, each over those that tell it."""
    names = dict.fromkeys(name for each in told for name in each)
    return {name: float(np.mean([each[name] for each in told if name in each])) for name in names}


def batches_of(run: Run, stage: RlSettings, reference: ReferencePolicy | None, update: Update) -> Iterator[Batch]:
    """The micro-batches of an update, with all that its loss weighs."""
    batches = cut_batches(run, stage, update.features, update.episodes, update.advantages, update.old_logprobs)
    return batches if reference is None else map(reference.annotate, batches)


def cut_batches(
    run: Run,
    stage: RlSettings,
    features: FeatureCache | None,
    episodes: Sequence[Episode],
    advantage: Float[np.ndarray, 'E'],
    old: Sequence[Float[np.ndarray, 'n']] | None = None,
) -> Iterator[Batch]:
    """The micro-batches of an update on these episodes."""
    config, size = run.model.config, stage.micro_batch
    return micro_batches(episodes, advantage, config, stage.buckets, size, run.mesh, stage.pack, old, features)


def mini_batches(stage: RlSettings, group: Int[np.ndarray, 'E']) -> Iterator[Int[np.ndarray, 'n']]:
    """Places of the episodes of each update of a step: whole groups, in the order in which they were drawn.

    With several processes each cuts its own groups; they take turns in drawing them, so an update sees the groups that one process would give it.
    """
    for _ in range(stage.epochs):
        for part in np.split(np.unique(group), stage.mini_batches):
            yield np.flatnonzero(np.isin(group, part))


def show(run: Run, name: str, step: int, answers: Answers, advantage: Float[np.ndarray, 'E']) -> None:
    """Keeps the first two groups of a step for the report, but for numbers that JSON does not know."""
    kept = np.flatnonzero((answers.group < 2) & np.isfinite(answers.total) & np.isfinite(advantage))
    shown = answers.samples[:2]
    write_rollouts(
        run.workdir / 'rollouts',
        step,
        name,
        [answers.episodes[i] for i in kept],
        questions={sample.question.id: sample.question for sample in shown},
        rewards=[answers.earned[i] for i in kept],
        advantages=[float(advantage[i]) for i in kept],
        pages={sample.question.picture_id: sample.image for sample in shown},
        decode=run.host.chat.decode,
    )


def repeat(run: Run, stage: RlSettings, update: Update, step: int) -> Repeated:
    """An update that was skipped, from the checkpoint of a step of the run."""
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps * stage.updates)
    learner = restore_learner(run, optimizer, step)
    updater, reference = make_updater(run, stage, optimizer, learner)
    if update.features is not None:
        update = replace(update, features=update.features.like(run.model.no_features(1, 1)))
    return repeat_update(updater, learner, partial(batches_of, run, stage, reference, update), update)


STAGE = StageKind(RlSettings, train, repeat=repeat)
