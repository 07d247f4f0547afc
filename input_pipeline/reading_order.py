"""The reading order of panels and balloons from their boxes alone.

A set of boxes is cut into rows wherever a horizontal line separates them, else into columns, and so on inside each part (recursive XY-cut; Nagy and Seth 1984).
So a full-height panel beside a column of panels is read before (left to right) or after that column's rows are, and a grid is read row by row.
A line may shave a little off a box: staggered rows stay rows. Where no line separates, boxes are taken one by one, each after those that lie above it or, at
its own height, before it. A panel inside another is read right after that one. On two facing pages each page is read to its end, the right one first where the
comic is read right to left; a panel across the spine makes them one page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jaxtyping import Bool, Float

from input_pipeline.schema import Box, Page, Panel

# Share of the lower (narrower) of two boxes by which they may overlap and still lie in different rows (columns).
OVERLAP = 0.2
INSIDE = 0.8  # share of a box that lies in another for it to be nested in it
BIGGER = 1.5  # how many times larger the enclosing box is at least


@dataclass(frozen=True)
class Cell:
    """Where a panel stands in a page of rows; all from 0."""

    row: int  # from the top
    rows: int  # rows of the page
    column: int  # from the left, whatever the reading direction
    columns: int  # panels in this row


def order_panels(page: Page) -> tuple[Panel, ...]:
    """The page's panels as they are read: by the source's own order where it has one, else by geometry."""
    if page.panels and all(panel.order is not None for panel in page.panels):
        return tuple(sorted(page.panels, key=lambda panel: panel.order))
    spine = page.width / 2 if page.double else None
    return tuple(page.panels[i] for i in order_boxes([panel.box for panel in page.panels], page.right_to_left, spine))


def order_boxes(boxes: Sequence[Box], right_to_left: bool, spine: float | None = None) -> list[int]:
    """Indices of `boxes` (x1, y1, x2, y2 px) in reading order; `spine` is the x between two facing pages."""
    children: dict[int | None, list[int]] = {}
    for i, parent in enumerate(_parents(boxes)):
        children.setdefault(parent, []).append(i)
    # Right to left is left to right in a mirror.
    flat = [(-x2, y1, -x1, y2) if right_to_left else (x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]
    seam = None if spine is None else -spine if right_to_left else spine

    def visit(parent: int | None) -> list[int]:
        return [j for i in _order(children.get(parent, []), flat, seam) for j in (i, *visit(i))]

    return visit(None)


def find_cells(boxes: Sequence[Box]) -> list[Cell | None]:
    """Where each box stands in the rows of the page; None for a box that is no single cell of a row (stacked or nested)."""
    parents = _parents(boxes)
    enclosing = set(parents)
    cells: list[Cell | None] = [None] * len(boxes)
    rows = _cut([i for i, parent in enumerate(parents) if parent is None], boxes, axis=1)
    for row, members in enumerate(rows):
        columns = _cut(members, boxes, axis=0)
        for column, stack in enumerate(columns):
            if len(stack) == 1 and stack[0] not in enclosing:
                cells[stack[0]] = Cell(row, len(rows), column, len(columns))
    return cells


def _order(indices: list[int], boxes: Sequence[Box], spine: float | None) -> list[int]:
    ordered, waiting = [], [(indices, spine)]
    while waiting:
        part, spine = waiting.pop()
        if len(part) < 2:
            ordered += part
        elif spine is not None and (facing := _facing(part, boxes, spine)):
            waiting += [(page, None) for page in reversed(facing)]
        elif len(rows := _cut(part, boxes, axis=1)) > 1 or len(rows := _cut(part, boxes, axis=0)) > 1:
            waiting += [(row, spine) for row in reversed(rows)]
        else:
            ordered += _one_by_one(part, boxes)
    return ordered


def _facing(indices: list[int], boxes: Sequence[Box], spine: float) -> list[list[int]]:
    """What lies on the page before the spine and what lies behind it; [] where that is not all, or one page is empty."""
    beyond = [
        min(1.0, max(0.0, (boxes[i][2] - spine) / (boxes[i][2] - boxes[i][0]))) for i in indices
    ]  # share of width
    before = [i for i, share in zip(indices, beyond, strict=True) if share < OVERLAP]
    after = [i for i, share in zip(indices, beyond, strict=True) if share > 1 - OVERLAP]
    return [before, after] if before and after and len(before) + len(after) == len(indices) else []


def _cut(indices: Sequence[int], boxes: Sequence[Box], axis: int) -> list[list[int]]:
    """The finest parts of `indices` that lines across `axis` (1 = rows, 0 = columns) separate, in order along it."""
    line = sorted(indices, key=lambda i: boxes[i][axis] + boxes[i][axis + 2])
    low, high = ([boxes[i][axis + end] for i in line] for end in (0, 2))
    lowest = list(accumulate(range(len(line) - 1, -1, -1), lambda j, i: i if low[i] <= low[j] else j))[::-1]
    parts: list[list[int]] = []
    start = highest = 0
    for k in range(1, len(line) + 1):
        highest = max(highest, k - 1, key=high.__getitem__)  # of those before k; lowest[k] is that of the others
        if k == len(line) or high[highest] <= low[lowest[k]]:
            separate = True
        elif _overlaps_little(boxes[line[highest]], boxes[line[lowest[k]]], axis):  # else no need to try the others
            before = [line[i] for i in range(k) if high[i] > low[lowest[k]]]
            after = [line[i] for i in range(k, len(line)) if low[i] < high[highest]]
            separate = _precedes(_corners(before, boxes), _corners(after, boxes), axis).all()
        else:
            separate = False
        if separate:
            parts.append(line[start:k])
            start = k
    return parts


def _overlaps_little(a: Box, b: Box, axis: int) -> bool:
    """Whether a ends before b begins along the axis, but for OVERLAP of the smaller of them."""
    return a[axis + 2] - b[axis] <= OVERLAP * min(a[axis + 2] - a[axis], b[axis + 2] - b[axis])


def _precedes(a: Float[np.ndarray, 'n 4'], b: Float[np.ndarray, 'm 4'], axis: int) -> Bool[np.ndarray, 'n m']:
    """`_overlaps_little` of each pair."""
    smaller = np.minimum.outer(a[:, axis + 2] - a[:, axis], b[:, axis + 2] - b[:, axis])
    return np.subtract.outer(a[:, axis + 2], b[:, axis]) <= OVERLAP * smaller


def _corners(indices: Sequence[int], boxes: Sequence[Box]) -> Float[np.ndarray, 'n 4']:
    return np.array([boxes[i] for i in indices], np.float64).reshape(-1, 4)


def _one_by_one(indices: Sequence[int], boxes: Sequence[Box]) -> list[int]:
    """Takes the box that no other must precede; in a ring of boxes that all wait for each other, the topmost."""
    line = sorted(indices, key=lambda i: (boxes[i][1], boxes[i][0]))
    corners = _corners(line, boxes)
    above, left_of = _precedes(corners, corners, axis=1), _precedes(corners, corners, axis=0)
    # Beside each other the left one comes first, unless it only starts where the right one is half over.
    early = corners[:, None, 1] < (corners[:, 1] + corners[:, 3]) / 2
    before = (above | (~above.T & left_of & early)) & ~np.eye(len(line), dtype=bool)
    blockers, left, ordered = before.sum(0), np.ones(len(line), bool), []
    for _ in line:
        free = left & (blockers == 0)
        first = int(np.argmax(free if free.any() else left))
        ordered.append(line[first])
        left[first] = False
        blockers -= before[first]
    return ordered


def _parents(boxes: Sequence[Box]) -> list[int | None]:
    """For each box the index of the smallest box that it is nested in."""
    if not boxes:
        return []
    x1, y1, x2, y2 = np.array(boxes, np.float64).T
    areas = (x2 - x1) * (y2 - y1)
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    shared = np.maximum(0.0, width) * np.maximum(0.0, height)
    around = (areas >= BIGGER * areas[:, None]) & (shared >= INSIDE * areas[:, None])
    np.fill_diagonal(around, False)
    smallest = np.where(around, areas, np.inf).argmin(1)
    return [int(j) if around[i, j] else None for i, j in enumerate(smallest)]


def area(box: Box) -> float:
    """Area in px^2."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Area shared by two boxes in px^2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
