"""character_identification: who a figure is.

Wording         'Who is the character in PANEL? Choices: ...' (leftmost or rightmost where several stand there); open form without choices.
Answer space    the identities of the series; chance 1/choices, in the open form about the share of the most frequent one.
Distractors     the others of the page that are asked about, up to 4 choices in all (so 2 where two are on the page: chance 25 to 50 %). Each identity of
                a page is asked for once at most, so among those offered each is right as often as the others. Only where a page has one
                identity are others of its series offered, each as often wrong as right.
Regions         the figure (or its panel).
Metric          accuracy; token F1 in the open form.
Needs           `Character.identity`.
"""

from __future__ import annotations

from collections.abc import Iterator

from input_pipeline.schema import Character
from input_pipeline.tasks.common import STRAY, UNNAMEABLE, Asking, Wording, about_figure
from input_pipeline.tasks.distractors import draw_among, draw_balanced
from input_pipeline.tasks.naming import character_name

METRIC = 'token_f1'


def questions(asking: Asking) -> Iterator[Wording | str]:
    """One question about each identity of the page, for one of its figures that can be pointed at."""
    yield from asking.scene.stray_characters * [STRAY]
    nameable: dict[str, list[tuple[int, Character, str]]] = {}
    for i, group in enumerate(asking.scene.characters):
        for character in group:
            name = character_name(asking, i, character, reveal_identity=False)
            if not character.identity:
                yield 'the source gives no identity'
            elif name is None:
                yield UNNAMEABLE
            else:
                nameable.setdefault(character.identity, []).append((i, character, name))
    for candidates in nameable.values():
        yield _ask(asking, *candidates[asking.rng.integers(len(candidates))], list(nameable))


def _ask(asking: Asking, i: int, character: Character, name: str, here: list[str]) -> Wording | str:
    """`here` are the identities of the page that are asked about."""
    rng, settings = asking.rng, asking.settings
    choices: tuple[str, ...] | None = ()
    if rng.random() >= settings.open_share:
        of_series = asking.vocabulary.identities[asking.scene.page.series]
        choices = draw_among(rng, character.identity, here, settings.choices)
        choices = choices or draw_balanced(rng, character.identity, of_series, settings.choices)
    if choices is None:
        return 'the series knows no second identity'
    return about_figure(asking, i, character, f'Who is {name}?', character.identity, choices)
