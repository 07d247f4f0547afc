"""action_recognition: what a figure is doing.

Wording         'What is NAME doing? Choices: ...', the figure named by panel, identity or both; open form without choices.
Answer space    the actions of the source; chance 1/choices (25 %), in the open form about the share of the most frequent action.
Distractors     actions that are wrong as often as they are right (distractors.py), so that frequency tells nothing.
Regions         the figure (or its panel).
Metric          accuracy; token F1 in the open form.
Needs           `Character.action`.
"""

from __future__ import annotations

from collections.abc import Iterator

from input_pipeline.schema import Character
from input_pipeline.tasks.common import STRAY, UNNAMEABLE, Asking, Wording, about_figure
from input_pipeline.tasks.distractors import draw_balanced
from input_pipeline.tasks.naming import character_name

METRIC = 'token_f1'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """Questions about every figure whose action is known and that can be named."""
    yield from asking.scene.stray_characters * [STRAY]
    for i, group in enumerate(asking.scene.characters):
        for character in group:
            yield _ask(asking, i, character) if character.action else 'the source gives no action'


def _ask(asking: Asking, i: int, character: Character) -> Wording | str:
    name = character_name(asking, i, character)
    if name is None:
        return UNNAMEABLE
    choices: tuple[str, ...] | None = ()
    if asking.rng.random() >= asking.settings.open_share:
        choices = draw_balanced(asking.rng, character.action, asking.vocabulary.actions, asking.settings.choices)
    if choices is None:
        return 'the source knows no second action'
    return about_figure(asking, i, character, f'What is {name} doing?', character.action, choices)
