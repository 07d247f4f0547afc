"""Reads a folder in AI4VA's format, or any COCO instances files of comics: page images, annotations with depth attributes, and an optional sidecar.

    FOLDER/images/NAME.png (or FOLDER/, FOLDER/train/, FOLDER/val/, FOLDER/test/; sub-folders are series)
    FOLDER/train-annotations.json, val-annotations.json, test-annotations.json     at least one; its split becomes `Page.split`
    FOLDER/sidecar.json                                                            what the public release lacks (sidecar.py)

The JSON files may lie in FOLDER/annotations/ too. Ids and sizes may be written 400, 400.0 or "400", paths as Windows or Unix writes them.
COCO's `bbox` [x, y, w, h] becomes (x1, y1, x2, y2). Masks (polygons, RLE, empty) are not used, except that the bounds of polygons stand in for a missing bbox.
`attributes.Interdepth` orders things inside a panel; by the look of the published renderings larger is farther, and `larger_is_farther` turns that round.
Intradepth orders the parts of one thing and is not used.

Source: Groenquist et al. 2024, "Unlocking Comics: The AI4VA Dataset for Visual Understanding".
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from input_pipeline.pictures import MAX_PIXELS
from input_pipeline.schema import Balloon, Box, Character, Page, Panel, Region, Split
from input_pipeline.sources.reading import (
    Progress,
    ReadReport,
    Tally,
    as_key,
    check_count,
    find_image,
    fit_box,
    keep_readable,
    path_parts,
    read_json,
    tidy,
    whole,
)
from input_pipeline.sources.sidecar import read_sidecar

Role = Literal['panel', 'character', 'balloon', 'region', 'ignore']
Thing = TypeVar('Thing', Panel, Balloon)

ANNOTATIONS: tuple[tuple[Split, str], ...] = (
    ('train', 'train-annotations.json'),
    ('validation', 'val-annotations.json'),
    ('test', 'test-annotations.json'),
)
TWICE = 'image listed twice'
LARGEST = 1e9  # no coordinate or depth is beyond it, and Python's unbounded integers would not fit a float

# What a category is here <- its names in lower case. Names absent from this table are counted in the report.
_NAMES: dict[Role, str] = {
    'panel': 'panel, panels, frame',
    'character': 'character, characters, person, animal',
    'balloon': 'speech balloon, speech balloons, speech bubble, speech bubbles, balloon, bubble',
    'region': 'text, text block, onomatopoeia, object, objects, prop, head, heads, hand, hands, advertisement, masthead',
    'ignore': 'background',
}
CATEGORIES: dict[str, Role] = {name: role for role, names in _NAMES.items() for name in names.split(', ')}


@dataclass(frozen=True)
class ReadSettings:
    """How a folder is read."""

    annotations: tuple[tuple[Split, str], ...] = ANNOTATIONS  # split -> file name in the folder or its annotations/
    # where page images are looked for, in this order
    image_folders: tuple[str, ...] = ('images', '.', 'train', 'val', 'test')
    sidecar: str = 'sidecar.json'  # file name in the folder or its annotations/; need not be there
    categories: Mapping[str, Role] = field(default_factory=CATEGORIES.copy)  # lower-case category name -> role
    larger_is_farther: bool = True  # direction of Interdepth
    source: str = 'ai4va'  # name of the source in pages and reports
    max_pixels: int = MAX_PIXELS  # px; larger images are not opened (decompression bombs)
    max_annotations: int = 1000  # of a page; one with more is left out: 200 to 260 are usual
    min_side: float = 2.0  # px; narrower or lower boxes are dropped
    threads: int = 2  # images decoded at once while they are checked
    # Decode each first, and leave out those that are broken; drawn pages are known to be whole.
    check_images: bool = True


def read(folder: str | Path, settings: ReadSettings, progress: Progress | None = None) -> tuple[list[Page], ReadReport]:
    """All pages of a folder in AI4VA's format, in the order of the annotation files, and the report of what was lost.

    Raises FileNotFoundError for a missing folder or no annotation file, ValueError for broken JSON or a malformed sidecar.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: expected the folder that holds AI4VA's annotation files and page images."
        )
    located = [(split, _locate(folder, name)) for split, name in settings.annotations]
    files = [(split, path) for split, path in located if path is not None]
    if not files:
        names = ', '.join(name for _, name in settings.annotations)
        raise FileNotFoundError(f'{folder} holds no annotation file: expected at least one of {names}.')
    sidecar = _locate(folder, settings.sidecar)
    reader = _Reader(folder, settings, Tally(), read_sidecar(sidecar) if sidecar else {})
    pages = [page for split, path in files for page in reader.read_file(path, split)]
    for name in sorted(reader.sidecar.keys() - reader.named):
        reader.tally.drop('sidecar page without annotations', name)
    if settings.check_images:
        pages = keep_readable(pages, reader.tally, settings.max_pixels, settings.threads, progress)
    return pages, reader.tally.report(settings.source, pages)


