"""Drawn pages as a folder in AI4VA's format: PNG pages, one COCO file a split, and the sidecar with what AI4VA's release lacks."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from datetime import date, timedelta
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from input_pipeline.synthetic.pages import DrawnPage, DrawSettings, PixelBox, check, draw_page

SPLIT_FILES = {'train': 'train', 'validation': 'val', 'test': 'test'}  # split -> the start of its file's name
CATEGORIES = ('panel', 'character', 'speech balloon', 'onomatopoeia')  # category id = position + 1
SERIES = 'The Rubber Hose Gang'
PAGES_AN_ISSUE = 16

Drawn = tuple[dict[str, Any], dict[str, Any]]  # COCO records of a page without ids; its part of the sidecar


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
    check(settings)
    folder = Path(folder)
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    numbers = [(split, number) for split in pages for number in range(pages[split])]
    draw = partial(_draw_one, folder, settings, seed)
    annotated: dict[str, list[dict[str, Any]]] = {split: [] for split in pages}
    sidecar: dict[str, Any] = {}
    with closing(_map(draw, numbers, processes)) as drawn:
        for (split, _), (records, about) in zip(numbers, drawn, strict=True):
            annotated[split].append(records)
            sidecar[records['file_name']] = about
            progress(1)
    for split, records in annotated.items():
        _write_json(folder / f'{SPLIT_FILES[split]}-annotations.json', _coco(records))
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
        # Ctrl-C reaches workers too, but is their parent's to handle: they inherit that it is blocked, from their first moment on.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            drawn = pool.map(draw, numbers, chunksize=8)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield from drawn
    finally:
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """A worker ends when its parent does, however that ended."""

    def wait() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def page_name(split: str, number: int) -> str:
    """A file name like AI4VA's, Vaillant_ISSUE_YYYY_MM_DD-PAGE.png; the splits are different issues."""
    issue, page = divmod(number, PAGES_AN_ISSUE)
    issue += 3000 * list(SPLIT_FILES).index(split)
    day = date(1945, 1, 7) + timedelta(weeks=issue)
    return f'Gang_{issue + 1:04d}_{day:%Y_%m_%d}-{page + 1:02d}.png'


def _draw_one(folder: Path, settings: DrawSettings, seed: int, which: tuple[str, int]) -> Drawn:
    """Draws and saves one page; its COCO records without ids, and its part of the sidecar by place among them."""
    split, number = which
    page = draw_page(seed + 1_000_003 * list(SPLIT_FILES).index(split), number, settings)
    name = page_name(split, number)
    page.image.save(folder / 'images' / name, compress_level=1)
    annotations, about = describe(page)
    size = {'width': settings.width, 'height': settings.height}
    ids = number * 1000 + 1  # unique in the split's file
    for facts in about.values():
        if 'speaker' in facts:
            facts['speaker'] += ids
    records = {'file_name': name, **size, 'first_id': ids, 'annotations': annotations}
    return records, {
        'series': SERIES,
        'reading_direction': 'left_to_right',
        'description': tell(page),
        'annotations': {str(ids + place): facts for place, facts in about.items()},
    }


def describe(page: DrawnPage) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """COCO annotations of a page without ids, and what the sidecar adds, by place among them."""
    annotations: list[dict[str, Any]] = []
    about: dict[int, dict[str, Any]] = {}
    first_figure = len(page.panels)
    for order, (box, is_round) in enumerate(zip(page.panels, page.round_panels, strict=True)):
        about[len(annotations)] = {'reading_order': order, 'round': is_round, 'description': _scene(page, order)}
        annotations.append(_annotation('panel', box))
    for figure in page.figures:
        about[len(annotations)] = {'action': figure.action, 'identity': figure.identity}
        annotations.append(_annotation('character', figure.box, figure.depth))
    for order, balloon in enumerate(page.balloons):
        facts = {'text': balloon.text, 'reading_order': order}
        about[len(annotations)] = facts | {'speaker': first_figure + balloon.speaker}
        annotations.append(_annotation('speech balloon', balloon.box))
    for sound in page.sounds:
        about[len(annotations)] = {'text': sound.text}
        annotations.append(_annotation('onomatopoeia', sound.box))
    return annotations, about


def tell(page: DrawnPage) -> str:
    """What the page tells, a sentence a panel with somebody in it."""
    scenes = [scene for i in range(len(page.panels)) if (scene := _scene(page, i)) != 'Nobody is there.']
    return ' '.join(scenes) or 'Nobody is there.'


def _scene(page: DrawnPage, panel: int) -> str:
    doings = [f'{figure.identity} is {figure.action}' for figure in page.figures if figure.panel == panel]
    return f'{" and ".join(doings)}.' if doings else 'Nobody is there.'


def _annotation(category: str, box: PixelBox, depth: float | None = None) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    attributes = {} if depth is None else {'Interdepth': depth}
    return {
        'category_id': CATEGORIES.index(category) + 1,
        'bbox': [x1, y1, x2 - x1, y2 - y1],
        'area': (x2 - x1) * (y2 - y1),
        'iscrowd': 0,
        'segmentation': [],
        'attributes': attributes,
    }


def _coco(records: list[dict[str, Any]]) -> dict[str, Any]:
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        images.append({'id': number} | {key: record[key] for key in ('file_name', 'width', 'height')})
        for place, annotation in enumerate(record['annotations']):
            annotations.append({'id': record['first_id'] + place, 'image_id': number} | annotation)
    categories = [{'id': number, 'name': name} for number, name in enumerate(CATEGORIES, start=1)]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def _write_json(path: Path, content: Any) -> None:
    """Replaces the file at once: one that a killed process left half would not be drawn anew."""
    whole = path.with_name(f'.{path.name}.partial')
    whole.write_text(json.dumps(content) + '\n', encoding='utf-8')
    whole.replace(path)
