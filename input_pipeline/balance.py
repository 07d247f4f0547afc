"""Takes away questions until no pair of choices gives its answer away."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from zlib import crc32

import numpy as np

from input_pipeline.schema import Question

PAIRED = ('depth_comparison',)  # tasks whose choices are two things that meet again and again


def balance(
    questions: Sequence[Question], max_share: float, least: int, seed: int
) -> tuple[list[Question], Counter[str]]:
    """The questions left, in their order, and how many were dropped of each task.

    In every split, questions of a paired task are grouped by what is asked ('nearer', 'farther') and by their two choices. In a group of at
    least `least`, the more frequent answer is thinned at random to at most `max_share` of what stays: 'the character or the object?' then
    cannot be answered 'the character' without looking.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        if question.task in PAIRED:
            asked = ' farther ' in question.prompt
            groups[question.split, question.task, asked, tuple(sorted(question.choices))].append(i)
    dropped: set[int] = set()
    for key, members in groups.items():
        if len(members) >= least:
            rng = np.random.default_rng([seed, crc32(repr(key).encode())])
            dropped |= _surplus(members, questions, max_share, rng)
    counts = Counter(questions[i].task for i in dropped)
    return [question for i, question in enumerate(questions) if i not in dropped], counts


def _surplus(
    members: Sequence[int], questions: Sequence[Question], max_share: float, rng: np.random.Generator
) -> set[int]:
    """Which of the group's questions go, so that its most frequent answer has at most `max_share` of the rest."""
    answers = Counter(questions[i].answer for i in members)
    top, times = answers.most_common(1)[0]
    others = len(members) - times
    keep = int(np.floor(others * max_share / (1 - max_share)))
    if times <= keep or others == 0:
        return set()  # a pair with one answer only is a fact of the comic; dropping it whole would hide it
    frequent = [i for i in members if questions[i].answer == top]
    return {frequent[j] for j in rng.permutation(times)[keep:]}
