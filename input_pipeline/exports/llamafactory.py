"""LLaMA-Factory's SFT data: SPLIT.json in ShareGPT form (system, conversations, images) and the dataset_info.json that describes it (its data/README.md).

Use it with `dataset_dir: exports/llamafactory` and `dataset: comics_train`; image paths are relative to that folder.
"""

from __future__ import annotations

from pathlib import Path

from input_pipeline.exports.common import Export, write_json
from input_pipeline.grading import INSTRUCTION
from input_pipeline.schema import Question


def write(export: Export, folder: Path) -> None:
    """Writes the answers as one-turn conversations in the words that an evaluation asks for, a file a split."""
    info = {}
    for split in dict.fromkeys(question.split for question in export.questions):
        rows = [_row(question, export) for question in export.questions if question.split == split]
        write_json(folder / f'{split}.json', rows)
        info[f'comics_{split}'] = {
            'file_name': f'{split}.json',
            'formatting': 'sharegpt',
            'columns': {'messages': 'conversations', 'system': 'system', 'images': 'images'},
        }
    write_json(folder / 'dataset_info.json', info)


def _row(question: Question, export: Export) -> dict[str, object]:
    return {
        'id': question.id,
        'system': INSTRUCTION,
        'conversations': [
            {'from': 'human', 'value': f'<image>{question.prompt}'},
            {'from': 'gpt', 'value': f'<answer>{question.answer}</answer>'},
        ],
        'images': [f'../images/{export.images[question.page_id]}'],
    }
