"""What the seven tasks share: settings, answer spaces and wording."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from input_pipeline.ranges import check_ranges
from input_pipeline.reading_order import area
from input_pipeline.scene import Scene
from input_pipeline.schema import TASKS, Box, Character, Page, Task

Naming = Literal['identity', 'panel', 'both']
PanelNaming = Literal['number', 'place']
# Reasons why a question cannot be asked, of more than one task.
STRAY = 'the figure stands in no panel'
UNNAMEABLE = 'the figure cannot be named without doubt'
LABELS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'  # of the items of an ordering


@dataclass(frozen=True)
class TaskSettings:
    """How questions are made from pages."""

    tasks: tuple[Task, ...] = TASKS  # which tasks are made
    per_page: int = 4  # most questions of one task on one page; more candidates are thinned at random
    # How a figure is named: 'identity' = 'Placid' (unique on the page), 'panel' = 'the character in panel 3' (alone there, or leftmost or rightmost),
    # 'both' = 'Placid in panel 3' (unique in the panel). Of those that name it without doubt one is drawn.
    naming: tuple[Naming, ...] = ('identity', 'panel', 'both')
    # 'number' = 'panel 3' in reading order; 'place' = 'the left panel of row 2', and the number where the page has no such rows
    panel_naming: PanelNaming = 'number'
    # choices of action_recognition, character_identification and panel_understanding, the right one included
    choices: int = 4
    open_share: float = 0.0  # share of action_recognition and character_identification asked without choices
    panel_open_share: float = 1.0  # the same of panel_understanding, whose open form needs a judge
    action_region: Literal['character', 'panel'] = 'character'  # where one must look to see an action or an identity
    depth_gap: float = 1.0  # least difference of depth between the two things compared, in the source's unit
    depth_things: tuple[Literal['character', 'region'], ...] = ('character', 'region')  # what is compared
    # which of the two may be asked for
    depth_polarity: tuple[Literal['nearer', 'farther'], ...] = ('nearer', 'farther')
    depth_region: Literal['union', 'both'] = 'union'  # one box around the two things, or their two boxes
    # 'how many times is Placid drawn', 'how many characters'
    count_forms: tuple[Literal['identity', 'all'], ...] = ('identity', 'all')
    count_absent: float = 0.1  # chance that a page is also asked for somebody of its series who is not on it (answer 0)
    # all panels (one must look into each), or the figures counted
    count_region: Literal['panels', 'characters'] = 'panels'
    order_items: tuple[int, int] = (3, 5)  # least and most items of an ordering
    quote_words: int = 12  # words of a balloon that a prompt quotes at most
    model_pixels: int = 1_003_520  # px of a page as the model sees it (its max_pixels), for zoom_needed
    legible_side: float = 64.0  # px at the model's resolution: a figure smaller than this square needs a zoom
    legible_text_side: float = 96.0  # the same for a balloon

    def __post_init__(self):
        shares = dict.fromkeys(('open_share', 'panel_open_share', 'count_absent'), (0, 1))
        counts = dict.fromkeys(('per_page', 'quote_words', 'model_pixels'), (1, math.inf))
        others = dict.fromkeys(('depth_gap', 'legible_side', 'legible_text_side'), (0, math.inf))
        letters = {'choices': (2, len(LABELS)), 'order_items': (2, len(LABELS))}
        check_ranges(self, shares | counts | others | letters, rising=('order_items',))
        lists = ('tasks', 'naming', 'depth_things', 'depth_polarity', 'count_forms')
        if empty := [name for name in lists if not getattr(self, name)]:
            raise ValueError(f'{empty[0]} is empty: name at least one.')


@dataclass(frozen=True)
class Vocabulary:
    """The answer spaces, with how often each answer occurs in the source."""

    actions: Mapping[str, int]  # action -> occurrences
    identities: Mapping[str, Mapping[str, int]]  # series -> identity -> occurrences


@dataclass(frozen=True)
class Skip:
    """A question that could not be made."""

    task: Task
    page_id: str
    reason: str


@dataclass(frozen=True)
class Wording:
    """A question in the making."""

    prompt: str
    answer: str
    regions: tuple[Box, ...]  # where one must look, original page pixels
    details: tuple[Box, ...]  # what must be legible there, original page pixels
    legible_side: float  # px at the model's resolution
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asking:
    """A page that is asked about, and what a task needs for it."""

    scene: Scene
    rng: np.random.Generator  # of this page and task
    settings: TaskSettings
    vocabulary: Vocabulary


def collect_vocabulary(pages: Iterable[Page]) -> Vocabulary:
    """Counts the actions and identities of a source; the class lists of action_recognition and character_identification."""
    actions: Counter[str] = Counter()
    identities: dict[str, Counter[str]] = {}
    for page in pages:
        of_series = identities.setdefault(page.series, Counter())
        for character in page.characters:
            actions.update([character.action] if character.action else [])
            of_series.update([character.identity] if character.identity else [])
    return Vocabulary(actions, identities)


def zoom_needed(page: Page, details: Sequence[Box], legible_side: float, model_pixels: int) -> bool:
    """Whether any detail is smaller than a square of `legible_side` px once the page is shrunk to `model_pixels`."""
    shrunk = min(1.0, model_pixels / (page.width * page.height))
    return any(area(box) * shrunk < legible_side**2 for box in details)


def with_choices(prompt: str, choices: Sequence[str]) -> str:
    """The prompt followed by its choices, if it has any."""
    return f'{prompt} Choices: {"; ".join(choices)}.' if choices else prompt


def about_figure(
    asking: Asking, i: int, figure: Character, prompt: str, answer: str, choices: tuple[str, ...]
) -> Wording:
    """A question for which one must look at a figure of panel `i`."""
    box = figure.box if asking.settings.action_region == 'character' else asking.scene.panels[i].box
    legible_side = asking.settings.legible_side
    return Wording(with_choices(prompt, choices), answer, (box,), (figure.box,), legible_side, choices)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of them."""
    return (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))


def quote(text: str, words: int) -> str:
    """The first words of a text in quotation marks."""
    parts = text.split()
    shown = ' '.join(parts[:words]) + (' ...' if len(parts) > words else '')
    return f'"{shown}"'


def shuffled_order(rng: np.random.Generator, items: Sequence[str]) -> tuple[str, str]:
    """Items in their true order -> ('A: ... B: ...' in random order, the labels in true order as 'B, A')."""
    shown = rng.permutation(len(items))
    lines = ' '.join(f'{label}: {items[i]}' for label, i in zip(LABELS, shown, strict=False))
    label_of = {int(i): label for label, i in zip(LABELS, shown, strict=False)}
    return lines, ', '.join(label_of[i] for i in range(len(items)))
