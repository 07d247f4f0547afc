"""A folder's tokenizer and chat template: pieces of a conversation as ids.

Text becomes ids only through them, so the same code serves the published checkpoints of every family and the small ones. Ids that the policy chose are
never decoded and encoded again: a conversation grows by whole pieces (prompt, turn, observation), each of which begins and ends at a special token.
A control token that is spelled out inside a question is text: only the template and the policy write control tokens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from rarl_jax.conversation import protocol
from rarl_jax.conversation.protocol import CALL_CLOSE, CALL_OPEN, INSTRUCTION, OBSERVATION
from rarl_jax.runtime.files import load_json

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
# Where `literal` cuts a spelled control token in two. No text holds it: half of a surrogate pair has no UTF-8.
CUT = '\udfff'


class Chat:
    """A folder's tokenizer and chat template: pieces of a conversation as ids.

    Attributes: image_id, turn_end_id, call_close_id, stop_ids, banned_ids, vocab_size (ids that decode to something).
    """

    def __init__(self, tokenizer: Tokenizer, template: str):
        self._tokenizer = tokenizer
        self._template = template
        self._observations: dict[tuple[str, bool], list[int]] = {}
        self._systems: dict[str, str] = {}
        self.image_id = self._id_of(IMAGE_PAD)
        self.turn_end_id = self._id_of(TURN_END)
        self.call_close_id = self._id_of(CALL_CLOSE)
        self.stop_ids = (self.turn_end_id, self.call_close_id)
        self.banned_ids = tuple(self._id_of(token) for token in BANNED)
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder().values()
        tags = [token.content for token in added if token.special or re.fullmatch(r'\s*<\S+>\s*', token.content)]
        self._control = re.compile(f'(?=(?:{"|".join(map(re.escape, tags))})).', re.DOTALL)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Chat:
        """Reads `tokenizer.json` and the chat template of a Hugging Face folder. FileNotFoundError names what is missing."""
        path = Path(folder) / 'tokenizer.json'
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing: the folder needs its tokenizer.json.')
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding='utf-8-sig'))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(
                f'{path} is no tokenizer ({error}): take the one that the model was published with.'
            ) from error
        return cls(tokenizer, read_template(folder))

    def _id_of(self, token: str) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise ValueError(
                f'The tokenizer has no token {token!r}; use a folder with the special tokens of Qwen2.5 and later.'
            )
        return index

    def literal(self, text: str) -> str:
        """The text for a prompt or `encode`, marked so that no control token is read into it."""
        return self._control.sub(rf'\g<0>{CUT}', text.encode('utf-8', 'replace').decode())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, the control tokens in it included; `literal` exempts what is not ours."""
        return [i for part in text.split(CUT) for i in self._tokenizer.encode(part, add_special_tokens=False).ids]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def turn_text(self, ids: list[int]) -> str:
        """The text of a turn that the policy chose: a closing `<|im_end|>` is left out, a closing `</tool_call>` is kept."""
        ids = list(ids)
        return self.decode(ids[:-1] if ids and ids[-1] == self.turn_end_id else ids)

    def system_text(self, *tools: Mapping[str, Any]) -> str:
        """The system turn's words, the tools listed as the template lists them, or in this project's words where it knows of none."""
        key = json.dumps(tools)
        if key not in self._systems:
            messages = [{'role': 'system', 'content': INSTRUCTION}, _user('q', False)]
            turn = self._render(messages, list(tools)).partition(f'{TURN_START}system\n')[2].partition(TURN_END)[0]
            listed = tools and turn != INSTRUCTION
            self._systems[key] = turn if listed else protocol.system_text(*tools)
        return self._systems[key]

    @cached_property
    def before_call(self) -> str:
        """What the template writes between an assistant's words and a call."""
        call = {'type': 'function', 'function': {'name': 'f', 'arguments': {}}}
        messages = [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a', 'tool_calls': [call]}]
        joint, found, _ = self._render(messages).partition('assistant\na')[2].partition(CALL_OPEN)
        return joint if found else ''

    def prompt_ids(self, system: str, user: str, image_tokens: int | None) -> list[int]:
        """System turn, question with its page (`image_tokens` merged tokens; None = no image), and the opening of an answer."""
        messages = [{'role': 'system', 'content': system}, _user(self.literal(user), image_tokens is not None)]
        return self._expand(self.encode(self._render(messages)), image_tokens)

    def observation_ids(self, last_id: int, text: str, image_tokens: int | None) -> list[int]:
        """What follows a turn that ended with `last_id`: its `<|im_end|>` where the policy stopped at `</tool_call>`, what the
        tool shows (an image of `image_tokens` merged tokens, a text, or both), and the opening of the next turn."""
        words = (text, image_tokens is not None)
        if words not in self._observations:  # a rollout needs a handful of them thousands of times
            content = [*_parts(OBSERVATION[0], False), *_parts(*words), *_parts(OBSERVATION[1], False)]
            self._observations[words] = self._continue({'role': 'user', 'content': content})
        return self._joined(last_id, self._expand(self._observations[words], image_tokens))

    def question_ids(self, last_id: int, user: str) -> list[int]:
        """A further question after a turn that ended with `last_id`, up to the opening of its answer."""
        return self._joined(last_id, self._continue(_user(self.literal(user), False)))

    def _continue(self, message: dict[str, Any]) -> list[int]:
        """Ids from the end of an assistant's turn, its `<|im_end|>` included, to the opening of the next; images are one id each."""
        rendered = self._render([{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}, message])
        start = rendered.index(f'{TURN_START}assistant\na{TURN_END}') + len(f'{TURN_START}assistant\na')
        return self.encode(rendered[start:])

    def _joined(self, last_id: int, ids: list[int]) -> list[int]:
        return ids[1:] if last_id == self.turn_end_id else ids

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None = None) -> str:
        try:
            return _renderer()(
                [messages], tools=tools or None, chat_template=self._template, add_generation_prompt=True
            )[0][0]
        except TemplateError as error:
            raise ValueError(f'The chat template refused the conversation: {error}') from error

    def _expand(self, ids: list[int], image_tokens: int | None) -> list[int]:
        if image_tokens is None:
            return list(ids)
        if ids.count(self.image_id) != 1:
            raise ValueError(
                f'The chat template writes {ids.count(self.image_id)} {IMAGE_PAD} for one image, expected 1: it does not fit this model.'
            )
        at = ids.index(self.image_id)
        return ids[:at] + [self.image_id] * image_tokens + ids[at + 1 :]


