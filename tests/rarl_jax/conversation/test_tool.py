"""A second tool, named by a config: what the seam must let through."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import quickstart
from rarl_jax.conversation.boxes import settle
from rarl_jax.conversation.dialogue import Budget, Dialogue, view_page
from rarl_jax.conversation.protocol import FAILURE_WORDS, Call, call_text, system_text
from rarl_jax.conversation.tool import Tool, ZoomTool, cut, load_tool
from rarl_jax.models.images import patchify
from rarl_jax.settings import settings_from
from tests.rarl_jax import small_policy


@dataclass(frozen=True)
class Negative:
    """Shows a region, by its corners in original pixels, with its colours inverted."""

    kind: str = __name__
    box_frame: str = 'original'
    max_crops: int = 1
    strength: float = 1.0

    @property
    def name(self):
        return 'negative'

    def schema(self):
        return {'type': 'function', 'function': {'name': 'negative', 'parameters': {'corners': 'list'}}}

    def call_text(self, box):
        return (
            f'<tool_call>{json.dumps({"name": "negative", "arguments": {"corners": [box[:2], box[2:]]}})}</tool_call>'
        )

    def read(self, arguments):
        try:
            (x1, y1), (x2, y2) = arguments['corners']
            return Call('ok', (float(x1), float(y1), float(x2), float(y2)))
        except (TypeError, KeyError, ValueError):
            return Call('bad_arguments')

    def judge(self, call, page, shown):
        box = None if call.box is None else settle(call.box, page, 1)
        if len(shown) >= self.max_crops:
            return 'no_budget', box
        return ('bad_box' if call.status == 'ok' and box is None else call.status), box

    def show(self, image, box):
        return ImageOps.invert(cut(image, box))


TOOL = Negative


def test_a_config_names_a_tool_by_its_import_path():
    config = quickstart.get_config('smoke').to_dict()
    assert settings_from(config).conversation.tool == ZoomTool(box_frame='model')
    config['conversation']['tool'] = {'kind': __name__, 'strength': 0.5}
    assert settings_from(config).conversation.tool == Negative(strength=0.5)
    config['conversation']['tool'] = {'kind': 'zoom', 'max_crop': 2}
    with pytest.raises(ValueError, match=r"config\.conversation\.tool\.max_crop: did you mean 'max_crops'"):
        settings_from(config)
    with pytest.raises(ValueError, match="The kind of the tool, if not zoom, is 'zom'"):
        load_tool('zom')


def test_another_tool_is_offered_called_and_shown():
    tool: Tool = Negative()
    host = dataclasses.replace(small_policy.host(), tool=tool)
    page = small_policy.page()
    dialogue = Dialogue(host, view_page(host, page), Budget(total_tokens=1000), question_id='q')
    dialogue.ask('What?')
    assert system_text(tool.schema()) in host.chat.decode(dialogue.ids)
    box = (40, 60, 140, 200)
    for text, status in (
        (call_text(box), 'unknown_tool'),
        ('<tool_call>{"name": "negative", "arguments": {"bbox_2d": [1, 2, 3, 4]}}</tool_call>', 'bad_arguments'),
        (tool.call_text(box), 'ok'),
        (tool.call_text(box), 'no_budget'),
    ):
        ids = host.chat.encode(text)
        dialogue.take(ids, [0.0] * len(ids))
        dialogue.advance()
        assert dialogue.zooms[-1].status == status, text
        assert status == 'ok' or FAILURE_WORDS[status] in host.chat.decode(dialogue.ids)
    expected = patchify(ImageOps.invert(page.crop(box)), host.crop, host.vision)
    np.testing.assert_array_equal(dialogue.images[1].pixels, expected.pixels)
    assert dialogue.zooms[2].box == box and len(dialogue.images) == 2


def test_a_conversation_without_a_tool_says_nothing_of_one():
    page = Image.new('RGB', (300, 300))
    host = dataclasses.replace(small_policy.host(), tool=Negative())
    dialogue = Dialogue(host, view_page(host, page), small_policy.BUDGET, question_id='q', offers_tool=False)
    dialogue.ask('What?')
    assert 'negative' not in host.chat.decode(dialogue.ids)
