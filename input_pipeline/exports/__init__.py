"""The questions in the formats of other projects, beside one copy of the page images.

    exports/images/PAGE.png      every page once
    exports/verl/                train.parquet, validation.parquet, test.parquet         RL data of verl (and DeepEyes, which follows it)
    exports/llamafactory/        SPLIT.json in ShareGPT form and dataset_info.json       SFT data of LLaMA-Factory
    exports/vlmevalkit/          NAME_MCQ.tsv and NAME_VQA.tsv, images inside            a benchmark of VLMEvalKit
    exports/lmms_eval/           a task folder: one YAML a task, utils.py, data/*.jsonl  a benchmark of lmms-eval

Benchmarks get the test split, and the validation split for a task that has no test question. pyarrow is needed for verl only.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from input_pipeline.exports import llamafactory, lmms_eval, verl, vlmevalkit
from input_pipeline.exports.common import image_name
from input_pipeline.schema import Page, Question

Format = Literal['verl', 'llamafactory', 'vlmevalkit', 'lmms_eval']
WRITERS: dict[Format, Callable[[Path, Path, Sequence[Page], Sequence[Question]], None]] = {
    'verl': verl.write,
    'llamafactory': llamafactory.write,
    'vlmevalkit': vlmevalkit.write,
    'lmms_eval': lmms_eval.write,
}


def check(formats: Sequence[str]) -> None:
    """Raises ValueError for a format that is not known, or whose library is missing."""
    if unknown := [name for name in formats if name not in WRITERS]:
        raise ValueError(f'there is no export {unknown[0]!r}: choose among {", ".join(WRITERS)}.')
    if 'verl' in formats and importlib.util.find_spec('pyarrow') is None:
        raise ValueError(
            'the verl export needs pyarrow: install it (pip install pyarrow) or leave verl out of `exports`.'
        )


def export(
    folder: Path,
    final: Path,
    pages: Sequence[Page],
    questions: Sequence[Question],
    formats: Sequence[Format],
    progress: Callable[[int, int], None],
) -> None:
    """Writes the formats into `folder`; `final` is where the folder will lie when paths inside it are used."""
    if not formats:
        return
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    total = len(pages) + len(formats)
    for done, page in enumerate(pages, start=1):
        shutil.copyfile(page.image, folder / 'images' / image_name(page))
        progress(done, total)
    for done, name in enumerate(formats, start=1):
        (folder / name).mkdir(exist_ok=True)
        WRITERS[name](folder / name, final, pages, questions)
        progress(len(pages) + done, total)
