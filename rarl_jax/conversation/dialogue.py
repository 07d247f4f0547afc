"""A conversation about a page: ids, which of them the policy chose, the images it saw, and how it ended.

`Dialogue` is the one code path by which conversations grow. A rollout feeds it the tokens that the policy chooses, `replay` the
tokens of a supervised answer; it reads turns, carries out zooms, appends what the tool shows, and keeps the books.

    prompt (page)      turn 0            observation (crop)     turn 1
    . . . . . . .    x x x x x x          . . . . . .           x x x      x = chosen by the policy: loss_mask is True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from rarl_jax.conversation import protocol
from rarl_jax.conversation.boxes import Box, PageFrame, from_original
from rarl_jax.conversation.chat import Chat
from rarl_jax.conversation.protocol import Call, Turn, is_thinking, read_turn
from rarl_jax.conversation.tool import Tool, Zoom, ZoomTool
from rarl_jax.models.images import Patches, PixelLimits, patchify
from rarl_jax.models.interface import VisionConfig

FinishReason = Literal['answer', 'stop', 'turn_limit', 'turn_length', 'total_length']
Show = Callable[[Image.Image, Box], Image.Image]  # (page, settled box) -> the picture that the tool returns


@dataclass(frozen=True)
class Episode:
    """A finished conversation."""

    question_id: str
    group: int  # which question of its batch; episodes of one group are compared with each other
    sample: int  # which attempt at the question, from 0
    ids: Int[np.ndarray, 'T']
    loss_mask: Bool[np.ndarray, 'T']  # True = the policy chose this token
    sample_logprobs: Float[np.ndarray, 'T']  # log-prob when chosen, of the temperature-scaled distribution; 0 elsewhere
    images: tuple[Patches, ...]  # the page, then crops, in order of appearance
    zooms: tuple[Zoom, ...]  # every call, failed ones too
    turns: tuple[Turn, ...]  # what the policy wrote, turn by turn
    finish_reason: FinishReason
    page: PageFrame
    # Steps that the policy which chose a token had been trained for; -1 where none did. None = nobody has kept it.
    versions: Int[np.ndarray, 'T'] | None = None

    @property
    def answer(self) -> str | None:
        """The answer that the last turn gives; None if it gives none or calls the tool instead."""
        return self.turns[-1].answer if self.turns and self.turns[-1].call is None else None

    @property
    def cut_off(self) -> bool:
        """Whether a budget ended it."""
        return self.finish_reason not in ('answer', 'stop')


@dataclass(frozen=True)
class Budget:
    """How long a conversation may grow."""

    max_turns: int = 5  # turns of the policy
    turn_tokens: int = 512  # tokens that the policy may choose in a turn
    total_tokens: int = 8192  # tokens of the whole conversation, prompt and images included

    def __post_init__(self):
        if min(self.max_turns, self.turn_tokens, self.total_tokens) < 1:
            raise ValueError(f'{self}: each must be at least 1.')


@dataclass(frozen=True)
class ConversationSettings:
    """What conversations of a run have in common."""

    tool: Any = field(default_factory=ZoomTool)  # a Tool, of the class that its `kind` names
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True)
class Host:
    """What it takes to hold a conversation: words, sizes and the tool."""

    chat: Chat  # a folder's tokenizer and template
    vision: VisionConfig  # patch sizes
    page: PixelLimits  # how large the policy sees a page
    crop: PixelLimits  # how large the policy sees a crop
    tool: Tool  # its box frame that of the family where it names none

    def __post_init__(self):
        if self.tool.box_frame == 'family':
            object.__setattr__(self, 'tool', replace(self.tool, box_frame=self.vision.box_frame))

    def system_text(self, offers_tool: bool = True) -> str:
        """The system turn's words."""
        return self.chat.system_text(*([self.tool.schema()] if offers_tool else []))


