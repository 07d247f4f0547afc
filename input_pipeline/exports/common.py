"""What the export formats share."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from input_pipeline import grading
from input_pipeline.pictures import as_shown
from input_pipeline.schema import Page, Question
from input_pipeline.tasks import METRICS
from input_pipeline.tasks.common import with_choices

NAME = 'ComicsFG'  # of the benchmark in other projects' lists
# What other projects' loaders, chat templates and our own reading of a turn would take for more than words.
_CONTROL = re.compile(r'<(?=/?(?:image|video|audio|answer|think|tool_call|tool_response)>|\|)')


@dataclass(frozen=True)
class Export:
    """What a format is written from."""

    folder: Path  # exports/ while it is made
    final: Path  # where that folder will lie when the paths in its files are used
    images: Mapping[str, str]  # page id -> file in folder / 'images'
    questions: Sequence[Question]  # their texts `plain`


def plain(question: Question) -> Question:
    """The question with placeholders and control tokens in its texts taken apart: '<image>' in a balloon becomes '< image>'."""

    def safe(text: str) -> str:
        return _CONTROL.sub('< ', text)

    choices = tuple(map(safe, question.choices))
    return replace(question, prompt=safe(question.prompt), choices=choices, answer=safe(question.answer))


def bare_prompt(question: Question) -> str:
    """The prompt without the list of choices, for formats that list them on their own."""
    return question.prompt.removesuffix(with_choices('', question.choices)) if question.choices else question.prompt


def indices(questions: Sequence[Question]) -> dict[str, int]:
    """Question id -> a whole number that is the same in every file about the question (48 bits of a hash, exact in a float)."""
    found = {question.id: int.from_bytes(hashlib.sha256(question.id.encode()).digest()[:6]) for question in questions}
    if len(set(found.values())) < len(found):
        raise ValueError('two questions have the same index: rename one of the pages whose questions these are.')
    return found


def copy_picture(page: Page, folder: Path) -> str:
    """Puts the page's picture into `folder` as the policy sees it, and returns its name: a plain file as it is, any other as RGB on white."""
    data, suffix = as_shown(page.image, (page.width, page.height))
    path = folder / (page.id + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return page.id + suffix


def ship(export: Export, folder: Path, script: str, name: str) -> None:
    """Puts one of our scripts into `folder` as `name`, and beside it what it reads: grading.py as it is, and the tasks' metrics and pages' files."""
    shutil.copyfile(Path(__file__).with_name(script), folder / name)
    shutil.copyfile(grading.__file__, folder / 'grading.py')
    write_json(folder / 'about.json', {'metrics': METRICS, 'images': dict(export.images)})


def write_json(path: Path, value: object) -> None:
    """JSON with its letters as they are."""
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding='utf-8')
