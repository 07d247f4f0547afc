"""What every reader of a source shares: counting what is lost, clipping boxes, finding and checking images.

A reader never drops anything in silence: it either refuses a folder with one sentence, or counts the loss in a `Tally`, whose `ReadReport` goes into the build report.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from input_pipeline.pictures import MAX_ASPECT, PictureError, decode, is_turned
from input_pipeline.schema import Box, Page

EXAMPLES = 5  # names kept for each reason, so that a report stays short

Progress = Callable[[int, int], None]  # told how many of how many pages are read


@dataclass(frozen=True)
class ReadReport:
    """What a reader found and what it had to leave out."""

    source: str  # name of the source
    pages: int  # pages handed on
    annotations: int  # annotations handed on
    lost_with_pages: int  # annotations of pages that were left out
    dropped: dict[str, int]  # reason -> pages or annotations left out for it
    incomplete: dict[str, int]  # reason -> annotations kept, but without a field or with a changed box
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
        self.dropped[reason] += 1
        self._remember(reason, name)

    def lack(self, reason: str, name: str) -> None:
        """Counts something kept that lost a field or was changed."""
        self.incomplete[reason] += 1
        self._remember(reason, name)

    def _remember(self, reason: str, name: str) -> None:
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


def count_annotations(page: Page) -> int:
    """How many things a page holds."""
    return len(page.panels) + len(page.characters) + len(page.balloons) + len(page.regions)


def read_json(path: Path) -> Any:
    """The content of a JSON file; a broken one is refused with its name and place."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path} is not valid JSON ({error}): it is cut off or not an annotation file; copy it again.'
        ) from None


def tidy(text: str | None) -> str | None:
    """A text from a source on one line with single spaces; None where there is no word in it."""
    return ' '.join((text or '').split()) or None


def clip_box(box: Sequence[float], width: int, height: int, min_side: float) -> tuple[Box | None, bool]:
    """The part of a box (x1, y1, x2, y2 px) on its page, and whether it had to be changed.

    None for a box that is not finite, is reversed, or whose part on the page is narrower or lower than `min_side` px.
    """
    if not all(math.isfinite(v) for v in box):
        return None, True
    x1, y1, x2, y2 = (float(v) for v in box)
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped[2] - clipped[0] < min_side or clipped[3] - clipped[1] < min_side:
        return None, True
    # Half a pixel over the border is rounding by the annotation tool, not a loss worth a line in the report.
    moved = max(abs(a - b) for a, b in zip(clipped, (x1, y1, x2, y2), strict=True)) > 0.5
    return clipped, moved


def find_image(folder: Path, subfolders: Iterable[str], name: str) -> tuple[Path | None, str | None]:
    """The image file called `name` in one of the subfolders, or None and the reason.

    A name that is absolute or leads out of `folder`, by '..' or by a link, is never opened.
    """
    if not name or '\x00' in name or Path(name).is_absolute() or '..' in Path(name).parts or '\\' in name:
        return None, 'image name points outside the folder'
    root = folder.resolve()
    for subfolder in subfolders:
        try:
            path = (folder / subfolder / name).resolve()
            found = path.is_file()
        except (OSError, RuntimeError):  # a name too long, a link to itself
            continue
        if found and not path.is_relative_to(root):
            return None, 'image name points outside the folder'
        if found:
            return path, None
    return None, 'image file missing'


def check_image(page: Page, max_pixels: int) -> tuple[str | None, str | None]:
    """Decodes a page's image whole; what is wrong with it, or None, and what is worth counting about it, or None."""
    size = (page.width, page.height)
    try:
        decode(page.image, size, max_pixels)
        turned = is_turned(page.image, size, max_pixels)
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
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
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
    return kept
