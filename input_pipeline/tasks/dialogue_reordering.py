"""dialogue_reordering: lines of dialogue brought back into the order in which they are read.

Wording         'Put these lines of dialogue into reading order. A: "..." B: "..." ... Answer with the letters.'
Answer space    the orders of 3 to 5 letters, each as likely as the other; chance of the exact order 1/6 to 1/120, mean Kendall tau 0.
Distractors     none; the lines follow each other on the page and are shuffled.
Regions         the balloons.
Metric          Kendall tau where positive, and the share of exact orders.
Needs           `Balloon.text`; the order is the source's, or else panels and balloons by geometry.
"""

from __future__ import annotations

from collections.abc import Iterator

from input_pipeline.scene import Scene
from input_pipeline.schema import Balloon
from input_pipeline.tasks.common import Asking, Wording, quote, shuffled_order

METRIC = 'kendall_tau'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """Questions about runs of balloons that do not share a balloon."""
    everything, dialogue = asking.scene.page.balloons, _dialogue(asking.scene)
    balloons = [balloon for balloon in dialogue if balloon.text and balloon.text.strip()]
    if not balloons:
        yield 'the source gives no text of balloons' if everything else 'the page has no balloons'
        return
    least, most = asking.settings.order_items
    asked, start = 0, 0
    while len(balloons) - start >= least:
        n = int(asking.rng.integers(least, min(most, len(balloons) - start) + 1))
        if wording := _ask(asking, balloons[start : start + n]):
            asked += 1
            yield wording
        start += n
    if asked:
        yield from (len(everything) - len(dialogue)) * ['the balloon stands in no panel']
    else:
        yield 'too few lines of dialogue that differ'


def _dialogue(scene: Scene) -> list[Balloon]:
    """All balloons in reading order; by geometry those in no panel are left out, since nothing says where they belong."""
    balloons = scene.page.balloons
    if all(balloon.order is not None for balloon in balloons):
        return sorted(balloons, key=lambda balloon: balloon.order)
    return [balloon for group in scene.balloons for balloon in group]


def _ask(asking: Asking, balloons: list[Balloon]) -> Wording | None:
    """None where two lines read alike."""
    lines = [quote(balloon.text, asking.settings.quote_words) for balloon in balloons]
    if len({line.lower() for line in lines}) < len(lines):
        return None
    shown, answer = shuffled_order(asking.rng, lines)
    prompt = f'Put these lines of dialogue into reading order. {shown} Answer with the letters.'
    boxes = tuple(balloon.box for balloon in balloons)
    return Wording(prompt, answer, boxes, boxes, asking.settings.legible_text_side)
