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

from collections.abc import Iterator
from itertools import combinations

from input_pipeline.schema import Character, Region
from input_pipeline.tasks.common import Asking, Wording, union
from input_pipeline.tasks.naming import panel_name, thing_name

METRIC = 'token_f1'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """Questions about every pair in one panel that is far enough apart in depth and can be named."""
    scene, kinds = asking.scene, asking.settings.depth_things
    for i in range(len(scene.panels)):
        characters = scene.characters[i] if 'character' in kinds else ()
        things = [*characters, *(scene.regions[i] if 'region' in kinds else ())]
        for a, b in combinations([thing for thing in things if thing.depth is not None], 2):
            yield _ask(asking, i, a, b)
        if len(things) > 1 and all(thing.depth is None for thing in things):
            yield 'the source gives no depth'


def _ask(asking: Asking, i: int, a: Character | Region, b: Character | Region) -> Wording | str:
    scene, rng, settings = asking.scene, asking.rng, asking.settings
    if abs(a.depth - b.depth) < settings.depth_gap:
        return 'the depths differ too little'
    names = thing_name(scene, i, a), thing_name(scene, i, b)
    if None in names or names[0] == names[1]:
        return 'the two things cannot be named without doubt'
    polarity = settings.depth_polarity[rng.integers(len(settings.depth_polarity))]
    a_is_it = (a.depth < b.depth) == (polarity == 'nearer')
    first, second = names if rng.random() < 0.5 else names[::-1]
    source = 'nearer to' if polarity == 'nearer' else 'farther from'
    panel = panel_name(scene, i, settings.panel_naming)
    return Wording(
        prompt=f'In {panel}, which is {source} the reader: {first} or {second}?',
        answer=names[0] if a_is_it else names[1],
        regions=(union((a.box, b.box)),) if settings.depth_region == 'union' else (a.box, b.box),
        details=(a.box, b.box),
        legible_side=settings.legible_side,
        choices=(first, second),
    )
