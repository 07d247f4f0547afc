"""character_counting: how many times somebody is drawn on the page, or how many characters there are.

Wording         'How many times is NAME drawn on this page?', 'How many characters are drawn on this page?'
Answer space    whole numbers from 0; chance is the share of the most frequent count: at most 40 %, to which `balance` thins it, and the build
                report tells it.
Distractors     none (open form). Somebody of the series who is absent is asked for now and then, so that 0 occurs.
Regions         all panels: one must look into each (and any figure outside them); or the figures counted.
Metric          accuracy, with partial credit for off by one.
Needs           characters; for the first form the identity of every character of the page.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.scene import Scene, panel_of
from input_pipeline.schema import Box, Character, Question
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, finish

TASK = 'character_counting'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """Questions about each identity of the page, about one that is absent, and about all characters."""
    everybody = scene.page.characters
    skipped: list[Question | Skip] = []
    wordings: list[Wording] = []
    if not everybody:
        return [Skip(TASK, scene.page.id, 'the page has no characters')]
    if 'identity' in settings.count_forms:
        if all(character.identity for character in everybody):
            wordings += _by_identity(scene, rng, settings, vocabulary)
        else:
            skipped.append(Skip(TASK, scene.page.id, 'not every character has an identity'))
    if 'all' in settings.count_forms:
        wordings.append(_ask('How many characters are drawn on this page?', scene, everybody, settings))
    return finish(scene, TASK, wordings, rng, settings) + skipped


def _by_identity(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Wording]:
    here = sorted({character.identity for character in scene.page.characters})
    absent = sorted(set(vocabulary.identities[scene.page.series]) - set(here))
    asked = list(here)
    if absent and settings.count_region == 'panels' and rng.random() < settings.count_absent:
        asked.append(absent[rng.integers(len(absent))])
    wordings = []
    for identity in asked:
        counted = tuple(character for character in scene.page.characters if character.identity == identity)
        wordings.append(_ask(f'How many times is {identity} drawn on this page?', scene, counted, settings))
    return wordings


def _ask(prompt: str, scene: Scene, counted: tuple[Character, ...], settings: TaskSettings) -> Wording:
    boxes = tuple(character.box for character in counted)
    everyone = tuple(character.box for character in scene.page.characters)
    regions = _panels_and_strays(scene) if settings.count_region == 'panels' else boxes
    return Wording(prompt, str(len(counted)), regions, everyone, settings.legible_side)


def _panels_and_strays(scene: Scene) -> tuple[Box, ...]:
    panels = tuple(panel.box for panel in scene.panels)
    return panels + tuple(
        character.box for character in scene.page.characters if panel_of(character.box, panels) is None
    )
