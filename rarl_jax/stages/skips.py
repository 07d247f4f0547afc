"""Steps whose update was skipped because something was not finite: told, kept for `--replay`, and ended where there are too many in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rarl_jax.learner.kept import Update, UpdateRecord, write_update

NAMED = 5  # question ids in a message; the file has all


@dataclass(frozen=True)
class Skip:
    """An update that was skipped."""

    path: Path  # where it is kept
    questions: tuple[str, ...]  # ids of those that are to blame; all of the update's where none stands out


def keep(folder: Path, update: Update, record: UpdateRecord, blamed: Sequence[str]) -> Skip:
    """Writes FOLDER/STAGE-STEP.safetensors, of each process its own."""
    path = file_of_process(folder / f'{record.stage}-{record.step:06d}.safetensors')
    write_update(path, update, record)
    return Skip(path, tuple(blamed) or tuple(dict.fromkeys(e.question_id for e in update.episodes)))


def file_of_process(path: Path) -> Path:
    """The file beside that of the first process, which `path` names."""
    return path.with_stem(f'{path.stem}-{jax.process_index()}') if jax.process_index() else path


def as_text(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Numbers as they are kept beside an update, exactly."""
    return {name: repr(float(np.float32(value))) for name, value in metrics.items()}


def unusable(metrics: Mapping[str, float]) -> list[str]:
    """Names of the metrics that are not finite."""
    return sorted(name for name, value in metrics.items() if not np.isfinite(value))


def tell(stage: str, step: int, names: Sequence[str], skip: Skip | None, in_a_row: int, most: int) -> str:
    """What happened, whose fault it may be and what to do.

    Args:
        names: of the metrics that are not finite; none = the weights were not.
        in_a_row: skipped steps up to this one.
        most: how many of them the stage allows.
    """
    told = f'Step {step} of stage {stage}: {", ".join(names) or "a weight"} would not be finite; the update was skipped'
    told += f', {in_a_row} in a row (most_skipped is {most})' if in_a_row > 1 or in_a_row > most else ''
    if skip is not None:
        more = f' and {len(skip.questions) - NAMED} more' if len(skip.questions) > NAMED else ''
        told += f'. Questions: {", ".join(skip.questions[:NAMED])}{more}. The same command with --replay={skip.path} repeats it'
    return f'{told}.'
