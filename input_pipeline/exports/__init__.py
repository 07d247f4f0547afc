"""The questions in the formats of other projects, beside one copy of the page images.

    exports/images/PAGE.png      every page once, as the policy sees it
    exports/verl/                SPLIT.parquet and reward.py                             RL data of verl (and DeepEyes, which follows it)
    exports/trl/                 SPLIT.parquet and reward.py                             RL data of TRL's GRPOTrainer
    exports/llamafactory/        SPLIT.json in ShareGPT form and dataset_info.json       SFT data of LLaMA-Factory
    exports/vlmevalkit/          NAME_MCQ.tsv and NAME_VQA.tsv, images inside            a benchmark of VLMEvalKit
    exports/lmms_eval/           a task folder: one YAML a task, utils.py, data/*.jsonl  a benchmark of lmms-eval

Whatever grades carries grading.py as it is. Benchmarks get the test split, and the validation split for a task that has no test question.
pyarrow is needed for the parquet files only.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from input_pipeline.exports import llamafactory, lmms_eval, trl, verl, vlmevalkit
from input_pipeline.exports.common import Export, copy_picture, plain
from input_pipeline.schema import Page, Question

Format = Literal['verl', 'trl', 'llamafactory', 'vlmevalkit', 'lmms_eval']
WRITERS: dict[Format, Callable[[Export, Path], None]] = {
    'verl': verl.write,
    'trl': trl.write,
    'llamafactory': llamafactory.write,
    'vlmevalkit': vlmevalkit.write,
    'lmms_eval': lmms_eval.write,
}


def check(formats: Sequence[str]) -> None:
    """Raises ValueError for a format that is not known, or whose library is missing."""
    if unknown := [name for name in formats if name not in WRITERS]:
        raise ValueError(f'there is no export {unknown[0]!r}: choose among {", ".join(WRITERS)}.')
    parquet = [name for name in formats if name in ('verl', 'trl')]
    if parquet and importlib.util.find_spec('pyarrow') is None:
        raise ValueError(
            f'the {parquet[0]} export needs pyarrow: install it (pip install pyarrow) or leave {parquet[0]} out of `exports`.'
        )


def export(
    folder: Path,
    final: Path,
    pages: Sequence[Page],
    questions: Sequence[Question],
    formats: Sequence[Format],
    progress: Callable[[int, int], None],
) -> None:
    """Writes the formats into `folder`; `final` is where the folder will lie when paths inside it are used.

    ValueError for a question about two pages: the formats show one.
    """
    if formats and (pairs := [question.id for question in questions if question.second_page_id]):
        raise ValueError(f'question {pairs[0]} shows two pages, an export one: leave `exports` empty or take it out.')
    total = len(pages) + len(formats)
    images = {}
    for done, page in enumerate(pages if formats else (), start=1):
        images[page.id] = copy_picture(page, folder / 'images')
        progress(done, total)
    content = Export(folder, final, images, [plain(question) for question in questions])
    for done, name in enumerate(formats, start=1):
        (folder / name).mkdir()
        WRITERS[name](content, folder / name)
        progress(len(pages) + done, total)
