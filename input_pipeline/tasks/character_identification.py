"""character_identification: who a figure is.

Wording         'Who is the character in PANEL? Choices: ...' (leftmost or rightmost where several stand there); open form without choices.
Answer space    the identities of the series; chance 1/choices (25 %), in the open form about the share of the most frequent one.
Distractors     first the others of the same page, then identities of the series as often as they occur. Each identity of a page is asked for at most once,
                so that on its page it is as often wrong as right.
Regions         the figure (or its panel).
Metric          accuracy; token F1 in the open form.
Needs           `Character.identity`.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Character, Question
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, draw_choices, finish, with_choices
from input_pipeline.tasks.naming import character_name

TASK = 'character_identification'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """One question about each identity of the page, for one of its figures that can be pointed at."""
    skipped: list[Question | Skip] = []
    nameable: dict[str, list[tuple[int, Character, str]]] = {}
    for i, group in enumerate(scene.characters):
        for character in group:
            name = character_name(scene, i, character, rng, settings, reveal_identity=False)
            if not character.identity:
                skipped.append(Skip(TASK, scene.page.id, 'the source gives no identity'))
            elif name is None:
                skipped.append(Skip(TASK, scene.page.id, 'the figure cannot be named without doubt'))
            else:
                nameable.setdefault(character.identity, []).append((i, character, name))
    wordings: list[Wording] = []
    for candidates in nameable.values():
        made = _ask(scene, *candidates[rng.integers(len(candidates))], rng, settings, vocabulary)
        if isinstance(made, str):
            skipped.append(Skip(TASK, scene.page.id, made))
        else:
            wordings.append(made)
    return finish(scene, TASK, wordings, rng, settings) + skipped


def _ask(scene, i, character, name, rng, settings, vocabulary) -> Wording | str:
    """The question, or why there is none."""
    choices: tuple[str, ...] = ()
    if rng.random() >= settings.open_share:
        here = [other.identity for other in scene.page.characters if other.identity]
        drawn = draw_choices(rng, character.identity, here, vocabulary.identities[scene.page.series], settings.choices)
        if drawn is None:
            return 'the series knows no second identity'
        choices = drawn
    box = character.box if settings.action_region == 'character' else scene.panels[i].box
    return Wording(
        with_choices(f'Who is {name}?', choices),
        character.identity,
        (box,),
        (character.box,),
        settings.legible_side,
        choices,
    )
