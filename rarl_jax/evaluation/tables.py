"""Results side by side: accuracy with its interval, the paired difference to the first result, the first zoom's IoU, and the paper's numbers.

A table is data; `to_rich` prints it, `to_markdown` puts it into a README, and the report renders it as HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.cells
import rich.console
import rich.table
import rich.text

from rarl_jax.evaluation import published
from rarl_jax.evaluation.records import Record
from rarl_jax.evaluation.results import evaluation_name, read_results
from rarl_jax.evaluation.statistics import Paired, holm, pair
from rarl_jax.runtime.messages import shown

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
class Section:
    """The rows of one task."""

    task: str
    heading: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column being names."""

    title: str
    columns: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]  # printed below


def load(folder: Path, name: str | None = None) -> list[Result]:
    """The evaluations kept in DIR/eval/STAGE: all of them, or the one called `name` ('zoom', 'blank_crop', 'zoom@8').

    Raises:
      FileNotFoundError, ValueError: there is none, or none of that name.
    """
    results, records = read_results(folder)
    known = results['evaluations']
    if name is not None and name not in known:
        raise ValueError(f'{folder} has no evaluation called {name!r}: it has {", ".join(known)}.')
    chosen = list(known) if name is None else [name]
    return [
        _result(results, each, tuple(record for record in records if evaluation_name(record) == each))
        for each in chosen
    ]


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


def side_by_side(results: Sequence[Result], paper: bool = True) -> Table:
    """A section for each task, in it a row for each result, differences being to the first of them, and, where wanted, the paper's rows."""
    if not results:
        raise ValueError('a table needs at least one result: name an evaluation folder.')
    first, *others = results
    compared = [{}, *(compare(first, other) for other in others)]
    adjusted = [
        dict(zip(paired, holm([each.p_bootstrap for each in paired.values()]), strict=True)) for paired in compared
    ]
    sections = []
    for task in sorted({task for result in results for task in result.summary['tasks']}):
        found = [(result, result.summary['tasks'].get(task)) for result in results]
        rows = [
            (shown(result.name), *_score(measured), *_difference(paired.get(task), p.get(task)), *_zooms(measured))
            for (result, measured), paired, p in zip(found, compared, adjusted, strict=True)
        ]
        lines = published.lines(task) if paper else []
        theirs = [(line.name, '', line.score, '', line.gain, '', '', line.zoom_iou, '') for line in lines]
        metric = next(measured['metric'] for _, measured in found if measured is not None)
        sections.append(Section(task, shown(f'{task} ({metric.replace("_", " ")})'), (*rows, *theirs)))
    columns = ('', 'n', 'score, %', 'exact, %', 'Δ', 'p', 'McNemar', 'zoom IoU', 'zooms, %')
    return Table('Evaluation', columns, tuple(sections), notes(results, shown(results[0].name), paper))


def _score(measured: dict[str, Any] | None) -> tuple[str, str, str]:
    """How many, their mean grade, and how many are wholly right where a grade may lie between."""
    if measured is None:
        return '', '', ''
    if measured['accuracy'] is None:
        return str(measured['n']), 'not judged', ''
    low, high = measured['interval']
    text = f'{100 * measured["accuracy"]:.1f} [{100 * low:.1f}, {100 * high:.1f}]'
    text += f' ({measured["unjudged"]} not judged)' if measured['unjudged'] else ''
    return str(measured['n']), text, '' if measured['metric'] == 'accuracy' else f'{100 * measured["exact"]:.1f}'


def _difference(paired: Paired | None, p_adjusted: float | None) -> tuple[str, str, str]:
    if paired is None:
        return '', '', ''
    mark = ' *' if p_adjusted < SIGNIFICANT else ''
    exact = '' if paired.p_mcnemar is None else _p(paired.p_mcnemar)
    return (
        f'{100 * paired.difference:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]',
        _p(paired.p_bootstrap) + mark,
        exact,
    )


def _p(value: float) -> str:
    return '< 0.001' if value < 0.001 else f'{value:.3f}'


def _zooms(measured: dict[str, Any] | None) -> tuple[str, str]:
    if measured is None:
        return '', ''
    overlap, refused = measured['zoom_iou_first'], round(100 * measured['refused_rate'])
    zooms = f'{100 * measured["zoom_rate"]:.0f}' + (f' ({refused} refused)' if refused else '')
    return '' if overlap is None else f'{overlap:.2f}', zooms


