"""TRL's RL data: SPLIT.parquet with prompt (messages), image, and the columns that the reward and other rewards need; and reward.py.

    from reward import reward                                  # exports/trl/reward.py
    data = load_dataset('parquet', data_files={'train': 'exports/trl/train.parquet'})['train']
    GRPOTrainer(model=..., reward_funcs=reward, train_dataset=data, args=GRPOConfig(...))

`image` is an Image of `datasets` that names its file by absolute path: export again after moving the folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from input_pipeline.exports.common import Export, ship
from input_pipeline.exports.parquet import write_splits
from input_pipeline.grading import INSTRUCTION
from input_pipeline.schema import Question


def write(export: Export, folder: Path) -> None:
    """Writes one parquet file a split, and the reward."""
    write_splits(folder, export.questions, lambda question, _: _row(question, export), _schema)
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


def _schema(pa: Any) -> Any:
    text = pa.string()
    schema = pa.schema(
        {
            'prompt': pa.list_(pa.struct({'role': text, 'content': text})),
            'image': pa.struct({'bytes': pa.binary(), 'path': text}),
            'answer': text,
            'choices': pa.list_(text),
            'task': text,
            'regions': pa.list_(pa.list_(pa.float64())),
            'zoom_needed': pa.bool_(),
            'id': text,
        }
    )
    return schema.with_metadata({'huggingface': json.dumps({'info': {'features': _FEATURES}})})


def _value(kind: str) -> dict[str, str]:
    return {'dtype': kind, '_type': 'Value'}


# How `datasets` reads the columns: without it `image` would be a dict and no picture.
_FEATURES = {
    'prompt': [{'role': _value('string'), 'content': _value('string')}],
    'image': {'_type': 'Image'},
    'answer': _value('string'),
    'choices': [_value('string')],
    'task': _value('string'),
    'regions': [[_value('float64')]],
    'zoom_needed': _value('bool'),
    'id': _value('string'),
}
