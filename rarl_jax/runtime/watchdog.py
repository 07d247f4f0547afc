"""Tells which part of a step hangs, and where in the program: a step that waits for a dead process, disk or judge says nothing by itself."""

from __future__ import annotations

import faulthandler
import statistics
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

EVERY = 1.0  # seconds between two looks
LEAST = 30.0  # seconds that every part may take, however short it mostly is
KNOWN = 3  # times that a part must have been seen before its median says anything
REMEMBERED = 50  # times over which a median is taken
COMPILER = b'/jax/_src/compiler.py"'  # how a dump of stacks names it


class Watchdog(AbstractContextManager):
    """Watches the parts of steps from a thread of its own, between `with` and its end.

    with Watchdog(10.0, workdir / 'hang.log', print) as watchdog:
        ...
        watchdog.lap('rollout')  # what took place since the last lap

    A part that takes longer than `factor` times its median is told once, and the stacks of all threads are added to the file. Time in which a
    program is compiled does not count. What comes after a lap is what has come after it before.
    """

    def __init__(self, factor: float, file: Path, tell: Callable[[str], None]):
        self._factor, self._file, self._tell = factor, file, tell
        self._times: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._after: dict[str, set[str]] = defaultdict(set)  # parts that have followed a part
        self._last, self._begun, self._compiling, self._told = '', time.monotonic(), 0.0, False
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def lap(self, part: str) -> None:
        """Books the time since the last lap on `part`."""
        with self._lock:
            now = time.monotonic()
            self._times[part].append(max(now - self._begun - self._compiling, 0.0))
            self._after[self._last].add(part)
            self._last, self._begun, self._compiling, self._told = part, now, 0.0, False

    def __enter__(self) -> Watchdog:
        self._begun = time.monotonic()
        if self._factor:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._factor:
            self._thread.join()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(EVERY):
            now, before, looked = time.monotonic(), looked, time.monotonic()
            with self._lock:
                if is_compiling():
                    self._compiling += now - max(before, self._begun)
                spent = now - self._begun - self._compiling
                median = self._median()
                hangs = median is not None and not self._told and spent > max(self._factor * median, LEAST)
                self._told |= hangs
                parts = ' or '.join(sorted(self._after[self._last]))
            if hangs:
                self._report(f'The {parts} of a step has taken {spent:.0f} s, and mostly takes {median:.1f} s')

    def _median(self) -> float | None:
        """Of what is under way; the longest where it may be one of several. None if too little is known."""
        known = [self._times[part] for part in self._after[self._last]]
        return max(map(statistics.median, known)) if known and min(map(len, known)) >= KNOWN else None

    def _report(self, what: str) -> None:
        with self._file.open('a', encoding='utf-8') as file:
            file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {what}.\n')
            file.flush()
            faulthandler.dump_traceback(file)
        self._tell(f'{what} (compilation apart): it may hang. Where every thread stands is in {self._file}.')


def is_compiling() -> bool:
    """Whether a thread is inside of JAX's compiler.

    Read off a dump of the stacks: to walk the frames of threads that run makes Python objects of what they work on, and has broken a run on Python 3.11
    (a frame stood where a function was to be called).
    """
    with tempfile.TemporaryFile() as stacks:
        faulthandler.dump_traceback(stacks)
        stacks.seek(0)
        return COMPILER in stacks.read()
