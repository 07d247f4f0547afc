"""Answers in the files of other evaluation kits, joined to the exported questions by the numbers and hashes that those carry.

lmms-eval:   samples_TASK.jsonl, one per task, with the keys of its --log_samples.
VLMEvalKit:  ComicsFG_MCQ.tsv and ComicsFG_VQA.tsv, as its prediction files: the exported benchmark's columns but for the image, prediction, hit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.exports.common import NAME, indices, plain
from input_pipeline.exports.lmms_eval import document
from input_pipeline.exports.vlmevalkit import by_kind, columns, write_table
from input_pipeline.schema import Question
from rarl_jax.evaluation.records import Record, hash_text
from rarl_jax.evaluation.results import evaluation_name
from rarl_jax.runtime import files


def write_exports(folder: Path, records: Sequence[Record], questions: Sequence[Question]) -> None:
    """Writes both kinds of file for every evaluation among the records, into FOLDER/NAME (see `evaluation_name`).

    `questions` are all of the split, in the data set's order, whether they were asked or not.
    """
    questions = [plain(question) for question in questions]
    for name in sorted({evaluation_name(record) for record in records}):
        answered = {record.question_id: record for record in records if evaluation_name(record) == name}
        write_lmms_eval(folder / name, answered, questions)
        write_vlmevalkit(folder / name, answered, questions)


def write_lmms_eval(folder: Path, answered: dict[str, Record], questions: Sequence[Question]) -> list[Path]:
    """Writes FOLDER/samples_TASK.jsonl for every task, doc_id being the question's place among all of its task; returns the paths."""
    paths = []
    for task in sorted({record.task for record in answered.values()}):
        of_task = [question for question in questions if question.task == task]
        rows = [
            _lmms_eval_row(doc_id, question, answered[question.id])
            for doc_id, question in enumerate(of_task)
            if question.id in answered
        ]
        paths.append(folder / f'samples_{task}.jsonl')
        files.write_whole(paths[-1], ''.join(map(files.dump, rows)))
    return paths


def _lmms_eval_row(doc_id: int, question: Question, record: Record) -> dict[str, object]:
    """Of one reply the kit keeps the words, of several a list; replies that no filter has changed it keeps once."""
    said = [attempt.prediction or '' for attempt in record.attempts]
    return {
        'doc_id': doc_id,
        'input': question.prompt,
        'target': question.answer,
        'filtered_resps': said[0] if len(said) == 1 else said,
        'doc_hash': hash_text(json.dumps(document(question), indent=2, ensure_ascii=False)),
        'score': record.score,
        'exact': None if record.score is None else float(record.score == 1.0),
        record.metric: record.score,
    }


def write_vlmevalkit(folder: Path, answered: dict[str, Record], questions: Sequence[Question]) -> None:
    """Writes the answers to questions with choices and to open ones; of several sampled answers the first, as that kit knows one a question."""
    asked = [question for question in questions if question.id in answered]
    index_of = indices(asked)
    for kind, members in by_kind(asked).items():
        rows = [{'index': index_of[q.id], **columns(q), **_prediction(answered[q.id])} for q in members]
        write_table(out := io.StringIO(), rows)
        files.write_whole(folder / f'{NAME}_{kind}.tsv', out.getvalue())


def _prediction(record: Record) -> dict[str, object]:
    first = record.attempts[0]
    return {'prediction': first.prediction or '', 'hit': '' if first.grade is None else first.grade}
