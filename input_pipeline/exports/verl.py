"""verl's RL data: SPLIT.parquet with data_source, prompt, images, ability, reward_model and extra_info (verl/utils/dataset/rl_dataset.py).

`<image>` in the prompt stands for the page; `images` names its file by absolute path, as qwen_vl_utils' fetch_image takes it: export again after
moving the folder. `extra_info` keeps everything that a reward for zooming needs: regions (x1, y1, x2, y2 in original pixels), choices, zoom_needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from input_pipeline.exports.common import image_name
from input_pipeline.schema import Page, Question

ROWS = 1000  # of a row group


def write(folder: Path, final: Path, pages: Sequence[Page], questions: Sequence[Question]) -> None:
    """Writes one parquet file a split."""
    import pyarrow as pa  # needed for this export alone
    import pyarrow.parquet as pq

    schema = _schema(pa)
    paths = {page.id: f'file://{final / "images" / image_name(page)}' for page in pages}
    for split in dict.fromkeys(question.split for question in questions):
        own = [question for question in questions if question.split == split]
        with pq.ParquetWriter(folder / f'{split}.parquet', schema) as writer:
            for start in range(0, len(own), ROWS):
                rows = [
                    _row(question, index, paths)
                    for index, question in enumerate(own[start : start + ROWS], start=start)
                ]
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _row(question: Question, index: int, paths: dict[str, str]) -> dict[str, Any]:
    return {
        'data_source': f'ai4va_fg/{question.task}',
        'prompt': [{'role': 'user', 'content': f'<image>\n{question.prompt}'}],
        'images': [{'image': paths[question.page_id]}],
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


def _schema(pa: Any) -> Any:
    text = pa.string()
    return pa.schema(
        {
            'data_source': text,
            'prompt': pa.list_(pa.struct({'role': text, 'content': text})),
            'images': pa.list_(pa.struct({'image': text})),
            'ability': text,
            'reward_model': pa.struct({'style': text, 'ground_truth': text}),
            'extra_info': pa.struct(
                {
                    **dict.fromkeys(('split', 'answer', 'question', 'id', 'page_id', 'task'), text),
                    'index': pa.int64(),
                    'choices': pa.list_(text),
                    'regions': pa.list_(pa.list_(pa.float64())),
                    'zoom_needed': pa.bool_(),
                }
            ),
        }
    )
