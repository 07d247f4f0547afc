"""Seconds of a training step and of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Starts when it is made. `told` hears of each lap."""

    def __init__(self, told: Callable[[str], None] = lambda part: None):
        self._told = told
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """Books the time since the last lap on `part`, beside what it has already."""
        now = time.perf_counter()
        self._laps[part], self._last = self._laps.get(part, 0.0) + now - self._last, now
        self._told(part)

    def metrics(self, tokens: int) -> dict[str, float]:
        """time/PART, time/total, and tokens (prompts, images and answers) handled per second."""
        total = time.perf_counter() - self._start
        laps = {f'time/{part}': seconds for part, seconds in self._laps.items()}
        return laps | {'time/total': total, 'throughput/tokens_per_second': tokens / total}
