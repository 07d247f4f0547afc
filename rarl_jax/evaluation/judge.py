"""Grades for answers in free words: by the same words, by shared words, or by a language model behind an endpoint.

A judge is anything with a `name` and `grades(items)`; `judge_records` puts its grades into records that are already answered and on disk, so a judge that
dies costs no answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from input_pipeline.grading import normalize, token_f1
from input_pipeline.schema import Task
from rarl_jax.evaluation.records import Record

JUDGED: frozenset[Task] = frozenset({'panel_understanding'})  # tasks whose open answers are sentences


def is_judged(task: Task, choices: Sequence[str]) -> bool:
    """Whether a judge, where there is one, grades the answers to such a question."""
    return task in JUDGED and not choices


@dataclass(frozen=True)
class Item:
    """What a judge reads."""

    question: str
    answer: str  # the right one
    prediction: str  # the policy's


class Judge(Protocol):
    """Grades in [0, 1], one per item, None where it came to no verdict. `name` becomes the records' metric."""

    name: str

    def grades(self, items: Sequence[Item]) -> list[float | None]: ...


@dataclass(frozen=True)
class ExactJudge:
    """1 where the words are the same, case and punctuation aside."""

    name: str = 'exact'

    def grades(self, items: Sequence[Item]) -> list[float | None]:
        return [float(normalize(item.answer) == normalize(item.prediction)) for item in items]


@dataclass(frozen=True)
class TokenF1Judge:
    """F1 of the bags of words."""

    name: str = 'token_f1'

    def grades(self, items: Sequence[Item]) -> list[float | None]:
        return [token_f1(item.answer, item.prediction) for item in items]


def judge_records(records: Sequence[Record], judge: Judge) -> list[Record]:
    """The records in their order, those of JUDGED tasks that are in open form graded by the judge. An attempt without an answer is worth 0, unasked."""
    asked = [record for record in records if is_judged(record.task, record.choices)]
    items = [
        Item(record.prompt, record.answer, attempt.prediction)
        for record in asked
        for attempt in record.attempts
        if attempt.prediction is not None
    ]
    grades = iter(judge.grades(items))
    judged = {}
    for record in asked:
        attempts = tuple(
            dataclasses.replace(each, grade=0.0 if each.prediction is None else next(grades))
            for each in record.attempts
        )
        judged[record.key] = dataclasses.replace(record, metric=judge.name, attempts=attempts)
    return [judged.get(record.key, record) for record in records]
