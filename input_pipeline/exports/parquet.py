"""Questions as rows of parquet files, a file a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from input_pipeline.schema import Question

ROWS = 1000  # of a row group


def write_splits(
    folder: Path,
    questions: Sequence[Question],
    make_row: Callable[[Question, int], dict[str, Any]],
    make_schema: Callable[[Any], Any],
) -> None:
    """Writes FOLDER/SPLIT.parquet; `make_row` gets a question and its number in its split, `make_schema` the pyarrow module."""
    import pyarrow as pa  # needed for these exports alone
    import pyarrow.parquet as pq

    schema = make_schema(pa)
    for split in dict.fromkeys(question.split for question in questions):
        rows = [question for question in questions if question.split == split]
        with pq.ParquetWriter(folder / f'{split}.parquet', schema) as writer:
            for start in range(0, len(rows), ROWS):
                group = [make_row(question, i) for i, question in enumerate(rows[start : start + ROWS], start)]
                writer.write_table(pa.Table.from_pylist(group, schema))
