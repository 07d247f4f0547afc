"""The seven tasks, a file each: it turns the scene of a page into questions and documents wording, answer space, chance, distractors, regions, metric.

A task's file carries its name in `schema.py` and holds

    METRIC                               of its open form, one of grading.OPEN_METRICS
    questions(asking) -> Wordings, and the reason (a str) of each question that could not be asked
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from zlib import crc32

import numpy as np

from input_pipeline import grading
from input_pipeline.scene import make_scene
from input_pipeline.schema import CATEGORY_OF, TASKS, Page, Question, Task
from input_pipeline.tasks.common import Asking, Skip, TaskSettings, Vocabulary, Wording, collect_vocabulary, zoom_needed

__all__ = [
    'METRICS',
    'Skip',
    'TaskSettings',
    'Vocabulary',
    'collect_vocabulary',
    'grade',
    'make_questions',
    'metric_name',
]

_FILES = {task: import_module(f'input_pipeline.tasks.{task}') for task in TASKS}
METRICS: dict[Task, str] = {task: file.METRIC for task, file in _FILES.items()}  # of a task's open form


def metric_name(task: Task, choices: Sequence[str] = ()) -> str:
    """What `grade` computes for such a question; a result table's column."""
    return 'accuracy' if choices else METRICS[task]


def grade(task: Task, answer: str, prediction: str | None, choices: Sequence[str] = ()) -> float:
    """Grades `prediction` (None = no answer was given) against the one right `answer`; in [0, 1]."""
    return grading.grade(METRICS[task], answer, prediction, choices)


def make_questions(page: Page, seed: int, settings: TaskSettings, vocabulary: Vocabulary) -> list[Question | Skip]:
    """The questions of all tasks about one page, at most `per_page` of each drawn at random, and what could not be asked.

    They depend on the seed, the page and the task alone: neither on other pages nor on the order in which pages are handled.
    """
    if page.split is None:
        raise ValueError(f'page {page.id} has no split: assign splits (dataset.split_pages) before making questions.')
    scene = make_scene(page)
    made: list[Question | Skip] = []
    for task in settings.tasks:
        rng = np.random.default_rng([seed, crc32(page.id.encode()), crc32(task.encode())])
        found = list(_FILES[task].questions(Asking(scene, rng, settings, vocabulary)))
        wordings = [wording for wording in found if isinstance(wording, Wording)]
        if len(wordings) > settings.per_page:
            wordings = [wordings[i] for i in sorted(rng.choice(len(wordings), settings.per_page, replace=False))]
        made += [_question(page, task, number, wording, settings) for number, wording in enumerate(wordings)]
        made += [Skip(task, page.id, reason) for reason in found if isinstance(reason, str)]
    return made


def _question(page: Page, task: Task, number: int, wording: Wording, settings: TaskSettings) -> Question:
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
