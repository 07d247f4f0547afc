"""A page as its questions see it: panels in reading order, and what stands in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from input_pipeline.reading_order import Cell, area, find_cells, intersection, order_boxes, order_panels
from input_pipeline.schema import Balloon, Box, Character, Page, Panel, Region

LEAST_SHARE = 0.5  # share of a thing's box that must lie in a panel for it to belong there

Thing = TypeVar('Thing', Character, Balloon, Region)


@dataclass(frozen=True)
class Scene:
    """A page whose things are sorted into its panels; every tuple but `page` runs along the panels in reading order."""

    page: Page
    panels: tuple[Panel, ...]
    cells: tuple[Cell | None, ...]  # row and column, where the page has them
    characters: tuple[tuple[Character, ...], ...]  # from left to right
    balloons: tuple[tuple[Balloon, ...], ...]  # in reading order
    regions: tuple[tuple[Region, ...], ...]  # from left to right

    @property
    def stray_characters(self) -> int:
        """How many characters stand in no panel; questions that name a panel cannot ask about them."""
        return len(self.page.characters) - sum(map(len, self.characters))


def make_scene(page: Page) -> Scene:
    """Sorts a page's things into its panels."""
    panels = order_panels(page)
    boxes = [panel.box for panel in panels]
    return Scene(
        page=page,
        panels=panels,
        cells=tuple(find_cells(boxes)) if not page.double else (None,) * len(panels),
        characters=tuple(_left_to_right(group) for group in _sort_in(page.characters, boxes)),
        balloons=tuple(_in_order(group, page.right_to_left) for group in _sort_in(page.balloons, boxes)),
        regions=tuple(_left_to_right(group) for group in _sort_in(page.regions, boxes)),
    )


def panel_of(box: Box, panels: Sequence[Box]) -> int | None:
    """Index of the panel that holds most of the box; of several that hold all of it (nested panels) the smallest."""
    shares = [intersection(box, panel) / max(area(box), 1e-9) for panel in panels]
    best = max(shares, default=0.0)
    if best < LEAST_SHARE:
        return None
    return min((i for i, share in enumerate(shares) if share > best - 0.02), key=lambda i: area(panels[i]))


def _sort_in(things: Sequence[Thing], panels: Sequence[Box]) -> list[list[Thing]]:
    groups: list[list[Thing]] = [[] for _ in panels]
    for thing in things:
        home = panel_of(thing.box, panels)
        if home is not None:
            groups[home].append(thing)
    return groups


def _left_to_right(things: Sequence[Thing]) -> tuple[Thing, ...]:
    return tuple(sorted(things, key=lambda thing: thing.box[0] + thing.box[2]))


def _in_order(balloons: Sequence[Balloon], right_to_left: bool) -> tuple[Balloon, ...]:
    if all(balloon.order is not None for balloon in balloons):
        return tuple(sorted(balloons, key=lambda balloon: balloon.order))
    return tuple(balloons[i] for i in order_boxes([balloon.box for balloon in balloons], right_to_left))
