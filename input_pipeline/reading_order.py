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

from input_pipeline.schema import Box, Page, Panel

OVERLAP = 0.2  # share of the lower (narrower) of two boxes by which they may overlap and still lie in different rows (columns)
INSIDE = 0.8  # share of a box that lies in another for it to be nested in it
BIGGER = 1.5  # how many times larger the enclosing box is at least


@dataclass(frozen=True)
class Place:
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
    parents = _parents(boxes)
    children: dict[int | None, list[int]] = {}
    for i, parent in enumerate(parents):
        children.setdefault(parent, []).append(i)
    # Right to left is left to right in a mirror.
    flat = [(-x2, y1, -x1, y2) if right_to_left else (x1, y1, x2, y2) for x1, y1, x2, y2 in boxes]
    seam = None if spine is None else -spine if right_to_left else spine

    def visit(parent: int | None) -> list[int]:
        return [j for i in _order(children.get(parent, []), flat, seam) for j in (i, *visit(i))]

    return visit(None)


def find_places(boxes: Sequence[Box]) -> list[Place | None]:
    """Each box's place in the rows of the page; None for a box that is no single cell of a row (stacked or nested)."""
    parents = _parents(boxes)
    places: list[Place | None] = [None] * len(boxes)
    tops = [i for i in range(len(boxes)) if parents[i] is None]
    rows = _cut(tops, boxes, axis=1)
    for row, members in enumerate(rows):
        columns = _cut(members, boxes, axis=0)
        for column, cell in enumerate(columns):
            if len(cell) == 1 and cell[0] not in parents:
                places[cell[0]] = Place(row, len(rows), column, len(columns))
    return places


def _order(indices: list[int], boxes: Sequence[Box], spine: float | None) -> list[int]:
    if len(indices) <= 1:
        return indices
    if spine is not None:
        before = [i for i in indices if _share_beyond(boxes[i], spine) < OVERLAP]
        after = [i for i in indices if _share_beyond(boxes[i], spine) > 1 - OVERLAP]
        if before and after and len(before) + len(after) == len(indices):
            return _order(before, boxes, None) + _order(after, boxes, None)
    for axis in (1, 0):
        parts = _cut(indices, boxes, axis)
        if len(parts) > 1:
            return [i for part in parts for i in _order(part, boxes, spine)]
    return _one_by_one(indices, boxes)


def _share_beyond(box: Box, x: float) -> float:
    """Share of a box's width that lies right of `x`."""
    return min(1.0, max(0.0, (box[2] - x) / (box[2] - box[0])))


def _cut(indices: Sequence[int], boxes: Sequence[Box], axis: int) -> list[list[int]]:
    """The finest parts of `indices` that lines across `axis` (1 = rows, 0 = columns) separate, in order along it."""
    line = sorted(indices, key=lambda i: boxes[i][axis] + boxes[i][axis + 2])
    parts: list[list[int]] = []
    start = 0
    for k in range(1, len(line) + 1):
        if k == len(line) or all(_precedes(boxes[a], boxes[b], axis) for a in line[:k] for b in line[k:]):
            parts.append(line[start:k])
            start = k
    return parts


def _precedes(a: Box, b: Box, axis: int) -> bool:
    """Whether a ends before b begins along the axis, but for OVERLAP of the smaller of them."""
    smaller = min(a[axis + 2] - a[axis], b[axis + 2] - b[axis])
    return a[axis + 2] - b[axis] <= OVERLAP * smaller


def _one_by_one(indices: Sequence[int], boxes: Sequence[Box]) -> list[int]:
    """Takes the box that no other must precede; in a ring of boxes that all wait for each other, the topmost."""
    left, ordered = list(indices), []
    while left:
        free = [i for i in left if not any(_reads_before(boxes[j], boxes[i]) for j in left if j != i)]
        ordered.append(min(free or left, key=lambda i: (boxes[i][1], boxes[i][0])))
        left.remove(ordered[-1])
    return ordered


def _reads_before(a: Box, b: Box) -> bool:
    if _precedes(a, b, axis=1):
        return True
    # Beside each other the left one comes first, unless it only starts where the right one is half over.
    beside = not _precedes(b, a, axis=1) and _precedes(a, b, axis=0)
    return beside and a[1] < (b[1] + b[3]) / 2


def _parents(boxes: Sequence[Box]) -> list[int | None]:
    """For each box the index of the smallest box that it is nested in."""
    parents: list[int | None] = []
    for i, box in enumerate(boxes):
        around = [
            j
            for j, other in enumerate(boxes)
            if j != i and area(other) >= BIGGER * area(box) and intersection(box, other) >= INSIDE * area(box)
        ]
        parents.append(min(around, key=lambda j: area(boxes[j])) if around else None)
    return parents


def area(box: Box) -> float:
    """Area in px^2."""
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """Area shared by two boxes in px^2."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
