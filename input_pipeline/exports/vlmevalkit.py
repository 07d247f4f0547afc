"""VLMEvalKit's benchmarks: NAME_MCQ.tsv (choices A, B, ... and the right letter) and NAME_VQA.tsv (open answers), for its $LMUData folder.

A page's image stands as base64 in the first row that asks about it; later rows name that row's index, which VLMEvalKit resolves
(vlmeval/dataset/image_base.py).
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from input_pipeline.baselines import held_out
from input_pipeline.exports.common import NAME, Export, bare_prompt, indices
from input_pipeline.schema import Question
from input_pipeline.tasks.common import LABELS

# Cells that pandas, by which the kit reads its files, takes for missing ones.
MISSING = frozenset(
    str.split('#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null')
) | {'#N/A N/A'}


def write(export: Export, folder: Path) -> None:
    """Writes the held-out questions; a file that would be empty is left out."""
    asked = held_out(export.questions)
    index_of = indices(asked)
    for kind, questions in by_kind(asked).items():
        first_row: dict[str, int] = {}
        rows = []
        for question in questions:
            index = index_of[question.id]
            image = str(first_row.setdefault(question.page_id, index))
            if image == str(index):
                picture = export.folder / 'images' / export.images[question.page_id]
                image = base64.b64encode(picture.read_bytes()).decode()
            rows.append({'index': index, 'image': image, **columns(question)})
        with (folder / f'{NAME}_{kind}.tsv').open('w', encoding='utf-8', newline='') as file:
            write_table(file, rows)


def by_kind(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Questions with choices and open ones, which the kit measures as two benchmarks."""
    kinds = {'MCQ': [q for q in questions if q.choices], 'VQA': [q for q in questions if not q.choices]}
    return {kind: members for kind, members in kinds.items() if members}


def columns(question: Question) -> dict[str, str]:
    """A `plain` question's columns but for index and image."""
    if len(question.choices) > len(LABELS):
        raise ValueError(
            f'a question has {len(question.choices)} choices, and VLMEvalKit names them by one letter each: at most {len(LABELS)} can be exported.'
        )
    return {
        'question': bare_prompt(question),
        **dict(zip(LABELS, question.choices, strict=False)),
        'answer': LABELS[question.choices.index(question.answer)] if question.choices else question.answer,
        'category': question.task,
        'l2-category': question.category,
        'split': question.split,
        'id': question.id,
    }


def write_table(file: TextIO, rows: Sequence[Mapping[str, object]]) -> None:
    """Tab-separated rows; options A, B, ... stand in front of the answer, and empty where a question has fewer than others.

    A text is read back as this text: quoted, and with a space behind it where it would mean a missing value to pandas.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    letters = [letter for letter in LABELS if letter in names]
    others = [name for name in names if name not in letters]
    place = others.index('answer')
    header = [*others[:place], *letters, *others[place:]]
    file.write('\t'.join(header) + '\n')
    table = csv.writer(file, delimiter='\t', lineterminator='\n', quoting=csv.QUOTE_NONNUMERIC)
    table.writerows([_cell(row.get(name, '')) for name in header] for row in rows)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f'{value} ' if value in MISSING else value.replace('\0', '')
