"""Names that point at one panel or one figure without giving its box: the implicit positions of the benchmark."""

from __future__ import annotations

from input_pipeline.scene import Scene
from input_pipeline.schema import Character, Region
from input_pipeline.tasks.common import Asking, PanelNaming

APART = 0.15  # share of the panel's width by which a figure must stand beyond its neighbour to be called leftmost or rightmost


def panel_name(scene: Scene, i: int, naming: PanelNaming) -> str:
    """Panel `i` (reading order, from 0) in words: 'panel 3' or 'the left panel of row 2'."""
    cell = scene.cells[i]
    if naming == 'number' or cell is None:
        return f'panel {i + 1}'
    if cell.columns == 1:
        return f'the panel of row {cell.row + 1}'
    if cell.columns <= 3:
        side = {0: 'left', cell.columns - 1: 'right'}.get(cell.column, 'middle')
        return f'the {side} panel of row {cell.row + 1}'
    return f'panel {cell.column + 1} from the left in row {cell.row + 1}'


def character_name(asking: Asking, i: int, character: Character, reveal_identity: bool = True) -> str | None:
    """A name that only this character of the page has, drawn from those the settings allow; None if there is none."""
    scene, settings = asking.scene, asking.settings
    names = []
    panel = panel_name(scene, i, settings.panel_naming)
    identity = character.identity if reveal_identity else None
    if identity and 'identity' in settings.naming and _times(scene.page.characters, identity) == 1:
        names.append(identity)
    if identity and 'both' in settings.naming and _times(scene.characters[i], identity) == 1:
        names.append(f'{identity} in {panel}')
    side = _side(scene, i, character, scene.characters[i])
    # Without identities there is no other way than the panel, whatever the settings prefer.
    if side is not None and ('panel' in settings.naming or not reveal_identity):
        names.append(f'the {side}character in {panel}')
    return names[asking.rng.integers(len(names))] if names else None


def thing_name(scene: Scene, i: int, thing: Character | Region) -> str | None:
    """A name that only this thing of panel `i` has: its identity, its kind, or its kind with its side; None if there is none."""
    if isinstance(thing, Character):
        if thing.identity and _times(scene.characters[i], thing.identity) == 1:
            return thing.identity
        side = _side(scene, i, thing, scene.characters[i])
        return None if side is None else f'the {side}character'
    alike = [region for region in scene.regions[i] if region.label == thing.label]
    side = _side(scene, i, thing, alike)
    return None if side is None else f'the {side}{thing.label}'


def kind_of(name: str) -> str:
    """The kind of a thing that `thing_name` names: 'tree' of 'the leftmost tree', 'character' of an identity."""
    if not name.startswith('the '):
        return 'character'
    return name.removeprefix('the ').removeprefix('leftmost ').removeprefix('rightmost ')


def _times(characters: tuple[Character, ...], identity: str) -> int:
    return sum(character.identity == identity for character in characters)


def _side(scene: Scene, i: int, thing: Character | Region, alike: tuple[Character, ...] | list[Region]) -> str | None:
    """'' for the only one of its kind in panel `i`, 'leftmost ' or 'rightmost ' for one that clearly stands so, else None."""
    centres = sorted((other.box[0] + other.box[2]) / 2 for other in alike)
    if len(centres) == 1:
        return ''
    x1, _, x2, _ = scene.panels[i].box
    apart = APART * (x2 - x1)
    centre = (thing.box[0] + thing.box[2]) / 2
    if centre == centres[0] and centres[1] - centre >= apart:
        return 'leftmost '
    if centre == centres[-1] and centre - centres[-2] >= apart:
        return 'rightmost '
    return None
