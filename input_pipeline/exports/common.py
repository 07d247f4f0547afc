"""What the export formats share."""

from __future__ import annotations

from pathlib import Path

from input_pipeline.schema import Page, Question
from input_pipeline.tasks.common import with_choices

NAME = 'ComicsFG'  # of the benchmark in other projects' lists


def image_name(page: Page) -> str:
    """File name of a page in exports/images."""
    return page.id + Path(page.image).suffix.lower()


def bare_prompt(question: Question) -> str:
    """The prompt without the list of choices, for formats that list them on their own."""
    return question.prompt.removesuffix(with_choices('', question.choices)) if question.choices else question.prompt
