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
from collections.abc import Iterator

from input_pipeline.tasks.common import Asking, Wording, quote, shuffled_order

METRIC = 'kendall_tau'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """Questions about groups of panels that do not share a panel."""
    contents = [_contents(asking, i) for i in range(len(asking.scene.panels))]
    if not any(contents):
        yield 'the source does not say what panels show'
        return
    times = Counter(name for names in contents for name in names)
    unique = {i: [name for name in names if times[name] == 1] for i, names in enumerate(contents)}
    names = {i: found[0] for i, found in unique.items() if found}
    least, most = asking.settings.order_items
    left = [int(i) for i in asking.rng.permutation(sorted(names))]
    if len(left) < least:
        yield 'too few panels that can be told apart'
    while len(left) >= least:
        n = int(asking.rng.integers(least, min(most, len(left)) + 1))
        yield _ask(asking, sorted(left[:n]), names)
        left = left[n:]


def _contents(asking: Asking, i: int) -> list[str]:
    """What could stand for panel `i`, the most telling first."""
    scene, names = asking.scene, []
    if description := scene.panels[i].description:
        names.append(f'the panel showing this: {description.strip().rstrip(".")}')
    if scene.balloons[i] and (text := scene.balloons[i][0].text):
        names.append(f'the panel that says {quote(text, asking.settings.quote_words)}')
    cast = [character.identity for character in scene.characters[i]]
    if cast and all(cast):
        names.append(f'the panel with {" and ".join(sorted(cast))}')
    return names


def _ask(asking: Asking, panels: list[int], names: dict[int, str]) -> Wording:
    shown, answer = shuffled_order(asking.rng, [f'{names[i]}.' for i in panels])
    prompt = f'Put these panels into reading order. {shown} Answer with the letters.'
    boxes = tuple(asking.scene.panels[i].box for i in panels)
    details = tuple(character.box for i in panels for character in asking.scene.characters[i]) or boxes
    return Wording(prompt, answer, boxes, details, asking.settings.legible_side)
