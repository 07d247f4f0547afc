"""action_recognition: what a figure is doing.

Wording         'What is NAME doing? Choices: ...', the figure named by panel, identity or both; open form without choices.
Answer space    the actions of the source; chance 1/choices (25 %), in the open form about the share of the most frequent action.
Distractors     actions that are wrong as often as they are right (distractors.py), so that frequency tells nothing.
Regions         the figure (or its panel).
Metric          accuracy; token F1 in the open form.
Needs           `Character.action`.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Character, Question
from input_pipeline.tasks.common import STRAY, Skip, TaskSettings, Vocabulary, Wording, finish, with_choices
from input_pipeline.tasks.distractors import draw_balanced
from input_pipeline.tasks.naming import character_name


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """Questions about every figure whose action is known and that can be named."""
    wordings: list[Wording] = []
    skipped: list[Question | Skip] = scene.stray_characters * [Skip('action_recognition', scene.page.id, STRAY)]
    for i, group in enumerate(scene.characters):
        for character in group:
            made = 'the source gives no action'
            if character.action:
                made = _ask(scene, i, character, rng, settings, vocabulary)
            if isinstance(made, str):
                skipped.append(Skip('action_recognition', scene.page.id, made))
            else:
                wordings.append(made)
    return finish(scene, 'action_recognition', wordings, rng, settings) + skipped


def _ask(
    scene: Scene, i: int, character: Character, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> Wording | str:
    """The question, or why there is none."""
    name = character_name(scene, i, character, rng, settings)
    if name is None:
        return 'the figure cannot be named without doubt'
    choices: tuple[str, ...] = ()
    if rng.random() >= settings.open_share:
        drawn = draw_balanced(rng, character.action, vocabulary.actions, settings.choices)
        if drawn is None:
            return 'the source knows no second action'
        choices = drawn
    box = character.box if settings.action_region == 'character' else scene.panels[i].box
    return Wording(
        with_choices(f'What is {name} doing?', choices),
        character.action,
        (box,),
        (character.box,),
        settings.legible_side,
        choices,
    )
