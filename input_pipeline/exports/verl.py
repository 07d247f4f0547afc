"""verl's RL data: SPLIT.parquet with data_source, prompt, images, ability, reward_model and extra_info (verl/utils/dataset/rl_dataset.py), and reward.py.

`<image>` in the prompt stands for the page; `images` names its file by absolute path, as qwen_vl_utils' fetch_image takes it: export again after
moving the folder. `extra_info` keeps everything that a reward for zooming needs: regions (x1, y1, x2, y2 in original pixels), choices, zoom_needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from input_pipeline.exports.common import Export, ship
from input_pipeline.exports.parquet import write_splits
from input_pipeline.grading import INSTRUCTION
from input_pipeline.schema import Question

_COLUMNS = {
    'data_source': str,
    'prompt': [{'role': str, 'content': str}],
    'images': [{'image': str}],
    'ability': str,
    'reward_model': {'style': str, 'ground_truth': str},
    'extra_info': {
        **dict.fromkeys(('split', 'answer', 'question', 'id', 'page_id', 'task'), str),
        'index': int,
        'choices': [str],
        'regions': [[float]],
        'zoom_needed': bool,
    },
}


def write(export: Export, folder: Path) -> None:
    """Writes one parquet file a split, and the reward."""
    write_splits(folder, export.questions, _COLUMNS, lambda question, i: _row(question, i, export))
    ship(export, folder, 'reward.py', 'reward.py')


def _row(question: Question, index: int, export: Export) -> dict[str, Any]:
    return {
        'data_source': f'ai4va_fg/{question.task}',
        'prompt': [
            {'role': 'system', 'content': INSTRUCTION},
            {'role': 'user', 'content': f'<image>\n{question.prompt}'},
        ],
        'images': [{'image': f'file://{export.final / "images" / export.images[question.page_id]}'}],
        'ability': question.category,
        'reward_model': {'style': 'rule', 'ground_truth': question.answer},
        'extra_info': {
            'split': question.split,
            'index': index,
            'answer': question.answer,
            'question': question.prompt,
            'id': question.id,
            'page_id': question.page_id,
            'task': question.task,
            'choices': list(question.choices),
            'regions': [list(box) for box in question.regions],
            'zoom_needed': question.zoom_needed,
        },
    }
