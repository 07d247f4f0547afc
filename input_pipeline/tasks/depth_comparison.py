"""depth_comparison: which of two things in a panel is nearer to the reader (or farther).

Wording         'In PANEL, which is nearer to the reader: NAME or NAME?'; both named by identity, by kind, or by kind and side.
Answer space    the two names; chance 50 %.
Distractors     the other thing. Which comes first and whether nearer or farther is asked are coin flips; `balance` evens out kinds of things
                that are nearer by habit (a character before an object).
Regions         one box around the two things, or their two boxes.
Metric          accuracy.
Needs           `depth` of two things in one panel that differ by at least `depth_gap`.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Character, Question, Region
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, finish, union
from input_pipeline.tasks.naming import panel_name, thing_name

TASK = 'depth_comparison'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """Questions about every pair in one panel that is far enough apart in depth and can be named."""
    del vocabulary  # the two things are their own choices
    wordings: list[Wording] = []
    skipped: list[Question | Skip] = []
    for i in range(len(scene.panels)):
        things = _things(scene, i, settings)
        for a, b in combinations([thing for thing in things if thing.depth is not None], 2):
            made = _ask(scene, i, a, b, rng, settings)
            if isinstance(made, str):
                skipped.append(Skip(TASK, scene.page.id, made))
            else:
                wordings.append(made)
        if len(things) > 1 and all(thing.depth is None for thing in things):
            skipped.append(Skip(TASK, scene.page.id, 'the source gives no depth'))
    return finish(scene, TASK, wordings, rng, settings) + skipped


def _things(scene: Scene, i: int, settings: TaskSettings) -> list[Character | Region]:
    characters = scene.characters[i] if 'character' in settings.depth_things else ()
    regions = scene.regions[i] if 'region' in settings.depth_things else ()
    return [*characters, *regions]


def _ask(
    scene: Scene, i: int, a: Character | Region, b: Character | Region, rng: np.random.Generator, settings: TaskSettings
) -> Wording | str:
    """The question, or why there is none."""
    if abs(a.depth - b.depth) < settings.depth_gap:
        return 'the depths differ too little'
    names = thing_name(scene, i, a), thing_name(scene, i, b)
    if None in names or names[0] == names[1]:
        return 'the two things cannot be named without doubt'
    polarity = settings.depth_polarity[rng.integers(len(settings.depth_polarity))]
    a_is_it = (a.depth < b.depth) == (polarity == 'nearer')
    first, second = names if rng.random() < 0.5 else names[::-1]
    source = 'nearer to' if polarity == 'nearer' else 'farther from'
    panel = panel_name(scene, i, settings)
    return Wording(
        prompt=f'In {panel}, which is {source} the reader: {first} or {second}?',
        answer=names[0] if a_is_it else names[1],
        regions=(union((a.box, b.box)),) if settings.depth_region == 'union' else (a.box, b.box),
        details=(a.box, b.box),
        legible_side=settings.legible_side,
        choices=(first, second),
    )
