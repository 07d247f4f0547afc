"""Drawn pages as a folder in AI4VA's format: pages in lossless WebP, one COCO file a split, and the sidecar with what AI4VA's release lacks."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from input_pipeline.synthetic.drawing import PixelBox
from input_pipeline.synthetic.pages import DrawnPage, DrawSettings, check, draw_page

SPLIT_FILES = {'train': 'train', 'validation': 'val', 'test': 'test'}  # split -> the start of its file's name
CATEGORIES = ('panel', 'character', 'speech balloon', 'onomatopoeia')  # category id = position + 1
SERIES = 'The Rubber Hose Gang'
PAGES_AN_ISSUE = 16
ISSUES_A_SPLIT = 3000
SPLIT_APART = 1_000_003  # of the seeds that two splits are drawn from

# COCO's image and annotations of a page, and its part of the sidecar.
Drawn = tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]


def write_pages(
    folder: str | Path,
    settings: DrawSettings,
    pages: Mapping[str, int],
    seed: int,
    processes: int = 0,
    progress: Callable[[int], None] = lambda n: None,
) -> None:
    """Draws pages of each split into `folder`; what is already there under the same names is replaced.

    Args:
      folder: made if needed.
      settings: what the pages look like.
      pages: how many pages of each split ('train', 'validation', 'test').
      seed: of the whole series; no two splits share a page.
      processes: that draw side by side; 0 = one for each CPU, 1 = none but this one.
      progress: called with 1 for each page drawn.
    """
    if unknown := sorted(set(pages) - set(SPLIT_FILES)):
        raise ValueError(f'Pages to draw: split {unknown[0]!r} is unknown, expected {", ".join(SPLIT_FILES)}.')
    if wrong := [split for split, n in pages.items() if not 0 <= n <= PAGES_AN_ISSUE * ISSUES_A_SPLIT]:
        most = PAGES_AN_ISSUE * ISSUES_A_SPLIT  # else two splits would share names
        raise ValueError(f'Pages to draw: {wrong[0]} asks for {pages[wrong[0]]}, expected 0 to {most}.')
    check(settings)
    folder = Path(folder)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    numbers = [(split, number) for split in pages for number in range(pages[split])]
    draw = partial(_draw_one, folder, settings, seed)
    categories = [{'id': number, 'name': name} for number, name in enumerate(CATEGORIES, start=1)]
    coco = {split: {'images': [], 'annotations': [], 'categories': categories} for split in pages}
    sidecar: dict[str, Any] = {}
    with closing(_map(draw, numbers, processes)) as drawn:
        for (split, _), (image, annotations, about) in zip(numbers, drawn, strict=True):
            coco[split]['images'].append(image)
            coco[split]['annotations'] += annotations
            sidecar[image['file_name']] = about
            progress(1)
    for split, content in coco.items():
        _write_json(folder / f'{SPLIT_FILES[split]}-annotations.json', content)
    _write_json(folder / 'sidecar.json', {'version': 1, 'pages': sidecar})


def _map(
    draw: Callable[[tuple[str, int]], Drawn], numbers: Sequence[tuple[str, int]], processes: int
) -> Iterator[Drawn]:
    """The pages in order, drawn side by side."""
    if processes == 1 or len(numbers) < 8:
        yield from map(draw, numbers)
        return
    # A forked child of a process that runs JAX's threads may hang.
    pool = ProcessPoolExecutor(processes or None, mp_context=get_context('spawn'), initializer=_follow_parent)
    try:
        with _interrupts_later():
            drawn = pool.map(draw, numbers, chunksize=8)
        yield from drawn
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the workers are started.

    It reaches them too, but is their parent's to handle: they inherit that it is blocked, from their first moment on. Another thread of the parent may
    be the one that gets it, and Python then acts in this one, in the midst of a worker's beginning: hence the handler that only remembers.
    """
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # the only thread that may set handlers
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if received:
            signal.raise_signal(signal.SIGINT)


