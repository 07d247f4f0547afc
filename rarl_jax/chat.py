"""Words around a question: the prompt, the tool's description, the messages a failed call gets, and how a turn is read.

Text becomes ids only through a folder's own tokenizer and chat template, so the same code serves the published Qwen2.5-VL
checkpoints and the small ones. Ids that the policy chose are never decoded and encoded again: a conversation grows by whole
pieces (prompt, turn, observation), each of which begins and ends at a special token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from tokenizers import Tokenizer

from rarl_jax.zoom import BoxFrame

TOOL_NAME = 'image_zoom_in_tool'
CALL_OPEN, CALL_CLOSE = '<tool_call>', '</tool_call>'
TURN_START, TURN_END = '<|im_start|>', '<|im_end|>'
IMAGE_PAD = '<|image_pad|>'
# Only the host writes these: a sampled one would claim an image that has no features, or a speaker that did not speak.
BANNED = (
    '<|endoftext|>',
    TURN_START,
    '<|vision_start|>',
    '<|vision_end|>',
    '<|vision_pad|>',
    IMAGE_PAD,
    '<|video_pad|>',
)

INSTRUCTION = (
    'You answer questions about a comic page. Think inside <think></think>. When you are sure, give the answer alone '
    'inside <answer></answer>.'
)
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
CHAT_TEMPLATE = (
    """
{%- macro show(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{{- '<|im_start|>user\n<tool_response>\n' + show(message.content) + '\n</tool_response><|im_end|>\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\n' + show(message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{- '<tool_call>\n{"name": "' + function.name + '", "arguments": ' + (function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{%- if loop.first and tools -%}
{{- HEAD -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- TAIL -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
""".strip()
    .replace('HEAD', repr(TOOLS_HEAD))
    .replace('TAIL', repr(TOOLS_TAIL))
)


def tool_schema(frame: BoxFrame) -> dict[str, Any]:
    """The zoom tool as a JSON schema, boxes in `frame`."""
    box = {
        'type': 'array',
        'items': {'type': 'number'},
        'minItems': 4,
        'maxItems': 4,
        'description': f'[x1, y1, x2, y2] {FRAME_WORDS[frame]}.',
    }
    label = {'type': 'string', 'description': 'What the region shows.'}
    parameters = {'type': 'object', 'properties': {'bbox_2d': box, 'label': label}, 'required': ['bbox_2d']}
    description = 'Shows a region of the page enlarged.'
    return {'type': 'function', 'function': {'name': TOOL_NAME, 'description': description, 'parameters': parameters}}


def system_text(frame: BoxFrame, offers_tool: bool) -> str:
    """The system turn's words, the tool's description written out where it is offered.

    Published Qwen2.5-VL templates know no `tools`, so the section is part of the text for every folder.
    """
    if not offers_tool:
        return INSTRUCTION
    return f'{INSTRUCTION}{TOOLS_HEAD}\n{json.dumps(tool_schema(frame), ensure_ascii=False)}{TOOLS_TAIL}'


def user_text(prompt: str, frame: BoxFrame, page_size: tuple[int, int]) -> str:
    """The words of a question; names the page's (width, height) in px where boxes are asked for in that frame."""
    return f'{prompt}\nThe page is {page_size[0]} x {page_size[1]} pixels.' if frame == 'original' else prompt


def call_text(box: tuple[float, float, float, float], label: str | None = None) -> str:
    """A well-formed call, `box` in the policy's frame, as supervised data and the oracle write it."""
    arguments: dict[str, Any] = {'bbox_2d': [round(v) for v in box]}
    if label is not None:
        arguments['label'] = label
    return f'{CALL_OPEN}\n{json.dumps({"name": TOOL_NAME, "arguments": arguments}, ensure_ascii=False)}\n{CALL_CLOSE}'


def fixed_strings() -> tuple[str, ...]:
    """Every string this module writes over and over: a small tokenizer gives each its own id, so that they cost one token."""
    call_head, call_tail = call_text((0, 0, 0, 0)).removesuffix(CALL_CLOSE).split('0, 0, 0, 0')
    systems = [system_text(frame, True) for frame in FRAME_WORDS]
    tags = ('<think>', '</think>', '<answer>', '</answer>', '<tool_response>\n', '\n</tool_response>')
    return (
        *tags,
        'system\n',
        'user\n',
        'assistant\n',
        call_head.removeprefix(CALL_OPEN),
        call_tail,
        INSTRUCTION,
        *systems,
        *FAILURE_WORDS.values(),
        ANSWER_TOO_EARLY,
    )


@dataclass(frozen=True)
class Call:
    """A tool call as the policy wrote it, not yet judged against a page."""

    status: str  # 'ok', or why it can't be carried out: a key of FAILURE_WORDS
    box: tuple[float, float, float, float] | None = None  # in the policy's frame; None if none could be read
    label: str | None = None


@dataclass(frozen=True)
class Turn:
    """What one turn of the policy amounts to. A call goes before an answer: an answer counts only in a turn without a call."""

    call: Call | None
    answer: str | None  # words inside the last complete <answer>, stripped
    thought: str | None  # words inside the first complete <think>, stripped


def read_turn(text: str, tool_name: str = TOOL_NAME) -> Turn:
    """Reads the text of one turn (its `</tool_call>` kept, `<|im_end|>` left out). Any text has an outcome; nothing raises.

    An opened call that is never closed counts as broken JSON, unless the turn also holds a complete answer.
    """
    answer, thought = _between(text, '<answer>', '</answer>', last=True), _between(text, '<think>', '</think>')
    if CALL_OPEN not in text and CALL_CLOSE not in text:
        return Turn(None, answer, thought)
    if CALL_CLOSE not in text:
        return Turn(None, answer, thought) if answer is not None else Turn(Call('bad_json'), None, thought)
    if text.count(CALL_OPEN) > 1 or text.count(CALL_CLOSE) > 1:
        return Turn(Call('several_calls'), answer, thought)
    body = _between(text, CALL_OPEN, CALL_CLOSE)
    return Turn(Call('bad_json') if body is None else _read_call(body, tool_name), answer, thought)


def _between(text: str, opening: str, closing: str, last: bool = False) -> str | None:
    start = text.rfind(opening) if last else text.find(opening)
    end = text.find(closing, start)
    return text[start + len(opening) : end].strip() if start >= 0 and end >= 0 else None


def _read_call(body: str, tool_name: str) -> Call:
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return Call('bad_json')
    if isinstance(call, list):
        return Call('several_calls' if len(call) > 1 else 'bad_json')
    if not isinstance(call, dict):
        return Call('bad_json')
    if call.get('name') != tool_name:
        return Call('unknown_tool')
    arguments = call.get('arguments')
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


class Chat:
    """A folder's tokenizer and chat template: pieces of a conversation as ids.

    Attributes: image_id, turn_end_id, call_close_id, stop_ids, banned_ids, vocab_size (ids that decode to something).
    """

    def __init__(self, tokenizer: Tokenizer, template: str):
        self._tokenizer = tokenizer
        self._template = _compile(template)
        self._observations: dict[tuple[str, bool], list[int]] = {}
        self.image_id = self._id_of(IMAGE_PAD)
        self.turn_end_id = self._id_of(TURN_END)
        self.call_close_id = self._id_of(CALL_CLOSE)
        self.stop_ids = (self.turn_end_id, self.call_close_id)
        self.banned_ids = tuple(self._id_of(token) for token in BANNED)
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Chat:
        """Reads `tokenizer.json` and the chat template of a Hugging Face folder. FileNotFoundError names what is missing."""
        path = Path(folder) / 'tokenizer.json'
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing: a Qwen2.5-VL folder needs its tokenizer.json.')
        return cls(Tokenizer.from_file(str(path)), read_template(folder))

    def _id_of(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(f'The tokenizer has no token {token!r}; use a folder with the Qwen2.5 special tokens.')
        return index

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def turn_text(self, ids: list[int]) -> str:
        """The text of a turn that the policy chose: a closing `<|im_end|>` is left out, a closing `</tool_call>` is kept."""
        ids = list(ids)
        return self.decode(ids[:-1] if ids and ids[-1] == self.turn_end_id else ids)

    def prompt_ids(self, system: str, user: str, image_tokens: int | None) -> list[int]:
        """System turn, question with its page (`image_tokens` merged tokens; None = no image), and the opening of an answer."""
        messages = [{'role': 'system', 'content': system}, _user(user, image_tokens is not None)]
        return self._expand(self.encode(self._render(messages)), image_tokens)

    def observation_ids(self, last_id: int, text: str, image_tokens: int | None) -> list[int]:
        """What follows a turn that ended with `last_id`: its `<|im_end|>` where the policy stopped at `</tool_call>`, what the
        tool shows (an image of `image_tokens` merged tokens, a text, or both), and the opening of the next turn."""
        words = (text, image_tokens is not None)
        if words not in self._observations:  # a rollout needs a handful of them thousands of times
            content = [*_parts('<tool_response>\n', False), *_parts(*words), *_parts('\n</tool_response>', False)]
            self._observations[words] = self._continue({'role': 'user', 'content': content})
        return self._joined(last_id, self._expand(self._observations[words], image_tokens))

    def question_ids(self, last_id: int, user: str) -> list[int]:
        """A further question after a turn that ended with `last_id`, up to the opening of its answer."""
        return self._joined(last_id, self._continue(_user(user, False)))

    def _continue(self, message: dict[str, Any]) -> list[int]:
        """Ids from the end of an assistant's turn, its `<|im_end|>` included, to the opening of the next; images are one id each."""
        rendered = self._render([{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}, message])
        start = rendered.index(f'{TURN_START}assistant\na{TURN_END}') + len(f'{TURN_START}assistant\na')
        return self.encode(rendered[start:])

    def _joined(self, last_id: int, ids: list[int]) -> list[int]:
        return ids[1:] if last_id == self.turn_end_id else ids

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._template.render(messages=messages, add_generation_prompt=True, tools=None)

    def _expand(self, ids: list[int], image_tokens: int | None) -> list[int]:
        if image_tokens is None:
            return list(ids)
        if ids.count(self.image_id) != 1:
            raise ValueError(
                f'The prompt holds {ids.count(self.image_id)} image tokens, expected 1: take {IMAGE_PAD} out of the text.'
            )
        at = ids.index(self.image_id)
        return ids[:at] + [self.image_id] * image_tokens + ids[at + 1 :]


def _user(text: str, with_image: bool) -> dict[str, Any]:
    return {'role': 'user', 'content': _parts(text, with_image)}


def _parts(text: str, with_image: bool) -> list[dict[str, str]]:
    return [*([{'type': 'image'}] if with_image else []), *([{'type': 'text', 'text': text}] if text else [])]


def read_template(folder: str | Path) -> str:
    """The chat template of a folder, from any of the three files that the hub has used for it."""
    folder = Path(folder)
    if (folder / 'chat_template.jinja').is_file():
        return (folder / 'chat_template.jinja').read_text(encoding='utf-8')
    for name in ('chat_template.json', 'tokenizer_config.json'):
        if (folder / name).is_file():
            template = json.loads((folder / name).read_text(encoding='utf-8')).get('chat_template')
            if isinstance(template, str):
                return template
    raise FileNotFoundError(
        f'{folder} has no chat template: it needs chat_template.jinja, or chat_template in tokenizer_config.json.'
    )


@lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters['tojson'] = lambda value: json.dumps(value, ensure_ascii=False)
    environment.globals['raise_exception'] = _refuse
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise ValueError(f'The chat template refused the conversation: {message}')
