"""A small folder as transformers reads it: the same ids, pixels and logits for a conversation with a call and a crop."""

import jax
import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from input_pipeline.traces import Conversation, Exchange, Step
from rarl_jax.conversation.chat import Chat
from rarl_jax.conversation.dialogue import Budget, Host
from rarl_jax.conversation.protocol import INSTRUCTION, TOOL_NAME, system_text, tool_schema
from rarl_jax.conversation.replay import replay
from rarl_jax.conversation.tool import ZoomTool, cut
from rarl_jax.models.images import PixelLimits
from tests.rarl_jax.small_policy import folder, one_a_row, page, policy

QUESTION, MORE = 'What is the figure in red doing?', 'Où est le café — ♥? 12, 255, 1024'
BOX, SECOND = (40.0, 60.0, 140.0, 200.0), (180.0, 200.0, 330.0, 260.0)
LIMITS = PixelLimits(56 * 56, 224 * 224)  # the folder's own, for pages and crops alike


@pytest.fixture(scope='module')
def episode():
    """Two questions; the first takes a call, a refused turn being left to other tests, and an answer."""
    exchanges = (
        Exchange(QUESTION, (Step(box=BOX), Step(box=SECOND), Step(answer='running'))),
        Exchange(MORE, (Step(thought='it is there', answer='sitting'),)),
    )
    host = Host(Chat.from_folder(folder()), policy().model.config.vision, LIMITS, LIMITS, ZoomTool())
    told = Conversation('q', 'p', exchanges, offers_tool=True)
    return replay(told, page(), host, Budget(total_tokens=2048))


@pytest.fixture(scope='module')
def processor():
    """AutoProcessor, less the video half, which needs torchvision and has no part in this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoVideoProcessor, 'from_pretrained', classmethod(lambda cls, *a, **k: None))
        check = Qwen2_5_VLProcessor.check_argument_for_proper_class
        patch.setattr(
            Qwen2_5_VLProcessor,
            'check_argument_for_proper_class',
            lambda self, name, value: None if value is None else check(self, name, value),
        )
        return AutoProcessor.from_pretrained(folder())


def messages(first, second):
    def call(zoom):
        arguments = {'bbox_2d': [int(value) for value in zoom.requested]}
        function = {'name': TOOL_NAME, 'arguments': arguments}
        return {'role': 'assistant', 'content': '', 'tool_calls': [{'type': 'function', 'function': function}]}

    def shown(zoom):
        return {'role': 'tool', 'content': [{'type': 'image', 'image': cut(page(), zoom.box)}]}

    question = [{'type': 'image', 'image': page()}, {'type': 'text', 'text': QUESTION}]
    return [
        {'role': 'system', 'content': INSTRUCTION},
        {'role': 'user', 'content': question},
        call(first),
        shown(first),
        call(second),
        shown(second),
        {'role': 'assistant', 'content': '<answer>running</answer>'},
        {'role': 'user', 'content': MORE},
        {'role': 'assistant', 'content': '<think>it is there</think><answer>sitting</answer>'},
    ]


@pytest.fixture(scope='module')
def inputs(processor, episode):
    return processor.apply_chat_template(
        messages(*episode.zooms), tools=[tool_schema('model')], tokenize=True, return_dict=True, return_tensors='pt'
    )


def test_ids_of_a_conversation_with_calls_and_crops(episode, inputs):
    """Failure mode 7: what grew piece by piece is what transformers writes at once, tools and tool messages included."""
    expected = inputs['input_ids'][0].tolist()
    assert len(episode.images) == 3 and episode.ids.tolist() == expected[: len(episode.ids)]
    newline = policy().host.chat.encode('\n')
    assert expected[len(episode.ids) :] == newline  # the template ends with one; the policy stops before it


def test_pixels_of_page_and_crops(episode, inputs):
    np.testing.assert_array_equal(
        np.concatenate([image.pixels for image in episode.images]), inputs['pixel_values'].numpy()
    )
    assert [list(image.grid) for image in episode.images] == inputs['image_grid_thw'].tolist()


def test_tokenizer_of_transformers():
    reference, ours = AutoTokenizer.from_pretrained(folder()), policy().host.chat
    for text in (
        QUESTION,
        MORE,
        system_text(tool_schema('original')),
        '\x00\n\n  x ',
        '007 3.14<|im_end|>',
        '<think>a</think>',
    ):
        assert reference.encode(text, add_special_tokens=False) == ours.encode(text)
        assert reference.decode(ours.encode(text)) == text
    assert reference.eos_token_id == ours.turn_end_id


def test_logits_of_transformers(episode, inputs):
    reference = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder(), dtype=torch.float32)
    with torch.no_grad():
        expected = reference(**inputs).logits[0, : len(episode.ids)].numpy()
    own = policy()
    batch = one_a_row([episode])
    apply = jax.jit(
        lambda params, b: own.model.apply({'params': params}, b.ids, b.positions, b.feature_index, b.images)
    )
    logits = np.asarray(apply(own.params, batch))[0, : len(episode.ids)]
    np.testing.assert_allclose(logits, expected, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


def test_a_template_that_knows_no_tools(episode):
    """Published Qwen2.5-VL templates ignore `tools` and know only plain roles: what is written is the same."""
    plain = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for c in m.content %}{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
        "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    ours = policy().host.chat
    other = Chat(ours._tokenizer, plain)
    system = system_text(tool_schema('model'))
    assert other.prompt_ids(system, QUESTION, 4) == ours.prompt_ids(system, QUESTION, 4)
    assert other.observation_ids(ours.call_close_id, 'x', 4) == ours.observation_ids(ours.call_close_id, 'x', 4)
    assert other.question_ids(ours.turn_end_id, MORE) == ours.question_ids(ours.turn_end_id, MORE)
