"""The answers of a step: every question a group of episodes, and which groups the policy learns from."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from input_pipeline.loader import Sample
from rarl_jax.conversation import rewards
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.rewards import Reward
from rarl_jax.learner.advantages import comparable, without_variance
from rarl_jax.runtime import processes


@dataclass(frozen=True)
class Answers:
    """Groups of episodes and what they earned."""

    samples: list[Sample]  # a question each
    episodes: list[Episode]  # groups side by side; `group` is the place of the question in `samples`
    earned: list[Reward]  # of each episode

    @cached_property
    def total(self) -> Float[np.ndarray, 'E']:
        return np.array([reward.total for reward in self.earned])

    @cached_property
    def group(self) -> Int[np.ndarray, 'E']:
        return np.array([episode.group for episode in self.episodes], int)

    @cached_property
    def known(self) -> Bool[np.ndarray, 'E']:
        """Which episodes can be compared with others of their group."""
        return comparable(self.group, np.array([reward.judged for reward in self.earned], bool))

    @cached_property
    def alike(self) -> Bool[np.ndarray, 'E']:
        """Which belong to groups without variance."""
        return without_variance(self.total, self.group, self.known)

    def of(self, groups: Sequence[int]) -> Answers:
        """These groups, numbered anew."""
        places = [(number, i) for number, g in enumerate(groups) for i in np.flatnonzero(self.group == g)]
        episodes = [dataclasses.replace(self.episodes[i], group=number) for number, i in places]
        return Answers([self.samples[g] for g in groups], episodes, [self.earned[i] for _, i in places])

    def and_then(self, more: Answers) -> Answers:
        """These, followed by more."""
        behind = [dataclasses.replace(e, group=e.group + len(self.samples)) for e in more.episodes]
        return Answers(self.samples + more.samples, self.episodes + behind, self.earned + more.earned)


def collect(
    answer: Callable[[int, list[Sample]], Answers], draw: Callable[[], list[Sample]], refills: int
) -> tuple[Answers, Answers]:
    """All that is answered in a step, and the groups to learn from: as many as `draw` gives questions at a time.

    Without refills these are the same. Otherwise (DAPO's dynamic sampling, arXiv 2503.14476) groups without variance are replaced by those of
    further questions, in the order in which they were drawn, until there are enough or `refills` further draws are answered. Where there are
    still too few, groups without variance fill the places that are left. All processes draw equally often, and one that has enough answers no more.

    Args:
        answer: (number of the draw, its samples) -> their groups.
    """
    samples = draw()
    needed, every = len(samples), answer(0, samples)
    if not refills:
        return every, every
    for number in range(1, refills + 1):
        lacking = needed - len(varied(every))
        if processes.largest(np.array([lacking])).item() <= 0:
            break
        samples = draw()
        if lacking > 0:
            every = every.and_then(answer(number, samples))
    good = varied(every)
    rest = [group for group in range(len(every.samples)) if group not in set(good)]
    return every, every.of([*good, *rest][:needed])


def varied(answers: Answers) -> list[int]:
    """The groups with variance, in order."""
    return np.unique(answers.group[~answers.alike]).tolist()


def rollout_metrics(answers: Answers, version: int) -> dict[str, float]:
    """Means over all processes' episodes, and of each reward part over each task's. What no judge has graded counts as such and in no reward.

    `version`: steps that the policy which learns has been trained for; policy/staleness is by how many it is ahead of the one that chose.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for episode, reward in zip(answers.episodes, answers.earned, strict=True):
        question = answers.samples[episode.group].question
        values['judge/missing'].append(not reward.judged)
        if reward.judged:
            values['reward/total'].append(reward.total)
            for part, value in reward.parts.items():
                values[f'reward/{part}'].append(value)
                values[f'reward/{part}/{question.task}'].append(value)
        for place, iou in zip(('first', 'second'), rewards.zoom_ious(episode, question), strict=False):
            values[f'zoom/iou_{place}'].append(iou)
        values['zoom/calls'].append(len(episode.zooms))
        values['zoom/rate'].append(any(zoom.succeeded for zoom in episode.zooms))
        values['zoom/failed'].append(sum(not zoom.succeeded for zoom in episode.zooms))
        values['zoom/crop_tokens'].append(rewards.crop_tokens(episode))
        values['length/response'].append(float(episode.loss_mask.sum()))
        if episode.loss_mask.any():
            ages = version - episode.versions[episode.loss_mask]
            values['policy/staleness'].append(float(ages.mean()))
        values['length/turns'].append(len(episode.turns))
        values['length/cut_off'].append(episode.cut_off)
    values['group/zero_variance'] = answers.alike.astype(float).tolist()
    every: dict[str, list[float]] = defaultdict(list)
    for part in processes.gather(values):
        for name, numbers in part.items():
            every[name] += numbers
    every.setdefault('zoom/iou_first', [0.0])
    return {name: float(np.mean(each)) for name, each in every.items()}
