"""One answered question as a line of samples.jsonl: enough to compute every number of results.json again, and no more of the model's words than its answers.

The line has lmms-eval's keys (doc_id, input, target, resps, filtered_resps, doc_hash, and the metric under its own name) and, beside them, what the
intervals and the zoom figures need (page, region size, zooms with IoU).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from input_pipeline.schema import Box, Question, Task
from input_pipeline.tasks import metric_name
from rarl_jax.conversation.rewards import zoom_ious

if TYPE_CHECKING:
    from rarl_jax.conversation.dialogue import Episode

Mode = Literal['direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop']
Decoding = Literal['greedy', 'sampled']


@dataclass(frozen=True)
class ZoomRecord:
    """One call of the tool."""

    status: str  # 'ok' or why it failed
    box: Box | None  # xyxy px of the original page; None where there was no usable box
    iou: (
        float | None
    )  # with the region that it overlaps most; None for a failed call, and where the question has no region


@dataclass(frozen=True)
class Attempt:
    """One episode's outcome."""

    answer: str | None  # what stood between the answer tags; None = no answer
    grade: float | None  # 0 to 1; None = the judge gave no usable verdict
    zooms: tuple[ZoomRecord, ...]  # in the order of the calls
    turns: int
    finish_reason: str


@dataclass(frozen=True)
class Record:
    """One question in one mode, with its attempts: one when greedy, k when sampled."""

    doc_id: int  # place of the question in the list that was evaluated
    question_id: str
    page_id: str
    task: Task
    metric: str  # what a grade means, e.g. 'accuracy', 'kendall_tau'
    mode: Mode
    decoding: Decoding
    prompt: str  # the question's words
    choices: tuple[str, ...]
    answer: str  # the right one
    zoom_needed: bool
    region_share: float | None  # area of the smallest region over the page's area; None without regions
    doc_hash: str  # of the question, to see that two results asked the same
    attempts: tuple[Attempt, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes it one and the same piece of work: mode, decoding, question."""
        return self.mode, self.decoding, self.question_id

    @property
    def score(self) -> float | None:
        """Mean grade of the attempts that were judged; None if none was."""
        grades = [attempt.grade for attempt in self.attempts if attempt.grade is not None]
        return sum(grades) / len(grades) if grades else None


def make_record(
    doc_id: int,
    question: Question,
    episodes: Sequence[Episode],
    predictions: Sequence[str | None],
    grades: Sequence[float | None],
    mode: Mode,
    decoding: Decoding,
) -> Record:
    """The record of a question answered by `episodes` (the k attempts), whose answers and grades are handed in."""
    if not len(episodes) == len(predictions) == len(grades) > 0:
        raise ValueError(
            f'question {question.id!r} has {len(episodes)} episodes, {len(predictions)} predictions and {len(grades)} grades: '
            'give one of each for every attempt.'
        )
    rows = zip(episodes, predictions, grades, strict=True)
    attempts = tuple(
        Attempt(said, grade, _zooms(episode, question), len(episode.turns), episode.finish_reason)
        for episode, said, grade in rows
    )
    page = episodes[0].page
    return Record(
        doc_id=doc_id,
        question_id=question.id,
        page_id=question.page_id,
        task=question.task,
        metric=metric_name(question.task, question.choices),
        mode=mode,
        decoding=decoding,
        prompt=question.prompt,
        choices=question.choices,
        answer=question.answer,
        zoom_needed=question.zoom_needed,
        region_share=smallest_share(question.regions, page.width, page.height),
        doc_hash=hash_question(question),
        attempts=attempts,
    )


def smallest_share(regions: Sequence[Box], width: float, height: float) -> float | None:
    """Area of the smallest region, as a share of the page's; None without regions."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in regions]
    return min(areas) / (width * height) if areas else None


def hash_question(question: Question) -> str:
    """Of all that a question holds: two with the same hash ask the same."""
    return hash_text(json.dumps(asdict(question), sort_keys=True))


def hash_text(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _zooms(episode: Episode, question: Question) -> tuple[ZoomRecord, ...]:
    overlaps = iter(zoom_ious(episode, question))
    records = []
    for zoom in episode.zooms:
        overlap = next(overlaps) if zoom.succeeded else None
        box = tuple(map(float, zoom.box)) if zoom.box is not None else None
        records.append(ZoomRecord(zoom.status, box, overlap if question.regions else None))
    return tuple(records)


# ---------------------------------------------------------------- as JSON


def to_json(record: Record) -> dict[str, Any]:
    """A line of samples.jsonl."""
    answers = [attempt.answer or '' for attempt in record.attempts]
    return {
        'doc_id': record.doc_id,
        'input': record.prompt,
        'target': record.answer,
        'resps': [answers],
        'filtered_resps': answers,
        'doc_hash': record.doc_hash,
        record.metric: record.score,
        'metric': record.metric,
        'question_id': record.question_id,
        'page_id': record.page_id,
        'task': record.task,
        'mode': record.mode,
        'decoding': record.decoding,
        'choices': list(record.choices),
        'zoom_needed': record.zoom_needed,
        'region_share': record.region_share,
        'attempts': [_attempt_to_json(attempt) for attempt in record.attempts],
    }


def _attempt_to_json(attempt: Attempt) -> dict[str, Any]:
    row = asdict(attempt)
    del row['answer']  # it stands in resps
    return {'answered': attempt.answer is not None, **row}


def from_json(row: dict[str, Any]) -> Record:
    """The record behind a line of samples.jsonl; KeyError where a key is missing."""
    attempts = []
    for said, attempt in zip(row['filtered_resps'], row['attempts'], strict=True):
        zooms = tuple(
            ZoomRecord(zoom['status'], tuple(zoom['box']) if zoom['box'] else None, zoom['iou'])
            for zoom in attempt['zooms']
        )
        answer = said if attempt['answered'] else None
        attempts.append(Attempt(answer, attempt['grade'], zooms, attempt['turns'], attempt['finish_reason']))
    same = (
        'doc_id',
        'question_id',
        'page_id',
        'task',
        'metric',
        'mode',
        'decoding',
        'zoom_needed',
        'region_share',
        'doc_hash',
    )
    return Record(
        prompt=row['input'],
        choices=tuple(row['choices']),
        answer=row['target'],
        attempts=tuple(attempts),
        **{name: row[name] for name in same},
    )
