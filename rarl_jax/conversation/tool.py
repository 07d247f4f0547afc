"""The tool: what a conversation needs of one, the zoom tool, and the record of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from rarl_jax.conversation.boxes import Box, BoxFrame, PageFrame, iou, settle, to_original
from rarl_jax.conversation.protocol import TOOL_NAME, Call, call_text, read_arguments, tool_schema
from rarl_jax.runtime.plugins import load_plugin

# A key of protocol.FAILURE_WORDS, or 'ok'.
ZoomStatus = Literal[
    'ok', 'duplicate', 'bad_json', 'bad_arguments', 'bad_box', 'unknown_tool', 'several_calls', 'no_budget'
]


class Tool(Protocol):
    """A tool looks at a region of the page and shows a picture. It is the dataclass of its settings, `config.conversation.tool`.

    `ZoomTool` is the one that comes with the project. Another is a module that ends with `TOOL = its class`, and is named by import path:

        config.conversation.tool.kind = 'my_package.my_tool'
    """

    kind: str  # 'zoom', or the import path of the tool's module
    box_frame: (
        BoxFrame | Literal['family']
    )  # frame in which the policy writes boxes; 'family' = the one of its model's family
    max_crops: int  # pictures shown for a question; a further call is refused

    @property
    def name(self) -> str:
        """What the policy calls it."""

    def schema(self) -> dict[str, Any]:
        """As the system turn lists it."""

    def call_text(self, box: Box) -> str:
        """A well-formed call, `box` in the policy's frame, as supervised data and the oracle write it."""

    def read(self, arguments: Any) -> Call:
        """The arguments of a call, as JSON gave them. Nothing raises."""

    def judge(self, call: Call, page: PageFrame, shown: Sequence[Box]) -> tuple[ZoomStatus, Box | None]:
        """What becomes of a call after `shown` was shown: 'ok' or why nothing is shown, and the region in original pixels."""

    def show(self, image: Image.Image, box: Box) -> Image.Image:
        """The picture for a region in original pixels."""


@dataclass(frozen=True)
class ZoomTool:
    """The zoom tool: it cuts a region out of the page at full resolution."""

    kind: str = 'zoom'
    # Frame in which the policy writes boxes; 'family' = the one of its model's family, which a Host puts in.
    box_frame: Literal['family', 'model', 'original', 'normalized'] = 'family'
    max_crops: int = 4  # crops shown for a question; a further call is refused
    min_side: int = 28  # px of the original; a smaller box grows about its centre
    duplicate_iou: float = 0.9  # a box that overlaps an earlier one at least this much is refused as seen already

    def __post_init__(self):
        if self.max_crops < 0 or self.min_side < 1 or not self.duplicate_iou > 0:
            raise ValueError(f'{self}: max_crops must be 0 or more, min_side at least 1, duplicate_iou positive.')

    @property
    def name(self) -> str:
        return TOOL_NAME

    def schema(self) -> dict[str, Any]:
        return tool_schema(self.box_frame)

    def call_text(self, box: Box) -> str:
        return call_text(box)

    def read(self, arguments: Any) -> Call:
        return read_arguments(arguments)

    def judge(self, call: Call, page: PageFrame, shown: Sequence[Box]) -> tuple[ZoomStatus, Box | None]:
        box = None if call.box is None else settle(to_original(call.box, self.box_frame, page), page, self.min_side)
        if call.status != 'ok':
            return call.status, box
        if box is None:
            return 'bad_box', None
        if shown and iou(np.array([box]), np.array(shown)).max() >= self.duplicate_iou:
            return 'duplicate', box
        return ('no_budget' if len(shown) >= self.max_crops else 'ok'), box

    def show(self, image: Image.Image, box: Box) -> Image.Image:
        return cut(image, box)


def load_tool(kind: object) -> type[Tool]:
    """The class of the tool of a name or an import path; ValueError where there is none."""
    path = 'rarl_jax.conversation.tool' if kind == 'zoom' else kind
    return load_plugin(path, 'TOOL', type, 'The kind of the tool, if not zoom,')


@dataclass(frozen=True)
class Zoom:
    """One tool call and what became of it."""

    requested: Box | None  # the four numbers as the policy wrote them, in `frame`; None if it wrote none
    # What was cut: original px, clipped to the page and grown if tiny; None if unusable.
    box: Box | None
    frame: BoxFrame
    status: ZoomStatus
    turn: int  # the policy's turn it was made in, from 0
    label: str | None = None  # the policy's name for the region
    tokens: int = 0  # image tokens of the crop that was shown; 0 = none was

    @property
    def succeeded(self) -> bool:
        return self.status == 'ok'


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The crop of a settled original-pixel box, at full resolution; every pixel that the box touches, at least 1 x 1."""
    width, height = image.size
    left, top = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    right, bottom = max(left + 1, min(math.ceil(box[2]), width)), max(top + 1, min(math.ceil(box[3]), height))
    return image.crop((left, top, right, bottom))


TOOL = ZoomTool
