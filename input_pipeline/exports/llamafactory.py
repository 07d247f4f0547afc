"""LLaMA-Factory's SFT data: SPLIT.json in ShareGPT form (conversations, images) and the dataset_info.json that describes it (its data/README.md).

Use it with `dataset_dir: exports/llamafactory` and `dataset: comics_train`; image paths are relative to that folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from input_pipeline.exports.common import image_name
from input_pipeline.schema import Page, Question


def write(folder: Path, final: Path, pages: Sequence[Page], questions: Sequence[Question]) -> None:
    """Writes the answers as one-turn conversations, a file a split."""
    del final  # paths are relative
    images = {page.id: f'../images/{image_name(page)}' for page in pages}
    info = {}
    for split in dict.fromkeys(question.split for question in questions):
        rows = [
            {
                'id': question.id,
                'conversations': [
                    {'from': 'human', 'value': f'<image>{question.prompt}'},
                    {'from': 'gpt', 'value': question.answer},
                ],
                'images': [images[question.page_id]],
            }
            for question in questions
            if question.split == split
        ]
        (folder / f'{split}.json').write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding='utf-8')
        info[f'comics_{split}'] = {
            'file_name': f'{split}.json',
            'formatting': 'sharegpt',
            'columns': {'messages': 'conversations', 'images': 'images'},
        }
    (folder / 'dataset_info.json').write_text(json.dumps(info, indent=1), encoding='utf-8')
