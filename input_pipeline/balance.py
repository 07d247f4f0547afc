"""Takes away questions until a habit no longer answers them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from input_pipeline.ranges import check_ranges
from input_pipeline.schema import Question
from input_pipeline.tasks.naming import kind_of


@dataclass(frozen=True)
class BalanceSettings:
    """How far one answer may prevail among questions that look alike."""

    # most that one of two things, or kinds of things, is the answer when the same two are compared in depth
    pair_share: float = 0.6
    count_share: float = 0.4  # most that one number is the answer among counting questions of the same form
    least: int = 10  # groups of fewer questions are left alone

    def __post_init__(self):
        check_ranges(self, {'pair_share': (0.01, 0.99), 'count_share': (0.01, 0.99), 'least': (1, math.inf)})


def balance(questions: Sequence[Question], settings: BalanceSettings, seed: int) -> tuple[list[Question], Counter[str]]:
    """The questions left, in their order, and how many were dropped of each task.

    Questions of one split that look alike form a group: depth comparisons of the same two kinds of things, or of the same two things where
    they are of one kind, in the same direction (nearer or farther), and counts of the same form (how often somebody is drawn, or how many
    characters there are). In each group the most frequent answer, or kind of it, is thinned at random to its share of what stays: 'Placid
    or the tree?' can then not be answered by the habit that figures stand before trees.
    A group that has one answer only goes whole: nobody needs to look to answer it.
    """
    groups: dict[tuple, dict[int, str]] = defaultdict(dict)  # key -> question's number -> what counts as its answer
    for i, question in enumerate(questions):
        if question.task == 'depth_comparison':
            kinds = sorted(map(kind_of, question.choices))
            differ = kinds[0] != kinds[1]
            compared = kinds if differ else sorted(question.choices)
            key = (question.split, question.task, ' farther ' in question.prompt, *compared)
            groups[key][i] = kind_of(question.answer) if differ else question.answer
        elif question.task == 'character_counting':
            groups[question.split, question.task, question.prompt.startswith('How many times ')][i] = question.answer
    dropped: set[int] = set()
    for key, answers in groups.items():
        share = settings.pair_share if key[1] == 'depth_comparison' else settings.count_share
        if len(answers) >= settings.least:
            rng = np.random.default_rng([seed, crc32(repr(key).encode())])
            dropped |= _surplus(answers, share, rng)
    counts = Counter(questions[i].task for i in dropped)
    return [question for i, question in enumerate(questions) if i not in dropped], counts


def _surplus(answers: Mapping[int, str], share: float, rng: np.random.Generator) -> set[int]:
    """Which of the group's questions (number -> answer) go, so that its most frequent answer has at most `share` of the rest."""
    top, times = Counter(answers.values()).most_common(1)[0]
    others = len(answers) - times
    keep = int(np.floor(others * share / (1 - share)))
    if times <= keep:
        return set()
    frequent = [i for i, answer in answers.items() if answer == top]
    return {frequent[j] for j in rng.permutation(times)[keep:]}
