"""The loop that lies in every export is the one of the sampler: same reading of a turn, same boxes, same pictures, same messages."""

import base64
import dataclasses
import io
import json
import math
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarl_jax.conversation.boxes import PageFrame
from rarl_jax.conversation.dialogue import Dialogue, view_page
from rarl_jax.conversation.protocol import TOOL_NAME, read_turn
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.export import ask
from rarl_jax.export.folder import describe
from rarl_jax.models.images import PixelLimits, as_rgb, smart_resize
from tests.rarl_jax.small_policy import BUDGET, host, page

PIECES = [
    '<think>',
    '</think>',
    '<answer>',
    '</answer>',
    '<tool_call>',
    '</tool_call>',
    'a',
    ' ',
    '\n',
    '{"name": "x"}',
    '[1]',
]
NUMBERS = st.one_of(
    st.floats(-50, 400), st.integers(-5, 400), st.sampled_from([float('nan'), float('inf'), 10**400, True, '1'])
)


@st.composite
def calls(draw):
    box = draw(st.lists(NUMBERS, min_size=3, max_size=5) | st.just('1, 2, 3, 4'))
    arguments = draw(
        st.sampled_from([{'bbox_2d': box}, {'bbox_2d': box, 'label': 'x'}, {'bbox_2d': box, 'label': 3}, {}, [box]])
    )
    call = {'name': draw(st.sampled_from([TOOL_NAME] * 4 + ['other'])), 'arguments': arguments}
    body = draw(st.sampled_from([call, call, call, [call], [call, call], {'name': TOOL_NAME}]))
    return f'<tool_call>\n{json.dumps(body)}\n</tool_call>'


turns = st.lists(st.sampled_from(PIECES) | calls(), max_size=9).map(''.join)


@given(text=turns)
@settings(max_examples=300, deadline=None)
def test_a_turn_is_read_the_same(text):
    answer, status, box = ask.read(text, TOOL_NAME)
    ours = read_turn(text)
    assert answer == ours.answer
    if status != 'ok' or ours.call.status != 'bad_box':  # a number beyond the largest float: judged later there
        assert status == (None if ours.call is None else ours.call.status)
    if ours.call is not None and ours.call.status == 'ok':
        np.testing.assert_array_equal(np.array(box, float), np.array(ours.call.box))


