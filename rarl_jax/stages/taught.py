"""Supervised conversations that are not made from annotations: those of a file, and the answers of an earlier evaluation of the run.

A file has a JSON object a line, a conversation about a question of the training split: turns that each look at a box, in pixels of the original page, and a last
one that answers, all with a thought or without. The tool is offered where there is a box, or as `offers_tool` says.

    {"question_id": "7/action_recognition/0", "turns": [{"thought": "...", "box": [40, 60, 300, 420]}, {"thought": "...", "answer": "jumping"}]}
    {"question_id": "7/depth_comparison/1", "turns": [{"answer": "Violet"}], "offers_tool": true}

Of an evaluation each answer is taught as it was given, but at once and without the tool: what the policy found out by looking, it shall say from the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from input_pipeline.loader import read_questions
from input_pipeline.schema import Box, Question
from input_pipeline.traces import Conversation, Exchange, Step
from rarl_jax.conversation.episodes import record_from
from rarl_jax.evaluation.samples import read_samples
from rarl_jax.runtime import processes

if TYPE_CHECKING:
    from rarl_jax.stages.context import Run

Questions = Mapping[str, Question]  # by their ids


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation in a file: a look or the answer."""

    thought: str | None = None
    box: Box | None = None  # px of the original page
    answer: str | None = None


@dataclass(frozen=True)
class Line:
    """A line of a file of conversations."""

    question_id: str
    turns: tuple[Turn, ...]
    offers_tool: bool | None = None  # whether the prompt describes the tool; None = where there is a box


def read_taught(run: Run, source: str) -> dict[str, list[Conversation]]:
    """All conversations of a file, or of the stage of that name, by the question that they answer; ValueError where that is not of the training split."""
    questions = {question.id: question for question in read_questions(run.data_dir, 'train')}
    if source in run.settings.stages:
        # The first process may still be writing the last of them.
        told = processes.first_before_others(lambda: list(answers_at_once(run.workdir / 'eval' / source, questions)))
    else:
        told = list(read_conversations(Path(source), questions))
    if not told:
        raise ValueError(f'{source} holds no conversation to learn from: give it at least one.')
    taught: dict[str, list[Conversation]] = {}
    for conversation in told:
        taught.setdefault(conversation.question_id, []).append(conversation)
    return taught


def read_conversations(path: Path, questions: Questions) -> Iterator[Conversation]:
    """The conversations of a file, in its order. ValueError names the line that is none."""
    for number, text in enumerate(path.read_text(encoding='utf-8').split('\n'), 1):
        if text.strip():
            try:
                yield _conversation(_line(json.loads(text)), questions)
            except ValueError as error:
                raise ValueError(f'{path}, line {number}: {error}') from error


def answers_at_once(folder: Path, questions: Questions) -> Iterator[Conversation]:
    """Every answer of an evaluation as one that is given from the page alone; attempts without an answer teach nothing."""
    for record in read_samples(folder):
        for attempt in record.attempts:
            if attempt.prediction:
                yield _conversation(Line(record.question_id, (Turn(answer=attempt.prediction),)), questions)


def _line(row: Any) -> Line:
    if not isinstance(row, dict):
        raise ValueError(f'it holds a {type(row).__name__}, expected an object.')
    return record_from(Line, row)


def _conversation(line: Line, questions: Questions) -> Conversation:
    if line.question_id not in questions:
        raise ValueError(
            f'{line.question_id!r} is no question of the training split: take the data set that it was asked from.'
        )
    question, (*looks, last) = questions[line.question_id], line.turns or (Turn(),)
    if last.answer is None or last.box or any(look.box is None or look.answer is not None for look in looks):
        raise ValueError('expected turns that each have a box, and a last one that has an answer instead.')
    offers = bool(looks) if line.offers_tool is None else line.offers_tool
    exchange = Exchange(question.prompt, tuple(Step(**asdict(turn)) for turn in line.turns))
    return Conversation(question.id, question.page_id, (exchange,), offers_tool=offers)
