"""Ctrl-C and SIGTERM as a wish: a stage saves at its next step and leaves."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class Stopped(Exception):
    """The user asked the run to end; everything is saved."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[list[str]]:
    """Collects the names of SIGINT and SIGTERM as they come, so that a stage can save at its next step and leave.

    A second signal of the same kind acts as usual: somebody wants out now.
    """
    received: list[str] = []
    previous = {}

    def remember(number: int, frame: object) -> None:
        received.append(signal.Signals(number).name)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