@given(
    box=st.lists(st.floats(-100, 1200) | st.integers(-10, 1100), min_size=4, max_size=4),
    frame=st.sampled_from(['model', 'original', 'normalized']),
    size=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    seen=st.lists(st.tuples(*[st.integers(0, 100)] * 2, *[st.integers(101, 300)] * 2), max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_a_box_is_judged_the_same(box, frame, size, seen):
    tool, view = ZoomTool(box_frame=frame, max_crops=4), (168, 224)
    told = {**dataclasses.asdict(tool), 'max_aspect': 50.0}
    shown = [tuple(map(float, one)) for one in seen]
    call = f'<tool_call>\n{json.dumps({"name": TOOL_NAME, "arguments": {"bbox_2d": box}})}\n</tool_call>'
    status, found = tool.judge(read_turn(call).call, PageFrame(*size, *view), shown)
    assert ask.judge('ok', box, size, view, shown, told) == (status, found if status == 'ok' else None)


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    low=st.integers(784, 200_000),
    more=st.integers(0, 200_000),
    mode=st.sampled_from(['RGB', 'L', 'RGBA', 'LA', 'P', '1', 'CMYK']),
)
@settings(max_examples=60, deadline=None)
def test_a_picture_is_shown_the_same(width, height, low, more, mode):
    if max(width, height) > 200 * min(width, height):
        return
    image = Image.effect_noise((width, height), 90).convert('RGB').convert(mode)
    limits = PixelLimits(low, low + more)
    fitted = ask.fit(ask.as_rgb(image), dataclasses.asdict(limits), 28)
    assert fitted.size[::-1] == smart_resize(height, width, 28, limits)
    assert np.array_equal(fitted, as_rgb(image).resize(fitted.size, Image.Resampling.BICUBIC))


@pytest.mark.parametrize('frame', ['model', 'original', 'normalized'])
@pytest.mark.parametrize('seed', range(4))
def test_a_whole_conversation(frame, seed):
    """A script of turns, failed calls among them, through both: the same boxes and answer, and messages that our template renders to the same ids."""
    rng = np.random.default_rng(seed)
    here = host(box_frame=frame, max_crops=2)

    def turn(n):
        x, y = rng.integers(0, 150, 2).tolist()
        call = {'name': TOOL_NAME, 'arguments': {'bbox_2d': [x, y, x + 60, y + 60] if n % 3 else [5, 5, 1, 1]}}
        text = f'<tool_call>\n{json.dumps(call)}\n</tool_call>'
        return ['<answer>no</answer>' + text, text, text, text][n % 4]

    script = [turn(n + seed) for n in range(3)] + ['<think>done</think><answer>sitting</answer>']
    budget = dataclasses.replace(BUDGET, total_tokens=4000, max_turns=4 if seed else 3)
    dialogue = Dialogue(here, view_page(here, page()), budget, question_id='q')
    dialogue.ask('What is the figure in red doing?')
    for text in script:
        if dialogue.finish_reason is None:
            ids = here.chat.encode(text)
            ids += [] if text.endswith('</tool_call>') else [here.chat.turn_end_id]
            dialogue.take(ids, [0.0] * len(ids))
            dialogue.end_turn()
    told, turns, sent = json.loads(json.dumps(describe(here, budget))), iter(script), []

    def complete(messages):
        sent.append(list(messages))
        return next(turns), True

    answer, boxes = ask.ask(page(), 'What is the figure in red doing?', complete, told)
    episode = dialogue.episode()
    assert answer == episode.answer and len(sent) == len(episode.turns)
    assert boxes == [zoom.box for zoom in episode.zooms if zoom.succeeded]
    pictures = [
        part['image'] for m in sent[-1] if m['role'] == 'user' for part in m['content'] if part['type'] == 'image'
    ]
    assert [(i.width, i.height) for i in pictures] == [(p.grid[2] * 14, p.grid[1] * 14) for p in episode.images]
    ids, image_id = episode.ids.tolist(), here.chat.image_id
    start = len(ids) - len(here.chat.encode(script[len(sent) - 1])) - (episode.turns[-1].call is None)
    once = [one for n, one in enumerate(ids[:start]) if one != image_id or ids[n - 1] != image_id]
    assert here.chat.encode(here.chat._render(sent[-1])) == once


def test_the_answer_of_a_turn_that_was_cut_off():
    here = host()
    told = describe(here, BUDGET)
    for text, expected in (('<answer>a</answer> and', 'a'), ('<tool_call>', None), ('', None)):
        assert ask.ask(page(), 'q', lambda messages, text=text: (text, False), told) == (expected, [])


class Endpoint(ThreadingHTTPServer):
    """Gives prepared choices, and keeps what it was sent."""

    daemon_threads = True

    def __init__(self, *choices):
        super().__init__(('127.0.0.1', 0), Answering)
        self.choices, self.sent = list(choices), []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class Answering(BaseHTTPRequestHandler):
    def do_POST(self):  # the name that http.server calls
        self.server.sent.append(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
        text, reason, stop = self.server.choices.pop(0)
        choice = {'message': {'content': text}, 'finish_reason': reason, 'stop_reason': stop}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({'choices': [choice], 'usage': {'completion_tokens': 5}}).encode())

    def log_message(self, *_):
        pass


def test_a_server_that_stops_at_calls(monkeypatch):
    """It leaves out what it stopped at; a call in a thought is no end; pictures arrive pixel for pixel."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    here = host()
    told = {**json.loads(json.dumps(describe(here, BUDGET))), 'banned_ids': list(here.chat.banned_ids)}
    call = json.dumps({'name': TOOL_NAME, 'arguments': {'bbox_2d': [10, 10, 90, 90]}})
    endpoint = Endpoint(
        ('<think>I could <tool_call>{}', 'stop', '</tool_call>'),
        (f'.</think><tool_call>{call}', 'stop', told['stop_ids'][1]),
        ('nothing opened it ', 'stop', told['stop_ids'][1]),
        ('<answer>a</answer>', 'stop', None),
    )
    complete = ask.server(f'http://127.0.0.1:{endpoint.server_address[1]}', 'k', 'm', told)
    answer, boxes = ask.ask(page(), 'q', complete, told)
    assert answer == 'a' and len(boxes) == 1
    first, second, third, fourth = endpoint.sent
    assert second['messages'][-1]['content'] == '<think>I could <tool_call>{}</tool_call>'
    assert second['continue_final_message'] and not second['add_generation_prompt'] and second['max_tokens'] == 35
    assert 'continue_final_message' not in third and third['max_tokens'] == first['max_tokens'] == 40
    assert first['temperature'] == 0 and set(map(int, first['logit_bias'])) == set(here.chat.banned_ids)
    assert first['mm_processor_kwargs'] == {'min_pixels': 784, 'max_pixels': 168 * 224}
    assert fourth['messages'][-2]['content'] == 'nothing opened it </tool_call>'
    assert fourth['messages'][-1]['content'][1]['text'] == told['failures']['bad_json']
    urls = [part['image_url']['url'] for part in third['messages'][-1]['content'] if part['type'] == 'image_url']
    crop = Image.open(io.BytesIO(base64.b64decode(urls[0].partition(',')[2])))
    x1, y1, x2, y2 = boxes[0]
    assert np.array_equal(
        crop, ask.fit(page().crop((int(x1), int(y1), math.ceil(x2), math.ceil(y2))), told['crop'], 28)
    )
    endpoint.shutdown()
    endpoint.server_close()
