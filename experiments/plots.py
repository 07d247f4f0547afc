"""One look for all figures: direct labels in the colour of what they name, seeds as bands, colours that the colour-blind tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = '#0072B2', '#E69F00', '#009E73', '#D55E00', '#56B4E9', '#CC79A7', '#777777'
COLOURS = (BLUE, RED, GREEN, ORANGE, PINK, SKY)
STYLE = {
    'figure.dpi': 100,
    'savefig.dpi': 100,
    'font.size': 9.5,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.labelcolor': '#444444',
    'axes.edgecolor': '#888888',
    'xtick.color': '#666666',
    'ytick.color': '#666666',
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#EEEEEE',
    'lines.linewidth': 1.8,
    'legend.frameon': False,
}
LABEL, LINE = 9, 11  # size of labels at the ends of lines, and the room that each takes, in points


def panels(columns: int, width: float = 9.0, height: float = 2.7, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, in the house's look."""
    mpl.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), layout='constrained', squeeze=False)
    return figure, list(axes.flat)


def foot(figure: Figure, commits: str) -> None:
    """The commit of the runs, at the bottom of a figure."""
    figure.supxlabel(f'runs of commit {commits}', x=0.995, ha='right', fontsize=6.5, color='#999999')


def curves(
    axis: Axes, lines: Mapping[str, pd.DataFrame], title: str, x: str = 'update', colours: Sequence[str] = COLOURS
) -> None:
    """Lines over steps: the mean over seeds, and their range as a band."""
    ends = []
    for (label, values), colour in zip(lines.items(), colours, strict=False):
        mean = values.mean(axis=1)
        axis.fill_between(values.index, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.18, lw=0)
        axis.plot(values.index, mean, color=colour)
        ends.append((float(mean.iloc[-1]), label, colour))
    axis.set(title=title, xlabel=x)
    label_ends(axis, max(values.index[-1] for values in lines.values()), ends)


def end_warm_start(axis: Axes, updates: int) -> None:
    """A dotted line after so many updates."""
    axis.axvline(updates + 0.5, color='#444444', lw=0.8, ls=':')


def label_ends(axis: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the ends of lines, moved apart where two would touch; to be called when the axis has its limits."""
    axis.figure.draw_without_rendering()  # only now its height is known
    points = axis.get_window_extent().height * 72 / axis.figure.dpi
    low, high = axis.get_ylim()
    ends = sorted(ends)
    places = _apart([y for y, *_ in ends], LINE / points * (high - low), high)
    for at, (_, label, colour) in zip(places, ends, strict=True):
        axis.annotate(
            label,
            (x, at),
            xytext=(6, 0),
            textcoords='offset points',
            color=colour,
            va='center',
            annotation_clip=False,
            fontsize=LABEL,
        )


def _apart(heights: Sequence[float], step: float, top: float) -> list[float]:
    """Rising heights moved up until they are a step apart, and down again where that leads beyond the top."""
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + step) if places else height)
    for place in reversed(range(len(places))):
        places[place] = min(places[place], top)
        top = places[place] - step
    return places


def estimates(axis: Axes, rows: Sequence[Mapping[str, Any]], title: str, zero: float | None = None) -> None:
    """A line a row: the mean as a dot, its interval, the seeds as small dots, the label at the left.

    Args:
        rows: from the top, each with label, mean, low, high, seeds and colour; label_colour where that is another.
        zero: where a vertical line stands.
    """
    for place, row in enumerate(rows):
        colour = row['colour']
        axis.plot([row['low'], row['high']], [place, place], color=colour, lw=2.4, alpha=0.45, solid_capstyle='butt')
        axis.plot(row['seeds'], np.full(len(row['seeds']), place), '|', color=colour, ms=7, mew=1)
        axis.plot(row['mean'], place, 'o', color=colour, ms=6)
    if zero is not None:
        axis.axvline(zero, color='#444444', lw=0.8)
    axis.set_yticks(range(len(rows)), [row['label'] for row in rows])
    for tick, row in zip(axis.get_yticklabels(), rows, strict=True):
        tick.set_color(row.get('label_colour', row['colour']))
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis='y', visible=False)
    axis.set_title(title)


def show_page(
    axis: Axes, image: Image.Image, boxes: Sequence[tuple[Sequence[float], str, str]], title: str = ''
) -> None:
    """A picture with boxes (x1, y1, x2, y2 in its pixels), each in its colour with its name above it; '' = none."""
    axis.imshow(image)
    for (x1, y1, x2, y2), label, colour in boxes:
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=2))
        if label:
            axis.text(
                x1, y1 - 4, label, color='white', fontsize=7, va='bottom', bbox={'fc': colour, 'ec': 'none', 'pad': 1}
            )
    axis.set_axis_off()
    axis.set_title(title)
