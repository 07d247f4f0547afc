"""Supervised conversations made from annotations: what a policy that zooms, points, reads a crop or guesses would have written.

A conversation names its boxes in pixels of the original page; whoever replays it turns them into the policy's frame.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from input_pipeline.ranges import check_ranges
from input_pipeline.schema import CATEGORY_OF, Box, Question, Task

Kind = Literal['crop', 'point', 'answer', 'direct']
KINDS: tuple[Kind, ...] = ('crop', 'point', 'answer', 'direct')


@dataclass(frozen=True)
class TraceSettings:
    """Which conversations are made, how often, and how well they are done."""

    crop: float = 0.0  # weight of conversations about a crop alone: one question, answered at once
    point: float = 0.0  # weight of those in which every question gets a call but no crop: dense practice of boxes
    answer: float = 1.0  # weight of conversations as a policy has them: one question, zooms, an answer
    direct: float = 0.0  # weight of conversations in which no tool is offered
    questions: int = 6  # most questions of a pointing conversation
    crop_scale: tuple[float, float] = (1.0, 1.2)  # width and height of a crop alone, in those of its region
    crop_shift: float = 0.05  # most by which its centre lies off, in widths and heights of the region
    box_scale: tuple[float, float] = (1.0, 1.0)  # the same of the boxes that calls name
    box_shift: float = 0.0
    exact_rate: float = 0.0  # share of calls whose box is the region itself, whatever box_scale and box_shift say
    zoom_rate: float = 1.0  # share of answers that zoom first; the others answer at once, as those without a tool do
    looks: int = 0  # most calls of an answer, its first regions; 0 = one for each region
    guess_rate: float = 1.0  # share of answers at once that are guesses; the others are the true ones
    malformed_rate: float = 0.0  # share of answers whose tags are wrong
    by_task: bool = False  # a task is drawn first, then a question: rare tasks are asked about as often as common ones
    count_aloud: bool = False  # counting: each call and the answer begin with a thought, how many were found so far

    def __post_init__(self):
        rates = dict.fromkeys(('exact_rate', 'zoom_rate', 'guess_rate', 'malformed_rate'), (0, 1))
        amounts = dict.fromkeys((*KINDS, 'crop_shift', 'box_shift', 'looks'), (0, math.inf))
        scales = dict.fromkeys(('crop_scale', 'box_scale'), (0.01, 100))
        check_ranges(self, rates | amounts | scales | {'questions': (1, math.inf)}, rising=tuple(scales))
        if not 0 < sum(getattr(self, kind) for kind in KINDS) < math.inf:
            raise ValueError(
                f'{", ".join(KINDS)} are all 0 or one is infinite: give at least one kind of conversation a weight.'
            )


@dataclass(frozen=True)
class Step:
    """One turn of a supervised answer: a zoom, an answer, or literal words."""

    box: Box | None = None  # region that a call names, px of the original page
    shown: bool = True  # whether the crop is shown; False = the conversation goes on without it
    answer: str | None = None  # words inside <answer>
    thought: str | None = None  # words inside <think>, before the call or the answer; None = no such element
    text: str | None = None  # the whole turn as it stands, for turns that are malformed


@dataclass(frozen=True)
class Exchange:
    """A question and the turns that answer it."""

    prompt: str  # the question's words
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Conversation:
    """A supervised conversation about one page."""

    question_id: str  # of its first question
    page_id: str
    exchanges: tuple[Exchange, ...]
    offers_tool: bool  # whether the prompt describes the tool
    crop: Box | None = None  # region to cut out and show instead of the page, px of the original page


def make_conversation(
    questions: Sequence[Question],
    page_size: tuple[int, int],
    answers: Mapping[Task, Sequence[str]],
    settings: TraceSettings,
    rng: np.random.Generator,
) -> Conversation:
    """One conversation about a page.

    Args:
      questions: the questions about the page, at least one; each must name a region.
      page_size: (width, height) of the original page, px.
      answers: all answers of each task, from which guesses are drawn where the question names no choices.
      settings: which conversations are made.
      rng: numpy's generator; the conversation depends on nothing else.
    """
    weights = np.array([settings.crop, settings.point, settings.answer, settings.direct])
    kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
    if kind == 'crop':  # one of several regions does not answer a question
        questions = [question for question in questions if len(question.regions) == 1] or questions
    first = draw_question(questions, settings.by_task, rng)
    if kind == 'point':
        return _pointing(questions, page_size, settings, rng)
    if kind == 'crop':
        region = first.regions[rng.integers(len(first.regions))]
        box = loosen(region, settings.crop_scale, settings.crop_shift, page_size, rng)
        exchange = Exchange(first.prompt, (Step(answer=first.answer),))
        return Conversation(first.id, first.page_id, (exchange,), offers_tool=True, crop=box)
    steps: tuple[Step, ...]
    if kind == 'answer' and rng.random() < settings.zoom_rate:
        boxes = [_named(box, page_size, settings, rng) for box in acting_order(first)[: settings.looks or None]]
        steps = (*(Step(box=box) for box in boxes), _final(first.answer, settings, rng))
        if settings.count_aloud and first.task == 'character_counting':
            steps = tuple(replace(step, thought=str(found)) for found, step in enumerate(steps))
    else:
        pool = first.choices or answers[first.task] if rng.random() < settings.guess_rate else (first.answer,)
        steps = (_final(pool[rng.integers(len(pool))], settings, rng),)
    return Conversation(first.id, first.page_id, (Exchange(first.prompt, steps),), offers_tool=kind == 'answer')


def draw_question(questions: Sequence[Question], by_task: bool, rng: np.random.Generator) -> Question:
    """One of a page's questions; each as likely as the others, or each task."""
    if by_task:
        tasks = sorted({question.task for question in questions})
        task = tasks[rng.integers(len(tasks))]
        questions = [question for question in questions if question.task == task]
    return questions[rng.integers(len(questions))]


