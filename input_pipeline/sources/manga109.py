"""Reads Manga109: one XML a book, double pages, read right to left; with the public add-ons where they lie beside it.

    FOLDER/annotations/BOOK.xml        <book title><characters><character id name/></characters>
                                       <pages><page index width height> <frame/> <text>...</text> <face character/> <body character/> </page></pages></book>
    FOLDER/images/BOOK/000.jpg         by page index; one image shows two facing pages
    FOLDER/Manga109Dialog/BOOK.xml     optional: <page index ...><speaker_to_text id text_id speaker_id/></page>, the speaker being a <body>
    FOLDER/COO/BOOK.xml                optional: <page index ...><onomatopoeia id x0 y0 ... xN yN>text</onomatopoeia></page>
    FOLDER/MangaUB/character_count.csv optional: panel_id,n_characters as people counted them

Every <frame>, <text>, <face> and <body> has id, xmin, ymin, xmax, ymax in pixels of the double page; ids are unique in the book.
A <body> becomes a Character named by its book's list, a <text> a Balloon, a <face> a Region 'head', an <onomatopoeia> a Region. There are no actions,
depths or reading orders. People's counts are of single panels, while character_counting asks about pages: they are told in the report and not used.

Sources: Matsui et al. 2017 (arXiv 1510.04389), Ogawa et al. 2018 (arXiv 1803.08670), Manga109Dialog: Li et al. 2024 (arXiv 2306.17469),
COO: Baek et al. 2022 (arXiv 2207.04675), MangaUB: Ikuta et al. 2024 (arXiv 2407.19034).
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.etree import ElementTree

from input_pipeline.pictures import MAX_PIXELS
from input_pipeline.schema import Balloon, Box, Character, Page, Panel, Region
from input_pipeline.sources.reading import (
    Progress,
    ReadReport,
    Tally,
    check_count,
    find_image,
    fit_box,
    keep_readable,
    tidy,
    whole,
)

SUFFIXES = ('.jpg', '.png', '.jpeg', '.webp')
THINGS = ('frame', 'body', 'text', 'face', 'onomatopoeia')
_PARENTHESES = re.compile(r'\([^()]*\)?')

Element = ElementTree.Element


@dataclass(frozen=True)
class ReadSettings:
    """How a folder is read."""

    books: tuple[str, ...] = ()  # names of the books to read, as in their file names; () = all
    dialog: str = 'Manga109Dialog'  # folder of the speaker links, in the same folder; need not be there
    # folders of the onomatopoeia, the first that is there; none need be
    onomatopoeia: tuple[str, ...] = ('COO', 'COO-Comic-Onomatopoeia/v2022.07.07')
    counts: str = 'MangaUB/character_count.csv'  # people's counts of panels; need not be there
    right_to_left: bool = True  # reading direction
    # names that stand for nobody in particular, in any spelling (see `plain_name`): no identity
    anonymous: tuple[str, ...] = ('Other', 'Ohter', 'その他')
    source: str = 'manga109'  # name of the source in pages and reports
    max_pixels: int = MAX_PIXELS  # px; larger images are not opened
    max_annotations: int = 1000  # of a page; one with more is left out
    min_side: float = 2.0  # px; narrower or lower boxes are dropped
    threads: int = 2  # images decoded at once while they are checked


def read(folder: str | Path, settings: ReadSettings, progress: Progress | None = None) -> tuple[list[Page], ReadReport]:
    """All annotated pages in the order of the books' names, and the report of what was lost. No page has a split.

    Raises FileNotFoundError for a missing folder or book, ValueError for a file that is not Manga109's XML or MangaUB's CSV.
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
    anonymous, counts = frozenset(map(plain_name, settings.anonymous)), read_counts(folder / settings.counts, tally)
    chosen = [path for path in books if not wanted or path.stem in wanted]
    readers = [_Book(folder, path.stem, settings, tally, anonymous, counts) for path in chosen]
    pages = [page for reader in readers for page in reader.read()]
    for panel in counts:
        tally.drop("people's count of a panel that is in none of the books", f'panel {panel}')
    pages = keep_readable(pages, tally, settings.max_pixels, settings.threads, progress)
    return pages, tally.report(settings.source, pages)


# ---------------------------------------------------------------- files


def parse_xml(path: Path) -> Element:
    """The <book> of an XML file. One that declares entities is refused: they are what XML attacks are made of, and no comic needs them."""
    try:
        text = path.read_text(encoding='utf-8-sig')
    except UnicodeDecodeError:
        raise ValueError(f'{path} is not UTF-8 text: it is no annotation file of Manga109; copy it again.') from None
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise ValueError(
            f'{path} declares a document type or entities, which is refused: remove the declaration, Manga109 has none.'
        )
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f'{path} is not valid XML ({error}): it is cut off or damaged; copy it again.') from None
    if root.tag != 'book':
        raise ValueError(f'{path} starts with <{root.tag}>, expected <book>: it is no annotation file of Manga109.')
    return root


