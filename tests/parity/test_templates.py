"""What grows piece by piece is what a template writes at once: three turns with a call, a refused call and crops, as each family's template has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from rarl_jax.conversation.chat import IMAGE_PAD, Chat
from rarl_jax.conversation.dialogue import Budget, Dialogue, Host, view_page
from rarl_jax.conversation.protocol import CHAT_TEMPLATE, FAILURE_WORDS, INSTRUCTION, TOOL_NAME
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.models.interface import PRESETS
from tests.rarl_jax.small_policy import CROP, PAGE, folder, page

# Plain roles and no tools, as Qwen2.5-VL's published template: a tool's result is a user's turn.
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    'qwen2_5_vl': (PLAIN, 'Qwen2.5-VL-7B'),
    'qwen3_vl': (Path(__file__).parents[1].joinpath('qwen3_vl.jinja').read_text(encoding='utf-8'), 'Qwen3-VL-8B'),
    'ours': (CHAT_TEMPLATE, 'Qwen2.5-VL-7B'),
}
QUESTION, MORE, ANSWER = 'What is the figure in red doing?', 'And café ♥?', '<answer>running</answer>'
THOUGHT, BOX, OFF = '<think>a closer look</think>', (100, 150, 400, 450), (400, 150, 100, 450)


@pytest.mark.parametrize('name', TEMPLATES)
def test_ids_of_three_turns(name):
    template, model = TEMPLATES[name]
    chat = Chat(Chat.from_folder(folder())._tokenizer, template)
    host = Host(chat, PRESETS[model].vision, PAGE, CROP, ZoomTool())
    native = name != 'qwen2_5_vl'
    dialogue = Dialogue(host, view_page(host, page()), Budget(5, 512, 4096), question_id='q')
    dialogue.ask(QUESTION)
    for text in (
        THOUGHT + chat.before_call + host.tool.call_text(BOX),
        host.tool.call_text(OFF),
        ANSWER,
    ):
        take(dialogue, text)
    dialogue.ask(MORE)
    take(dialogue, ANSWER)
    assert [zoom.status for zoom in dialogue.zooms] == ['ok', 'bad_box']

    def call(words, box):
        if not native:
            return {'role': 'assistant', 'content': words + host.tool.call_text(box)}
        function = {'name': TOOL_NAME, 'arguments': {'bbox_2d': list(box)}}
        return {'role': 'assistant', 'content': words, 'tool_calls': [{'type': 'function', 'function': function}]}

    def result(part):
        if native:
            return {'role': 'tool', 'content': [part]}
        around = [{'type': 'text', 'text': text} for text in ('<tool_response>\n', '\n</tool_response>')]
        return {'role': 'user', 'content': [around[0], part, around[1]]}

    image = {'type': 'image'}
    messages = [
        {'role': 'system', 'content': INSTRUCTION if native else host.system_text()},
        {'role': 'user', 'content': [image, {'type': 'text', 'text': QUESTION}]},
        call(THOUGHT, BOX),
        result(image),
        call('', OFF),
        result({'type': 'text', 'text': FAILURE_WORDS['bad_box']}),
        {'role': 'assistant', 'content': ANSWER},
        {'role': 'user', 'content': MORE},
        {'role': 'assistant', 'content': ANSWER},
    ]
    tools = [host.tool.schema()] if native else None
    whole = render_jinja_template([messages], tools=tools, chat_template=template)[0][0].removesuffix('\n')
    first, second, third = whole.split(IMAGE_PAD)
    counts = [patches.merged(2) for patches in dialogue.images]
    expected = first + IMAGE_PAD * counts[0] + second + IMAGE_PAD * counts[1] + third
    assert chat.decode(dialogue.ids) == expected
    np.testing.assert_array_equal(dialogue.ids, chat.encode(expected))


def take(dialogue, text):
    chat = dialogue.host.chat
    ids = chat.encode(text)
    dialogue.take(ids if ids[-1] == chat.call_close_id else [*ids, chat.turn_end_id], [0.0] * (len(ids) + 1))
    dialogue.end_turn()


def test_boxes_are_those_of_the_family():
    for model, (box_frame, told) in {
        'Qwen2.5-VL-7B': ('model', 'in pixels of the page as you see it'),
        'Qwen3-VL-8B': ('normalized', 'in thousandths'),
    }.items():
        host = Host(Chat.from_folder(folder()), PRESETS[model].vision, PAGE, CROP, ZoomTool())
        assert host.tool.box_frame == box_frame and told in host.system_text()
        chosen = Host(host.chat, host.vision, PAGE, CROP, ZoomTool(box_frame='original'))
        assert chosen.tool.box_frame == 'original'
