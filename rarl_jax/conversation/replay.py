"""Supervised conversations: the episode that a policy would make by writing exactly these turns."""

from __future__ import annotations

from PIL import Image

from input_pipeline.traces import Conversation, Step
from rarl_jax.conversation.boxes import PageFrame, from_original
from rarl_jax.conversation.dialogue import Budget, Dialogue, Episode, Host, errors_of, view_page
from rarl_jax.conversation.tool import cut


def step_text(step: Step, host: Host, page: PageFrame) -> str:
    """The words of a supervised turn for `Chat.encode`, its box in the policy's frame."""
    if step.text is not None:
        return step.text
    literal = host.chat.literal
    thought = '' if step.thought is None else f'<think>{literal(step.thought)}</think>'
    if step.box is None:
        return f'{thought}<answer>{literal(step.answer)}</answer>'
    joint = host.chat.before_call if thought else ''
    return thought + joint + host.tool.call_text(from_original(step.box, host.tool.box_frame, page))


def replay(
    conversation: Conversation, image: Image.Image, host: Host, budget: Budget, group: int = 0, sample: int = 0
) -> Episode:
    """The episode that a policy would make by writing exactly these turns about a page; `sample_logprobs` are 0.

    Raises:
        ValueError: a zoom is refused, or the conversation is longer than budget.total_tokens. Turns are not limited.
    """
    with errors_of(f'Question {conversation.question_id} about page {conversation.page_id}'):
        if conversation.crop is None:
            view = view_page(host, image)
        else:
            view = view_page(host, cut(image, conversation.crop), host.crop)
        dialogue = Dialogue(
            host,
            view,
            Budget(
                1 + sum(len(exchange.steps) for exchange in conversation.exchanges), total_tokens=budget.total_tokens
            ),
            question_id=conversation.question_id,
            group=group,
            sample=sample,
            offers_tool=conversation.offers_tool,
        )
        for exchange in conversation.exchanges:
            dialogue.ask(exchange.prompt)
            for step in exchange.steps:
                _take_step(dialogue, step)
        if len(dialogue.ids) > budget.total_tokens:
            raise ValueError(
                f'the conversation has {len(dialogue.ids)} tokens, at most {budget.total_tokens} fit; '
                'raise total_tokens or ask fewer questions.'
            )
        return dialogue.episode()


def _take_step(dialogue: Dialogue, step: Step) -> None:
    chat = dialogue.host.chat
    ids = chat.encode(step_text(step, dialogue.host, dialogue.page.frame))
    if ids[-1] != chat.call_close_id:
        ids.append(chat.turn_end_id)
    dialogue.take(ids, [0.0] * len(ids))
    if step.box is not None and not step.shown:
        return
    dialogue.end_turn()
    if step.box is not None and not dialogue.zooms[-1].succeeded:
        refused = dialogue.finish_reason or dialogue.zooms[-1].status
        raise ValueError(f'the zoom {step.box} was refused ({refused}), expected a box that can be shown; correct it.')
