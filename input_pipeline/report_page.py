"""The build report for people: tables, and pictures of examples with the regions drawn in (OUT/report/index.html)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image, ImageDraw

from input_pipeline.pictures import decode
from input_pipeline.report import notices
from input_pipeline.schema import TASKS, Page, Question

PICTURE_SIDE = 560  # px: longer side of an example's picture
THREADS = 2  # pages decoded at once
RED = (220, 30, 30)

Row = dict[str, Any]  # column -> cell


def write_page(
    folder: Path, report: Mapping[str, Any], pages: Sequence[Page], questions: Sequence[Question], examples: int
) -> None:
    """Writes index.html and pictures of up to `examples` questions of each task, spread over the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = list(choose_examples(questions, examples))
    needed = {question.page_id for question, _ in chosen}
    shown = [page for page in pages if page.id in needed]
    with ThreadPoolExecutor(max_workers=THREADS) as pool:  # large pages take long to decode: each once, side by side
        pictures = dict(zip((page.id for page in shown), pool.map(shrink, shown), strict=True))
    widths = {page.id: page.width for page in shown}
    for question, name in chosen:
        picture = pictures[question.page_id]
        draw_regions(picture, question, picture.width / widths[question.page_id]).save(folder / name, quality=85)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template('report_page.html')
    html = template.render(report=report, notices=notices(report), tables=_tables(report), examples=chosen)
    (folder / 'index.html').write_text(html, encoding='utf-8', errors='backslashreplace')


def choose_examples(questions: Sequence[Question], examples: int) -> Iterator[tuple[Question, str]]:
    """Up to `examples` questions of each task, evenly spread, with the file name of their picture."""
    for task in TASKS:
        of_task = [question for question in questions if question.task == task]
        spread = np.linspace(0, len(of_task) - 1, min(examples, len(of_task))).astype(int)
        yield from ((of_task[i], f'{task}_{number}.jpg') for number, i in enumerate(spread))


def shrink(page: Page) -> Image.Image:
    """The page with its longer side at PICTURE_SIDE."""
    picture = decode(page.image, (page.width, page.height), page.width * page.height, side=PICTURE_SIDE)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture


def draw_regions(picture: Image.Image, question: Question, scale: float) -> Image.Image:
    """A copy of the page's picture with the question's regions in red; `scale` is its px a px of the page."""
    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    for box in question.regions:
        draw.rectangle([v * scale for v in box], outline=RED, width=2)
    return copy


def _tables(report: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Title -> rows."""
    read = report['read']
    scores = ('chance', 'answer_prior', 'position', 'text', 'margin')
    return {
        'Tasks': [_task_row(task, row) for task, row in report['tasks'].items()],
        'Without looking at the page (exact match on held-out pages)': [
            {'task': task, 'split': row['split'], 'n': row['n']}
            | {name.replace('_', ' '): _percent(row[name]) for name in scores}
            for task, row in report['baselines'].items()
        ],
        'Questions that could not be made': report['skipped'],
        'Questions taken away for balance': [
            {'task': task, 'questions': n} for task, n in report['balanced_away'].items()
        ],
        'Losses while reading': [
            {'kind': kind, 'reason': reason, 'number': n, 'examples': ', '.join(read['examples'].get(reason, ()))}
            for kind in ('dropped', 'incomplete')
            for reason, n in read[kind].items()
        ],
    }


def _task_row(task: str, row: Mapping[str, Any]) -> Row:
    frequent = ', '.join(f'{answer} ({n})' for answer, n in row['answers']['most_frequent'].items())
    return {
        'task': task,
        'questions': row['questions'],
        **{split: row['split'].get(split, 0) for split in ('train', 'validation', 'test')},
        'open': row['open'],
        'needs a zoom': _percent(row['zoom_needed']),
        'answers': row['answers']['different'],
        'most frequent': frequent,
        'region / page, 10 50 90 %': _quantiles(row['regions'], 'share_of_page_side', '.2f'),
        'region in model px': _quantiles(row['regions'], 'model_px', '.0f'),
    }


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _quantiles(regions: Mapping[str, Any], key: str, form: str) -> str:
    return '  '.join(format(mark, form) for mark in regions[key].values()) if key in regions else '-'
