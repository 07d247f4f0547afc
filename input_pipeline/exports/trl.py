"""TRL's RL data: SPLIT.parquet with prompt (messages), image, and the columns that the reward and other rewards need; and reward.py.

    from reward import reward                                  # exports/trl/reward.py
    data = load_dataset('parquet', data_files={'train': 'exports/trl/train.parquet'})['train']
    GRPOTrainer(model=..., reward_funcs=reward, train_dataset=data, args=GRPOConfig(...))

`image` is an Image of `datasets` that names its file by absolute path: export again after moving the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from input_pipeline.exports.common import Export, ship
from input_pipeline.exports.parquet import PICTURE, write_splits
from input_pipeline.grading import INSTRUCTION
from input_pipeline.schema import Question

_COLUMNS = {
    'prompt': [{'role': str, 'content': str}],
    'image': PICTURE,
    **dict.fromkeys(('answer', 'task', 'id'), str),
    'choices': [str],
    'regions': [[float]],
    'zoom_needed': bool,
}


def write(export: Export, folder: Path) -> None:
    """Writes one parquet file a split, and the reward."""
    write_splits(folder, export.questions, _COLUMNS, lambda question, _: _row(question, export))
    ship(export, folder, 'reward.py', 'reward.py')


def _row(question: Question, export: Export) -> dict[str, Any]:
    return {
        'prompt': [{'role': 'system', 'content': INSTRUCTION}, {'role': 'user', 'content': question.prompt}],
        'image': {'bytes': None, 'path': str(export.final / 'images' / export.images[question.page_id])},
        'answer': question.answer,
        'choices': list(question.choices),
        'task': question.task,
        'regions': [list(box) for box in question.regions],
        'zoom_needed': question.zoom_needed,
        'id': question.id,
    }
