"""When and on what a run was at work: launches.jsonl, a line where a launch began and one where it finished, for whoever reads the results later."""

from __future__ import annotations

import socket
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import jax

from rarl_jax.runtime.files import Appender

LAUNCHES = 'launches.jsonl'


def note_launch(workdir: Path, event: Literal['began', 'finished'], commit: str) -> None:
    """Adds a line to WORKDIR/launches.jsonl; `commit` is of the program."""
    devices = Counter(device.device_kind for device in jax.devices())
    row = {
        'event': event,
        'time': datetime.now(UTC).isoformat(timespec='seconds'),
        'host': socket.gethostname(),
        'devices': ', '.join(f'{count} x {kind}' for kind, count in devices.items()),
        'jax': jax.__version__,
        'commit': commit,
    }
    with Appender(workdir / LAUNCHES) as file:
        file.append([row])
