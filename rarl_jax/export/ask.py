"""Asks an exported policy about a page as it was trained: a crop that it calls for is cut from the page at full size and shown to it.

    vllm serve EXPORT --limit-mm-per-prompt '{"image": 5}'
    python EXPORT/ask.py PAGE.png 'What is the figure in red doing?' --url http://localhost:8000/v1

Lies in every exported folder beside rarl.json, which holds all words and numbers, and needs Pillow alone.
"""

import argparse
import base64
import io
import json
import math
import re
import urllib.request
from pathlib import Path

from PIL import Image, ImageOps


def ask(page, question, complete, told):
    """Holds one conversation. Returns the answer (None if there is none) and the boxes (x1, y1, x2, y2) that were shown, in pixels of `page`.

    complete(messages) gives the text of the next turn, its `told['stop']` included, and whether the policy ended it (False: out of tokens).
    """
    page, boxes = as_rgb(page), []
    view = fit(page, told['page'], told['side'])
    words = told['question'].format(question=question, width=page.width, height=page.height)
    user = [{'type': 'image', 'image': view}, {'type': 'text', 'text': words}]
    messages = [{'role': 'system', 'content': told['system']}, {'role': 'user', 'content': user}]
    for left in reversed(range(told['budget']['max_turns'])):
        turn, ended = complete(messages)
        answer, status, box = read(turn, told['tool']['name'])
        if status is None or not ended or not left:
            return (answer if status is None else None), boxes
        status, box = judge(status, box, page.size, view.size, boxes, told['tool'])
        shown = [told['answer_too_early']] if answer is not None else []
        if status == 'ok':
            crop = page.crop((int(box[0]), int(box[1]), math.ceil(box[2]), math.ceil(box[3])))
            shown = [fit(crop, told['crop'], told['side']), *shown]
        else:
            shown = [told['failures'][status]]
        parts = [told['observation'][0], *shown, told['observation'][1]]
        content = [{'type': 'text', 'text': x} if isinstance(x, str) else {'type': 'image', 'image': x} for x in parts]
        messages += [{'role': 'assistant', 'content': turn}, {'role': 'user', 'content': content}]
        boxes += [box] if status == 'ok' else []


def read(turn, tool):
    """Answer, status of the call ('ok', why it failed, None = no call) and its box. What stands in a thought is no act."""
    acts = re.sub(r'<think>.*?(</think>|\Z)', ' ', turn, flags=re.DOTALL)
    start = acts.rfind('<answer>', 0, max(acts.rfind('</answer>'), 0))
    answer = None if start < 0 else acts[start + 8 : acts.index('</answer>', start)].strip()
    opened, closed = acts.count('<tool_call>'), acts.count('</tool_call>')
    if not closed:
        return answer, ('bad_json' if opened and answer is None else None), None
    body, closing, _ = acts.partition('<tool_call>')[2].partition('</tool_call>')
    try:
        call = json.loads(body) if closing else None
    except (ValueError, RecursionError):
        call = None
    if opened > 1 or closed > 1 or (isinstance(call, list) and len(call) > 1):
        return answer, 'several_calls', None
    if not isinstance(call, dict):
        return answer, 'bad_json', None
    if call.get('name') != tool:
        return answer, 'unknown_tool', None
    arguments = call['arguments'] if isinstance(call.get('arguments'), dict) else {}
    box = arguments.get('bbox_2d')
    numbers = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    if not numbers or not isinstance(arguments.get('label', ''), str | None):
        return answer, 'bad_arguments', None
    return answer, 'ok', box


def judge(status, box, page, view, shown, tool):
    """What becomes of a call: its status and the box in pixels of the page. `page` and `view` are (width, height) of the file and as shown."""
    if status != 'ok':
        return status, None
    width, height = {'model': view, 'original': page, 'normalized': (1000, 1000)}[tool['box_frame']]
    try:
        box = settle([v * s for v, s in zip(box, (page[0] / width, page[1] / height) * 2, strict=True)], page, tool)
    except OverflowError:
        box = None
    if box is None:
        return 'bad_box', None
    if any(iou(box, other) >= tool['duplicate_iou'] for other in shown):
        return 'duplicate', None
    return ('no_budget', None) if len(shown) >= tool['max_crops'] else ('ok', box)


