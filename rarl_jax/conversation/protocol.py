"""Words around a question: the prompt, the tool's description, the messages a failed call gets, and how a turn is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from input_pipeline.grading import INSTRUCTION, THOUGHT, acts_of, last_answer
from rarl_jax.conversation.boxes import Box, BoxFrame

TOOL_NAME = 'image_zoom_in_tool'
CALL_OPEN, CALL_CLOSE = '<tool_call>', '</tool_call>'
THINK_OPEN, THINK_CLOSE = '<think>', '</think>'
OBSERVATION = ('<tool_response>\n', '\n</tool_response>')  # around what the tool shows, in a user turn

TOOLS_HEAD = '\n\n# Tools\n\nYou have these functions, described inside <tools></tools>:\n<tools>'
TOOLS_TAIL = (
    '\n</tools>\n\nTo use one, end your turn with its name and arguments as JSON inside <tool_call></tool_call>:\n'
    '<tool_call>\n{"name": <name>, "arguments": <arguments>}\n</tool_call>'
)
FRAME_WORDS: dict[BoxFrame, str] = {
    'model': 'in pixels of the page as you see it',
    'original': 'in pixels of the full-size page, whose size the question names',
    'normalized': 'in thousandths of the width and height of the page',
}
# What a policy reads after a call that gave no crop: short, and something it can act on.
FAILURE_WORDS = {
    'duplicate': 'You have already seen this region. Choose another one or answer.',
    'bad_json': 'The call is not valid JSON.',
    'bad_arguments': 'The argument bbox_2d must be a list of four numbers.',
    'bad_box': 'The box must lie on the page, with x1 < x2 and y1 < y2.',
    'unknown_tool': 'There is no such tool.',
    'several_calls': 'Make one call in a turn.',
    'no_budget': 'No zoom is left. Answer now.',
}
ANSWER_TOO_EARLY = 'Answer in a turn without a call.'

# Renders what `Chat` writes; handed to checkpoints that are made from nothing. Tools and tool messages follow Qwen2.5's convention:
# functions are listed in the system turn, and what a tool returns is shown in a user turn.
_TEMPLATE = Path(__file__).with_name('chat_template.jinja').read_text(encoding='utf-8').strip()
CHAT_TEMPLATE = _TEMPLATE.replace('HEAD', repr(TOOLS_HEAD)).replace('TAIL', repr(TOOLS_TAIL))


def tool_schema(frame: BoxFrame) -> dict[str, Any]:
    """The zoom tool as a JSON schema, boxes in `frame`."""
    box = {'type': 'array', 'items': {'type': 'number'}, 'minItems': 4, 'maxItems': 4}
    box['description'] = f'[x1, y1, x2, y2] {FRAME_WORDS[frame]}.'
    label = {'type': 'string', 'description': 'What the region shows.'}
    parameters = {'type': 'object', 'properties': {'bbox_2d': box, 'label': label}, 'required': ['bbox_2d']}
    description = 'Shows a region of the page enlarged.'
    return {'type': 'function', 'function': {'name': TOOL_NAME, 'description': description, 'parameters': parameters}}


def system_text(*tools: Mapping[str, Any]) -> str:
    """The system turn's words, the schemas of the tools written out where they are offered.

    For templates that know no `tools`, as Qwen2.5-VL's as published: `Chat.system_text` asks the template first.
    """
    if not tools:
        return INSTRUCTION
    return '\n'.join([INSTRUCTION + TOOLS_HEAD, *(json.dumps(tool, ensure_ascii=False) for tool in tools)]) + TOOLS_TAIL


def user_text(prompt: str, frame: BoxFrame, page_size: tuple[int, int]) -> str:
    """The words of a question; names the page's (width, height) in px where boxes are asked for in that frame."""
    return f'{prompt}\nThe page is {page_size[0]} x {page_size[1]} pixels.' if frame == 'original' else prompt


