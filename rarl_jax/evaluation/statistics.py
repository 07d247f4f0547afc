"""How sure a mean is. Questions about one page share its drawing, so the page is what is resampled, never the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

DRAWS = 2000  # bootstrap draws: the ends of an interval then move by about 1 % of its width from seed to seed
LEVEL = 0.95
BLOCK = 1 << 20  # pages drawn at a time, to bound memory


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """What the second of two results adds to the first, on the questions that both answered."""

    n: int  # questions in common
    difference: float  # mean of second - first
    low: float  # end of its interval
    high: float
    p_bootstrap: float  # two-sided
    p_mcnemar: float | None  # exact; None where a score is neither 0 nor 1


def bootstrap_interval(values: Sequence[float], pages: Sequence[str], seed: int = 0, draws: int = DRAWS) -> Interval:
    """Mean of values in [0, 1], one per question, and its interval over resampled pages (Efron 1979; cluster bootstrap, Davison and Hinkley 1997, 3.8).

    Where every value is 0 or every value is 1 no resample differs, which is no certainty: there the exact binomial bound is given, counting pages, not
    questions (Clopper and Pearson 1934). A single page says nothing about others: its interval is everything.
    """
    sums, counts = _by_page(values, pages)
    mean = float(sums.sum() / counts.sum())
    tail = (1 - LEVEL) / 2
    if mean in (0.0, 1.0):
        bound = tail ** (1 / len(sums))
        return Interval(mean, 0.0 if mean == 0 else bound, 1 - bound if mean == 0 else 1.0)
    if len(sums) == 1:
        return Interval(mean, 0.0, 1.0)
    low, high = np.quantile(_resampled_means(sums, counts, seed, draws), [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], pages: Sequence[str], seed: int = 0, draws: int = DRAWS
) -> tuple[Interval, float]:
    """Interval of mean(second - first) over resampled pages, and the two-sided p of no difference: twice the smaller share of draws beyond 0.

    With n pages that differ, no p is below 2 / 2^n, the least that turning signs page by page can give: resampling two pages that agree
    would show no doubt at all.
    """
    sums, counts = _by_page(np.subtract(second, first), pages)
    drawn = _resampled_means(sums, counts, seed, draws)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    least = 2.0 ** (1 - np.count_nonzero(sums))
    p = min(1.0, max(least, 2 * (beyond + 1) / (draws + 1)))
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high)), p


def mcnemar(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Exact two-sided McNemar test over questions right in one result only; None where a score is neither 0 nor 1 (McNemar 1947)."""
    pairs = np.stack([np.asarray(first, float), np.asarray(second, float)])
    if not np.isin(pairs, (0.0, 1.0)).all():
        return None
    gained, lost = int((pairs[1] > pairs[0]).sum()), int((pairs[1] < pairs[0]).sum())
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def pair(first: Sequence[float], second: Sequence[float], pages: Sequence[str], seed: int = 0) -> Paired:
    """Both paired tests of two aligned lists of scores."""
    interval, p = paired_bootstrap(first, second, pages, seed)
    return Paired(len(first), interval.mean, interval.low, interval.high, p, mcnemar(first, second))


def over_seeds(values: Sequence[float]) -> tuple[Interval, float]:
    """Mean of a figure that several seeds gave, Student's interval of it, and the two-sided p of a mean of 0: how sure a training run's outcome is.

    A single seed says nothing about others: its interval is without bounds and its p is 1. Seeds that agree wholly leave no doubt.
    """
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Interval(mean, -np.inf, np.inf), 1.0
    error = float(np.std(values, ddof=1)) / np.sqrt(n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Interval(mean, mean - half, mean + half), p


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for asking several questions at once (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def pass_at_k(right: int, attempts: int, k: int) -> float:
    """Chance that at least one of k attempts is right, drawn without return from `attempts` of which `right` are right (arXiv 2107.03374, Eq. 1)."""
    return 1 - comb(attempts - right, k) / comb(attempts, k)


def _by_page(
    values: Sequence[float], pages: Sequence[str]
) -> tuple[Float[np.ndarray, 'pages'], Int[np.ndarray, 'pages']]:
    """Sum of the values and number of questions of each page."""
    if len(values) != len(pages) or not len(values):
        raise ValueError(
            f'{len(values)} values for {len(pages)} page ids: give one page id for each value, and at least one.'
        )
    _, index = np.unique(np.asarray(pages), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, float)), np.bincount(index)


def _resampled_means(
    sums: Float[np.ndarray, 'pages'], counts: Int[np.ndarray, 'pages'], seed: int, draws: int
) -> Float[np.ndarray, 'draws']:
    """Mean over questions of as many pages as there are, drawn with return; a page brings all its questions."""
    pages = len(sums)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    block = max(1, BLOCK // pages)
    for start in range(0, draws, block):
        drawn = rng.integers(0, pages, (min(block, draws - start), pages))
        means[start : start + block] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means
