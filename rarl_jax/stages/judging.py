"""What the episodes of a step earned: grades, rewards, and advantages in the batch of all processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.loader import Sample
from input_pipeline.schema import Question
from input_pipeline.tasks import grade
from rarl_jax.conversation import rewards
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.rewards import Reward
from rarl_jax.evaluation.endpoint import EndpointJudge, endpoint_from_environment
from rarl_jax.evaluation.judge import Item, Judge, is_judged
from rarl_jax.learner.advantages import advantages
from rarl_jax.runtime import processes
from rarl_jax.stages.context import Run
from rarl_jax.stages.rl_settings import RlSettings

Pay = Callable[[Sequence[Episode], Sequence[Sample]], list[Reward]]  # (episodes, the sample of each) -> their rewards


def make_pay(run: Run, stage: RlSettings) -> Pay:
    """Grades answers and pays episodes as the stage says. ValueError where the environment does not name the judge's endpoint."""
    judge = None
    if stage.judge.kind == 'endpoint':
        asked = {
            'timeout': stage.judge.timeout,
            'attempts': stage.judge.attempts,
            'concurrency': stage.judge.concurrency,
        }
        endpoint = dataclasses.replace(endpoint_from_environment(), **asked)
        number = f'-{jax.process_index()}' if jax.process_index() else ''
        judge = EndpointJudge(endpoint, run.workdir / f'judge_cache{number}.jsonl', misses=True)

    def pay(episodes: Sequence[Episode], samples: Sequence[Sample]) -> list[Reward]:
        questions = [sample.question for sample in samples]
        graded = zip(episodes, questions, grades(episodes, questions, judge), strict=True)
        return [
            without_verdict(rewards.reward(episode, question, 0.0, stage.reward))
            if found is None
            else rewards.reward(episode, question, found, stage.reward)
            for episode, question, found in graded
        ]

    return pay


def without_verdict(reward: Reward) -> Reward:
    """The reward of an answer that no judge has graded: its parts but accuracy."""
    parts = {name: value for name, value in reward.parts.items() if name != 'accuracy'}
    return Reward(reward.total, parts, judged=False)


def grades(episodes: Sequence[Episode], questions: Sequence[Question], judge: Judge | None) -> list[float | None]:
    """Of each answer, 0 to 1; None where the judge came to no verdict. Without a judge the tasks' own metrics grade."""
    found: list[float | None] = []
    asked: dict[int, Item] = {}
    for place, (episode, question) in enumerate(zip(episodes, questions, strict=True)):
        found.append(grade(question.task, question.answer, episode.answer, question.choices))
        if judge is not None and is_judged(question.task, question.choices) and episode.answer is not None:
            asked[place] = Item(question.prompt, question.answer, episode.answer)
    if asked:
        for place, verdict in zip(asked, judge.grades([*asked.values()]), strict=True):
            found[place] = verdict
    return found


def without_loss(episode: Episode) -> Episode:
    """The episode with no token in the loss."""
    return dataclasses.replace(episode, loss_mask=np.zeros_like(episode.loss_mask))


def shared_advantages(
    stage: RlSettings,
    total: Float[np.ndarray, 'E'],
    group: Int[np.ndarray, 'E'],
    counts: Int[np.ndarray, 'E'],
    known: Bool[np.ndarray, 'E'],
) -> Float[np.ndarray, 'E']:
    """The advantages of this process's episodes in the batch of all processes: groups are whole on each, but an estimator may whiten over all."""
    parts = processes.gather([total.tolist(), group.tolist(), counts.tolist(), known.tolist()])
    every_total, every_count, every_known = (np.concatenate([part[at] for part in parts]) for at in (0, 2, 3))
    every_group = np.concatenate([np.array(part[1]) + number * len(total) for number, part in enumerate(parts)])
    every = advantages(stage.advantage, every_total, every_group, stage.group_size, every_count, every_known)
    first = sum(len(part[0]) for part in parts[: jax.process_index()])
    return every[first : first + len(total)]
