"""What the seven tasks share: settings, answer spaces, wording, and the making of a Question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from input_pipeline.reading_order import area
from input_pipeline.scene import Scene
from input_pipeline.schema import CATEGORY_OF, TASKS, Box, Page, Question, Task

Naming = Literal['identity', 'panel', 'both']
STRAY = 'the figure stands in no panel'  # a reason of a Skip
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
    panel_naming: Literal['number', 'place'] = 'number'
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


def finish(
    scene: Scene, task: Task, wordings: Sequence[Wording], rng: np.random.Generator, settings: TaskSettings
) -> list[Question]:
    """At most `per_page` questions out of the candidates, in the order in which they were found."""
    chosen = range(len(wordings))
    if len(wordings) > settings.per_page:
        chosen = sorted(rng.choice(len(wordings), settings.per_page, replace=False))
    return [_question(scene.page, task, number, wordings[i], settings) for number, i in enumerate(chosen)]


def _question(page: Page, task: Task, number: int, wording: Wording, settings: TaskSettings) -> Question:
    if page.split is None:
        raise ValueError(f'page {page.id} has no split: assign splits (dataset.split_pages) before making questions.')
    return Question(
        id=f'{page.id}/{task}/{number}',
        page_id=page.id,
        task=task,
        category=CATEGORY_OF[task],
        prompt=wording.prompt,
        choices=wording.choices,
        answer=wording.answer,
        regions=wording.regions,
        zoom_needed=zoom_needed(page, wording.details, wording.legible_side, settings.model_pixels),
        split=page.split,
    )


def zoom_needed(page: Page, details: Sequence[Box], legible_side: float, model_pixels: int) -> bool:
    """Whether any detail is smaller than a square of `legible_side` px once the page is shrunk to `model_pixels`."""
    shrunk = min(1.0, model_pixels / (page.width * page.height))
    return any(area(box) * shrunk < legible_side**2 for box in details)


def with_choices(prompt: str, choices: Sequence[str]) -> str:
    """The prompt followed by its choices, if it has any."""
    return f'{prompt} Choices: {"; ".join(choices)}.' if choices else prompt


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
    lines = ' '.join(f'{LABELS[place]}: {items[i]}' for place, i in enumerate(shown))
    label_of = {int(i): LABELS[place] for place, i in enumerate(shown)}
    return lines, ', '.join(label_of[i] for i in range(len(items)))
