"""panel_understanding: what happens in a panel that is named by its place alone.

Wording         'What happens in the left panel of row 2?' (in 'panel 3' where the page has no rows), open or with choices.
Answer space    open: a sentence, judged; with choices: the descriptions of panels of the same page, chance 1/choices (25 %).
Distractors     descriptions of other panels of the same page: each is as likely to be the right one, only its place decides.
Regions         the panel.
Metric          judge (token F1 without one); accuracy with choices.
Needs           `Panel.description`, or the identity and action of every character of the panel, from which a sentence is made.
"""

from __future__ import annotations

from collections.abc import Iterator

from input_pipeline.scene import Scene
from input_pipeline.tasks.common import Asking, Wording, with_choices
from input_pipeline.tasks.distractors import draw_among
from input_pipeline.tasks.naming import panel_name

METRIC = 'token_f1'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """A question about every panel whose content is known."""
    stories = {i: describe(asking.scene, i) for i in range(len(asking.scene.panels))}
    known = [story for story in stories.values() if story]
    for i, story in stories.items():
        yield _ask(asking, i, story, known) if story else 'the source does not say what the panel shows'


def _ask(asking: Asking, i: int, story: str, known: list[str]) -> Wording | str:
    scene, rng, settings = asking.scene, asking.rng, asking.settings
    choices: tuple[str, ...] | None = ()
    if rng.random() >= settings.panel_open_share:
        choices = draw_among(rng, story, [other for other in known if other != story], settings.choices)
    if choices is None:
        return 'the page has no second panel that is described'
    # The benchmark's point here is an implicit position, so a panel is named by its place wherever the page has rows.
    prompt = with_choices(f'What happens in {panel_name(scene, i, "place")}?', choices)
    box = scene.panels[i].box
    details = tuple(character.box for character in scene.characters[i]) or (box,)
    return Wording(prompt, story, (box,), details, settings.legible_side, choices)


def describe(scene: Scene, i: int) -> str | None:
    """What panel `i` shows in a sentence: the source's, or one made of who does what; None if neither is known."""
    if scene.panels[i].description:
        return scene.panels[i].description.strip().rstrip('.')
    group = scene.characters[i]
    if not group or not all(character.identity and character.action for character in group):
        return None
    return ' and '.join(f'{character.identity} is {character.action}' for character in group)
