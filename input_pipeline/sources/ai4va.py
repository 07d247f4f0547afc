"""Reads a folder in AI4VA's format: page PNGs, COCO annotations with depth attributes, and an optional sidecar.

    FOLDER/images/NAME.png (or FOLDER/, FOLDER/train/, FOLDER/val/, FOLDER/test/)
    FOLDER/train-annotations.json, val-annotations.json, test-annotations.json     at least one; its split becomes `Page.split`
    FOLDER/sidecar.json                                                            what the public release lacks (sidecar.py)

COCO's `bbox` [x, y, w, h] becomes (x1, y1, x2, y2). Masks (polygons, RLE, empty) are not used, except that the bounds of polygons stand in for a missing bbox.
`attributes.Interdepth` orders things inside a panel; by the look of the published renderings larger is farther, and `larger_is_farther` turns that round.
Intradepth orders the parts of one thing and is not used.

Source: Groenquist et al. 2024, "Unlocking Comics: The AI4VA Dataset for Visual Understanding".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from input_pipeline.schema import Balloon, Box, Character, Page, Panel, Region, Split
from input_pipeline.sources.reading import (
    Progress,
    ReadReport,
    Tally,
    clip_box,
    find_image,
    keep_readable,
    read_json,
    tidy,
)
from input_pipeline.sources.sidecar import read_sidecar

Role = Literal['panel', 'character', 'balloon', 'region', 'ignore']

ANNOTATIONS: tuple[tuple[Split, str], ...] = (
    ('train', 'train-annotations.json'),
    ('validation', 'val-annotations.json'),
    ('test', 'test-annotations.json'),
)
LARGEST = 1e9  # no coordinate or depth is beyond it, and Python's unbounded integers would not fit a float

# Lower-case category name -> what it is here. Names absent from this table are counted in the report.
CATEGORIES: dict[str, Role] = {
    'panel': 'panel',
    'panels': 'panel',
    'frame': 'panel',
    'character': 'character',
    'characters': 'character',
    'person': 'character',
    'animal': 'character',
    'speech balloon': 'balloon',
    'speech balloons': 'balloon',
    'speech bubble': 'balloon',
    'speech bubbles': 'balloon',
    'balloon': 'balloon',
    'bubble': 'balloon',
    'text': 'region',
    'text block': 'region',
    'onomatopoeia': 'region',
    'object': 'region',
    'objects': 'region',
    'prop': 'region',
    'head': 'region',
    'heads': 'region',
    'hand': 'region',
    'hands': 'region',
    'advertisement': 'region',
    'masthead': 'region',
    'background': 'ignore',
}


@dataclass(frozen=True)
class ReadSettings:
    """How a folder is read."""

    annotations: tuple[tuple[Split, str], ...] = ANNOTATIONS  # split -> file name in the folder
    # where page images are looked for, in this order
    image_folders: tuple[str, ...] = ('images', '.', 'train', 'val', 'test')
    sidecar: str = 'sidecar.json'  # file name in the folder; need not be there
    categories: Mapping[str, Role] = field(default_factory=CATEGORIES.copy)  # lower-case category name -> role
    larger_is_farther: bool = True  # direction of Interdepth
    source: str = 'ai4va'  # name of the source in pages and reports
    max_pixels: int = 40_000_000  # px; larger images are not opened (decompression bombs)
    min_side: float = 2.0  # px; narrower or lower boxes are dropped
    threads: int = 2  # images decoded at once while they are checked


def read(folder: str | Path, settings: ReadSettings, progress: Progress | None = None) -> tuple[list[Page], ReadReport]:
    """All pages of a folder in AI4VA's format, in the order of the annotation files, and the report of what was lost.

    Raises FileNotFoundError for a missing folder or no annotation file, ValueError for broken JSON or a malformed sidecar.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: expected the folder that holds AI4VA's annotation files and page images."
        )
    files = [(split, folder / name) for split, name in settings.annotations if (folder / name).is_file()]
    if not files:
        names = ', '.join(name for _, name in settings.annotations)
        raise FileNotFoundError(f'{folder} holds no annotation file: expected at least one of {names}.')
    tally = Tally()
    sidecar = read_sidecar(folder / settings.sidecar)
    pages: list[Page] = []
    seen: dict[str, bool] = {}  # image's stem -> whether its page is usable
    for split, path in files:
        pages += _read_file(folder, path, split, sidecar, seen, tally, settings)
    for name in sidecar:
        if Path(name).stem not in seen:
            tally.drop('sidecar page without annotations', name)
    pages = keep_readable(pages, tally, settings.max_pixels, settings.threads, progress)
    return pages, tally.report(settings.source, pages)


