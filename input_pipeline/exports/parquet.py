"""Questions as rows of parquet files, a file a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.schema import Question

ROWS = 1000  # of a row group
PICTURE = {'bytes': bytes, 'path': str}  # what `datasets` reads as a picture
# How pyarrow and `datasets` call the types of a column.
_ARROW = {str: 'string', int: 'int64', float: 'float64', bool: 'bool_', bytes: 'binary'}


def write_splits(
    folder: Path,
    questions: Sequence[Question],
    columns: Mapping[str, Any],
    make_row: Callable[[Question, int], dict[str, Any]],
) -> None:
    """Writes FOLDER/SPLIT.parquet.

    Args:
      folder: where to.
      questions: of all splits.
      columns: name -> type of the column: a Python type, [type] for a list, {name: type} for a struct.
      make_row: (question, its number in its split) -> the values of the columns.
    """
    import pyarrow as pa  # needed for these exports alone
    import pyarrow.parquet as pq

    features = {name: _feature(kind) for name, kind in columns.items()}
    about = {'huggingface': json.dumps({'info': {'features': features}})}
    schema = pa.schema({name: _arrow(pa, kind) for name, kind in columns.items()}, about)
    for split in dict.fromkeys(question.split for question in questions):
        rows = [question for question in questions if question.split == split]
        with pq.ParquetWriter(folder / f'{split}.parquet', schema) as writer:
            for start in range(0, len(rows), ROWS):
                group = [make_row(question, i) for i, question in enumerate(rows[start : start + ROWS], start)]
                writer.write_table(pa.Table.from_pylist(group, schema))


def _arrow(pa: Any, kind: Any) -> Any:
    if isinstance(kind, dict):
        return pa.struct({name: _arrow(pa, inner) for name, inner in kind.items()})
    return pa.list_(_arrow(pa, kind[0])) if isinstance(kind, list) else getattr(pa, _ARROW[kind])()


def _feature(kind: Any) -> Any:
    if kind is PICTURE:
        return {'_type': 'Image'}
    if isinstance(kind, dict):
        return {name: _feature(inner) for name, inner in kind.items()}
    return [_feature(kind[0])] if isinstance(kind, list) else {'dtype': _ARROW[kind].strip('_'), '_type': 'Value'}
