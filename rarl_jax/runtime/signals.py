"""Ctrl-C and SIGTERM: before the stages they end the run where it stands; there the first is a wish, which a stage fulfils at its next step, and the
second acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The user asked the run to end; everything is saved. No `except Exception` on its way may take it for a fault.

    Attributes: name (of the signal), status (the exit status of what a signal has ended: 128 and its number).
    """

    def __init__(self, message: str, name: str):
        super().__init__(message)
        self.name, self.status = name, 128 + signal.Signals[name]


def exit_at_once(number: int, frame: object) -> None:
    """The handler while modules are imported: an exception there may be swallowed, or end in a crash."""
    os._exit(128 + number)


def interrupt(number: int, frame: object) -> None:
    """The handler while data and policy are made ready: what is not whole is made again."""
    name = signal.Signals(number).name
    raise Stopped(f'Stopped by {name}. Run the same command again to go on.', name)


def handle(handler: Callable[[int, object], None]) -> None:
    """Makes it the handler of both signals."""
    for number in SIGNALS:
        signal.signal(number, handler)


@contextlib.contextmanager
def stop_on_signal(received: list[str]) -> Iterator[None]:
    """Puts the name of the first SIGINT or SIGTERM into `received`, so that a stage can save at its next step and leave; the second ends the process.

    A thread listens: the main one may be inside of XLA for minutes, where Python's own handlers do not run.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if number[0] not in SIGNALS:
                continue
            if received:
                os.write(
                    2, b'\nStopped at once; the newest checkpoint is whole. Run the same command again to go on.\n'
                )
                os._exit(128 + number[0])
            received.append(signal.Signals(number[0]).name)
        os.close(reading)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(writing)
        listener.join()
