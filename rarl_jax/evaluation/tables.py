"""Results side by side: accuracy with its interval, the paired difference to the first result, the first zoom's IoU, and the paper's numbers.

A table is data; `to_rich` prints it, `to_markdown` puts it into a README, and the report renders it as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.table
import rich.text

from rarl_jax.evaluation import published
from rarl_jax.evaluation.records import Record
from rarl_jax.evaluation.results import evaluation_name, read_results
from rarl_jax.evaluation.samples import read_samples
from rarl_jax.evaluation.statistics import Paired, holm, pair

SIGNIFICANT = 0.05  # of the p value after Holm's adjustment


@dataclass(frozen=True)
class Result:
    """One evaluation, read back."""

    name: str  # how a table calls it
    evaluation: str  # its name among the stage's evaluations: 'zoom', 'blank_crop', 'zoom@8'
    stage: str
    step: int  # updates that the policy had had
    summary: dict[str, Any]  # one of results.json's evaluations
    records: tuple[Record, ...]  # its answers
    seed: int


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column being names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]  # printed below


def load(folder: Path, name: str | None = None) -> list[Result]:
    """The evaluations kept in DIR/eval/STAGE: all of them, or the one called `name` ('zoom', 'blank_crop', 'zoom@8').

    Raises:
      FileNotFoundError, ValueError: there is none, or none of that name.
    """
    results = read_results(folder)
    known = results['evaluations']
    if name is not None and name not in known:
        raise ValueError(f'{folder} has no evaluation called {name!r}: it has {", ".join(known)}.')
    records = read_samples(folder)
    chosen = list(known) if name is None else [name]
    own = {each: tuple(record for record in records if evaluation_name(record) == each) for each in chosen}
    return [_result(results, each, own[each]) for each in chosen]


def _result(results: dict[str, Any], name: str, records: tuple[Record, ...]) -> Result:
    known, stage = results['evaluations'], results['stage']
    label = stage if len(known) == 1 else f'{stage} {name}'
    return Result(label, name, stage, results['step'], known[name], records, results['seed'])


def compare(first: Result, second: Result) -> dict[str, Paired]:
    """Paired tests of second against first, per task, on the questions that both answered in the same words.

    Raises ValueError where a question of the same id was another question, or where they share none.
    """
    theirs = {record.question_id: record for record in second.records if record.score is not None}
    pairs: dict[str, list[tuple[Record, Record]]] = {}
    for ours in first.records:
        if ours.score is None or ours.question_id not in theirs:
            continue
        other = theirs[ours.question_id]
        if ours.doc_hash != other.doc_hash:
            raise ValueError(
                f'question {ours.question_id!r} is not the same in {first.name!r} and {second.name!r}: evaluate both on one data set.'
            )
        pairs.setdefault(ours.task, []).append((ours, other))
    if not pairs:
        raise ValueError(
            f'{first.name!r} and {second.name!r} have no question in common: evaluate both on one data set and split.'
        )
    return {task: _pair(rows, first.seed) for task, rows in sorted(pairs.items())}


def _pair(rows: Sequence[tuple[Record, Record]], seed: int) -> Paired:
    return pair(
        [ours.score for ours, _ in rows], [other.score for _, other in rows], [ours.page_id for ours, _ in rows], seed
    )


# ---------------------------------------------------------------- tables


def side_by_side(results: Sequence[Result]) -> Table:
    """One row a task, two columns a result, the differences being to the first of them."""
    if not results:
        raise ValueError('a table needs at least one result: name an evaluation folder.')
    first, *others = results
    compared = [compare(first, other) for other in others]
    adjusted = [
        dict(zip(paired, holm([each.p_bootstrap for each in paired.values()]), strict=True)) for paired in compared
    ]
    columns = ['task', 'metric', 'n']
    for result in results:
        columns += [result.name, *([f'Δ to {first.name}'] if result is not first else []), 'zoom IoU']
    rows = []
    for task in sorted({task for result in results for task in result.summary['tasks']}):
        cells = [task, _metric(results, task), _count(results, task)]
        for i, result in enumerate(results):
            measured = result.summary['tasks'].get(task)
            difference = [_difference(compared[i - 1].get(task), adjusted[i - 1].get(task))] if i else []
            cells += [_accuracy(measured), *difference, _overlap(measured)]
        rows.append((*cells, published.describe(task)))
    return Table('Evaluation', (*columns, 'paper, 7B on AI4VA-FG'), tuple(rows), _notes(results))


def _metric(results: Sequence[Result], task: str) -> str:
    return next(result.summary['tasks'][task]['metric'] for result in results if task in result.summary['tasks'])


def _count(results: Sequence[Result], task: str) -> str:
    counts = [result.summary['tasks'][task]['n'] if task in result.summary['tasks'] else 0 for result in results]
    return str(counts[0]) if len(set(counts)) == 1 else '/'.join(map(str, counts))


def _accuracy(measured: dict[str, Any] | None) -> str:
    if measured is None or measured['accuracy'] is None:
        return '-'
    low, high = measured['interval']
    text = f'{100 * measured["accuracy"]:.1f} [{100 * low:.1f}, {100 * high:.1f}]'
    return f'{text} ({measured["unjudged"]} unjudged)' if measured['unjudged'] else text


def _difference(paired: Paired | None, p_adjusted: float | None) -> str:
    if paired is None:
        return '-'
    mark = ' *' if p_adjusted < SIGNIFICANT else ''
    exact = '' if paired.p_mcnemar is None else f', McNemar {_p(paired.p_mcnemar)}'
    return f'{100 * paired.difference:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}] p {_p(paired.p_bootstrap)}{exact}{mark}'


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _overlap(measured: dict[str, Any] | None) -> str:
    if measured is None or measured['zoom_iou_first'] is None:
        return '-'
    return f'{measured["zoom_iou_first"]:.2f} (used {100 * measured["zoom_rate"]:.0f} %)'


def _notes(results: Sequence[Result]) -> tuple[str, ...]:
    notes = [
        'Percent, with 95 % intervals over resampled pages; zoom IoU is of the first successful zoom with the region it overlaps most.'
    ]
    if len(results) > 1:
        notes.append(
            f'Δ is paired by question and resampled by page; * marks p < {SIGNIFICANT} of the bootstrap after Holm over the tasks.'
        )
    if any(task in published.PUBLISHED for result in results for task in result.summary['tasks']):
        notes.append(
            'Paper: arXiv 2511.06490, whose questions and splits are not released; it is no test of ours against theirs.'
        )
    return tuple(notes)


def to_rich(table: Table) -> rich.table.Table:
    """For the terminal. Cells are plain text: nothing in a name is read as markup."""
    out = rich.table.Table(title=table.title, caption='\n'.join(table.notes), caption_justify='left')
    for i, column in enumerate(table.columns):
        out.add_column(rich.text.Text(column), justify='left' if i < 2 else 'right')
    for row in table.rows:
        out.add_row(*(rich.text.Text(cell) for cell in row))
    return out


def to_markdown(table: Table) -> str:
    """A GitHub table followed by its notes."""
    lines = [table.columns, tuple('---' if i < 2 else '---:' for i in range(len(table.columns))), *table.rows]
    text = ['| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines]
    return '\n'.join([*text, '', *table.notes]) + '\n'
