"""Answers in the files of other evaluation kits, holding no more of the model's words than its answers.

lmms-eval:   samples_TASK.jsonl, one per task, with the keys of its --log_samples.
VLMEvalKit:  vlmevalkit.tsv, the columns of its prediction files (index, question, A, B, ..., answer, prediction, category, l2-category, hit).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase

from input_pipeline.schema import CATEGORY_OF
from rarl_jax.evaluation.records import Record, to_json
from rarl_jax.evaluation.results import evaluation_name
from rarl_jax.runtime import files as jsonl

_LMMS_EVAL_KEYS = ('doc_id', 'input', 'target', 'resps', 'filtered_resps', 'doc_hash')


def write_exports(folder: Path, records: Sequence[Record]) -> None:
    """Writes both kinds of file for every evaluation among the records, into FOLDER/NAME (see `evaluation_name`)."""
    for name in sorted({evaluation_name(record) for record in records}):
        own = [record for record in records if evaluation_name(record) == name]
        write_lmms_eval(folder / name, own)
        write_vlmevalkit(folder / name / 'vlmevalkit.tsv', own)


def write_lmms_eval(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Writes FOLDER/samples_TASK.jsonl for every task, in the order of doc_id; returns the paths."""
    paths = []
    for task in sorted({record.task for record in records}):
        own = sorted((record for record in records if record.task == task), key=lambda record: record.doc_id)
        paths.append(folder / f'samples_{task}.jsonl')
        jsonl.write_whole(paths[-1], ''.join(jsonl.dump(_lmms_eval_row(record)) for record in own))
    return paths


def _lmms_eval_row(record: Record) -> dict[str, object]:
    row = to_json(record)
    return {name: row[name] for name in (*_LMMS_EVAL_KEYS, record.metric)}


def write_vlmevalkit(path: Path, records: Sequence[Record]) -> None:
    """Writes one table of tab-separated values; of several sampled answers it holds the first, as that kit knows one prediction a question.

    A question with choices has them as A, B, ... and the right letter as its answer; an open one has empty option columns and its answer in words.
    """
    widest = max((len(record.choices) for record in records), default=0)
    if widest > len(ascii_uppercase):
        raise ValueError(
            f'a question has {widest} choices, and VLMEvalKit names them by one letter each: at most {len(ascii_uppercase)} can be exported.'
        )
    letters = ascii_uppercase[:widest]
    columns = ['index', 'question', *letters, 'answer', 'prediction', 'category', 'l2-category', 'hit']
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, delimiter='\t', lineterminator='\n', restval='')
    writer.writeheader()
    writer.writerows(_vlmevalkit_row(record) for record in sorted(records, key=lambda record: record.doc_id))
    jsonl.write_whole(path, out.getvalue())


def _vlmevalkit_row(record: Record) -> dict[str, object]:
    first = record.attempts[0]
    letter = dict(zip(record.choices, ascii_uppercase, strict=False)).get(record.answer, record.answer)
    return {
        'index': record.doc_id,
        'question': record.prompt,
        **dict(zip(ascii_uppercase, record.choices, strict=False)),
        'answer': letter,
        'prediction': first.answer or '',
        'category': record.task,
        'l2-category': CATEGORY_OF[record.task],
        'hit': '' if first.grade is None else f'{first.grade:g}',
    }
