"""The vocabulary of comics: what a page holds and what is asked about it.

Every coordinate is a pixel of the page's original image, origin top left, boxes as (x1, y1, x2, y2) with x2 and y2 exclusive.
A field that a source does not publish is None: a task that needs it is skipped for that page and counted in the build report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the original page
Split = Literal['train', 'validation', 'test']
Task = Literal[
    'action_recognition',
    'depth_comparison',
    'panel_understanding',
    'dialogue_reordering',
    'panel_reordering',
    'character_counting',
    'character_identification',
]
Category = Literal['recognition', 'reorder', 'character']

CATEGORY_OF: dict[Task, Category] = {
    'action_recognition': 'recognition',
    'depth_comparison': 'recognition',
    'panel_understanding': 'recognition',
    'dialogue_reordering': 'reorder',
    'panel_reordering': 'reorder',
    'character_counting': 'character',
    'character_identification': 'character',
}
TASKS: tuple[Task, ...] = tuple(CATEGORY_OF)


@dataclass(frozen=True)
class Panel:
    """A frame of the page."""

    id: str  # unique on its page
    box: Box
    order: int | None = None  # place in the reading order, from 0; None where the source has none
    round: bool = False  # a vignette: the box encloses an ellipse
    description: str | None = None  # what the panel shows, in one sentence


@dataclass(frozen=True)
class Character:
    """A drawn figure."""

    id: str  # unique on its page
    box: Box
    identity: str | None = None  # who it is, the same word on every page of a series
    action: str | None = None  # what it does, a word or short phrase
    depth: float | None = None  # order inside its panel, larger = farther from the reader


@dataclass(frozen=True)
class Balloon:
    """A speech balloon."""

    id: str  # unique on its page
    box: Box
    text: str | None = None  # its transcription
    order: int | None = None  # place in the page's dialogue, from 0
    speaker: str | None = None  # id of the Character who speaks


@dataclass(frozen=True)
class Region:
    """Anything else with a box: props, heads, hands, lettering outside balloons, advertisements, mastheads."""

    id: str  # unique on its page
    box: Box
    label: str  # the source's own category name
    text: str | None = None  # its transcription, where it is lettering
    depth: float | None = None  # as Character.depth


@dataclass(frozen=True)
class Page:
    """One page of one comic with everything known about it."""

    id: str  # unique in its source: the image's file name without suffix
    image: str  # absolute path of the image file
    width: int  # px
    height: int  # px
    source: str  # 'ai4va', 'manga109', 'synthetic', ...
    series: str  # the comic it belongs to
    right_to_left: bool = False  # reading direction
    double: bool = False  # the image shows two facing pages, each read to its end before the next
    panels: tuple[Panel, ...] = ()
    characters: tuple[Character, ...] = ()
    balloons: tuple[Balloon, ...] = ()
    regions: tuple[Region, ...] = ()
    description: str | None = None  # what the page tells, where a source has it
    split: Split | None = None  # the split that the source itself assigns, None where it leaves that to us


@dataclass(frozen=True)
class Question:
    """One item of the benchmark."""

    id: str  # unique in its data set
    page_id: str
    task: Task
    category: Category
    prompt: str  # the question's words, with the choices if there are any; no tool or format instructions
    choices: tuple[str, ...]  # empty = open form
    answer: str  # the one right answer: a choice's text, a number, or a comma-separated order
    # Where one must look, original page pixels; where there are two pages, pixels of both side by side (`pictures.side_by_side`).
    regions: tuple[Box, ...]
    zoom_needed: bool  # whether the answer cannot be read at the page's model resolution
    split: Split
    second_page_id: str = ''  # a page that is shown at the right of the first, as one picture with it; '' = none

    @property
    def picture_id(self) -> str:
        """Of what the question shows: the page, or the pair."""
        return f'{self.page_id}+{self.second_page_id}' if self.second_page_id else self.page_id
