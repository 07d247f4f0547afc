"""Reads Manga109: one XML a book, double pages, read right to left; with Manga109Dialog's links from text to speaker where they are there.

    FOLDER/annotations/BOOK.xml        <book title><characters><character id name/></characters>
                                       <pages><page index width height> <frame/> <text>...</text> <face character/> <body character/> </page></pages></book>
    FOLDER/images/BOOK/000.jpg         by page index; one image shows two facing pages
    FOLDER/Manga109Dialog/BOOK.xml     optional: <page index ...><speaker_to_text id text_id speaker_id/></page>, the speaker being a <body>

Every <frame>, <text>, <face> and <body> has id, xmin, ymin, xmax, ymax in pixels of the double page; ids are unique in the book.
A <body> becomes a Character named by its book's list, a <text> a Balloon, a <face> a Region 'head'. There are no actions, depths or reading orders.

Sources: Matsui et al. 2017 (arXiv 1510.04389), Ogawa et al. 2018 (arXiv 1803.08670), Manga109Dialog: Li et al. 2024 (arXiv 2306.17469).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from input_pipeline.schema import Balloon, Box, Character, Page, Panel, Region
from input_pipeline.sources.reading import Progress, ReadReport, Tally, clip_box, find_image, keep_readable, tidy

SUFFIXES = ('.jpg', '.png')
# Lines of a balloon are broken where the drawing breaks them. Japanese has no spaces to keep; between words of ASCII they stay.
_JAPANESE_SPACE = re.compile(r'(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])')


@dataclass(frozen=True)
class ReadSettings:
    """How a folder is read."""

    books: tuple[str, ...] = ()  # names of the books to read, as in their file names; () = all
    dialog: str = 'Manga109Dialog'  # folder of the speaker links, in the same folder; need not be there
    right_to_left: bool = True  # reading direction
    anonymous: tuple[str, ...] = ('Other', 'その他')  # names that stand for nobody in particular: no identity
    source: str = 'manga109'  # name of the source in pages and reports
    max_pixels: int = 40_000_000  # px; larger images are not opened
    min_side: float = 2.0  # px; narrower or lower boxes are dropped
    threads: int = 2  # images decoded at once while they are checked


def read(folder: str | Path, settings: ReadSettings, progress: Progress | None = None) -> tuple[list[Page], ReadReport]:
    """All annotated pages in the order of the books' names, and the report of what was lost. No page has a split.

    Raises FileNotFoundError for a missing folder or book, ValueError for a file that is not Manga109's XML.
    """
    folder = Path(folder)
    books = sorted((folder / 'annotations').glob('*.xml'))
    if not books:
        raise FileNotFoundError(
            f'{folder} holds no annotations/BOOK.xml: expected the folder that Manga109 unpacks to.'
        )
    wanted = set(settings.books)
    if missing := wanted - {book.stem for book in books}:
        raise FileNotFoundError(
            f'{folder}/annotations has no book {sorted(missing)[0]!r}: correct `books` or copy its XML there.'
        )
    tally = Tally()
    pages: list[Page] = []
    for book in books:
        if not wanted or book.stem in wanted:
            pages += _read_book(folder, book, tally, settings)
    pages = keep_readable(pages, tally, settings.max_pixels, settings.threads, progress)
    return pages, tally.report(settings.source, pages)


def parse_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. One that declares entities is refused: they are what XML attacks are made of, and no comic needs them."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise ValueError(f'{path} is not UTF-8 text: it is no annotation file of Manga109; copy it again.') from None
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise ValueError(
            f'{path} declares a document type or entities, which is refused: remove the declaration, Manga109 has none.'
        )
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f'{path} is not valid XML ({error}): it is cut off or damaged; copy it again.') from None


def _read_book(folder: Path, path: Path, tally: Tally, settings: ReadSettings) -> list[Page]:
    root = parse_xml(path)
    if root.tag != 'book':
        raise ValueError(f'{path} starts with <{root.tag}>, expected <book>: it is no annotation file of Manga109.')
    names = {character.get('id'): character.get('name') for character in root.iterfind('characters/character')}
    speakers = _read_speakers(folder / settings.dialog / path.name)
    pages, seen = [], set()
    for element in root.iterfind('pages/page'):
        where = f'{path.stem}, page {element.get("index")}'
        index, width, height = (_number(element.get(key)) for key in ('index', 'width', 'height'))
        if index is None or not width or not height or width < 0 or height < 0:
            tally.drop('page without index, width or height', where)
            tally.lost_with_pages += len(element)
        elif index in seen:
            tally.drop('page listed twice', where)
            tally.lost_with_pages += len(element)
        elif len(element) == 0:
            tally.drop('page without annotations', where)
        else:
            seen.add(index)
            pages += _read_page(
                folder, path.stem, element, (int(index), int(width), int(height)), names, speakers, tally, settings
            )
    return pages


def _read_speakers(path: Path) -> dict[str, str]:
    """Id of a text -> id of the body that speaks it; {} where the add-on is not there."""
    if not path.is_file():
        return {}
    links = parse_xml(path).iter('speaker_to_text')
    return {link.get('text_id'): link.get('speaker_id') for link in links}


def _read_page(
    folder: Path,
    book: str,
    element: ElementTree.Element,
    numbers: tuple[int, int, int],
    names: dict[str | None, str | None],
    speakers: dict[str, str],
    tally: Tally,
    settings: ReadSettings,
) -> list[Page]:
    """The page in a list, or [] with the reason counted."""
    index, width, height = numbers
    image = _find(folder, book, index)
    if image is None:
        tally.drop('image file missing', f'{book}/{index:03d}.jpg')
        tally.lost_with_pages += len(element)
        return []
    things = _read_things(element, (book, index, width, height), names, tally, settings)
    balloons = _with_speakers(
        things['text'], speakers, {body.id for body in things['body']}, tally, f'{book}, page {index}'
    )
    page = Page(
        id=f'{book}_{index:03d}',
        image=str(image),
        width=width,
        height=height,
        source=settings.source,
        series=book,
        right_to_left=settings.right_to_left,
        double=width > height,
        panels=tuple(things['frame']),
        characters=tuple(things['body']),
        balloons=balloons,
        regions=tuple(things['face']),
    )
    return [page]


def _read_things(
    element: ElementTree.Element,
    page: tuple[str, int, int, int],  # book, index, width, height
    names: dict[str | None, str | None],
    tally: Tally,
    settings: ReadSettings,
) -> dict[str, list]:
    """What the page holds, by element name."""
    book, index, width, height = page
    things: dict[str, list] = {'frame': [], 'body': [], 'text': [], 'face': []}
    seen: set[str] = set()
    for child in element:
        where = f'{book}, page {index}, {child.tag} {child.get("id")}'
        if child.tag not in things:
            tally.drop(f'element not mapped: {child.tag}', where)
        elif child.get('id') in seen or not child.get('id'):
            tally.drop('annotation id missing or used twice', where)
        elif (box := _box(child, width, height, tally, where, settings)) is not None:
            seen.add(child.get('id'))
            things[child.tag].append(_thing(child, box, names, tally, where, settings))
    return things


def _find(folder: Path, book: str, index: int) -> Path | None:
    for suffix in SUFFIXES:
        path, _ = find_image(folder, ('images',), f'{book}/{index:03d}{suffix}')
        if path is not None:
            return path
    return None


def _box(
    child: ElementTree.Element, width: int, height: int, tally: Tally, where: str, settings: ReadSettings
) -> Box | None:
    corners = [_number(child.get(key)) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    if None in corners:
        tally.drop('annotation without a usable box', where)
        return None
    box, changed = clip_box(corners, width, height, settings.min_side)
    if box is None:
        tally.drop('box outside its page, empty or not a number', where)
    elif changed:
        tally.lack('box clipped to its page', where)
    return box


def _thing(
    child: ElementTree.Element,
    box: Box,
    names: dict[str | None, str | None],
    tally: Tally,
    where: str,
    settings: ReadSettings,
) -> Panel | Character | Balloon | Region:
    key = child.get('id')
    if child.tag == 'frame':
        return Panel(key, box)
    if child.tag == 'text':
        return Balloon(key, box, tidy(_JAPANESE_SPACE.sub('', child.text or '')))
    if child.tag == 'face':
        return Region(key, box, 'head')
    name = names.get(child.get('character'))
    if name is None:
        tally.lack('character not in the list of its book', where)
    return Character(key, box, None if name in settings.anonymous else name)


def _with_speakers(
    balloons: list[Balloon], speakers: dict[str, str], bodies: set[str], tally: Tally, where: str
) -> tuple[Balloon, ...]:
    linked = []
    for balloon in balloons:
        speaker = speakers.get(balloon.id)
        if speaker is not None and speaker not in bodies:
            tally.lack('speaker is not a body of the page', f'{where}, text {balloon.id}')
            speaker = None
        linked.append(Balloon(balloon.id, balloon.box, balloon.text, None, speaker))
    return tuple(linked)


def _number(text: str | None) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
