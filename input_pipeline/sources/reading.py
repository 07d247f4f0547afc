"""What every reader of a source shares: counting what is lost, clipping boxes, finding and checking images.

A reader never drops anything in silence: it either refuses a folder with one sentence, or counts the loss in a `Tally`, whose `ReadReport` goes into the build report.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from input_pipeline.pictures import MAX_ASPECT, PictureError, decode_turned
from input_pipeline.schema import Box, Page

T = TypeVar('T')

EXAMPLES, REASONS = 5, 100  # names kept for each reason, and reasons told apart
LONGEST = 200  # characters of a name or a reason
OUTSIDE = 'image name points outside the folder'
_WHOLE = re.compile(r'\s*([+-]?\d{1,30})(?:\.0*)?\s*')

Progress = Callable[[int, int], None]  # told how many of how many pages are read


@dataclass(frozen=True)
class ReadReport:
    """What a reader found and what it had to leave out."""

    source: str  # name of the source
    pages: int  # pages handed on
    annotations: int  # annotations handed on
    lost_with_pages: int  # annotations of pages that were left out
    dropped: dict[str, int]  # reason -> pages or annotations left out for it
    incomplete: dict[str, int]  # reason -> annotations or pages kept, but changed or without a field
    examples: dict[str, tuple[str, ...]]  # reason -> the first few names it applies to


@dataclass
class Tally:
    """Counts losses while a source is read."""

    lost_with_pages: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    incomplete: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, name: str) -> None:
        """Counts something left out."""
        self._count(self.dropped, reason, name)

    def lack(self, reason: str, name: str) -> None:
        """Counts something kept that lost a field or was changed."""
        self._count(self.incomplete, reason, name)

    def _count(self, counter: Counter[str], reason: str, name: str) -> None:
        # Both may hold what a file says: half a surrogate pair cannot be written, and a report stays short.
        reason, name = (text.encode('utf-8', 'replace').decode()[:LONGEST] for text in (reason, name))
        if reason not in counter and len(counter) >= REASONS:
            reason = f'{reason.split(":")[0]}: others'
        counter[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def report(self, source: str, pages: Sequence[Page]) -> ReadReport:
        return ReadReport(
            source=source,
            pages=len(pages),
            annotations=sum(map(count_annotations, pages)),
            lost_with_pages=self.lost_with_pages,
            dropped=dict(self.dropped.most_common()),
            incomplete=dict(self.incomplete.most_common()),
            examples={reason: tuple(names) for reason, names in self.examples.items()},
        )


def check_count(page: str, annotations: int, most: int, tally: Tally) -> bool:
    """Whether a page holds no more than `most` annotations; one that holds more is counted as left out."""
    if annotations > most:
        tally.drop(f'page with more than {most} annotations', page)
        tally.lost_with_pages += annotations
    return annotations <= most


def count_annotations(page: Page) -> int:
    """How many things a page holds."""
    return len(page.panels) + len(page.characters) + len(page.balloons) + len(page.regions)


# ---------------------------------------------------------------- what sources write, as it is meant


def read_json(path: Path, kind: type[T] = dict) -> T:
    """The content of a JSON file in any of Unicode's encodings, with or without a byte order mark; ValueError if it is none or holds no `kind`."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = 'nested too deep' if isinstance(error, RecursionError) else error
        raise ValueError(
            f'{path} is not valid JSON ({reason}): it is cut off or not an annotation file; copy it again.'
        ) from None
    if not isinstance(content, kind):
        raise ValueError(
            f'{path} holds a {type(content).__name__}, expected a {kind.__name__}: it is no annotation file.'
        )
    return content


def tidy(text: str | None) -> str | None:
    """A text from a source on one line with single spaces; None where there is no word in it. Half a surrogate pair becomes '?'."""
    return ' '.join((text or '').encode('utf-8', 'replace').decode().split()) or None


