"""What a run tells: metrics.jsonl and TensorBoard, and how many programs were compiled."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

COMPILED = '/jax/core/compile/backend_compile_duration'


class MetricsWriter:
    """DIR/metrics.jsonl, one JSON object a line (step, stage, then scalars), and the same in DIR/tensorboard.

    A (step, stage) has one line: written again, as a resumed run may, it takes the old one's place. With several processes, the first one writes.
    """

    def __init__(self, workdir: Path):
        self._path, self._events = workdir / 'metrics.jsonl', workdir / 'tensorboard'
        self._writes = jax.process_index() == 0
        self._board: SummaryWriter | None = (
            None  # opened by the first write: events after a forgotten step must be marked first
        )
        self._places: dict[tuple[int, str], int] = {}  # line number of each (step, stage)
        if self._writes:
            workdir.mkdir(parents=True, exist_ok=True)
            self._rewrite(self._lines())

    def write(self, step: int, stage: str, scalars: Mapping[str, float]) -> None:
        """Adds one line; it is in the file when this returns. ValueError names a metric that is not finite: a run must not go on with it."""
        line = {'step': int(step), 'stage': stage} | {
            name: _number(name, x, step, stage) for name, x in scalars.items()
        }
        if not self._writes:
            return
        if (line['step'], stage) in self._places:
            lines = self._lines()
            lines[self._places[line['step'], stage]] = line
            self._rewrite(lines)
            return
        self._places[line['step'], stage] = len(self._places)
        with self._path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        self._show(line)

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps: a run that goes on from `step` will write them again."""
        if not self._writes:
            return
        lines = self._lines()
        kept = [line for line in lines if line['step'] <= step]
        if len(kept) < len(lines):
            self._rewrite(kept)
            self.close()
            self._board = self._open(purge_step=step + 1)

    def close(self) -> None:
        """Writes out what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines of the file; the last may have been cut by a kill."""
        if not self._path.is_file():
            return []
        return [json.loads(line) for line in self._path.read_text().splitlines(keepends=True) if line.endswith('}\n')]

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        temporary = self._path.with_suffix('.tmp')
        temporary.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        temporary.rename(self._path)
        self._places = {(line['step'], line['stage']): i for i, line in enumerate(lines)}

    def _show(self, line: Mapping[str, Any]) -> None:
        if self._board is None:
            self._board = self._open()
        for name, value in line.items():
            if name not in ('step', 'stage'):
                self._board.add_scalar(name, value, line['step'])

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        from tensorboardX import SummaryWriter  # here: it loads torch, where that is installed, which takes seconds

        # The writer names its file by the second: two of one second would be one file, and the first be lost.
        return SummaryWriter(str(self._events), purge_step=purge_step, filename_suffix=f'.{time.time_ns()}')


def _number(name: str, value: Any, step: int, stage: str) -> float | int:
    value = value if isinstance(value, int) else float(value)
    if not math.isfinite(value):
        raise ValueError(
            f'The metric {name} is {value} at step {step} of stage {stage}: the run stops here; its last checkpoint is good.'
        )
    return value


class CompileCounter:
    """Counts the programs that JAX compiles (or finds in its cache on disk): a shape that nobody planned shows here.

    Attributes: names (of the functions compiled since the last `take`).
    """

    def __init__(self):
        self.names: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def take(self) -> int:
        """How many since the last call."""
        count = len(self.names)
        self.names = []
        return count

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **details: str | int) -> None:
        if event == COMPILED:
            self.names.append(str(details.get('fun_name', '')))