def settle(box, page, tool):
    """The part of a box that can be cut: clipped to the page, and grown about its centre if it is tiny or thin; None if there is none."""
    if not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        return None
    x1, y1, x2, y2 = (min(max(v, 0.0), float(edge)) for v, edge in zip(box, page * 2, strict=True))
    if x1 >= x2 or y1 >= y2:
        return None
    x1, x2 = grow(x1, x2, max(tool['min_side'], (y2 - y1) / tool['max_aspect']), page[0])
    y1, y2 = grow(y1, y2, max(tool['min_side'], (x2 - x1) / tool['max_aspect']), page[1])
    return x1, y1, x2, y2


def grow(low, high, side, limit):
    if high - low >= side:
        return low, high
    side = min(side, float(limit))
    low = min(max((low + high - side) / 2, 0.0), limit - side)
    return low, low + side


def iou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def fit(image, limits, side):
    """The picture at the size that the policy sees, which a processor with the exported limits leaves as it is."""
    low, high, area = limits['min_pixels'], limits['max_pixels'], image.width * image.height
    size = [round(n / side) * side for n in image.size]
    if size[0] * size[1] > high:
        size = [max(side, math.floor(n / math.sqrt(area / high) / side) * side) for n in image.size]
    elif size[0] * size[1] < low:
        size = [math.ceil(n * math.sqrt(low / area) / side) * side for n in image.size]
    return image.resize(size, Image.Resampling.BICUBIC)


def as_rgb(image):
    """As people see it: turned, and white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if 'A' in image.getbands() or image.info.get('transparency') is not None:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, (255, 255, 255, 255)), image)
    return image.convert('RGB')


def server(url, key, model, told):
    """`complete` of an OpenAI-compatible server, greedy. A turn that stops at a call drafted in a thought goes on, which vLLM can do."""
    limits, stop = (told['page'], told['crop']), told['stop']
    fixed = {'model': model, 'temperature': 0, 'stop': [stop]}
    fixed['logit_bias'] = {str(token): -100 for token in told['banned_ids']}
    if limits[0] != limits[1]:  # pictures are sent at their size: the server's limits must hold for both kinds
        low, high = min(one['min_pixels'] for one in limits), max(one['max_pixels'] for one in limits)
        fixed['mm_processor_kwargs'] = {'min_pixels': low, 'max_pixels': high}

    def complete(messages):
        turn, left, going_on = '', told['budget']['turn_tokens'], {}
        while True:
            begun = [{'role': 'assistant', 'content': turn}] if turn else []
            body = {**fixed, **going_on, 'messages': encoded(messages) + begun, 'max_tokens': left}
            head = {'Content-Type': 'application/json', 'Authorization': f'Bearer {key}'}
            request = urllib.request.Request(f'{url}/chat/completions', json.dumps(body).encode(), head)
            with urllib.request.urlopen(request, timeout=600) as reply:
                reply = json.load(reply)
            choice, ended = reply['choices'][0], reply['choices'][0]['finish_reason'] == 'stop'
            turn += choice['message']['content'] or ''
            at_call = choice.get('stop_reason') in (stop, told['stop_ids'][1])  # as vLLM tells it
            if ended and not turn.endswith(stop) and (at_call or turn.count('<tool_call>') > turn.count(stop)):
                turn += stop  # servers leave out what they stop at
            left -= reply['usage']['completion_tokens']
            thinking = '<think>' in turn.rpartition('</think>')[2]
            if not (ended and thinking and turn.endswith(stop)) or left < 1:
                return turn, ended
            going_on = {'continue_final_message': True, 'add_generation_prompt': False}

    return complete


def encoded(messages):
    """The messages with pictures as PNG, which loses nothing."""

    def part(one):
        if one['type'] != 'image':
            return one
        one['image'].save(file := io.BytesIO(), 'PNG')
        data = base64.b64encode(file.getvalue()).decode()
        return {'type': 'image_url', 'image_url': {'url': f'data:image/png;base64,{data}'}}

    return [
        one if isinstance(one['content'], str) else {**one, 'content': [part(each) for each in one['content']]}
        for one in messages
    ]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page')
    parser.add_argument('question')
    parser.add_argument('--url', default='http://localhost:8000/v1')
    parser.add_argument('--key', default='none')
    parser.add_argument('--model', default=str(Path(__file__).parent))
    given = parser.parse_args()
    told = json.loads(Path(__file__).with_name('rarl.json').read_text(encoding='utf-8'))
    answer, boxes = ask(Image.open(given.page), given.question, server(given.url, given.key, given.model, told), told)
    print(json.dumps({'answer': answer, 'boxes': boxes}))
