"""From questions about pages to dialogues that a sampler can go on with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from input_pipeline.loader import Sample
from rarl_jax.conversation.controls import CropControl, show_for
from rarl_jax.conversation.dialogue import Budget, Dialogue, Host, PageView, errors_of, view_page


def open_dialogues(
    host: Host,
    budget: Budget,
    samples: Sequence[Sample],
    *,
    offers_tool: bool = True,
    crop: CropControl = 'real',
    version: int = 0,
) -> list[Dialogue]:
    """A dialogue for each question, up to the policy's first token; its `group` is the question's place in `samples`.

    Args:
        offers_tool: False: the prompt knows no tool, and a call shows nothing.
        version: steps that the policy which answers has been trained for.
        crop: what a zoom shows: the region, a blank, another place; oracle: the right regions are shown before the policy's first turn.
    Raises:
        ValueError: a page that the policy can't be shown, or a prompt that leaves no room in the budget; names question and page.
    """
    pages = view_pages(host, samples)
    return [
        _open(host, pages[id(sample.image)], budget, sample, group, offers_tool, crop, version)
        for group, sample in enumerate(samples)
    ]


def view_pages(host: Host, samples: Sequence[Sample]) -> dict[int, PageView]:
    """Each page prepared once for all questions about it, by the identity of its image; in threads, as resizing leaves the interpreter alone."""
    first = {id(sample.image): sample.question for sample in reversed(samples)}
    images = {id(sample.image): sample.image for sample in samples}

    def view(number: int) -> PageView:
        question = first[number]
        with errors_of(f'Question {question.id} about page {question.page_id}'):
            return view_page(host, images[number])

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(images, threads.map(view, images), strict=True))


def _open(
    host: Host,
    page: PageView,
    budget: Budget,
    sample: Sample,
    group: int,
    offers_tool: bool,
    crop: CropControl,
    version: int,
) -> Dialogue:
    question = sample.question
    with errors_of(f'Question {question.id} about page {question.page_id}'):
        show = show_for(crop, question, host.tool.show)
        dialogue = Dialogue(
            host,
            page,
            budget,
            question_id=question.id,
            group=group,
            offers_tool=offers_tool,
            show=show,
            version=version,
        )
        dialogue.ask(question.prompt)
        if crop == 'oracle':
            for region in question.regions[: host.tool.max_crops]:
                dialogue.point_at(region)
        dialogue.check_room()
    return dialogue
