"""What a build made and what it left out: report.json for programs, report/index.html with pictures of examples for people."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from input_pipeline.baselines import score_baselines
from input_pipeline.reading import ReadReport
from input_pipeline.reading_order import area
from input_pipeline.schema import TASKS, Page, Question
from input_pipeline.tasks import Skip

PICTURE_SIDE = 560  # px: longer side of an example's picture
TOP_ANSWERS = 8  # most frequent answers of a task that are listed


def summarise(
    read: ReadReport,
    pages: Sequence[Page],
    questions: Sequence[Question],
    skipped: Sequence[Skip],
    balanced_away: Mapping[str, int],
    model_pixels: int,
) -> dict[str, Any]:
    """The report of a build as plain JSON values; `pages` are those that questions ask about."""
    by_split = {
        split: [question for question in questions if question.split == split]
        for split in ('train', 'validation', 'test')
    }
    held_out = by_split['test'] or by_split['validation']
    return {
        'read': asdict(read),
        'pages': {
            'total': len(pages),
            'without_a_question': read.pages - len(pages),
            'split': dict(Counter(page.split for page in pages)),
            'series': dict(Counter(page.series for page in pages).most_common()),
        },
        'questions': {
            'total': len(questions),
            'split': {split: len(own) for split, own in by_split.items()},
            'category': dict(Counter(question.category for question in questions)),
            'zoom_needed': _share(question.zoom_needed for question in questions),
        },
        'tasks': {task: _task(task, pages, questions, model_pixels) for task in TASKS},
        'skipped': _count_skips(skipped),
        'balanced_away': dict(balanced_away),
        'baselines': score_baselines(by_split['train'], held_out),
    }


def _task(task: str, pages: Sequence[Page], questions: Sequence[Question], model_pixels: int) -> dict[str, Any]:
    own = [question for question in questions if question.task == task]
    answers = Counter(question.answer for question in own)
    places = Counter(question.choices.index(question.answer) for question in own if question.choices)
    return {
        'questions': len(own),
        'split': dict(Counter(question.split for question in own)),
        'open': sum(not question.choices for question in own),
        'zoom_needed': _share(question.zoom_needed for question in own),
        'answers': {'different': len(answers), 'most_frequent': dict(answers.most_common(TOP_ANSWERS))},
        'answer_places': {str(place): n for place, n in sorted(places.items())},
        'regions': _region_sizes(own, pages, model_pixels),
    }


def _region_sizes(questions: Sequence[Question], pages: Sequence[Page], model_pixels: int) -> dict[str, Any]:
    """Quantiles of the side of a square of the region's area: as a share of the page's, and in px at the model's resolution."""
    sizes = {page.id: page.width * page.height for page in pages}
    shares, sides = [], []
    for question in questions:
        page_area = sizes[question.page_id]
        for box in question.regions:
            shares.append(math.sqrt(area(box) / page_area))
            sides.append(math.sqrt(area(box) * min(1.0, model_pixels / page_area)))
    if not shares:
        return {'number': 0}
    return {
        'number': len(shares),
        'a_question': len(shares) / len(questions),
        'share_of_page_side': _quantiles(shares),
        'model_px': _quantiles(sides),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    marks = np.quantile(values, (0.1, 0.5, 0.9))
    return {name: round(float(mark), 4) for name, mark in zip(('10%', '50%', '90%'), marks, strict=True)}


def _share(flags) -> float | None:
    values = list(flags)
    return sum(values) / len(values) if values else None


def _count_skips(skipped: Sequence[Skip]) -> list[dict[str, Any]]:
    """Task, reason, how many questions, on how many pages, and one page as an example."""
    groups: dict[tuple[str, str], list[str]] = {}
    for skip in skipped:
        groups.setdefault((skip.task, skip.reason), []).append(skip.page_id)
    return [
        {'task': task, 'reason': reason, 'questions': len(ids), 'pages': len(set(ids)), 'example': ids[0]}
        for (task, reason), ids in sorted(groups.items())
    ]


# --- The page for people. Every word from a source passes through `_e`.


def write_html(
    folder: Path, report: Mapping[str, Any], pages: Sequence[Page], questions: Sequence[Question], examples: int
) -> None:
    """Writes index.html and pictures of up to `examples` questions of each task, spread over the pages."""
    folder.mkdir(parents=True, exist_ok=True)
    page_of = {page.id: page for page in pages}
    cards = []
    for task in TASKS:
        own = [question for question in questions if question.task == task]
        places = np.linspace(0, len(own) - 1, min(examples, len(own))).astype(int)
        for number, i in enumerate(dict.fromkeys(places.tolist())):
            name = f'{task}_{number}.jpg'
            draw_regions(page_of[own[i].page_id], own[i]).save(folder / name, quality=85)
            cards.append(_card(own[i], name))
    body = _tables(report) + '<h2>Examples</h2><div class="cards">' + ''.join(cards) + '</div>'
    (folder / 'index.html').write_text(_PAGE.format(body=body), encoding='utf-8')


def draw_regions(page: Page, question: Question) -> Image.Image:
    """The page, shrunk, with the question's regions in red."""
    with Image.open(page.image) as image:
        image.draft('RGB', (PICTURE_SIDE, PICTURE_SIDE))  # lets JPEG decode small at once; nothing for PNG
        picture = image.convert('RGB')
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    scale = picture.width / page.width
    draw = ImageDraw.Draw(picture)
    for box in question.regions:
        draw.rectangle([v * scale for v in box], outline=(220, 30, 30), width=2)
    return picture


def _e(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _tables(report: Mapping[str, Any]) -> str:
    pages, questions, read = report['pages'], report['questions'], report['read']
    tasks = [
        [
            task,
            row['questions'],
            *(row['split'].get(split, 0) for split in ('train', 'validation', 'test')),
            row['open'],
            _percent(row['zoom_needed']),
            row['answers']['different'],
            ', '.join(f'{answer} ({n})' for answer, n in row['answers']['most_frequent'].items()),
            _spread(row['regions'], 'share_of_page_side'),
            _spread(row['regions'], 'model_px'),
        ]
        for task, row in report['tasks'].items()
    ]
    baselines = [
        [task, row['n'], *(_percent(row[name]) for name in ('chance', 'answer_prior', 'position', 'text'))]
        for task, row in report['baselines'].items()
    ]
    losses = [
        [kind, reason, n, ', '.join(read['examples'].get(reason, ()))]
        for kind in ('dropped', 'incomplete')
        for reason, n in read[kind].items()
    ]
    skips = [[row['task'], row['reason'], row['questions'], row['pages'], row['example']] for row in report['skipped']]
    balanced = [[task, n] for task, n in report['balanced_away'].items()]
    return (
        f'<p>{questions["total"]} questions on {pages["total"]} pages ({_e(pages["split"])}), {_percent(questions["zoom_needed"])} need a zoom. '
        f'{read["pages"]} pages and {read["annotations"]} annotations were read from {_e(read["source"])}; '
        f'{pages["without_a_question"]} pages carry no question.</p>'
        + _table(
            'Tasks',
            [
                'task',
                'questions',
                'train',
                'validation',
                'test',
                'open',
                'zoom_needed',
                'answers',
                'most_frequent',
                'region_share',
                'region_px',
            ],
            tasks,
        )
        + _table(
            'Without looking at the page (exact match on held-out pages)',
            ['task', 'n', 'chance', 'answer_prior', 'position', 'text'],
            baselines,
        )
        + _table('Questions that could not be made', ['task', 'reason', 'questions', 'pages', 'example'], skips)
        + _table('Questions taken away for balance', ['task', 'questions'], balanced)
        + _table('Losses while reading', ['kind', 'reason', 'number', 'examples'], losses)
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return f'<h2>{_e(title)}</h2><p>None.</p>'
    top = ''.join(f'<th>{_e(name)}</th>' for name in head)
    lines = ''.join('<tr>' + ''.join(f'<td>{_e(cell)}</td>' for cell in row) + '</tr>' for row in rows)
    return f'<h2>{_e(title)}</h2><div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def _card(question: Question, picture: str) -> str:
    return (
        f'<figure><a href="{_e(picture)}"><img src="{_e(picture)}" alt="{_e(question.page_id)}" loading="lazy"></a><figcaption><b>{_e(question.task)}</b> '
        f'{_e(question.prompt)}<br><i>{_e(question.answer)}</i><br><small>{_e(question.id)}, {_e(question.split)}'
        f'{", needs a zoom" if question.zoom_needed else ""}</small></figcaption></figure>'
    )


def _percent(value: float | None) -> str:
    return '-' if value is None else f'{100 * value:.1f} %'


def _spread(regions: Mapping[str, Any], key: str) -> str:
    return ' / '.join(f'{mark:g}' for mark in regions[key].values()) if key in regions else '-'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>Build report</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; }} th, td {{ border: 1px solid #ccc; padding: .25rem .5rem; text-align: left; vertical-align: top; }}
.wide {{ overflow-x: auto; }} .cards {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem; }}
figure {{ margin: 0; border: 1px solid #ddd; padding: .5rem; }} img {{ width: 100%; height: auto; }} figcaption {{ font-size: 13px; overflow-wrap: anywhere; }}
</style></head><body><h1>Build report</h1>{body}</body></html>
"""