def _follow_parent() -> None:
    """A worker ends when its parent does, however that ended."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def page_name(split: str, number: int) -> str:
    """A file name like AI4VA's, Vaillant_ISSUE_YYYY_MM_DD-PAGE; the splits are different issues."""
    issue, page = divmod(number, PAGES_AN_ISSUE)
    issue += ISSUES_A_SPLIT * list(SPLIT_FILES).index(split)
    day = date(1945, 1, 7) + timedelta(weeks=issue)
    return f'Gang_{issue + 1:04d}_{day:%Y_%m_%d}-{page + 1:02d}.webp'


def draw_named(name: str, seed: int, settings: DrawSettings) -> DrawnPage:
    """The page that `page_name` calls so, drawn anew; ValueError for a name of no such page."""
    if (found := re.fullmatch(r'Gang_(\d+)_[\d_]+-(\d+)(\.\w+)?', name)) is None:
        raise ValueError(f'{name!r} is no name of a drawn page, expected one like {page_name("train", 0)}.')
    place, issue = divmod(int(found[1]) - 1, ISSUES_A_SPLIT)
    number = issue * PAGES_AN_ISSUE + int(found[2]) - 1
    return draw_page(seed + SPLIT_APART * place, number, settings)


def _draw_one(folder: Path, settings: DrawSettings, seed: int, which: tuple[str, int]) -> Drawn:
    """Draws and saves one page."""
    split, number = which
    page = draw_page(seed + SPLIT_APART * list(SPLIT_FILES).index(split), number, settings)
    image = {
        'id': number + 1,
        'file_name': page_name(split, number),
        'width': settings.width,
        'height': settings.height,
    }
    # Print noise is the same in all colours, which WebP knows and PNG does not: three quarters of the bytes in half the time.
    page.image.save(folder / 'images' / image['file_name'], lossless=True, quality=0, method=0)
    first_id = number * 1000 + 1  # unique in the split's file
    annotations, facts = [], {}
    for key, (category, box, depth, known) in enumerate(_describe(page, first_id), start=first_id):
        annotations.append({'id': key, 'image_id': image['id'], **_annotation(category, box, depth)})
        facts[str(key)] = known
    about = {'series': SERIES, 'reading_direction': 'left_to_right', 'description': tell(page)}
    return image, annotations, about | {'annotations': facts}


def _describe(page: DrawnPage, first_id: int) -> Iterator[tuple[str, PixelBox, float | None, dict[str, Any]]]:
    """Category, box, depth and the sidecar's facts of each thing; ids are counted from `first_id` in this order."""
    for order, (box, is_round) in enumerate(zip(page.panels, page.round_panels, strict=True)):
        yield 'panel', box, None, {'reading_order': order, 'round': is_round, 'description': _scene(page, order)}
    for figure in page.figures:
        yield 'character', figure.box, figure.depth, {'action': figure.action, 'identity': figure.identity}
    for order, balloon in enumerate(page.balloons):
        speaker = first_id + len(page.panels) + balloon.speaker
        yield 'speech balloon', balloon.box, None, {'text': balloon.text, 'reading_order': order, 'speaker': speaker}
    for sound in page.sounds:
        yield 'onomatopoeia', sound.box, None, {'text': sound.text}


def tell(page: DrawnPage) -> str:
    """What the page tells, a sentence a panel with somebody in it."""
    scenes = [scene for i in range(len(page.panels)) if (scene := _scene(page, i)) != 'Nobody is there.']
    return ' '.join(scenes) or 'Nobody is there.'


def _scene(page: DrawnPage, panel: int) -> str:
    doings = [f'{figure.identity} is {figure.action}' for figure in page.figures if figure.panel == panel]
    return f'{" and ".join(doings)}.' if doings else 'Nobody is there.'


def _annotation(category: str, box: PixelBox, depth: float | None) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        'category_id': CATEGORIES.index(category) + 1,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': (x2 - x1) * (y2 - y1),
        'iscrowd': 0,
        'segmentation': [],
        'attributes': {} if depth is None else {'Interdepth': depth},
    }


def _write_json(path: Path, content: Any) -> None:
    """Replaces the file at once: one that a killed process left half would not be drawn anew."""
    whole = path.with_name(f'.{path.name}.partial')
    whole.write_text(json.dumps(content) + '\n', encoding='utf-8')
    whole.replace(path)
