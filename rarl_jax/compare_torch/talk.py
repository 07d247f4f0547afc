"""The conversation that both sides are given: a drawn page, a question, a call, the crop; and what a side makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from input_pipeline.synthetic.pages import DrawSettings, draw_page
from rarl_jax.conversation.boxes import from_original
from rarl_jax.conversation.dialogue import Budget, Dialogue, Host, view_page
from rarl_jax.conversation.protocol import call_text, user_text
from rarl_jax.conversation.tool import ZoomTool, cut
from rarl_jax.models.images import Patches
from rarl_jax.models.interface import Config
from rarl_jax.models.positions import positions_of
from rarl_jax.policy import open_chat
from rarl_jax.settings import CompareSettings

QUESTION = 'What is the figure in the first panel doing?'


@dataclass(frozen=True)
class Talk:
    """Two turns as this package writes them."""

    ids: Int[np.ndarray, 'T']  # up to the opening of the second turn's answer
    first: int  # tokens up to the opening of the first turn's answer
    images: tuple[Patches, ...]  # the page, the crop
    pictures: tuple[Image.Image, ...]  # the same before they are resized
    messages: list[dict[str, Any]]  # the same for transformers' chat templates
    banned: tuple[int, ...]  # ids that a policy never chooses


@dataclass(frozen=True)
class Greedy:
    """A continuation by the likeliest tokens."""

    tokens: Int[np.ndarray, 'N']  # the likeliest after each place
    logits: Float[np.ndarray, 'N V']  # that they were chosen from


@dataclass(frozen=True)
class Side:
    """What one side makes of the conversation."""

    ids: Int[np.ndarray, 'T']
    pixels: tuple[Float[np.ndarray, 'P X'], ...]  # of each image
    positions: Int[np.ndarray, '3 T']
    states: Mapping[str, Float[np.ndarray, 'R D']]  # by the name of what put it out, in the order of the pass
    greedy: Mapping[str, Greedy]  # of each turn


def make_talk(folder: Path, config: Config, settings: CompareSettings) -> Talk:
    """The page and the box of the call are drawn from the seed."""
    drawn = draw_page(settings.seed, 0, DrawSettings())
    host = Host(open_chat(folder, config), config.vision, settings.model.page, settings.model.crop, ZoomTool())
    view = view_page(host, drawn.image)
    dialogue = Dialogue(host, view, Budget(total_tokens=config.text.max_position_embeddings), question_id='compare')
    dialogue.ask(QUESTION)
    first = len(dialogue.ids)
    call = call_text(from_original(tuple(map(float, drawn.figures[0].box)), host.tool.box_frame, view.frame))
    ids = host.chat.encode(call)
    dialogue.take(ids, [0.0] * len(ids))
    dialogue.end_turn()
    banned = (*host.chat.banned_ids, *range(host.chat.vocab_size, config.text.vocab_size))
    pictures = (drawn.image, cut(drawn.image, dialogue.zooms[0].box))
    messages = _messages(user_text(QUESTION, host.tool.box_frame, drawn.image.size), call, host)
    return Talk(np.array(dialogue.ids), first, tuple(dialogue.images), pictures, messages, banned)


def our_positions(talk: Talk, config: Config) -> Int[np.ndarray, '3 T']:
    return positions_of(talk.ids, talk.images, config)[0]


def _messages(question: str, call: str, host: Host) -> list[dict[str, Any]]:
    """Plain roles, which every template knows; what the tool returns is a user's turn, as `Chat` writes it."""
    image = {'type': 'image'}
    returned = [{'type': 'text', 'text': '<tool_response>\n'}, image, {'type': 'text', 'text': '\n</tool_response>'}]
    return [
        {'role': 'system', 'content': host.system_text()},
        {'role': 'user', 'content': [image, {'type': 'text', 'text': question}]},
        {'role': 'assistant', 'content': call},
        {'role': 'user', 'content': returned},
    ]
