"""panel_reordering: panels, told by what they show, brought into the order in which they are read.

Wording         'Put these panels into reading order. A: the panel with NAME and NAME. B: the panel that says "..." ... Answer with the letters.'
Answer space    the orders of 3 to 5 letters, each as likely as the other; chance of the exact order 1/6 to 1/120, mean Kendall tau 0.
Distractors     none; panels of the page are drawn at random and shuffled. No description tells a place.
Regions         the panels.
Metric          Kendall tau where positive, and the share of exact orders.
Needs           panels that differ in their description, their first balloon's text, or their characters' identities.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Question
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, finish, quote, shuffled_order

TASK = 'panel_reordering'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """Questions about groups of panels that do not share a panel."""
    del vocabulary
    contents = [_contents(scene, i, settings) for i in range(len(scene.panels))]
    times = Counter(name for names in contents for name in names)
    names = {i: own[0] for i, all_names in enumerate(contents) if (own := [n for n in all_names if times[n] == 1])}
    least, most = settings.order_items
    if not any(contents):
        return [Skip(TASK, scene.page.id, 'the source does not say what panels show')]
    left = [int(i) for i in rng.permutation(sorted(names))]
    wordings = []
    while len(left) >= least:
        n = int(rng.integers(least, min(most, len(left)) + 1))
        wordings.append(_ask(scene, sorted(left[:n]), names, rng, settings))
        left = left[n:]
    if not wordings:
        return [Skip(TASK, scene.page.id, 'too few panels that can be told apart')]
    return finish(scene, TASK, wordings, rng, settings)


def _contents(scene: Scene, i: int, settings: TaskSettings) -> list[str]:
    """What could stand for panel `i`, the most telling first."""
    names = []
    description = scene.panels[i].description
    if description:
        names.append(f'the panel showing this: {description.strip().rstrip(".")}')
    names += [
        f'the panel that says {quote(balloon.text, settings.quote_words)}'
        for balloon in scene.balloons[i][:1]
        if balloon.text
    ]
    cast = [character.identity for character in scene.characters[i]]
    if cast and all(cast):
        names.append(f'the panel with {" and ".join(sorted(cast))}')
    return names


def _ask(
    scene: Scene, panels: list[int], names: dict[int, str], rng: np.random.Generator, settings: TaskSettings
) -> Wording:
    shown, answer = shuffled_order(rng, [f'{names[i]}.' for i in panels])
    prompt = f'Put these panels into reading order. {shown} Answer with the letters.'
    boxes = tuple(scene.panels[i].box for i in panels)
    details = tuple(character.box for i in panels for character in scene.characters[i]) or boxes
    return Wording(prompt, answer, boxes, details, settings.legible_side)
