"""One answered question as a line of samples.jsonl: enough to compute every number of results.json again, and no more of the model's words than its answers.

The line has lmms-eval's keys (doc_id, input, target, resps, filtered_resps, doc_hash, and the metric under its own name) and, beside them, what the
intervals and the zoom figures need (page, region size, the attempts with their zooms).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from input_pipeline.schema import Box, Question, Task
from input_pipeline.tasks import metric_name
from rarl_jax.conversation.episodes import EpisodeRecord, record_from, zoom_records

if TYPE_CHECKING:
    from rarl_jax.conversation.dialogue import Episode

Mode = Literal['direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop']
Decoding = Literal['greedy', 'sampled']
ZOOM = ('status', 'box', 'iou')  # what a sample keeps of a zoom


@dataclass(frozen=True)
class Record:
    """One question in one mode, with its attempts: one when greedy, k when sampled."""

    # Place of the question in the list that was evaluated.
    doc_id: int
    question_id: str
    page_id: str
    task: Task
    # What a grade means, e.g. 'accuracy', 'kendall_tau'.
    metric: str
    mode: Mode
    decoding: Decoding
    # The question's words.
    prompt: str
    choices: tuple[str, ...]
    # The right one.
    answer: str
    zoom_needed: bool
    # Area of the smallest region over the page's area; None without regions.
    region_share: float | None
    # Of the question, to see that two results asked the same.
    doc_hash: str
    attempts: tuple[EpisodeRecord, ...]

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
        attempts=tuple(
            EpisodeRecord(said, grade, zoom_records(episode, question), len(episode.turns), episode.finish_reason)
            for episode, said, grade in zip(episodes, predictions, grades, strict=True)
        ),
    )


def smallest_share(regions: Sequence[Box], width: float, height: float) -> float | None:
    """Area of the smallest region, as a share of the page's; None without regions."""
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in regions]
    return min(areas) / (width * height) if areas else None


def hash_question(question: Question) -> str:
    """Of all that a question holds: two with the same hash ask the same. A second page counts where there is one, so that older hashes hold."""
    asked = {name: value for name, value in asdict(question).items() if name != 'second_page_id' or value}
    return hash_text(json.dumps(asked, sort_keys=True))


def hash_text(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- as JSON


def to_json(record: Record) -> dict[str, Any]:
    """A line of samples.jsonl. An attempt's answer stands in resps; whether it gave one, in the attempt."""
    row = asdict(record)
    said = [attempt.pop('prediction') for attempt in row['attempts']]
    for attempt, words in zip(row['attempts'], said, strict=True):
        attempt['answered'] = words is not None
        attempt['zooms'] = [{name: zoom[name] for name in ZOOM} for zoom in attempt['zooms']]
    answers = [words or '' for words in said]
    asked = {'doc_id': row.pop('doc_id'), 'input': row.pop('prompt'), 'target': row.pop('answer')}
    return {**asked, 'resps': [answers], 'filtered_resps': answers, record.metric: record.score, **row}


def from_json(row: dict[str, Any]) -> Record:
    """The record behind a line of samples.jsonl; KeyError or ValueError where it is none."""
    attempts = []
    for said, attempt in zip(row['filtered_resps'], row['attempts'], strict=True):
        kept = {name: value for name, value in attempt.items() if name != 'answered'}
        attempts.append({**kept, 'prediction': said if attempt['answered'] else None})
    named = {'prompt': row['input'], 'answer': row['target'], 'attempts': attempts}
    record = record_from(Record, {field.name: row[field.name] for field in fields(Record) if field.name in row} | named)
    if any(attempt.grade is not None and not 0 <= attempt.grade <= 1 for attempt in record.attempts):
        raise ValueError('a grade is not between 0 and 1')
    if row[record.metric] != record.score:
        raise ValueError(f'its {record.metric} is {row[record.metric]}, but its grades make {record.score}')
    return record
