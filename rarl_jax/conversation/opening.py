"""From questions about pages to dialogues that a sampler can go on with."""

from __future__ import annotations

from collections.abc import Sequence

from input_pipeline.loader import Sample
from rarl_jax.conversation.controls import CropControl, show_for
from rarl_jax.conversation.dialogue import Budget, Dialogue, Host, errors_of, view_page


def open_dialogues(
    host: Host, budget: Budget, samples: Sequence[Sample], *, offers_tool: bool = True, crop: CropControl = 'real'
) -> list[Dialogue]:
    """A dialogue for each question, up to the policy's first token; its `group` is the question's place in `samples`.

    Args:
        offers_tool: False: the prompt knows no tool, and a call shows nothing.
        crop: what a zoom shows: the region, a blank, another place; oracle: the right regions are shown before the policy's first turn.
    Raises:
        ValueError: a page that the policy can't be shown, or a prompt that leaves no room in the budget; names question and page.
    """
    return [_open(host, budget, sample, group, offers_tool, crop) for group, sample in enumerate(samples)]


def _open(host: Host, budget: Budget, sample: Sample, group: int, offers_tool: bool, crop: CropControl) -> Dialogue:
    question = sample.question
    with errors_of(f'Question {question.id} about page {question.page_id}'):
        view, show = view_page(host, sample.image), show_for(crop, question, host.tool.show)
        dialogue = Dialogue(
            host, view, budget, question_id=question.id, group=group, offers_tool=offers_tool, show=show
        )
        dialogue.ask(question.prompt)
        if crop == 'oracle':
            for region in question.regions[: host.tool.max_crops]:
                dialogue.point_at(region)
        dialogue.check_room()
    return dialogue
