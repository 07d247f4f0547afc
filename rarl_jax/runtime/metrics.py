"""What a run tells: metrics.jsonl and TensorBoard, and how many programs were compiled."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from rarl_jax.runtime.files import dump, naming, read, write_whole
from rarl_jax.runtime.wandb_board import WandbBoard

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

COMPILED = '/jax/core/compile/backend_compile_duration'


class MetricsWriter:
    """DIR/metrics.jsonl, one JSON object a line (step, stage, then scalars), and the same in DIR/tensorboard.

    A (step, stage) has one line: written again, as a resumed run may, it takes the old one's place. With several processes, the first one writes.
    """

    def __init__(self, workdir: Path, wandb: WandbBoard | None = None):
        self._wandb = wandb  # where every new line is shown, too
        self._path, self._events = workdir / 'metrics.jsonl', workdir / 'tensorboard'
        self._writes = jax.process_index() == 0
        # Opened by the first write: events after a forgotten step must be marked first.
        self._board: EventsWriter | None = None
        rows = read(self._path) if self._writes and self._path.is_file() else []
        if broken := [n for n, row in enumerate(rows, 1) if not {'step', 'stage'} <= row.keys()]:
            raise ValueError(f'{self._path}, object {broken[0]} has no step or no stage: delete its line.')
        self._lines = {(row['step'], row['stage']): row for row in rows}
        if self._writes:
            self._rewrite()

    def write(self, step: int, stage: str, scalars: Mapping[str, float]) -> None:
        """Adds one line; it is in the file when this returns. ValueError names a metric that is not finite: a run must not go on with it."""
        numbers = {name: _number(name, x, step, stage) for name, x in scalars.items()}
        line, known = {'step': int(step), 'stage': stage} | numbers, (step, stage) in self._lines
        if not self._writes:
            return
        self._lines[int(step), stage] = line
        if known:
            self._rewrite()
            return
        with naming(self._path), self._path.open('a', encoding='utf-8') as file:
            file.write(dump(line))
        self._show(int(step), numbers)
        if self._wandb is not None:
            self._wandb.write(line)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The lines of a stage, in the order in which they were written; none in other processes than the first."""
        return [line for (_, name), line in self._lines.items() if name == stage]

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps: a run that goes on from `step` will write them again."""
        kept = {key: line for key, line in self._lines.items() if key[0] <= step}
        if len(kept) < len(self._lines):
            self._lines = kept
            self._rewrite()
            self._close_board()
            self._open(purge_step=step + 1)

    def lacking(self, steps: int, stages: list[str]) -> int:
        """How many of the updates 1 to `steps` have no line of one of the training `stages`: somebody has cut the file."""
        return steps - len({step for step, stage in self._lines if stage in stages and 1 <= step <= steps})

    def close(self) -> None:
        """Ends TensorBoard's file, and the run on Weights & Biases."""
        self._close_board()
        if self._wandb is not None:
            self._wandb.close()
            self._wandb = None

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _rewrite(self) -> None:
        write_whole(self._path, ''.join(map(dump, self._lines.values())))

    def _show(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        if self._board is None:
            self._open()
        values = [Summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        self._add(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _open(self, purge_step: int | None = None) -> None:
        # Here: tensorboardX loads torch, where that is installed, which takes seconds. Its SummaryWriter writes in a thread,
        # where a full disk would be told by a traceback and waited for without end.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._events.mkdir(exist_ok=True)
        # The writer names its file by the second: two of one second would be one file, and the first be lost.
        with naming(self._events):
            self._board = EventsWriter(str(self._events / 'events'), f'.{time.time_ns()}')
        if purge_step is not None:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def _add(self, event: Any) -> None:
        with naming(self._events):
            self._board.write_event(event)
            self._board.flush()


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