def acting_order(question: Question) -> list[Box]:
    """The regions of a question in the order in which one looks at them before one knows the answer.

    Items to be ordered: as the question names them, A first, whose boxes then tell the order. Any others: from top to bottom, then from the left, so
    that what comes next can be told from the last box.
    """
    if CATEGORY_OF[question.task] == 'reorder':
        labels = question.answer.split(', ')
        return [box for _, box in sorted(zip(labels, question.regions, strict=True))]
    return sorted(question.regions, key=lambda box: (box[1], box[0]))


def _pointing(questions, page_size, settings: TraceSettings, rng: np.random.Generator) -> Conversation:
    """A call for each of several questions, the first look; a region is asked for once, or its box could be copied from above."""
    chosen: dict[tuple[Box, ...], Question] = {}
    for i in rng.permutation(len(questions)):
        if len(chosen) < settings.questions:
            chosen.setdefault(questions[i].regions, questions[i])
    exchanges = []
    for question in chosen.values():
        box = _named(acting_order(question)[0], page_size, settings, rng)
        exchanges.append(Exchange(question.prompt, (Step(box=box, shown=False),)))
    first = next(iter(chosen.values()))
    return Conversation(first.id, first.page_id, tuple(exchanges), offers_tool=True)


def _named(region: Box, page_size: tuple[int, int], settings: TraceSettings, rng: np.random.Generator) -> Box:
    """The box that a call names for a region."""
    if rng.random() < settings.exact_rate:
        return region
    return loosen(region, settings.box_scale, settings.box_shift, page_size, rng)


def _final(answer: str, settings: TraceSettings, rng: np.random.Generator) -> Step:
    """The answer, its tags now and then wrong in one of three ways."""
    if rng.random() >= settings.malformed_rate:
        return Step(answer=answer)
    wrong = (answer, f'<answer>{answer}', f'{answer}</answer>')
    return Step(text=wrong[rng.integers(3)])


def loosen(
    box: Box, scale: tuple[float, float], shift: float, page_size: tuple[int, int], rng: np.random.Generator
) -> Box:
    """A box around `box`: width and height times a factor from `scale` each, the centre moved by up to `shift` of them; inside the page."""
    x1, y1, x2, y2 = box
    w, h = x2 - x1, y2 - y1
    dx, dy = rng.uniform(-shift, shift, 2) * (w, h)
    sx, sy = rng.uniform(*scale, 2) * (w, h) / 2
    cx, cy = (x1 + x2) / 2 + dx, (y1 + y2) / 2 + dy
    width, height = page_size
    return (
        float(np.clip(cx - sx, 0, width - 1)),
        float(np.clip(cy - sy, 0, height - 1)),
        float(np.clip(cx + sx, 1, width)),
        float(np.clip(cy + sy, 1, height)),
    )