def notes(results: Sequence[Result], baseline: str, paper: bool) -> tuple[str, ...]:
    """How to read a table of these results."""
    found = [
        'Brackets: 95 % over resampled pages. Zoom IoU: of the first successful zoom with the region that it overlaps most. '
        'Zooms: answers with at least one; refused: answers with a call that was refused, as all are where no tool is offered. '
        'Exact: wholly right, where a grade may lie between.'
    ]
    if len(results) > 1:
        found.append(
            f'Δ: to {baseline}, in points, paired by question, resampled by page; p is of that bootstrap; * marks p < {SIGNIFICANT} after Holm over the tasks. '
            'McNemar: exact, over questions.'
        )
    if paper and any(task in published.PUBLISHED for result in results for task in result.summary['tasks']):
        found.append(
            'Paper: arXiv 2511.06490, Qwen2.5-VL-7B on AI4VA-FG. Its questions are not released: beside ours for orientation only.'
        )
    return tuple(found)


@dataclass(frozen=True)
class ForTerminal:
    """A table that rich prints: a line for each row where there is room, else two. Cells are plain text: nothing in a name is read as markup."""

    table: Table

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        lines = [self.table.columns, *(row for section in self.table.sections for row in section.rows)]
        narrow = sum(_widths(lines)) + len(self.table.columns) - 1 > options.max_width
        widths = _widths(map(_stack, lines) if narrow else lines)
        widths[0] = max(8, min(widths[0], options.max_width - sum(widths[1:]) - len(widths) + 1))
        yield rich.text.Text(self.table.title, style='bold')
        yield _grid([self.table.columns], widths, narrow, 'dim')
        for section in self.table.sections:
            yield rich.text.Text(section.heading, style='bold')
            yield _grid(section.rows, widths, narrow, '')
        yield from (rich.text.Text(note, style='dim') for note in self.table.notes)


def to_rich(table: Table) -> ForTerminal:
    """For `rich.print`, at 80 columns and more."""
    return ForTerminal(table)


def _stack(row: Sequence[str]) -> tuple[str, ...]:
    """A row in two lines: intervals below their means, McNemar's p below the bootstrap's, headers at their spaces."""
    name, n, score, exact, difference, p, mcnemar, *zooms = row
    two = [cell.replace(' [', '\n[') for cell in (score, difference)]
    short = [cell.replace(' ', '\n') if cell[:1].isalpha() else cell.replace(' (', '\n(') for cell in (exact, *zooms)]
    return name, n, two[0], short[0], two[1], f'{p}\n{mcnemar}'.rstrip('\n'), *short[1:]


def _widths(rows: Iterable[Sequence[str]]) -> list[int]:
    columns = zip(*rows, strict=True)
    return [max(rich.cells.cell_len(line) for cell in column for line in cell.split('\n')) for column in columns]


def _grid(rows: Sequence[Sequence[str]], widths: Sequence[int], narrow: bool, style: str) -> rich.table.Table:
    """Rows whose columns line up with those of the other sections; a name that is too long is folded."""
    grid = rich.table.Table.grid(padding=(0, 1))
    for i, width in enumerate(widths):
        grid.add_column(justify='right' if i else 'left', width=width, overflow='fold', no_wrap=i > 0)
    for row in rows:
        grid.add_row(*(rich.text.Text(cell, style=style) for cell in (_stack(row) if narrow else row)))
    return grid


def to_markdown(table: Table) -> str:
    """A GitHub table followed by its notes."""
    empty = ('',) * (len(table.columns) - 1)
    lines = [table.columns, ('---', *('---:' for _ in empty))]
    for section in table.sections:
        lines += [(f'**{_escape(section.heading)}**', *empty), *(tuple(map(_escape, row)) for row in section.rows)]
    text = ['| ' + ' | '.join(line) + ' |' for line in lines]
    return '\n'.join([*text, '', *table.notes]) + '\n'


def _escape(cell: str) -> str:
    """Text that a Markdown table shows as it is."""
    return re.sub(r'([\\|*<])', r'\\\1', cell)
