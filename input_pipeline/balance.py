"""Takes away questions until a habit no longer answers them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from input_pipeline.schema import Question


@dataclass(frozen=True)
class BalanceSettings:
    """How far one answer may prevail among questions that look alike."""

    pair_share: float = 0.6  # most that one of two things is the answer when the same two are compared in depth
    count_share: float = 0.4  # most that one number is the answer among counting questions of the same form
    least: int = 10  # groups of fewer questions are left alone


def balance(questions: Sequence[Question], settings: BalanceSettings, seed: int) -> tuple[list[Question], Counter[str]]:
    """The questions left, in their order, and how many were dropped of each task.

    Questions of one split that look alike form a group: depth comparisons of the same two things in the same direction (nearer or farther),
    and counts of the same form (how often somebody is drawn, or how many characters there are). In each group the most frequent answer is
    thinned at random to its share of what stays: 'the character or the tree?' can then not be answered 'the character' without looking.
    A group that has one answer only goes whole: nobody needs to look to answer it.
    """
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        if question.task == 'depth_comparison':
            groups[question.split, question.task, ' farther ' in question.prompt, *sorted(question.choices)].append(i)
        elif question.task == 'character_counting':
            groups[question.split, question.task, question.prompt.startswith('How many times ')].append(i)
    dropped: set[int] = set()
    for key, members in groups.items():
        share = settings.pair_share if key[1] == 'depth_comparison' else settings.count_share
        if len(members) >= settings.least:
            rng = np.random.default_rng([seed, crc32(repr(key).encode())])
            dropped |= _surplus(members, questions, share, rng)
    counts = Counter(questions[i].task for i in dropped)
    return [question for i, question in enumerate(questions) if i not in dropped], counts


def _surplus(members: Sequence[int], questions: Sequence[Question], share: float, rng: np.random.Generator) -> set[int]:
    """Which of the group's questions go, so that its most frequent answer has at most `share` of the rest."""
    answers = Counter(questions[i].answer for i in members)
    top, times = answers.most_common(1)[0]
    others = len(members) - times
    keep = int(np.floor(others * share / (1 - share)))
    if times <= keep:
        return set()
    frequent = [i for i in members if questions[i].answer == top]
    return {frequent[j] for j in rng.permutation(times)[keep:]}
