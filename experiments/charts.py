"""Figures that several notebooks draw of their results: curves of training, what is right in the end, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments import plots
from experiments.results import SMALL_TASKS, TASK_NAMES, Difference, Results
from experiments.tables import Row
from input_pipeline.schema import Task
from rarl_jax.evaluation.statistics import over_seeds

PANEL = 3.6  # inches of width
ROW = 0.24  # inches of height of a row of estimates, and what a panel needs beside them
FRAME = 0.75


def training(
    found: Results,
    colours: Mapping[str, str],
    metrics: Mapping[str, str],
    columns: int = 3,
    warm_start: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Figure:
    """Metrics of the training steps, a panel each: an arm's mean over seeds as a line, their range as a band.

    Args:
        colours: of every arm that is shown.
        metrics: the title of each.
        warm_start: its updates, which a dotted line ends; 0 = no line.
        labels: of arms that are called otherwise than the experiment calls them.
    """
    figure, axes = plots.panels(columns, rows=-(-len(metrics) // columns), width=PANEL * columns, height=2.5)
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    for axis, (metric, title) in zip(axes, metrics.items(), strict=False):
        lines = {(labels or {}).get(arm, found.label(arm)): found.curve(arm, metric) for arm in colours}
        plots.curves(axis, lines, title, colours=tuple(colours.values()))
        if warm_start:
            plots.end_warm_start(axis, warm_start)
    plots.foot(figure, found.commits)
    return figure


def scores(found: Results, rows: Sequence[Row], tasks: Sequence[Task] = SMALL_TASKS) -> Figure:
    """Scores on held-out pages, a panel a task: mean and Student's interval over seeds, and every seed."""
    figure, axes = _estimates(len(tasks), len(rows))
    for axis, task in zip(axes, tasks, strict=True):
        shown = [
            estimate(row.label if axis is axes[0] else '', found.means(row.arm, row.evaluation).loc[task], row.colour)
            for row in rows
        ]
        plots.estimates(axis, shown, f'{TASK_NAMES[task]}: score, %')
        axis.set_xlim(0, 100)
    plots.foot(figure, found.commits)
    return figure


def differences(
    found: Results,
    compared: Mapping[str, Sequence[Difference]],
    words: str = 'difference in points',
    scale: float = 100,
) -> Figure:
    """Paired differences, a panel a task and a row a comparison: mean, 95 % over seeds, every seed; red where shown, grey where not."""
    tasks = list(dict.fromkeys(each.task for found_here in compared.values() for each in found_here))
    figure, axes = _estimates(len(tasks), len(compared))
    for axis, task in zip(axes, tasks, strict=True):
        rows = []
        for label, found_here in compared.items():
            each = next(each for each in found_here if each.task == task)
            colour = plots.RED if each.is_shown else plots.GREY
            row = estimate(label if axis is axes[0] else '', each.by_seed, colour, scale)
            rows.append(row | {'label_colour': '#444444'})  # the colour is this panel's verdict alone
        plots.estimates(axis, rows, f'{TASK_NAMES[task]}: {words}', zero=0)
    plots.foot(figure, found.commits)
    return figure


def estimate(label: str, by_seed: Iterable[float], colour: str, scale: float = 100) -> dict[str, Any]:
    """A row for `plots.estimates`: the mean with Student's interval over seeds, and every seed; in points where `scale` is left."""
    values = [scale * value for value in by_seed]
    interval, _ = over_seeds(values)
    spread = {'mean': interval.mean, 'low': interval.low, 'high': interval.high, 'seeds': values}
    return {'label': label, 'colour': colour, **spread}


def _estimates(columns: int, rows: int) -> tuple[Figure, list[Any]]:
    return plots.panels(columns, width=1.6 + PANEL * columns, height=FRAME + ROW * rows)
