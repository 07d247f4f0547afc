"""Ctrl-C and SIGTERM: the first is a wish, which a stage fulfils at its next step; the second acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The user asked the run to end; everything is saved.

    Attributes: status (the exit status of what a signal has ended: 128 and its number).
    """

    def __init__(self, message: str, name: str = 'SIGINT'):
        super().__init__(message)
        self.status = 128 + signal.Signals[name]


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