def call_text(box: Box, label: str | None = None) -> str:
    """A well-formed call, `box` in the policy's frame, as supervised data and the oracle write it."""
    arguments: dict[str, Any] = {'bbox_2d': [round(v) for v in box]}
    if label is not None:
        arguments['label'] = label
    return f'{CALL_OPEN}\n{json.dumps({"name": TOOL_NAME, "arguments": arguments}, ensure_ascii=False)}\n{CALL_CLOSE}'


def fixed_strings() -> tuple[str, ...]:
    """Every string this module writes over and over: a small tokenizer gives each its own id, so that they cost one token."""
    call_head, call_tail = call_text((0, 0, 0, 0)).removesuffix(CALL_CLOSE).split('0, 0, 0, 0')
    systems = [system_text(tool_schema(frame)) for frame in FRAME_WORDS]
    tags = ('<think>', '</think>', '<answer>', '</answer>', *OBSERVATION)
    calls = (call_head.removeprefix(CALL_OPEN), call_tail)
    words = (*FAILURE_WORDS.values(), ANSWER_TOO_EARLY)
    return (*tags, 'system\n', 'user\n', 'assistant\n', *calls, INSTRUCTION, *systems, *words)


# ---------------------------------------------------------------- reading a turn


@dataclass(frozen=True)
class Call:
    """A tool call as the policy wrote it, not yet judged against a page."""

    status: str  # 'ok', or why it can't be carried out: a key of FAILURE_WORDS
    box: Box | None = None  # in the policy's frame; None if none could be read
    label: str | None = None


@dataclass(frozen=True)
class Turn:
    """What one turn of the policy amounts to. A call goes before an answer: an answer counts only in a turn without a call."""

    text: str  # as the policy wrote it: `</tool_call>` kept, `<|im_end|>` left out
    call: Call | None
    answer: str | None  # words inside the last complete <answer>, stripped
    thought: str | None  # words inside the first complete <think>, stripped


def is_thinking(text: str) -> bool:
    """Whether a turn that has come so far stands inside a thought, where a tag is no act."""
    return THINK_OPEN in text.rpartition(THINK_CLOSE)[2]


def read_turn(text: str, tool_name: str = TOOL_NAME, read: Callable[[Any], Call] | None = None) -> Turn:
    """Reads the text of one turn. Any text has an outcome; nothing raises. `read` reads a call's arguments; None = those of the zoom tool.

    A thought runs from <think> to the next </think>, or to the end of the turn: no call and no answer inside it counts.
    Outside, the last complete answer counts, whatever incomplete one stands beside it. A call that is never closed counts as
    broken JSON, unless the turn also holds a complete answer.
    """
    thoughts = [words for words, closing in THOUGHT.findall(text) if closing]
    acts = acts_of(text)
    answer = last_answer(acts)
    return Turn(
        text,
        _find_call(acts, answer, tool_name, read or read_arguments),
        answer,
        thoughts[0].strip() if thoughts else None,
    )


def _find_call(acts: str, answer: str | None, tool_name: str, read: Callable[[Any], Call]) -> Call | None:
    opened, closed = acts.count(CALL_OPEN), acts.count(CALL_CLOSE)
    if not closed:
        return Call('bad_json') if opened and answer is None else None
    if opened > 1 or closed > 1:
        return Call('several_calls')
    body, closing, _ = acts.partition(CALL_OPEN)[2].partition(CALL_CLOSE)
    try:
        call = json.loads(body) if closing else None
    except (ValueError, RecursionError):
        call = None
    if isinstance(call, list) and len(call) > 1:
        return Call('several_calls')
    if not isinstance(call, dict):
        return Call('bad_json')
    return read(call.get('arguments')) if call.get('name') == tool_name else Call('unknown_tool')


def read_arguments(arguments: Any) -> Call:
    """The zoom tool's arguments: four numbers, and a label or none."""
    box = arguments.get('bbox_2d') if isinstance(arguments, dict) else None
    if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
        return Call('bad_arguments')
    label = arguments.get('label')
    if label is not None and not isinstance(label, str):
        return Call('bad_arguments')
    try:
        return Call('ok', tuple(float(v) for v in box), label)
    except OverflowError:  # a whole number beyond the largest float
        return Call('bad_box')