def _user(text: str, with_image: bool) -> dict[str, Any]:
    return {'role': 'user', 'content': _parts(text, with_image)}


def _parts(text: str, with_image: bool) -> list[dict[str, str]]:
    return [*([{'type': 'image'}] if with_image else []), *([{'type': 'text', 'text': text}] if text else [])]


def read_template(folder: str | Path) -> str:
    """The chat template of a folder, from any of the places that transformers has used for it; of several named ones the `default`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file that should hold one does not; names it.
    """
    folder = Path(folder)
    for path in (folder / 'chat_template.jinja', folder / 'additional_chat_templates' / 'default.jinja'):
        if path.is_file():
            try:
                return path.read_text(encoding='utf-8-sig')
            except UnicodeDecodeError as error:
                raise ValueError(f'{path} is not UTF-8 ({error}): save it as such.') from error
    for path in (folder / 'chat_template.json', folder / 'tokenizer_config.json'):
        if path.is_file() and (template := load_json(path).get('chat_template')) is not None:
            return _default_of(template, path)
    raise FileNotFoundError(
        f'{folder} has no chat template: it needs chat_template.jinja, or chat_template in tokenizer_config.json.'
    )


def _default_of(template: Any, path: Path) -> str:
    """The template itself, or the one called default in a list of {name, template} or an object of templates by name."""
    try:
        named = {each['name']: each['template'] for each in template} if isinstance(template, list) else template
        template = named['default'] if isinstance(named, dict) else named
    except (KeyError, TypeError):
        template = None
    if not isinstance(template, str):
        raise ValueError(
            f'{path}: chat_template is neither a text nor several by name with one called default: correct it.'
        )
    return template


@lru_cache(maxsize=1)
def _renderer() -> Callable[..., tuple[list[str], Any]]:
    """transformers' own: 0.6 s to import. Its AutoTokenizer takes 3.7 s, torch among them, to read what `tokenizers` reads in 0.06 s."""
    os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # or every run is told that PyTorch was not found
    from transformers.utils.chat_template_utils import render_jinja_template

    return render_jinja_template