def read_counts(path: Path, tally: Tally) -> dict[str, int]:
    """Panel id -> how many characters people counted in it; {} where the add-on is not there."""
    if not path.is_file():
        return {}
    counts: dict[str, int] = {}
    try:
        with path.open(encoding='utf-8-sig', newline='') as file:
            for row in csv.DictReader(file):
                panel, number = row.get('panel_id'), whole(row.get('n_characters'))
                if panel and number is not None and panel not in counts:
                    counts[panel] = number
                else:
                    tally.drop("people's count without panel_id or n_characters, or of a panel twice", str(panel)[:80])
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not a CSV file in UTF-8 ({error}): copy it again or remove it.') from None
    return counts


# ---------------------------------------------------------------- texts


def plain_name(name: str) -> str:
    """What the spellings of one anonymous name share: 'Other', 'the other', '_Others', 'Ｏｔｈｅｒ' and 'Other（a guest）' are 'other'."""
    name = unicodedata.normalize('NFKC', name).casefold()
    without_role = _PARENTHESES.sub(' ', name)
    words = (without_role if without_role.strip(' _') else name).replace('_', ' ').strip(' ()').split()
    return ' '.join(words[words[:1] == ['the'] :]).removesuffix('s')


def join_lines(text: str) -> str | None:
    """A balloon's text on one line. It is broken where the drawing breaks it: Japanese has no spaces to keep, between words of ASCII they stay."""
    line = ''
    for word in text.split():
        line += (' ' if line[-1:].isascii() and word[0].isascii() and line else '') + word
    return line or None


