"""What the episodes of a step earned: rewards, advantages in the batch of all processes, and the numbers that are told."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.loader import Sample
from input_pipeline.tasks import grade
from rarl_jax.conversation import rewards
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.rewards import Reward, RewardSettings
from rarl_jax.learner.advantages import advantages
from rarl_jax.runtime import processes
from rarl_jax.stages.rl_settings import RlSettings


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