def _locate(folder: Path, name: str) -> Path | None:
    """The file in the folder or in its annotations/; ValueError where it is in both."""
    found = [path for path in (folder / name, folder / 'annotations' / name) if path.is_file()]
    if len(found) > 1:
        raise ValueError(f'{found[0]} lies in annotations/ too, and which of them counts is unknown: remove one.')
    return found[0] if found else None


@dataclass
class _Reader:
    """A folder while it is read."""

    folder: Path
    settings: ReadSettings
    tally: Tally
    sidecar: dict[str, dict[str, Any]]  # path of an image, with '/' -> what the sidecar says about its page
    named: set[str] = field(default_factory=set)  # the sidecar's pages that an annotation file lists
    images: set[Path] = field(default_factory=set)  # that have become a page, without links
    page_ids: set[str] = field(default_factory=set)  # in lower case: they become file names

    # ------------------------------------------------------------ a file of COCO's

    def read_file(self, path: Path, split: Split) -> Iterator[Page]:
        """The pages of one annotation file; images are found but not yet decoded."""
        coco = read_json(path, object)
        for key in ('images', 'annotations', 'categories'):
            if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
                raise ValueError(f'{path} is not a COCO instances file: it has no list {key!r}.')
        names = self._name_categories(coco['categories'])
        images: dict[str, dict[str, Any]] = {}
        for image in self._entries(coco['images'], 'image', ('id',), ('file_name',)):
            if images.setdefault(image['id'], image) is not image:
                self.tally.drop(TWICE, f'{image["id"]}: {image["file_name"]}')
        annotations = self._group_annotations(coco['annotations'], images)
        for key, image in images.items():
            found = annotations.get(key, {})
            page = self._start_page(image, split, path.name.split('-')[0])
            if page is None:
                self.tally.lost_with_pages += len(found)
            elif check_count(page.id, len(found), self.settings.max_annotations, self.tally):
                yield self._fill_page(page, found, names, self._about(image['file_name'], page))

    def _entries(
        self, things: list[Any], kind: str, keys: tuple[str, ...], texts: tuple[str, ...] = ()
    ) -> Iterator[dict[str, Any]]:
        """The things that are objects with ids under `keys`, spelled alike, and texts or numbers under `texts`; the others are counted."""
        for thing in things:
            entry = thing if isinstance(thing, dict) else {}
            ids = {key: as_key(entry.get(key)) for key in keys}
            words = {key: str(entry[key]) for key in texts if isinstance(entry.get(key), str | int)}
            if None in ids.values() or len(words) < len(texts):
                *most, last = keys + texts
                expected = f'{", ".join(most)} or {last}'
                self.tally.drop(f'{kind} without a usable {expected}', reprlib.repr(thing)[:80])
            else:
                yield entry | ids | words

    def _name_categories(self, categories: list[Any]) -> dict[str, str]:
        """Category id -> its name in lower case; a repeated id keeps its first."""
        names: dict[str, str] = {}
        for category in self._entries(categories, 'category', ('id',), ('name',)):
            if category['id'] in names:
                self.tally.drop('category id used twice', f'{category["id"]}: {category["name"]}')
            else:
                names[category['id']] = (tidy(category['name']) or '').lower()
        return names

    def _group_annotations(self, things: list[Any], images: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
        """Image id -> annotation id -> annotation; an id that repeats on its image keeps its first."""
        grouped: dict[str, dict[str, dict[str, Any]]] = {}
        for annotation in self._entries(things, 'annotation', ('id', 'image_id', 'category_id')):
            of_image = grouped.setdefault(annotation['image_id'], {})
            if annotation['image_id'] not in images:
                self.tally.drop('annotation of an unknown image', annotation['id'])
            elif annotation['id'] in of_image:
                self.tally.drop('annotation id used twice', annotation['id'])
            else:
                of_image[annotation['id']] = annotation
        return grouped

    # ------------------------------------------------------------ a page

    def _start_page(self, image: Mapping[str, Any], split: Split, prefix: str) -> Page | None:
        """An empty page for one entry of `images`, or None with the reason counted."""
        name, (width, height) = image['file_name'], (whole(image.get(key)) for key in ('width', 'height'))
        parts = self._page_parts(name)
        self.named |= {'/'.join(parts), '/'.join(path_parts(name))}
        if not all(v is not None and 0 < v < LARGEST for v in (width, height)):
            self.tally.drop('image entry without a positive size', name)
            return None
        of_split = (prefix, f'images/{prefix}')  # each split may number its images anew
        path, problem = find_image(self.folder, (*of_split, *self.settings.image_folders), name)
        if path is None or path.resolve() in self.images:
            self.tally.drop(problem or TWICE, name)
            return None
        self.images.add(path.resolve())
        page_id = self._new_id('_'.join((*parts[:-1], Path(parts[-1]).stem)))
        series = parts[0] if len(parts) > 1 else page_id.split('_')[0]
        return Page(page_id, str(path), width, height, self.settings.source, series=tidy(series) or '?', split=split)

    def _page_parts(self, name: str) -> tuple[str, ...]:
        """The folders and the file of an image below the folders where images are looked for."""
        parts = path_parts(name)
        while len(parts) > 1 and parts[0] in self.settings.image_folders:
            parts = parts[1:]
        return parts

    def _new_id(self, name: str) -> str:
        """A page id that no other page has: the name, or the name with a number where two files would share it."""
        name = page_id = tidy(name) or '?'
        number = 1
        while page_id.lower() in self.page_ids:
            number += 1
            page_id = f'{name}-{number}'
        self.page_ids.add(page_id.lower())
        return page_id

    def _about(self, name: str, page: Page) -> dict[str, Any]:
        """What the sidecar says about a page, under the image's path in the folder, its name in the annotation file, or below images/."""
        path = Path(page.image).relative_to(self.folder.absolute())
        spellings = [path.as_posix(), '/'.join(path_parts(name)), '/'.join(self._page_parts(name))]
        self.named.update(spellings)
        return next((self.sidecar[spelling] for spelling in spellings if spelling in self.sidecar), {})

    def _fill_page(
        self, page: Page, annotations: Mapping[str, Any], names: Mapping[str, str], about: Mapping[str, Any]
    ) -> Page:
        """The page with its annotations and what the sidecar adds."""
        things: dict[Role, list[Any]] = {role: [] for role in get_args(Role)}
        facts, size = about.get('annotations') or {}, (page.width, page.height)
        for key, annotation in annotations.items():
            where = f'{page.id}, annotation {key}'
            name = names.get(annotation['category_id'])
            role = self.settings.categories.get(name)
            if role is None:
                self.tally.drop(f'category not mapped: {name or annotation["category_id"]}', where)
            elif role == 'ignore':
                self.tally.drop(f'category ignored: {name}', where)
            elif (corners := _corners(annotation)) is None:
                self.tally.drop('annotation without a usable bbox', where)
            elif (box := fit_box(corners, size, self.settings.min_side, self.tally, where)) is not None:
                things[role].append(self._thing(role, key, name, annotation, box, facts.get(key, {}), where))
        for key in sorted(facts.keys() - annotations.keys()):
            self.tally.drop('sidecar annotation without an annotation', f'{page.id}, annotation {key}')
        balloons = self._known_speakers(self._whole_order(things['balloon'], page), things['character'], page)
        return replace(
            page,
            series=tidy(about.get('series')) or page.series,
            right_to_left=about.get('reading_direction') == 'right_to_left',
            description=tidy(about.get('description')),
            panels=self._whole_order(things['panel'], page),
            characters=tuple(things['character']),
            balloons=balloons,
            regions=tuple(things['region']),
        )

    # ------------------------------------------------------------ a thing

    def _thing(
        self,
        role: Role,
        key: str,
        name: str,
        annotation: Mapping[str, Any],
        box: Box,
        facts: Mapping[str, Any],
        where: str,
    ) -> Panel | Character | Balloon | Region:
        order, text = facts.get('reading_order'), tidy(facts.get('text'))
        if role == 'panel':
            return Panel(key, box, order, bool(facts.get('round')), tidy(facts.get('description')))
        if role == 'balloon':
            return Balloon(key, box, text, order, facts.get('speaker'))
        depth = self._depth(annotation, where)
        if role == 'character':
            return Character(key, box, tidy(facts.get('identity')), tidy(facts.get('action')), depth)
        return Region(key, box, name, text, depth)

    def _depth(self, annotation: Mapping[str, Any], where: str) -> float | None:
        attributes = annotation.get('attributes')
        value = attributes.get('Interdepth') if isinstance(attributes, dict) else None
        if not _is_number(value) or not math.isfinite(value):
            self.tally.lack('depth missing or not a number', where)
            return None
        return float(value) if self.settings.larger_is_farther else -float(value)

    # ------------------------------------------------------------ agreement between a page's annotations

    def _whole_order(self, things: list[Thing], page: Page) -> tuple[Thing, ...]:
        """The things with their reading orders, or with none if two share a place or only some have one."""
        orders = [thing.order for thing in things if thing.order is not None]
        if orders and (len(orders) != len(things) or len(set(orders)) != len(orders)):
            kind = type(things[0]).__name__.lower()
            self.tally.lack(f'{kind} reading order incomplete or ambiguous, left to geometry', page.id)
            return tuple(replace(thing, order=None) for thing in things)
        return tuple(things)

    def _known_speakers(
        self, balloons: tuple[Balloon, ...], characters: list[Character], page: Page
    ) -> tuple[Balloon, ...]:
        known = {None, *(character.id for character in characters)}
        for balloon in balloons:
            if balloon.speaker not in known:
                self.tally.lack('speaker is not a character of the page', f'{page.id}, annotation {balloon.id}')
        return tuple(b if b.speaker in known else replace(b, speaker=None) for b in balloons)


def _corners(annotation: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 of the bbox, or of the polygons around the thing."""
    bbox, polygons = annotation.get('bbox'), annotation.get('segmentation')
    if _are_numbers(bbox) and len(bbox) == 4:
        x, y, w, h = bbox
        return x, y, x + w, y + h
    shapes = polygons if isinstance(polygons, list) else []  # else RLE, or nothing at all
    shapes = [shape for shape in shapes if _are_numbers(shape) and len(shape) >= 6]
    if not shapes:
        return None
    xs, ys = ([v for shape in shapes for v in shape[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > LARGEST
