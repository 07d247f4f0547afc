"""The seven tasks: each file turns the scene of a page into questions and documents its wording, answer space, chance, distractors, regions and metric."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import numpy as np

from input_pipeline.scene import Scene, make_scene
from input_pipeline.schema import Page, Question, Task
from input_pipeline.tasks import (
    action_recognition,
    character_counting,
    character_identification,
    depth_comparison,
    dialogue_reordering,
    panel_reordering,
    panel_understanding,
)
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, collect_vocabulary

__all__ = ['MAKERS', 'Skip', 'TaskSettings', 'Vocabulary', 'collect_vocabulary', 'make_questions']

MAKERS: dict[Task, Callable[[Scene, np.random.Generator, TaskSettings, Vocabulary], list[Question | Skip]]] = {
    'action_recognition': action_recognition.questions,
    'depth_comparison': depth_comparison.questions,
    'panel_understanding': panel_understanding.questions,
    'dialogue_reordering': dialogue_reordering.questions,
    'panel_reordering': panel_reordering.questions,
    'character_counting': character_counting.questions,
    'character_identification': character_identification.questions,
}


def make_questions(page: Page, seed: int, settings: TaskSettings, vocabulary: Vocabulary) -> list[Question | Skip]:
    """The questions of all tasks about one page, and what could not be asked.

    They depend on the seed, the page and the task alone: neither on other pages nor on the order in which pages are handled.
    """
    scene = make_scene(page)
    made: list[Question | Skip] = []
    for task in settings.tasks:
        rng = np.random.default_rng([seed, crc32(page.id.encode()), crc32(task.encode())])
        made += MAKERS[task](scene, rng, settings, vocabulary)
    return made
