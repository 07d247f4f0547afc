"""What two sides have in common: one row for everything compared, a verdict, a table for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rich.table
from jaxtyping import Float

from rarl_jax.compare_torch.talk import Greedy, Side
from rarl_jax.runtime import files

QUIET = 0.1  # share of the median length under which a vector's length is no measure: a blank patch is next to nothing


@dataclass(frozen=True)
class Row:
    """One thing compared."""

    what: str
    shape: tuple[int, ...]
    difference: float | None  # 0 = exactly equal; None = of another shape, or not a number
    agrees: bool
    note: str = ''


@dataclass(frozen=True)
class Report:
    """A comparison."""

    folder: str  # that this package read
    reference: str  # that transformers read
    dtype: str
    tolerance: float
    versions: str
    rows: tuple[Row, ...]  # in the order of the pass

    @property
    def first_difference(self) -> str | None:
        """Where the sides part: a model hands its mistakes on, so later rows say less."""
        return next((row.what for row in self.rows if not row.agrees), None)

    @property
    def verdict(self) -> str:
        return 'agrees' if self.first_difference is None else 'differs'

    @property
    def largest(self) -> Row:
        """The row with the largest difference; one without a number counts as largest."""
        return max(self.rows, key=lambda row: np.inf if row.difference is None else row.difference)


def compare_sides(ours: Side, reference: Side, tolerance: float) -> Iterator[Row]:
    """Inputs must be equal, to the bit; what the model computes within the tolerance."""
    yield exact('ids', ours.ids, reference.ids)
    for name, mine, theirs in zip(('page pixels', 'crop pixels'), ours.pixels, reference.pixels, strict=True):
        yield exact(name, mine, theirs)
    yield exact('positions', ours.positions, reference.positions)
    for name, theirs in reference.states.items():
        yield close(name, ours.states[name], theirs, tolerance)
    for name, theirs in reference.greedy.items():
        yield greedy(name, ours.greedy[name], theirs, tolerance)


def exact(what: str, ours: np.ndarray, reference: np.ndarray) -> Row:
    if ours.shape != reference.shape:
        return _other_shape(what, ours, reference)
    wrong = int((ours != reference).sum())
    difference = float(np.abs(ours.astype(float) - reference).max() / max(np.abs(reference).max(), 1))
    return Row(what, ours.shape, difference, not wrong, f'{wrong} of {ours.size} differ' if wrong else 'equal')


def close(what: str, ours: np.ndarray, reference: np.ndarray, tolerance: float, note: str = '') -> Row:
    if ours.shape != reference.shape:
        return _other_shape(what, ours, reference)
    difference = relative(ours, reference)
    if not np.isfinite(difference):
        return Row(what, ours.shape, None, False, 'not a number')
    return Row(what, ours.shape, difference, difference <= tolerance, note)


def _other_shape(what: str, ours: np.ndarray, reference: np.ndarray) -> Row:
    return Row(what, ours.shape, None, False, f'the reference has {list(reference.shape)}')


def greedy(what: str, ours: Greedy, reference: Greedy, tolerance: float) -> Row:
    """Judged by the logits: where they agree, another token could only be one that is as likely."""
    equal = int((ours.tokens == reference.tokens).sum())
    return close(what, ours.logits, reference.logits, tolerance, f'{equal} of {len(reference.tokens)} tokens equal')


def relative(ours: Float[np.ndarray, 'R D'], reference: Float[np.ndarray, 'R D']) -> float:
    """The largest |ours - reference| / |reference| of any row, as Euclidean lengths.

    Row by row, because a few tokens of a large model are a thousand times as long as the others and would hide them.
    """
    lengths = np.linalg.norm(reference, axis=-1)
    return float((np.linalg.norm(ours - reference, axis=-1) / np.maximum(lengths, QUIET * np.median(lengths))).max())


def to_table(report: Report) -> rich.table.Table:
    table = rich.table.Table(title='transformers and rarl_jax', box=None, header_style='dim')
    for column, justify in (('', 'left'), ('shape', 'right'), ('difference', 'right'), ('', 'left'), ('', 'left')):
        table.add_column(column, justify=justify, no_wrap=True)
    for row in report.rows:
        difference = '' if row.difference is None else f'{row.difference:.1e}'
        shape = ' x '.join(map(str, row.shape))
        table.add_row(row.what, shape, difference, 'agrees' if row.agrees else '[bold red]DIFFERS', row.note)
    return table


def summary(report: Report) -> str:
    """The verdict in two sentences."""
    difference, allowed = report.largest.difference, f'{report.tolerance:.0e} is allowed in {report.dtype}'
    size = 'another shape, or not a number' if difference is None else f'{difference:.1e}'
    found = 'agrees' if report.verdict == 'agrees' else f'differs, first at: {report.first_difference}'
    return f'Largest relative difference: {size} ({report.largest.what}); {allowed}. Verdict: {found}.'


def write_json(path: Path, report: Report) -> None:
    found = asdict(report) | {'verdict': report.verdict, 'first_difference': report.first_difference}
    found['largest_difference'] = report.largest.difference
    files.write_json(path, found)
