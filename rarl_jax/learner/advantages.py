"""Advantages: how much better an episode did than the others that answered the same question.

Computed on the host, once per batch, from float rewards [B] and group ids [B]. Mixed-up or cut groups would silently turn these estimators into
others, so `check_groups` is run first: every id must occur exactly G times.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

Rewards = Float[np.ndarray, 'B']
Groups = Int[np.ndarray, 'B']
Estimator = Literal['grpo', 'dr_grpo', 'rloo', 'reinforce_baseline']


def advantages(
    estimator: Estimator,
    rewards: Rewards,
    group: Groups,
    group_size: int,
    counts: Int[np.ndarray, 'B'],
    known: Bool[np.ndarray, 'B'],
) -> Rewards:
    """The advantage of every episode, which all its tokens share. ValueError if a group is not whole.

    Args:
        counts: tokens of each episode that the policy chose and that are in the loss.
        known: whether an episode can be compared, see `comparable`; the others have advantage 0 and no part in their group's statistics.
    """
    check_groups(group, group_size)
    found = np.zeros(len(rewards), np.float32)
    if estimator == 'reinforce_baseline':
        found[known] = reinforce_baseline(rewards[known], group[known], counts[known])
    else:
        found[known] = {'grpo': grpo, 'dr_grpo': dr_grpo, 'rloo': rloo}[estimator](rewards[known], group[known])
    return found


def comparable(group: Groups, judged: Bool[np.ndarray, 'B']) -> Bool[np.ndarray, 'B']:
    """The judged episodes but those of whose group nobody else was judged; a group of one stands by itself."""
    _, index, size = np.unique(group, return_inverse=True, return_counts=True)
    found = np.bincount(index, judged)
    return judged & ((found > 1) | (size == 1))[index]


def check_groups(group: Groups, group_size: int) -> None:
    """ValueError naming the groups that have not exactly `group_size` episodes."""
    ids, counts = np.unique(group, return_counts=True)
    wrong = {int(i): int(n) for i, n in zip(ids, counts, strict=True) if n != group_size}
    if wrong:
        raise ValueError(
            f'Each group needs {group_size} episodes, found {wrong} (group: episodes): its ids were mixed up or it was cut.'
        )


def grpo(rewards: Rewards, group: Groups, eps: float = 1e-6) -> Rewards:
    """A = (R - mean) / (std + eps), mean and std (ddof 1) of the group; a group of one keeps its reward (arXiv 2402.03300)."""
    mean, std, size = _moments(rewards, group)
    alone = size == 1
    return ((rewards - np.where(alone, 0, mean)) / (np.where(alone, 1, std) + eps)).astype(np.float32)


def dr_grpo(rewards: Rewards, group: Groups) -> Rewards:
    """A = R - mean: without the division, easy and hard questions weigh alike (arXiv 2503.20783); a group of one keeps its reward."""
    mean, _, size = _moments(rewards, group)
    return (rewards - np.where(size == 1, 0, mean)).astype(np.float32)


def rloo(rewards: Rewards, group: Groups) -> Rewards:
    """A = R - mean of the others = (R - mean) n / (n - 1) (arXiv 2402.14740); a group of one keeps its reward."""
    mean, _, size = _moments(rewards, group)
    return np.where(size == 1, rewards, (rewards - mean) * size / np.maximum(size - 1, 1)).astype(np.float32)


def reinforce_baseline(rewards: Rewards, group: Groups, counts: Int[np.ndarray, 'B']) -> Rewards:
    """REINFORCE++ with baseline: R - mean of the group, then whitened over all chosen tokens of the batch (arXiv 2501.03262)."""
    plain, tokens = dr_grpo(rewards, group).astype(np.float64), np.asarray(counts, np.float64)
    total = tokens.sum()
    mean = (plain * tokens).sum() / max(total, 1)
    variance = (tokens * (plain - mean) ** 2).sum() / max(total - 1, 1)
    return ((plain - mean) / np.sqrt(variance + 1e-8)).astype(np.float32)


def without_variance(rewards: Rewards, group: Groups, known: Bool[np.ndarray, 'B']) -> Bool[np.ndarray, 'B']:
    """Marks the episodes whose whole group earned the same as far as it is `known`: GRPO learns nothing from them. NaN and infinity are not the same."""
    varied = np.zeros(len(group), bool)
    _, std, size = _moments(rewards[known], group[known])
    varied[known] = (size == 1) | ~(std < 1e-6)
    return ~np.isin(group, group[varied])


def _moments(rewards: Rewards, group: Groups) -> tuple[Rewards, Rewards, Rewards]:
    """Mean, standard deviation (ddof 1, 0 for a group of one) and size of each episode's group, [B] each, in float64."""
    rewards = np.asarray(rewards, np.float64)
    _, index = np.unique(group, return_inverse=True)
    size = np.bincount(index).astype(np.float64)
    mean = np.bincount(index, rewards) / size
    variance = np.bincount(index, (rewards - mean[index]) ** 2) / np.maximum(size - 1, 1)
    return mean[index], np.sqrt(variance)[index], size[index]
