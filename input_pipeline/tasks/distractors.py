"""Wrong answers to offer beside the right one, so that what is offered does not tell which is right.

An action that is right in 40 % of the questions must also be wrong often enough, or a reader who has never seen a page answers it whenever it is
offered. For choice sets S of n answers, drawn with probability P(S) proportional to the product of weights w_i over S, let the right one be any member
with equal chance. Then P(right = i) = P(i in S) / n, so w is chosen such that P(i in S) = n p_i, where p_i is how often i is right; given the right
answer a, the distractors are drawn from P(S | a in S). This is conditional Bernoulli sampling; weights by the fixed point of Chen, Dempster and Liu,
"Weighted finite population sampling to maximize entropy", Biometrika 81 (1994).
An answer that is right in more than 1/n of the questions cannot be balanced: it is offered every time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Float

ROUNDS = 200  # of the fixed point; it settles to 1e-6 within some tens
ALWAYS = 0.999  # largest inclusion probability that is aimed at


def draw_among(rng: np.random.Generator, answer: str, others: Sequence[str], number: int) -> tuple[str, ...] | None:
    """The answer among `number` choices, shuffled, each of the others as likely as the next; None if there is no other."""
    pool = sorted(other for other in set(others) if not _alike(other, answer))
    if not pool:
        return None
    return _shuffled(rng, [answer, *(pool[i] for i in rng.permutation(len(pool))[: number - 1])])


def draw_balanced(
    rng: np.random.Generator, answer: str, counts: Mapping[str, int], number: int
) -> tuple[str, ...] | None:
    """The answer among `number` choices, shuffled; `counts` tells how often each is right. None if there is no other."""
    words = tuple(sorted(counts))
    others = [i for i, word in enumerate(words) if not _alike(word, answer)]
    if not others:
        return None
    if len(others) < number:
        return _shuffled(rng, [answer, *(words[i] for i in others)])
    weights = balanced_weights(tuple(counts[word] for word in words), number)[others]
    return _shuffled(rng, [answer, *(words[others[i]] for i in draw_subset(rng, weights, number - 1))])


@lru_cache(maxsize=64)
def balanced_weights(counts: tuple[int, ...], number: int) -> Float[np.ndarray, 'K']:
    """Weights w whose subsets of `number` hold item i with probability number * counts[i] / sum(counts), as far as that is below 1."""
    targets = _inclusion_targets(np.array(counts, float), number)
    weights = targets / (1 - targets)
    for _ in range(ROUNDS):
        weights = weights * targets / inclusion(weights, number)
        weights = weights / weights.mean()
    return weights


def inclusion(weights: Float[np.ndarray, 'K'], number: int) -> Float[np.ndarray, 'K']:
    """P(i in S) for subsets S of size `number` drawn in proportion to the product of their weights."""
    total = _symmetric(weights, number)[-1]
    without = np.array([_symmetric(np.delete(weights, i), number - 1)[-1] for i in range(len(weights))])
    return weights * without / total


def draw_subset(rng: np.random.Generator, weights: Float[np.ndarray, 'K'], number: int) -> list[int]:
    """A subset of `number` items, in proportion to the product of their weights: item after item is taken or left."""
    chosen: list[int] = []
    for i in range(len(weights)):
        missing = number - len(chosen)
        if missing == 0:
            break
        take = weights[i] * _symmetric(weights[i + 1 :], missing - 1)[-1]
        if rng.random() * _symmetric(weights[i:], missing)[-1] < take:
            chosen.append(i)
    return chosen


def _symmetric(weights: Float[np.ndarray, 'K'], degree: int) -> Float[np.ndarray, 'degree+1']:
    """Elementary symmetric polynomials of degree 0 to `degree`: the sums of products over subsets of each size."""
    sums = np.zeros(degree + 1)
    sums[0] = 1
    for weight in weights:
        sums[1:] += weight * sums[:-1].copy()
    return sums


def _inclusion_targets(counts: Float[np.ndarray, 'K'], number: int) -> Float[np.ndarray, 'K']:
    """number * p, with what exceeds 1 spread over the others."""
    targets = np.zeros(len(counts))
    free = np.ones(len(counts), bool)
    while True:
        room = number - ALWAYS * (~free).sum()
        targets[free] = room * counts[free] / counts[free].sum()
        over = free & (targets > ALWAYS)
        if not over.any():
            return targets
        targets[over] = ALWAYS
        free &= ~over


def _alike(a: str, b: str) -> bool:
    """Whether an answer could not be told from the other: 'Running' is no wrong answer where 'running' is right."""
    return a.casefold() == b.casefold()


def _shuffled(rng: np.random.Generator, choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(choices[i] for i in rng.permutation(len(choices)))
