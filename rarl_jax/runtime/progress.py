"""Progress with the time that is left."""

from __future__ import annotations

import os
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_EVERY = 10.0  # seconds between two lines of plain progress


class Progress:
    """A bar with the time that is left; on a console that is no terminal, or with NO_COLOR set, a plain line now and then.

    with Progress(Console(), 'main', total=200, done=120) as bar:
        bar.advance(reward=1.5)
    """

    def __init__(self, console: Console, name: str, total: int, done: int = 0):
        self._console, self._name, self._total = console, name, total
        self._done = self._first = done
        self._start = self._told = time.monotonic()
        self._bar: RichProgress | None = None
        if console.is_terminal and not os.environ.get('NO_COLOR'):
            self._bar = RichProgress(
                TextColumn('{task.description}'),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn('{task.fields[numbers]}'),
                console=console,
            )
            self._task = self._bar.add_task(name, total=total, completed=done, numbers='')

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, amount: int = 1, **numbers: float) -> None:
        """`amount` more is done; `numbers` are shown beside it."""
        self._done += amount
        shown = '  '.join(f'{name} {value:.3g}' for name, value in numbers.items())
        if self._bar is not None:
            self._bar.update(self._task, advance=amount, numbers=shown)
            return
        now = time.monotonic()
        if now - self._told >= PLAIN_EVERY or self._done >= self._total:
            self._told = now
            self._console.print(self._line(now, shown), highlight=False, markup=False, soft_wrap=True)

    def _line(self, now: float, shown: str) -> str:
        spent = now - self._start
        left = spent / max(self._done - self._first, 1) * (self._total - self._done)
        return f'{self._name}  {self._done}/{self._total}  {_clock(spent)} spent, {_clock(left)} left  {shown}'.rstrip()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02d}:{seconds:02d}'