def _number(text: str | None) -> float | None:
    """None for what is no finite number."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------- books


@dataclass
class _Book:
    """A book while it is read."""

    folder: Path
    name: str
    settings: ReadSettings
    tally: Tally
    anonymous: frozenset[str]  # plain names that are nobody's
    counts: dict[str, int]  # people's counts of the panels that have not been met yet
    names: dict[str | None, str | None] = field(default_factory=dict)  # id of a character -> who it is
    speakers: dict[str, set[str]] = field(default_factory=dict)  # id of a text -> ids of the bodies that speak it

    def read(self) -> Iterator[Page]:
        """The pages; images are found but not yet decoded."""
        root = parse_xml(self.folder / 'annotations' / f'{self.name}.xml')
        for character in root.iterfind('characters/character'):
            if character.get('id') in self.names:
                self.tally.drop('character listed twice', f'{self.name}, character {character.get("id")}')
            self.names.setdefault(character.get('id'), tidy(character.get('name')))
        self._count_strays(root)
        self._link_speakers({text.get('id') for text in root.iter('text')})
        sounds = self._read_sounds()
        seen = set()
        for element in root.iterfind('pages/page'):
            where = f'{self.name}, page {element.get("index")}'
            index, *size = (whole(element.get(key)) for key in ('index', 'width', 'height'))
            numbered = index is not None and None not in size and min(size) > 0
            children = [*element, *(sounds.pop(index, ()) if numbered else ())]
            if not numbered or index in seen or not children:
                problem = 'listed twice' if index in seen else 'without annotations'
                self.tally.drop(f'page {problem if numbered else "without index, width or height"}', where)
                self.tally.lost_with_pages += len(children)
                continue
            seen.add(index)
            if check_count(where, len(children), self.settings.max_annotations, self.tally):
                yield from self._read_page(index, tuple(size), children)
        for index, things in sounds.items():
            for thing in things:
                where = f'{self.name}, page {index}, {thing.get("id")}'
                self.tally.drop('onomatopoeia of a page that its book lacks', where)

    def _count_strays(self, root: Element) -> None:
        """Counts what stands where no reader looks: between pages, inside another thing."""
        for parent in root.iter():
            for child in parent:
                if child.tag in THINGS and parent.tag != 'page':
                    self.tally.drop(f'{child.tag} outside every page', f'{self.name}, {child.tag} {child.get("id")}')
                elif (child.tag == 'page') != (parent.tag == 'pages'):
                    self.tally.drop(f'element out of its place: {child.tag}', f'{self.name}, in {parent.tag}')

    def _link_speakers(self, texts: set[str | None]) -> None:
        """Fills `speakers` where the add-on is there."""
        path = self.folder / self.settings.dialog / f'{self.name}.xml'
        for link in parse_xml(path).iter('speaker_to_text') if path.is_file() else ():
            text, speaker = link.get('text_id'), link.get('speaker_id')
            where = f'{self.name}, link {link.get("id")}'
            if not text or not speaker:
                self.tally.drop('dialog link without a text or a speaker', where)
            elif text not in texts:
                self.tally.drop('dialog link to a text that its book lacks', where)
            else:
                self.speakers.setdefault(text, set()).add(speaker)

    def _read_sounds(self) -> dict[int | None, list[Element]]:
        """Page index -> its onomatopoeia; {} where the add-on is not there."""
        paths = [self.folder / name / f'{self.name}.xml' for name in self.settings.onomatopoeia]
        path = next((path for path in paths if path.is_file()), None)
        sounds: dict[int | None, list[Element]] = {}
        for page in parse_xml(path).iter('page') if path else ():
            if len(page):
                sounds.setdefault(whole(page.get('index')), []).extend(page)
        return sounds

    # ------------------------------------------------------------ a page

    def _read_page(self, index: int, size: tuple[int, int], children: list[Element]) -> Iterator[Page]:
        """The page of `size` (width, height; px), or nothing with the reason counted."""
        where = f'{self.name}, page {index}'
        found = (find_image(self.folder, ('images',), f'{self.name}/{index:03d}{suffix}')[0] for suffix in SUFFIXES)
        image = next((path for path in found if path is not None), None)
        if image is None:
            self.tally.drop('image file missing', f'{self.name}/{index:03d}.jpg')
            self.tally.lost_with_pages += len(children)
            return
        things = self._read_things(children, size, where)
        bodies = {body.id for body in things['body']}
        yield Page(
            id=f'{self.name}_{index:03d}',
            image=str(image),
            width=size[0],
            height=size[1],
            source=self.settings.source,
            series=self.name,
            right_to_left=self.settings.right_to_left,
            double=size[0] > size[1],
            panels=tuple(things['frame']),
            characters=tuple(things['body']),
            balloons=tuple(self._with_speaker(text, bodies, where) for text in things['text']),
            regions=(*things['face'], *things['onomatopoeia']),
        )

    def _read_things(self, children: list[Element], size: tuple[int, int], page: str) -> dict[str, list]:
        """What the page holds, by element name."""
        things: dict[str, list] = {tag: [] for tag in THINGS}
        seen: set[str] = set()
        for child in children:
            key, where = child.get('id'), f'{page}, {child.tag} {child.get("id")}'
            if child.tag not in things:
                self.tally.drop(f'element not mapped: {child.tag}', where)
            elif key in seen or not key:
                self.tally.drop('annotation id missing or used twice', where)
            elif (corners := _corners(child)) is None:
                self.tally.drop('annotation without a usable box', where)
            elif (box := fit_box(corners, size, self.settings.min_side, self.tally, where)) is not None:
                seen.add(key)
                things[child.tag].append(self._thing(child, key, box, where))
        return things

    def _thing(self, child: Element, key: str, box: Box, where: str) -> Panel | Character | Balloon | Region:
        if child.tag == 'frame':
            if self.counts.pop(key, None) is not None:
                self.tally.lack("people's count of a panel, not used: counting asks about whole pages", where)
            return Panel(key, box)
        if child.tag == 'text':
            return Balloon(key, box, join_lines(child.text or ''))
        if child.tag == 'face':
            return Region(key, box, 'head')
        if child.tag == 'onomatopoeia':
            return Region(key, box, 'onomatopoeia', join_lines(child.text or ''))
        name = self.names.get(child.get('character'))
        if name is None:
            self.tally.lack('character not in the list of its book', where)
        elif plain_name(name) in self.anonymous:
            self.tally.lack('character of an anonymous name, left without identity', f'{where}: {name}')
            name = None
        return Character(key, box, name)

    def _with_speaker(self, text: Balloon, bodies: set[str], page: str) -> Balloon:
        """The text with its one speaker, if it is a body of the page."""
        found, where = self.speakers.get(text.id, set()), f'{page}, text {text.id}'
        if found - bodies:
            self.tally.lack('speaker is not a body of the page', where)
        if len(found) > 1:
            self.tally.lack('text of several speakers, left without one', where)
        known = found if len(found) == 1 and found <= bodies else {None}
        return replace(text, speaker=next(iter(known)))


def _corners(child: Element) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 of an element's box, or around its polygon; None where a corner is no number."""
    values = [_number(child.get(key)) for key in ('xmin', 'ymin', 'xmax', 'ymax')]
    if child.tag == 'onomatopoeia':
        points = range(len(child.attrib) // 2)
        xs, ys = ([_number(child.get(f'{axis}{i}')) for i in points if f'x{i}' in child.attrib] for axis in 'xy')
        values = [*map(min, (xs, ys)), *map(max, (xs, ys))] if xs and None not in xs + ys else [None]
    return None if None in values else tuple(values)
