"""What a build made and what it left out, as plain JSON values (OUT/report.json)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from input_pipeline.baselines import held_out, score_baselines
from input_pipeline.dataset import SPLITS
from input_pipeline.reading_order import area
from input_pipeline.schema import TASKS, Page, Question
from input_pipeline.sources.reading import ReadReport
from input_pipeline.tasks import Skip

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
    train = [question for question in questions if question.split == 'train']
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
            'split': {split: sum(q.split == split for q in questions) for split in SPLITS},
            'category': dict(Counter(question.category for question in questions)),
            'zoom_needed': _share(question.zoom_needed for question in questions),
        },
        'tasks': {task: _task(task, pages, questions, model_pixels) for task in TASKS},
        'skipped': _count_skips(skipped),
        'balanced_away': dict(balanced_away),
        'baselines': score_baselines(train, held_out(questions)),
    }


def notices(report: Mapping[str, Any]) -> list[str]:
    """What whoever builds should know at once, in sentences: tasks without questions, and tasks without a test."""
    told, untested = [], []
    for task, row in report['tasks'].items():
        reasons = [f'{skip["reason"]} ({skip["questions"]})' for skip in report['skipped'] if skip['task'] == task]
        if taken := report['balanced_away'].get(task):
            reasons.append(f'taken away for balance ({taken})')
        if reasons and not row['questions']:
            told.append(f'No question of {task}: {"; ".join(reasons)}.')
        elif row['questions'] and not row['split'].get('test'):
            untested.append(task)
    if untested:
        told.append(
            f'No test question of {", ".join(untested)}: baselines and exported benchmarks take the validation split there; '
            'keep_source_split=False draws splits of its own.'
        )
    return told


def _task(task: str, pages: Sequence[Page], questions: Sequence[Question], model_pixels: int) -> dict[str, Any]:
    asked = [question for question in questions if question.task == task]
    answers = Counter(question.answer for question in asked)
    positions = Counter(question.choices.index(question.answer) for question in asked if question.choices)
    return {
        'questions': len(asked),
        'split': dict(Counter(question.split for question in asked)),
        'open': sum(not question.choices for question in asked),
        'zoom_needed': _share(question.zoom_needed for question in asked),
        'answers': {'different': len(answers), 'most_frequent': dict(answers.most_common(TOP_ANSWERS))},
        'answer_places': {str(position): n for position, n in sorted(positions.items())},
        'regions': _region_sizes(asked, pages, model_pixels),
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
