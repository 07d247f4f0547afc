"""dialogue_reordering: lines of dialogue brought back into the order in which they are read.

Wording         'Put these lines of dialogue into reading order. A: "..." B: "..." ... Answer with the letters.'
Answer space    the orders of 3 to 5 letters, each as likely as the other; chance of the exact order 1/6 to 1/120, mean Kendall tau 0.
Distractors     none; the lines follow each other on the page and are shuffled.
Regions         the balloons.
Metric          Kendall tau where positive, and the share of exact orders.
Needs           `Balloon.text`; the order is the source's, or else panels and balloons by geometry.
"""

from __future__ import annotations

import numpy as np

from input_pipeline.scene import Scene
from input_pipeline.schema import Balloon, Question
from input_pipeline.tasks.common import Skip, TaskSettings, Vocabulary, Wording, finish, quote, shuffled_order

TASK = 'dialogue_reordering'


def questions(
    scene: Scene, rng: np.random.Generator, settings: TaskSettings, vocabulary: Vocabulary
) -> list[Question | Skip]:
    """Questions about runs of balloons that do not share a balloon."""
    del vocabulary
    dialogue = _dialogue(scene)
    balloons = [balloon for balloon in dialogue if balloon.text and balloon.text.strip()]
    stray = len(scene.page.balloons) - len(dialogue)
    if not scene.page.balloons:
        return [Skip(TASK, scene.page.id, 'the page has no balloons')]
    if not balloons:
        return [Skip(TASK, scene.page.id, 'the source gives no text of balloons')]
    least, most = settings.order_items
    wordings, start = [], 0
    while len(balloons) - start >= least:
        n = int(rng.integers(least, min(most, len(balloons) - start) + 1))
        made = _ask(balloons[start : start + n], rng, settings)
        wordings += [made] if made else []
        start += n
    if not wordings:
        return [Skip(TASK, scene.page.id, 'too few lines of dialogue that differ')]
    skipped = stray * [Skip(TASK, scene.page.id, 'the balloon stands in no panel')]
    return finish(scene, TASK, wordings, rng, settings) + skipped


def _dialogue(scene: Scene) -> list[Balloon]:
    """All balloons in reading order; by geometry those in no panel are left out, since nothing says where they belong."""
    balloons = scene.page.balloons
    if all(balloon.order is not None for balloon in balloons):
        return sorted(balloons, key=lambda balloon: balloon.order)
    return [balloon for group in scene.balloons for balloon in group]


def _ask(balloons: list[Balloon], rng: np.random.Generator, settings: TaskSettings) -> Wording | None:
    lines = [quote(balloon.text, settings.quote_words) for balloon in balloons]
    if len({line.lower() for line in lines}) < len(lines):
        return None
    shown, answer = shuffled_order(rng, lines)
    prompt = f'Put these lines of dialogue into reading order. {shown} Answer with the letters.'
    boxes = tuple(balloon.box for balloon in balloons)
    return Wording(prompt, answer, boxes, boxes, settings.legible_text_side)
