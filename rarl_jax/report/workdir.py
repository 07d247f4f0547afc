"""A run's folder as the report needs it. Whatever is not there yet is left out; what cannot be read becomes a note on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rarl_jax.conversation.episodes import RolloutRecord, read_rollouts
from rarl_jax.evaluation.tables import Result, load
from rarl_jax.runtime import files
from rarl_jax.runtime.launches import LAUNCHES
from rarl_jax.runtime.messages import describe

STEPS_SHOWN = 4  # of each stage: the first, the last, and between
GROUPS_SHOWN = 4  # of each of these steps
PARTS = ('config.json', 'metrics.jsonl', 'eval', 'rollouts')
T = TypeVar('T')


@dataclass(frozen=True)
class Series:
    """One metric over a run."""

    x: tuple[float, ...]  # steps of the run, stages one after the other
    y: tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """Where a stage begins on the x axis."""

    name: str
    start: float


@dataclass(frozen=True)
class RolloutGroup:
    """The episodes of one question in one step."""

    stage: str
    step: int
    folder: Path  # what the episodes' picture paths are relative to
    episodes: tuple[RolloutRecord, ...]  # by sample


@dataclass(frozen=True)
class RunData:
    """Everything the report shows of one folder."""

    label: str
    folder: Path
    config: dict[str, Any]
    # Where and when it began and finished, see runtime/launches.py.
    launches: tuple[dict[str, Any], ...]
    # What the builder tells of the data set; empty where it is out of reach.
    data: dict[str, Any]
    metrics: dict[str, Series]
    stages: tuple[Stage, ...]
    evaluations: tuple[Result, ...]  # by step, then by name
    groups: tuple[RolloutGroup, ...]
    groups_written: int  # how many steps' files hold more than what is shown
    notes: list[str] = field(default_factory=list)  # what could not be read


def read_run(folder: Path, label: str) -> RunData:
    """Reads a run that is finished or still going.

    Raises FileNotFoundError where the folder holds nothing of a run.
    """
    if not any((folder / part).exists() for part in PARTS):
        raise FileNotFoundError(f'{folder} is no run: it has none of {", ".join(PARTS)}. Name the --workdir of a run.')
    notes: list[str] = []
    config = _try(lambda: _read_object(folder / 'config.json', 'put back the copy that the run wrote'), {}, notes)
    rows = _try(lambda: _read_rows(folder / 'metrics.jsonl'), [], notes)
    metrics, stages = lay_out(rows)
    rollouts = sorted((folder / 'rollouts').glob('*.jsonl'))
    shown = choose_steps(rollouts)
    groups = [group for path in shown for group in _try(lambda path=path: _read_groups(path), [], notes)]
    return RunData(
        label=label,
        folder=folder,
        config=config,
        launches=tuple(_try(lambda: _read_launches(folder / LAUNCHES), [], notes)),
        data=_try(lambda: _read_data(folder, config), {}, notes),
        metrics=metrics,
        stages=tuple(stages),
        evaluations=tuple(_read_evaluations(folder, notes)),
        groups=tuple(groups),
        groups_written=len(rollouts) - len(shown),
        notes=notes,
    )


def _try(read: Callable[[], T], otherwise: T, notes: list[str]) -> T:
    try:
        return read()
    except (ValueError, OSError) as error:
        notes.append(describe(error))
        return otherwise


def _read_object(path: Path, fix: str) -> dict[str, Any]:
    return files.load_json(path, fix=fix) if path.exists() else {}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return files.read(path) if path.exists() else []


def _read_launches(path: Path) -> list[dict[str, Any]]:
    rows = _read_rows(path)
    try:
        return sorted(rows, key=lambda row: (datetime.fromisoformat(row['time']), row['event']))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f'{path} holds a line that is no launch: delete it.') from None


def _read_data(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    given = config.get('data', {}).get('dir')
    return _read_object(
        (Path(given) if given else folder / 'data' / 'built') / 'report.json', 'build the data set again'
    )


def _read_evaluations(folder: Path, notes: list[str]) -> list[Result]:
    folders = sorted(path.parent for path in (folder / 'eval').glob('*/results.json'))
    loaded = [_try(lambda each=each: load(each), [], notes) for each in folders]
    return sorted((result for results in loaded for result in results), key=lambda result: result.step)


# ---------------------------------------------------------------- curves


def lay_out(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, Series], list[Stage]]:
    """Metrics by name on one x axis.

    Steps may count through the run or begin anew with every stage: a stage whose steps do not lie behind those of the stage before is moved behind
    them. A run that was resumed may have written a step twice: the last one counts.
    """
    by_stage: dict[str, dict[float, dict[str, float]]] = {}
    for row in rows:
        step, stage = row.get('step'), row.get('stage', '')
        if not isinstance(step, int | float):
            continue
        scalars = {name: float(value) for name, value in row.items() if name != 'step' and _is_number(value)}
        by_stage.setdefault(str(stage), {}).setdefault(step, {}).update(scalars)
    points: dict[str, list[tuple[float, float]]] = {}
    stages, end = [], -math.inf
    for stage, steps in by_stage.items():
        offset = 0.0 if min(steps) >= end else end
        for step in sorted(steps):
            for name, value in steps[step].items():
                points.setdefault(name, []).append((step + offset, value))
        stages.append(Stage(stage, min(steps) + offset))
        end = max(steps) + offset
    return {name: Series(*zip(*at, strict=True)) for name, at in sorted(points.items())}, stages


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# ---------------------------------------------------------------- episodes


def choose_steps(files: Sequence[Path]) -> list[Path]:
    """A few of each stage's STAGE-STEP.jsonl, evenly spread, the first and the last among them; stages in the order of their writing."""
    stages: dict[str, list[Path]] = {}
    for path in sorted(files, key=lambda path: (path.stat().st_mtime, path.name)):
        stages.setdefault(path.stem.rpartition('-')[0], []).append(path)
    return [path for paths in stages.values() for path in _spread(sorted(paths), STEPS_SHOWN)]


def _spread(values: Sequence[T], count: int) -> list[T]:
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _read_groups(path: Path) -> list[RolloutGroup]:
    """Some groups of one file, of as many tasks as there are."""
    groups: dict[tuple[int, str], list[RolloutRecord]] = {}
    for episode in read_rollouts(path):
        groups.setdefault((episode.group, episode.question_id), []).append(episode)
    found = [
        RolloutGroup(first.stage, first.step, path.parent, tuple(sorted((first, *others), key=lambda e: e.sample)))
        for first, *others in groups.values()
    ]
    return _one_of_each_task_first(found)[:GROUPS_SHOWN]


def _one_of_each_task_first(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    seen: dict[str, int] = {}
    ranked = []
    for group in groups:
        task = group.episodes[0].task
        ranked.append((seen.get(task, 0), group))
        seen[task] = seen.get(task, 0) + 1
    return [group for _, group in sorted(ranked, key=lambda pair: pair[0])]