def whole(value: object) -> int | None:
    """The whole number meant by 400, 400.0, '400' or ' 400.0 '; None for anything else."""
    if isinstance(value, str):
        number = _WHOLE.fullmatch(value)
        return int(number[1]) if number else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def as_key(value: object) -> str | None:
    """An id as text, the same for every spelling of a whole number; None for what is no id."""
    number = whole(value)
    return str(number) if number is not None else value.strip() or None if isinstance(value, str) else None


def fit_box(corners: Sequence[float], size: tuple[int, int], min_side: float, tally: Tally, where: str) -> Box | None:
    """The part of a box (x1, y1, x2, y2 px) on its page of `size` (width, height).

    None, with the reason counted, for a box that is not finite, is reversed, or whose part on the page is narrower or lower than `min_side` px.
    """
    x1, y1, x2, y2 = (float(v) for v in corners)
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1])))
    finite = all(map(math.isfinite, corners))
    if not finite or clipped[2] - clipped[0] < min_side or clipped[3] - clipped[1] < min_side:
        tally.drop('box outside its page, empty or not a number', where)
        return None
    # Half a pixel over the border is rounding by the annotation tool, not a loss worth a line in the report.
    if max(abs(a - b) for a, b in zip(clipped, (x1, y1, x2, y2), strict=True)) > 0.5:
        tally.lack('box clipped to its page', where)
    return clipped


# ---------------------------------------------------------------- images


def path_parts(name: str) -> tuple[str, ...]:
    """The folders and the file of a path as Windows or Unix writes it; () for one that is absolute or leads out, by a drive or '..'."""
    path = PureWindowsPath(name)
    return () if path.drive or path.root or '..' in path.parts or '\x00' in name else path.parts


def find_image(folder: Path, subfolders: Iterable[str], name: str) -> tuple[Path | None, str | None]:
    """The image file called `name` in one of the subfolders, or None and the reason.

    A name that is absolute or leads out of `folder`, by '..' or by a link, is never opened.
    """
    parts = path_parts(name)
    if not parts:
        return None, OUTSIDE
    root, folder = folder.resolve(), folder.absolute()
    for subfolder in subfolders:
        path = folder.joinpath(subfolder, *parts)
        try:
            if path.is_file():
                return (path, None) if path.resolve().is_relative_to(root) else (None, OUTSIDE)
        except (OSError, RuntimeError, ValueError):  # a name too long, a link to itself, half a surrogate pair
            continue
    return None, 'image file missing'


def check_image(page: Page, max_pixels: int) -> tuple[str | None, str | None]:
    """Decodes a page's image whole; what is wrong with it, or None, and what is worth counting about it, or None."""
    size = (page.width, page.height)
    try:
        _, turned = decode_turned(page.image, size, max_pixels)
    except PictureError as error:
        return error.reason, None
    if max(size) > MAX_ASPECT * min(size):
        return f'image over {MAX_ASPECT} times as long as wide, which no policy can be shown', None
    return None, {
        None: None,
        True: 'image turned as its EXIF says',
        False: 'image not turned as its EXIF says, as it was annotated so',
    }[turned]


def keep_readable(
    pages: Sequence[Page], tally: Tally, max_pixels: int, threads: int, progress: Progress | None = None
) -> list[Page]:
    """The pages whose image decodes to the annotated size; the others are counted. Pillow decodes without the GIL."""
    kept = []
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    try:
        checks = pool.map(lambda page: check_image(page, max_pixels), pages)
        for done, (page, (problem, note)) in enumerate(zip(pages, checks, strict=True), start=1):
            if problem is None:
                kept.append(page)
                if note is not None:
                    tally.lack(note, Path(page.image).name)
            else:
                tally.drop(problem, Path(page.image).name)
                tally.lost_with_pages += count_annotations(page)
            if progress is not None:
                progress(done, len(pages))
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt does not wait for the pages that are left
    return kept