@dataclass(frozen=True)
class PageView:
    """A page, prepared once for all conversations about it."""

    image: Image.Image  # RGB, original size
    patches: Patches  # as the policy sees it
    frame: PageFrame


@contextmanager
def errors_of(name: str) -> Iterator[None]:
    """A ValueError of the block says whose it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def view_page(host: Host, image: Image.Image, limits: PixelLimits | None = None) -> PageView:
    """Resizes a page to `limits` (the host's for pages if None)."""
    patches = patchify(image, host.page if limits is None else limits, host.vision)
    rows, columns = patches.grid[1:]
    side = host.vision.patch_size
    return PageView(image, patches, PageFrame(image.width, image.height, columns * side, rows * side))


class Dialogue:
    """A conversation in the making.

    Attributes: ids, chosen, logprobs, versions (lists of one length), images, zooms, turns, finish_reason (None while it goes on), and version:
    the steps that the policy has been trained for; whoever changes its weights while a conversation goes on sets it.
    """

    def __init__(
        self,
        host: Host,
        page: PageView,
        budget: Budget,
        *,
        question_id: str,
        group: int = 0,
        sample: int = 0,
        offers_tool: bool = True,
        show: Show | None = None,
        version: int = 0,
    ):
        self.version = version
        self.host, self.page, self.budget = host, page, budget
        self.question_id, self.group, self.sample = question_id, group, sample
        self.offers_tool, self.show = offers_tool, show or host.tool.show
        self.ids: list[int] = []
        self.chosen: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.images: list[Patches] = []
        self.zooms: list[Zoom] = []
        self.turns: list[Turn] = []
        self.finish_reason: FinishReason | None = None
        self._turn_start = 0  # where the policy's current turn begins
        self._shown: list[Box] = []  # boxes cut for the current question
        self._crops: dict[Box, Patches] = {}  # what each box shows, shared with all attempts

    def copy(self, sample: int) -> Dialogue:
        """A second attempt from this point on."""
        other = copy.copy(self)
        other.sample = sample
        for name in ('ids', 'chosen', 'logprobs', 'versions', 'images', 'zooms', 'turns', '_shown'):
            setattr(other, name, list(getattr(self, name)))
        return other

    @property
    def in_turn(self) -> bool:
        """Whether the newest token is the policy's, in a turn that it has not ended."""
        return self.finish_reason is None and len(self.ids) > self._turn_start

    @property
    def tokens_left(self) -> int:
        """Tokens that the policy may still choose in this turn."""
        used = len(self.ids) - self._turn_start
        return max(min(self.budget.turn_tokens - used, self.budget.total_tokens - len(self.ids)), 0)

    def ask(self, prompt: str) -> None:
        """Puts a question: the first with the system turn and the page, a further one after the last answer."""
        chat, frame = self.host.chat, self.page.frame
        words = protocol.user_text(prompt, self.host.tool.box_frame, (frame.width, frame.height))
        if self.ids:
            self._write(chat.question_ids(self.ids[-1], words))
        else:
            self.images.append(self.page.patches)
            system = self.host.system_text(self.offers_tool)
            self._write(chat.prompt_ids(system, words, self._tokens(self.page.patches)))
        self._shown, self.finish_reason = [], None

    def check_room(self) -> None:
        """ValueError where the budget leaves the policy no token."""
        if self.finish_reason is not None or len(self.ids) >= self.budget.total_tokens:
            raise ValueError(
                f'its prompt has {len(self.ids)} tokens, but the conversation may have {self.budget.total_tokens}; '
                'raise total_tokens or lower the pixel limits.'
            )

    def take(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        """Appends tokens that the policy chose."""
        self.ids.extend(ids)
        self.chosen.extend([True] * len(ids))
        self.versions.extend([self.version] * len(ids))
        self.logprobs.extend(logprobs)

    def advance(self) -> None:
        """Ends the turn where its newest token says so: `<|im_end|>`, or a `</tool_call>` that does not stand in the middle of a thought."""
        chat, last = self.host.chat, self.ids[-1]
        if last == chat.turn_end_id or (last == chat.call_close_id and not is_thinking(self._turn_text())):
            self.end_turn()
        elif self.tokens_left == 0:
            self.break_off()

    def end_turn(self) -> None:
        """Reads the turn that the policy has just stopped: ends the conversation, or appends what the tool shows or says."""
        turn = self._read()
        if turn.call is None:
            self.finish_reason = 'stop' if turn.answer is None else 'answer'
        else:
            self._answer_call(turn.call, protocol.ANSWER_TOO_EARLY if turn.answer is not None else '')

    def break_off(self) -> None:
        """Ends the conversation in the middle of a turn, because no token is left to the policy."""
        self._read()
        self.finish_reason = 'total_length' if len(self.ids) >= self.budget.total_tokens else 'turn_length'

    def point_at(self, box: Box) -> None:
        """Writes a call for an original-pixel box in the policy's place and shows its crop; none of it counts as chosen."""
        written = from_original(box, self.host.tool.box_frame, self.page.frame)
        self._write(self.host.chat.encode(self.host.tool.call_text(written)))
        self._answer_call(Call('ok', tuple(float(round(v)) for v in written)), '')

    def episode(self) -> Episode:
        return Episode(
            question_id=self.question_id,
            group=self.group,
            sample=self.sample,
            ids=np.asarray(self.ids, np.int32),
            loss_mask=np.asarray(self.chosen, bool),
            sample_logprobs=np.asarray(self.logprobs, np.float32),
            images=tuple(self.images),
            zooms=tuple(self.zooms),
            turns=tuple(self.turns),
            finish_reason=self.finish_reason,
            page=self.page.frame,
            versions=np.asarray(self.versions, np.int32),
        )

    def _turn_text(self) -> str:
        return self.host.chat.turn_text(self.ids[self._turn_start :])

    def _read(self) -> Turn:
        self.turns.append(read_turn(self._turn_text(), self.host.tool.name, self.host.tool.read))
        return self.turns[-1]

    def _tokens(self, image: Patches) -> int:
        return image.merged(self.host.vision.spatial_merge_size)

    def _write(self, ids: list[int]) -> None:
        """Appends tokens that the host chose, after which the policy's turn begins."""
        self.ids.extend(ids)
        self.chosen.extend([False] * len(ids))
        self.versions.extend([-1] * len(ids))
        self.logprobs.extend([0.0] * len(ids))
        self._turn_start = len(self.ids)

    def _answer_call(self, call: Call, note: str) -> None:
        """An observation is appended whole, image and words, or not at all."""
        status, box = self.host.tool.judge(call, self.page.frame, self._shown)
        if not self.offers_tool:
            status = 'unknown_tool'
        crop = None
        if status == 'ok':
            if box not in self._crops:
                self._crops[box] = patchify(self.show(self.page.image, box), self.host.crop, self.host.vision)
            crop = self._crops[box]
        words = note if status == 'ok' else protocol.FAILURE_WORDS[status]
        observation = self.host.chat.observation_ids(self.ids[-1], words, None if crop is None else self._tokens(crop))
        if len(self.turns) >= self.budget.max_turns:
            self.finish_reason = 'turn_limit'
        elif len(self.ids) + len(observation) >= self.budget.total_tokens:
            self.finish_reason = 'total_length'
        if self.finish_reason is not None and status == 'ok':
            status = 'no_budget'
        turn = max(len(self.turns) - 1, 0)
        tokens = self._tokens(crop) if status == 'ok' else 0
        self.zooms.append(Zoom(call.box, box, self.host.tool.box_frame, status, turn, call.label, tokens))
        if self.finish_reason is None:
            self._write(observation)
            if crop is not None:
                self.images.append(crop)
                self._shown.append(box)
