"""Geometry of the report's charts. The template draws it, so every word on a chart is escaped like any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rarl_jax.report.workdir import Series, Stage

WIDTH, HEIGHT = 340, 190  # units of the drawing
LEFT, RIGHT, TOP, BOTTOM = 46, 332, 20, 168  # edges of the plot inside it
MOST_POINTS = 300  # of a line; longer ones are averaged in bins
SMOOTH_FROM = 15  # points from which a smoothed line is drawn over the faint one
SMOOTHING = 0.8  # weight of the past in the moving average
LETTER, GAP, LEAST_LETTERS = (
    5.4,
    6,
    3,
)  # of a stage's name: width of a letter, space after it, letters that are worth showing


@dataclass(frozen=True)
class Line:
    """One run's curve."""

    run: int  # which run: its colour
    points: str  # SVG polyline
    faint: str  # the same unsmoothed; '' where nothing was smoothed
    end: tuple[float, float]  # where the line ends
    last: str  # its last value as text


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """Where stages begin, all that begin there."""

    at: float
    text: str
    # As much of the text as has room, and which end of it stands at the mark; '' = none.
    label: str
    anchor: str


@dataclass(frozen=True)
class Chart:
    """One metric, every run."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Dot:
    """One result with its interval, in percent of the width."""

    result: int  # which result: its colour
    mean: float
    low: float
    high: float
    text: str


def draw(title: str, series: Mapping[int, Series], stages: Sequence[Stage]) -> Chart:
    """A chart of one metric; `series` by the number of the run."""
    xs = [x for each in series.values() for x in each.x]
    ys = [y for each in series.values() for y in each.y]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_ticks = nice_ticks(min(ys), max(ys))
    y_low, y_high = min(min(ys), y_ticks[0]), max(max(ys), y_ticks[-1])
    across = _scale(x_low, x_high, LEFT, RIGHT)
    up = _scale(y_low, y_high, BOTTOM, TOP)
    lines = []
    for run, each in series.items():
        x, y = thin(each.x, MOST_POINTS), thin(each.y, MOST_POINTS)
        smoothed = smooth(y) if len(y) >= SMOOTH_FROM else y
        points = [(across(a), up(b)) for a, b in zip(x, smoothed, strict=True)]
        faint = _polyline([(across(a), up(b)) for a, b in zip(x, y, strict=True)]) if smoothed is not y else ''
        lines.append(Line(run, _polyline(points), faint, points[-1], short(each.y[-1])))
    return Chart(
        title=title,
        lines=tuple(lines),
        x_ticks=tuple(
            Tick(across(x), short(x)) for x in nice_ticks(x_low, x_high) if x_low <= x <= x_high and x == round(x)
        ),
        y_ticks=tuple(Tick(up(y), short(y)) for y in y_ticks),
        marks=tuple(place_marks(stages, across, x_low, x_high)) if len(stages) > 1 else (),
    )


def place_marks(stages: Sequence[Stage], across: Callable[[float], float], x_low: float, x_high: float) -> list[Mark]:
    """Marks whose labels neither overlap nor leave the drawing: a name is cut to its room, and left out where it has none."""
    starts: dict[float, list[str]] = {}
    for stage in stages:
        if stage.start <= x_high:
            starts.setdefault(across(max(stage.start, x_low)), []).append(stage.name)
    found, free = [], float(LEFT)
    for (at, names), end in zip(starts.items(), [*list(starts)[1:], float(WIDTH)], strict=True):
        text, room = (
            names[-1],
            int((end - at - GAP) / LETTER),
        )  # of stages without a step between them, the last one has the curve
        if room >= LEAST_LETTERS:
            label, anchor = text if len(text) <= room else f'{text[: room - 1]}…', 'start'
            free = at + LETTER * len(label) + GAP
        elif end == WIDTH and at - free >= LETTER * len(text):
            label, anchor = text, 'end'
        else:
            label, anchor = '', 'start'
        found.append(Mark(at, ', '.join(names), label, anchor))
    return found


def constant(series: Mapping[int, Series]) -> float | None:
    """The value of a metric that is the same in every step of every run; None where there is something to draw."""
    values = {y for each in series.values() for y in each.y}
    return values.pop() if len(values) == 1 else None


def dots(measured: Sequence[Mapping[str, Any] | None]) -> list[Dot]:
    """One row of the chart of intervals: a task's accuracy in every result that has it."""
    row = []
    for i, each in enumerate(measured):
        if each is not None and each['accuracy'] is not None:
            mean, (low, high) = 100 * each['accuracy'], (100 * end for end in each['interval'])
            row.append(Dot(i, mean, low, high, f'{mean:.1f} % [{low:.1f}, {high:.1f}]'))
    return row


# ---------------------------------------------------------------- numbers


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values whose range covers low..high: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        margin = abs(low) / 10
        low, high = low - margin, high + margin or 1.0  # a line of zeros lies on the axis
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if rough <= power * factor)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average without the pull towards 0 at its start."""
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        out.append(average / weight)
    return out


def thin(values: Sequence[float], most: int) -> list[float]:
    """At most `most` means of neighbours; the values themselves where they are few."""
    if len(values) <= most:
        return list(values)
    edges = [round(i * len(values) / most) for i in range(most + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def short(value: float) -> str:
    """A number in few signs: 0.043, 12.5, 3.1k, 2.0M, 1.0e-06."""
    size = abs(value)
    if size >= 1e9 or 0 < size < 1e-3:
        return f'{value:.1e}'
    for limit, unit, letter in ((1e6, 1e6, 'M'), (1e4, 1e3, 'k')):
        if size >= limit:
            return f'{value / unit:.4g}{letter}'
    return f'{value:.3g}' if size < 1000 else f'{value:.0f}'


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return ' '.join(f'{x:.1f},{y:.1f}' for x, y in points)
