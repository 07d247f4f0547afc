"""character_identification: who a figure is.

Wording         'Who is the character in PANEL? Choices: ...' (leftmost or rightmost where several stand there); open form without choices.
Answer space    the identities of the series; chance 1/choices, in the open form about the share of the most frequent one.
Distractors     the others of the page that are asked about, up to 4 choices in all (so 2 where two are on the page: chance 25 to 50 %). Each identity of
                a page is asked for once at most, so among those offered each is right as often as the others. Only where a page has one
                identity are others of its series offered, each as often wrong as right.
Regions         the figure (or its panel).
Metric          accuracy; token F1 in the open form.
Needs           `Character.identity`.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Character, Question
from input_pipeline.tasks.common import STRAY, Skip, TaskSettings, Vocabulary, Wording, finish, with_choices
from input_pipeline.tasks.distractors import draw_among, draw_balanced
from input_pipeline.tasks.naming import character_name

TASK = 'character_identification'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """One question about each identity of the page, for one of its figures that can be pointed at."""
    skipped: list[Question | Skip] = scene.stray_characters * [Skip(TASK, scene.page.id, STRAY)]
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
        made = _ask(scene, *candidates[rng.integers(len(candidates))], list(nameable), rng, settings, vocabulary)
        if isinstance(made, str):
            skipped.append(Skip(TASK, scene.page.id, made))
        else:
            wordings.append(made)
    return finish(scene, TASK, wordings, rng, settings) + skipped


def _ask(
    scene: Scene,
    i: int,
    character: Character,
    name: str,
    here: list[str],  # identities of the page that are asked about
    rng: np.random.Generator,
    settings: TaskSettings,
    vocabulary: Vocabulary,
) -> Wording | str:
    """The question, or why there is none."""
    choices: tuple[str, ...] = ()
    if rng.random() >= settings.open_share:
        drawn = draw_among(rng, character.identity, here, settings.choices)
        if drawn is None:
            drawn = draw_balanced(rng, character.identity, vocabulary.identities[scene.page.series], settings.choices)
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
