"""How results are told: tables for a notebook to show, and the same figures in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from experiments.results import SMALL_TASKS, TASK_NAMES, Difference, Results
from input_pipeline.schema import Task
from rarl_jax.evaluation.statistics import Interval, holm, over_seeds
from rarl_jax.evaluation.tables import SIGNIFICANT

Key = TypeVar('Key')


@dataclass(frozen=True)
class Row:
    """One arm's answers in one evaluation, as a table or a figure shows them."""

    label: str
    arm: str
    evaluation: str  # 'STAGE:EVALUATION', as 'rarl:zoom'
    colour: str  # in figures


def scores(found: Results, rows: Sequence[Row], tasks: Sequence[Task] = SMALL_TASKS) -> pd.DataFrame:
    """Scores in percent: the mean over seeds and their range, a row an evaluation and a column a task."""
    table = {}
    for row in rows:
        means = 100 * found.means(row.arm, row.evaluation)
        table[row.label] = {f'{TASK_NAMES[task]}, %': ranged(means.loc[task]) for task in tasks}
    return pd.DataFrame.from_dict(table, orient='index')


def paired(
    differences: Sequence[Difference],
    first: str,
    second: str,
    of: str = 'score, %',
    scale: float = 100,
    digits: int = 1,
) -> pd.DataFrame:
    """A row a task: both means, their difference with both kinds of doubt; `first` and `second` name what is compared, `of` what by."""

    def number(value: float, sign: str = '') -> str:
        return f'{scale * value:{sign}.{digits}f}'

    rows = [
        {
            'task': TASK_NAMES[each.task],
            f'{first}: {of}': number(each.first),
            f'{second}: {of}': number(each.second),
            'Δ': number(each.seeds.mean, '+'),
            '95 % over seeds': f'{number(each.seeds.low, "+")} to {number(each.seeds.high, "+")}',
            'each seed': ', '.join(number(value, '+') for value in each.by_seed),
            '95 % over pages': f'{number(each.pages.low, "+")} to {number(each.pages.high, "+")}',
            'shown': 'yes' if each.is_shown else 'not significant',
        }
        for each in differences
    ]
    return pd.DataFrame(rows).set_index('task')


# ---------------------------------------------------------------- in a sentence


def ranged(values: Iterable[float]) -> str:
    """Mean and range, as '87.6 (85.0–89.3)'."""
    values = list(values)
    return f'{np.mean(values):.1f} ({min(values):.1f}–{max(values):.1f})'


def span(interval: Interval, scale: float = 100, digits: int = 1) -> str:
    """A difference with its interval, as '+1.0 [-2.0, +4.0]'; in points where `scale` is left."""
    mean, low, high = (f'{scale * value:+.{digits}f}' for value in (interval.mean, interval.low, interval.high))
    return f'{mean} [{low}, {high}]'


def told(differences: Iterable[Difference], scale: float = 100, digits: int = 1) -> str:
    """Every task with its interval over seeds, as 'action +44.7 [+40.1, +49.3], depth +2.0 [-1.0, +5.0] (not shown)'."""
    return ', '.join(f'{TASK_NAMES[each.task]} {verdict(each, scale, digits)}' for each in differences)


def verdict(difference: Difference, scale: float = 100, digits: int = 1) -> str:
    """The same of one task, without its name."""
    return f'{span(difference.seeds, scale, digits)}{"" if difference.is_shown else " (not shown)"}'


def by_seeds(values: Mapping[Key, Iterable[float]], scale: float = 100, digits: int = 1) -> dict[Key, str]:
    """Figures that pages cannot be resampled for, each with Student's interval over its seeds, as `told`; after Holm over all of them."""
    found = {key: over_seeds(list(each)) for key, each in values.items()}
    adjusted = holm([p for _, p in found.values()])
    return {
        key: f'{span(interval, scale, digits)}{"" if p < SIGNIFICANT else " (not shown)"}'
        for (key, (interval, _)), p in zip(found.items(), adjusted, strict=True)
    }


def shown(compared: Mapping[str, Sequence[Difference]], scale: float = 100, digits: int = 1) -> str:
    """Only what is shown, as 'without tool IoU (action -3.1, depth -2.0)'; 'none' where nothing is."""
    parts = []
    for label, differences in compared.items():
        if each := [f'{TASK_NAMES[e.task]} {scale * e.seeds.mean:+.{digits}f}' for e in differences if e.is_shown]:
            parts.append(f'{label} ({", ".join(each)})')
    return ', '.join(parts) or 'none'
