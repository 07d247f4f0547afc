"""Whether a stage of GRPO ends before its steps are done: because it has taught what it should, or because the policy collapses.

Decided from means over all processes' episodes, one row a step, so that all processes decide alike; the rows are part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """What is looked at of one step."""

    zoom_rate: float  # share of episodes with a zoom that succeeded
    format: float  # mean R_format
    reward: float  # mean total
    entropy: float | None  # of the policy, a token; None where the update looked at none


@dataclass(frozen=True)
class AdaptiveEnd:
    """Ends a warm start once calls and form have come and stay; `steps` remains the most it takes."""

    window: int = 0  # steps in a row that are looked at; 0 = the stage has its fixed length
    zoom_rate: float = 0.9  # least mean of each over the window
    format: float = 0.9
    spread: float = 0.1  # most by which each may vary within it

    def __post_init__(self):
        if self.window < 0:
            raise ValueError(f'adaptive_end.window is {self.window}, expected 0 or more.')
        for name in ('zoom_rate', 'format', 'spread'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'adaptive_end.{name} is {getattr(self, name)}, expected a share from 0 to 1.')


@dataclass(frozen=True)
class Collapse:
    """Ends a stage whose policy has stopped to do what it did; a bound of 0 is not watched."""

    window: int = 0  # steps over which means are taken; 0 = nothing is watched
    reward_drop: float = 0.0  # most by which the mean reward may fall below that of the best window
    zoom_drop: float = 0.0  # the same of the share of episodes with a zoom
    least_entropy: float = 0.0  # of the policy, nats a token

    def __post_init__(self):
        bounds = {name: getattr(self, name) for name in ('window', 'reward_drop', 'zoom_drop', 'least_entropy')}
        for name, bound in bounds.items():
            if not 0 <= bound < float('inf'):
                raise ValueError(f'collapse.{name} is {bound}, expected 0 or more.')
        if bool(self.window) != any([*bounds.values()][1:]):
            raise ValueError(f'collapse has {bounds}, expected a window and at least one bound, or neither.')


def is_stable(rows: Sequence[Row], settings: AdaptiveEnd) -> bool:
    """Whether over the last steps zooms and form are as frequent as asked for, and vary no more."""
    if not settings.window or len(rows) < settings.window:
        return False
    last = np.array(rows[-settings.window :], float)[:, :2]
    enough = last.mean(axis=0) >= (settings.zoom_rate, settings.format)
    return bool(enough.all() and (np.ptp(last, axis=0) <= settings.spread + 1e-9).all())


def collapsed(rows: Sequence[Row], settings: Collapse) -> str | None:
    """What has collapsed, in words; None where nothing has."""
    if not settings.window or len(rows) < settings.window:
        return None
    means = np.lib.stride_tricks.sliding_window_view(np.array(rows, float), settings.window, axis=0).mean(axis=-1)
    best, last = Row(*means.max(axis=0)), Row(*means[-1])
    for name, most in (('reward', settings.reward_drop), ('zoom_rate', settings.zoom_drop)):
        if most and getattr(best, name) - getattr(last, name) > most:
            return f'{name} fell from {getattr(best, name):.3f} to {getattr(last, name):.3f}, means of {settings.window} steps'
    if last.entropy < settings.least_entropy:
        return f'entropy is {last.entropy:.4f}, the mean of {settings.window} steps, below {settings.least_entropy:g}'
    return None
