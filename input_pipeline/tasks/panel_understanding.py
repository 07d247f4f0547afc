"""panel_understanding: what happens in a panel that is named by its place alone.

Wording         'What happens in the left panel of row 2?' (in 'panel 3' where the page has no rows), open or with choices.
Answer space    open: a sentence, judged; with choices: the descriptions of panels of the same page, chance 1/choices (25 %).
Distractors     descriptions of other panels of the same page: each is as likely to be the right one, only its place decides.
Regions         the panel.
Metric          judge (token F1 without one); accuracy with choices.
Needs           `Panel.description`, or the identity and action of every character of the panel, from which a sentence is made.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Question
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, finish, with_choices
from input_pipeline.tasks.distractors import draw_among
from input_pipeline.tasks.naming import panel_name

TASK = 'panel_understanding'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """A question about every panel whose content is known."""
    del vocabulary
    stories = {i: story for i in range(len(scene.panels)) if (story := describe(scene, i))}
    skipped: list[Question | Skip] = [
        Skip(TASK, scene.page.id, 'the source does not say what the panel shows')
        for i in range(len(scene.panels))
        if i not in stories
    ]
    wordings: list[Wording] = []
    for i, story in stories.items():
        choices: tuple[str, ...] = ()
        if rng.random() >= settings.panel_open_share:
            others = [other for other in stories.values() if other != story]
            drawn = draw_among(rng, story, others, settings.choices)
            if drawn is None:
                skipped.append(Skip(TASK, scene.page.id, 'the page has no second panel that is described'))
                continue
            choices = drawn
        # The benchmark's point here is an implicit position, so a panel is named by its place wherever the page has rows.
        name = panel_name(scene, i, replace(settings, panel_naming='place'))
        details = tuple(character.box for character in scene.characters[i]) or (scene.panels[i].box,)
        wordings.append(
            Wording(
                with_choices(f'What happens in {name}?', choices),
                story,
                (scene.panels[i].box,),
                details,
                settings.legible_side,
                choices,
            )
        )
    return finish(scene, TASK, wordings, rng, settings) + skipped


def describe(scene: Scene, i: int) -> str | None:
    """What panel `i` shows in a sentence: the source's, or one made of who does what; None if neither is known."""
    if scene.panels[i].description:
        return scene.panels[i].description.strip().rstrip('.')
    group = scene.characters[i]
    if not group or not all(character.identity and character.action for character in group):
        return None
    return ' and '.join(f'{character.identity} is {character.action}' for character in group)
