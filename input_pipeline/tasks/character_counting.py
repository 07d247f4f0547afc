"""character_counting: how many times somebody is drawn on the page, or how many characters there are.

Wording         'How many times is NAME drawn on this page?', 'How many characters are drawn on this page?'
Answer space    whole numbers from 0; chance is the share of the most frequent count: at most 40 %, to which `balance` thins it, and the build
                report tells it.
Distractors     none (open form). Somebody of the series who is absent is asked for now and then, so that 0 occurs.
Regions         all panels: one must look into each (and any figure outside them); or the figures counted.
Metric          accuracy, with partial credit for off by one.
Needs           characters; for the first form the identity of every character of the page.
"""

from __future__ import annotations

from collections.abc import Iterator

from input_pipeline.scene import Scene, panel_of
from input_pipeline.schema import Box, Character
from input_pipeline.tasks.common import Asking, Wording

METRIC = 'accuracy_or_off_by_one'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """Questions about each identity of the page, about one that is absent, and about all characters."""
    everybody, forms = asking.scene.page.characters, asking.settings.count_forms
    if not everybody:
        yield 'the page has no characters'
        return
    if 'identity' in forms:
        if all(character.identity for character in everybody):
            for identity in _identities(asking):
                counted = [character for character in everybody if character.identity == identity]
                yield _ask(asking, f'How many times is {identity} drawn on this page?', counted)
        else:
            yield 'not every character has an identity'
    if 'all' in forms:
        yield _ask(asking, 'How many characters are drawn on this page?', everybody)


def _identities(asking: Asking) -> list[str]:
    """Those of the page, and now and then one of its series that is not on it."""
    page, settings = asking.scene.page, asking.settings
    here = sorted({character.identity for character in page.characters})
    absent = sorted(set(asking.vocabulary.identities[page.series]) - set(here))
    if absent and settings.count_region == 'panels' and asking.rng.random() < settings.count_absent:
        here.append(absent[asking.rng.integers(len(absent))])
    return here


def _ask(asking: Asking, prompt: str, counted: list[Character] | tuple[Character, ...]) -> Wording:
    everyone = tuple(character.box for character in asking.scene.page.characters)
    regions = tuple(character.box for character in counted)
    if asking.settings.count_region == 'panels':
        regions = _panels_and_strays(asking.scene)
    return Wording(prompt, str(len(counted)), regions, everyone, asking.settings.legible_side)


def _panels_and_strays(scene: Scene) -> tuple[Box, ...]:
    panels = tuple(panel.box for panel in scene.panels)
    boxes = [character.box for character in scene.page.characters]
    return (*panels, *(box for box in boxes if panel_of(box, panels) is None))
