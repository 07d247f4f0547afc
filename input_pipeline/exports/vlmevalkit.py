"""VLMEvalKit's benchmarks: NAME_MCQ.tsv (choices A, B, ... and the right letter) and NAME_VQA.tsv (open answers), for its $LMUData folder.

A page's image stands as base64 in the first row that asks about it; later rows name that row's index, which VLMEvalKit resolves
(vlmeval/dataset/image_base.py).
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.baselines import held_out
from input_pipeline.exports.common import NAME, bare_prompt
from input_pipeline.schema import Page, Question
from input_pipeline.tasks.common import LABELS

COMMON = ('index', 'image', 'question', 'answer', 'category', 'l2-category', 'split', 'id')


def write(folder: Path, final: Path, pages: Sequence[Page], questions: Sequence[Question]) -> None:
    """Writes the held-out questions; a file that would be empty is left out."""
    del final  # images are inside
    files = {page.id: Path(page.image) for page in pages}
    asked = held_out(questions)
    _write_file(folder / f'{NAME}_MCQ.tsv', [question for question in asked if question.choices], files)
    _write_file(folder / f'{NAME}_VQA.tsv', [question for question in asked if not question.choices], files)


def _write_file(path: Path, questions: Sequence[Question], files: dict[str, Path]) -> None:
    if not questions:
        return
    letters = LABELS[: max(len(question.choices) for question in questions)]
    first_row: dict[str, int] = {}
    with path.open('w', encoding='utf-8', newline='') as file:
        rows = csv.writer(file, delimiter='\t', lineterminator='\n')
        rows.writerow([*COMMON, *letters])
        for index, question in enumerate(questions):
            image = str(first_row.setdefault(question.page_id, index))
            if image == str(index):
                image = base64.b64encode(files[question.page_id].read_bytes()).decode()
            answer = LABELS[question.choices.index(question.answer)] if question.choices else question.answer
            common = (
                index,
                image,
                bare_prompt(question),
                answer,
                question.task,
                question.category,
                question.split,
                question.id,
            )
            rows.writerow([*common, *question.choices, *[''] * (len(letters) - len(question.choices))])
