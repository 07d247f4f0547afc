"""The build report for people: tables, and pictures of examples with the regions drawn in (OUT/report/index.html).

Every word that comes from a source passes through `html.escape`, so that a name in a sidecar cannot become markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    cards = []
    for question, name in chosen:
        picture = pictures[question.page_id]
        draw_regions(picture, question, picture.width / widths[question.page_id]).save(folder / name, quality=85)
        cards.append(_card(question, name))
    tables = ''.join(_table(title, list(rows)) for title, rows in _tables(report).items())
    told = ''.join(f'<p class="notice">{html.escape(notice)}</p>' for notice in notices(report))
    body = f'{_summary(report)}{told}{tables}<h2>Examples</h2><div class="cards">{"".join(cards)}</div>'
    (folder / 'index.html').write_text(_PAGE.format(body=body), encoding='utf-8')


def choose_examples(questions: Sequence[Question], examples: int) -> Iterator[tuple[Question, str]]:
    """Up to `examples` questions of each task, evenly spread, with the file name of their picture."""
    for task in TASKS:
        own = [question for question in questions if question.task == task]
        places = np.linspace(0, len(own) - 1, min(examples, len(own))).astype(int)
        for number, place in enumerate(places):
            yield own[place], f'{task}_{number}.jpg'


def shrink(page: Page) -> Image.Image:
    """The page with its longer side at PICTURE_SIDE."""
    size = (page.width, page.height)
    picture = decode(page.image, size, size[0] * size[1], side=PICTURE_SIDE)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return picture


def draw_regions(picture: Image.Image, question: Question, scale: float) -> Image.Image:
    """A copy of the page's picture with the question's regions in red; `scale` is its px a px of the page."""
    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    for box in question.regions:
        draw.rectangle([v * scale for v in box], outline=RED, width=2)
    return copy


def _summary(report: Mapping[str, Any]) -> str:
    pages, questions, read = report['pages'], report['questions'], report['read']
    splits = ', '.join(f'{n} {split}' for split, n in pages['split'].items())
    sentences = (
        f'{questions["total"]} questions on {pages["total"]} pages ({splits}).',
        f'{_percent(questions["zoom_needed"])} of them need a zoom.',
        f'{read["pages"]} pages with {read["annotations"]} annotations were read from {read["source"]};',
        f'{pages["without_a_question"]} of these pages carry no question.',
        f'{read["lost_with_pages"]} annotations were on pages that were left out.',
    )
    return f'<p>{html.escape(" ".join(sentences))}</p>'


def _tables(report: Mapping[str, Any]) -> dict[str, Iterable[Row]]:
    """Title -> rows."""
    read = report['read']
    losses = (
        {'kind': kind, 'reason': reason, 'number': n, 'examples': ', '.join(read['examples'].get(reason, ()))}
        for kind in ('dropped', 'incomplete')
        for reason, n in read[kind].items()
    )
    return {
        'Tasks': (_task_row(task, row) for task, row in report['tasks'].items()),
        'Without looking at the page (exact match on held-out pages)': (
            {'task': task, 'split': row['split'], 'n': row['n']}
            | {
                name.replace('_', ' '): _percent(row[name])
                for name in ('chance', 'answer_prior', 'position', 'text', 'margin')
            }
            for task, row in report['baselines'].items()
        ),
        'Questions that could not be made': report['skipped'],
        'Questions taken away for balance': (
            {'task': task, 'questions': n} for task, n in report['balanced_away'].items()
        ),
        'Losses while reading': losses,
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


def _table(title: str, rows: Sequence[Row]) -> str:
    heading = f'<h2>{html.escape(title)}</h2>'
    if not rows:
        return f'{heading}<p>None.</p>'
    top = ''.join(f'<th>{html.escape(name)}</th>' for name in rows[0])
    lines = ''.join(f'<tr>{"".join(map(_cell, row.values()))}</tr>' for row in rows)
    return f'{heading}<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def _cell(value: Any) -> str:
    kind = ' class="number"' if isinstance(value, int) else ''
    return f'<td{kind}>{html.escape(str(value))}</td>'


def _card(question: Question, picture: str) -> str:
    zoom = ', needs a zoom' if question.zoom_needed else ''
    return (
        f'<figure><a href="{picture}"><img src="{picture}" alt="{html.escape(question.page_id)}" loading="lazy"></a><figcaption>'
        f'<b>{question.task}</b> {html.escape(question.prompt)}<br><i>{html.escape(question.answer)}</i><br>'
        f'<small>{html.escape(question.id)}, {question.split}{zoom}</small></figcaption></figure>'
    )


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _quantiles(regions: Mapping[str, Any], key: str, form: str) -> str:
    return '  '.join(format(mark, form) for mark in regions[key].values()) if key in regions else '-'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Build report</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; }}
th, td {{ border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; vertical-align: top; }}
.number {{ text-align: right; }} .notice {{ border-left: 4px solid #dc1e1e; padding-left: .6rem; }} .wide {{ overflow-x: auto; }}
.cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; border: 1px solid #ddd; padding: .5rem; }} img {{ width: 100%; height: auto; }}
figcaption {{ font-size: 13px; overflow-wrap: anywhere; }}
</style></head><body><h1>Build report</h1>{body}</body></html>
"""