# --- COCO


def _read_file(
    folder: Path,
    path: Path,
    split: Split,
    sidecar: Mapping[str, Any],
    seen: dict[str, bool],
    tally: Tally,
    settings: ReadSettings,
) -> list[Page]:
    """The pages of one annotation file; images are found but not yet decoded."""
    coco = read_json(path)
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise ValueError(f'{path} is not a COCO instances file: it has no list {key!r}.')
    categories = _entries(coco['categories'], ('id', 'name'), tally, 'category')
    names = _name_categories(categories, tally)
    images = _entries(coco['images'], ('id', 'file_name', 'width', 'height'), tally, 'image')
    annotations = _entries(coco['annotations'], ('id', 'image_id', 'category_id'), tally, 'annotation')
    by_image = _group_annotations(images, annotations, tally)
    pages, image_ids = [], set()
    for image in images:
        own = [] if image['id'] in image_ids else by_image.get(image['id'], [])
        page = _start_page(folder, image, split, image_ids, seen, tally, settings)
        if page is None:
            tally.lost_with_pages += len(own)
            continue
        extra = sidecar.get(str(image['file_name']), {})
        pages.append(_fill_page(page, own, names, extra, tally, settings))
    return pages


def _entries(things: list[Any], keys: tuple[str, ...], tally: Tally, kind: str) -> list[dict[str, Any]]:
    """The things that are objects with all `keys`, each a number or a text; the others are counted."""
    usable = []
    for thing in things:
        if isinstance(thing, dict) and all(isinstance(thing.get(key), int | str) for key in keys):
            usable.append(thing)
        else:
            tally.drop(f'{kind} without a usable {", ".join(keys[:-1])} or {keys[-1]}', repr(thing)[:80])
    return usable


def _name_categories(categories: list[dict[str, Any]], tally: Tally) -> dict[Any, str]:
    """Category id -> its name in lower case; a repeated id keeps its first."""
    names: dict[Any, str] = {}
    for category in categories:
        if category['id'] in names:
            tally.drop('category id used twice', f'{category["id"]}: {category["name"]}')
        else:
            names[category['id']] = str(category['name']).strip().lower()
    return names


def _group_annotations(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], tally: Tally
) -> dict[Any, list[dict[str, Any]]]:
    """Image id -> its annotations; a repeated annotation id keeps its first."""
    known = {image['id'] for image in images}
    grouped: dict[Any, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    for annotation in annotations:
        key = str(annotation['id'])
        if key in seen:
            tally.drop('annotation id used twice', key)
        elif annotation['image_id'] not in known:
            tally.drop('annotation of an unknown image', key)
        else:
            grouped.setdefault(annotation['image_id'], []).append(annotation)
        seen.add(key)
    return grouped


def _start_page(
    folder: Path,
    image: Mapping[str, Any],
    split: Split,
    image_ids: set[Any],
    seen: dict[str, bool],
    tally: Tally,
    settings: ReadSettings,
) -> Page | None:
    """An empty page for one entry of `images`, or None with the reason counted."""
    name = str(image['file_name'])
    stem = Path(name).stem
    if image['id'] in image_ids or seen.get(stem):
        tally.drop('image listed twice', name)
        return None
    image_ids.add(image['id'])
    seen[stem] = False
    width, height = image['width'], image['height']
    if not all(isinstance(v, int) and not isinstance(v, bool) and 0 < v < LARGEST for v in (width, height)):
        tally.drop('image entry without a positive size', name)
        return None
    path, problem = find_image(folder, settings.image_folders, name)
    if path is None:
        tally.drop(problem, name)
        return None
    seen[stem] = True
    return Page(stem, str(path), width, height, settings.source, series=stem.split('_')[0], split=split)


def _fill_page(
    page: Page,
    annotations: list[dict[str, Any]],
    names: Mapping[Any, str],
    extra: Mapping[str, Any],
    tally: Tally,
    settings: ReadSettings,
) -> Page:
    """The page with its annotations and what the sidecar adds."""
    things: dict[str, list[Any]] = {'panel': [], 'character': [], 'balloon': [], 'region': []}
    fields_of = extra.get('annotations') or {}
    for annotation in annotations:
        where = f'{page.id}, annotation {annotation["id"]}'
        name = names.get(annotation['category_id'])
        role = settings.categories.get(name)
        if role is None:
            tally.drop(f'category not mapped: {name or annotation["category_id"]}', where)
        elif role == 'ignore':
            tally.drop(f'category ignored: {name}', where)
        elif (box := _box(annotation, page, tally, where, settings)) is not None:
            fields = fields_of.get(str(annotation['id']), {})
            things[role].append(_thing(role, name, annotation, box, fields, tally, where, settings))
    _count_orphans(page, annotations, fields_of, tally)
    return replace(
        page,
        series=tidy(extra.get('series')) or page.series,
        right_to_left=extra.get('reading_direction') == 'right_to_left',
        description=tidy(extra.get('description')),
        panels=_checked_orders(things['panel'], page, tally),
        characters=tuple(things['character']),
        balloons=_checked_speakers(_checked_orders(things['balloon'], page, tally), things['character'], page, tally),
        regions=tuple(things['region']),
    )


def _box(annotation: Mapping[str, Any], page: Page, tally: Tally, where: str, settings: ReadSettings) -> Box | None:
    """The annotation's box inside its page, or None with the reason counted."""
    xyxy = _raw_box(annotation)
    if xyxy is None:
        tally.drop('annotation without a usable bbox', where)
        return None
    box, changed = clip_box(xyxy, page.width, page.height, settings.min_side)
    if box is None:
        tally.drop('box outside its page, empty or not a number', where)
    elif changed:
        tally.lack('box clipped to its page', where)
    return box


def _raw_box(annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    bbox = annotation.get('bbox')
    if isinstance(bbox, list) and len(bbox) == 4 and all(_is_number(v) for v in bbox):
        x, y, w, h = bbox
        return x, y, x + w, y + h
    polygons = annotation.get('segmentation')
    if not isinstance(polygons, list):
        return None  # RLE, or nothing at all
    values = [p for p in polygons if isinstance(p, list) and len(p) >= 6 and all(_is_number(v) for v in p)]
    if not values:
        return None
    xs, ys = [x for p in values for x in p[0::2]], [y for p in values for y in p[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > LARGEST


def _thing(
    role: str,
    name: str,
    annotation: Mapping[str, Any],
    box: Box,
    fields: Mapping[str, Any],
    tally: Tally,
    where: str,
    settings: ReadSettings,
) -> Panel | Character | Balloon | Region:
    key = str(annotation['id'])
    if role == 'panel':
        return Panel(key, box, fields.get('reading_order'), bool(fields.get('round')), tidy(fields.get('description')))
    if role == 'balloon':
        speaker = fields.get('speaker')
        return Balloon(
            key, box, tidy(fields.get('text')), fields.get('reading_order'), None if speaker is None else str(speaker)
        )
    depth = _depth(annotation, tally, where, settings)
    if role == 'character':
        return Character(key, box, tidy(fields.get('identity')), tidy(fields.get('action')), depth)
    return Region(key, box, name, tidy(fields.get('text')), depth)


def _depth(annotation: Mapping[str, Any], tally: Tally, where: str, settings: ReadSettings) -> float | None:
    attributes = annotation.get('attributes')
    value = attributes.get('Interdepth') if isinstance(attributes, dict) else None
    if not _is_number(value) or not math.isfinite(value):
        tally.lack('depth missing or not a number', where)
        return None
    return float(value) if settings.larger_is_farther else -float(value)


# --- Agreement between annotations of one page


def _checked_orders(things: list[Any], page: Page, tally: Tally) -> tuple[Any, ...]:
    """The things with their reading orders, or with none if two share a place or only some have one."""
    orders = [thing.order for thing in things if thing.order is not None]
    if orders and (len(orders) != len(things) or len(set(orders)) != len(orders)):
        kind = type(things[0]).__name__.lower()
        tally.lack(f'{kind} reading order incomplete or ambiguous, left to geometry', page.id)
        return tuple(replace(thing, order=None) for thing in things)
    return tuple(things)


def _checked_speakers(
    balloons: tuple[Balloon, ...], characters: list[Character], page: Page, tally: Tally
) -> tuple[Balloon, ...]:
    known = {character.id for character in characters}
    checked = []
    for balloon in balloons:
        if balloon.speaker is not None and balloon.speaker not in known:
            tally.lack('speaker is not a character of the page', f'{page.id}, annotation {balloon.id}')
            balloon = replace(balloon, speaker=None)
        checked.append(balloon)
    return tuple(checked)


def _count_orphans(page: Page, annotations: list[dict[str, Any]], fields_of: Mapping[str, Any], tally: Tally) -> None:
    known = {str(annotation['id']) for annotation in annotations}
    for key in fields_of:
        if key not in known:
            tally.drop('sidecar annotation without an annotation', f'{page.id}, annotation {key}')
