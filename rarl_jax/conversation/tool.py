"""The zoom tool: its settings, the record of a call, and the crop that it cuts out of a page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from rarl_jax.conversation.boxes import Box, BoxFrame

ZoomStatus = Literal[
    'ok', 'duplicate', 'bad_json', 'bad_arguments', 'bad_box', 'unknown_tool', 'several_calls', 'no_budget'
]


@dataclass(frozen=True)
class ToolSettings:
    """The zoom tool."""

    box_frame: BoxFrame = 'model'  # frame in which the policy writes boxes
    max_crops: int = 4  # crops shown for a question; a further call is refused
    min_side: int = 28  # px of the original; a smaller box grows about its centre
    duplicate_iou: float = 0.9  # a box that overlaps an earlier one at least this much is refused as seen already


@dataclass(frozen=True)
class Zoom:
    """One tool call and what became of it."""

    requested: Box | None  # the four numbers as the policy wrote them, in `frame`; None if it wrote none
    box: Box | None  # what was cut: original px, clipped to the page and grown if tiny; None if unusable
    frame: BoxFrame  # frame of `requested`
    status: ZoomStatus  # 'ok' or why nothing was shown
    turn: int  # the policy's turn it was made in, from 0
    label: str | None = None  # the policy's name for the region

    @property
    def succeeded(self) -> bool:
        return self.status == 'ok'


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The crop of a settled original-pixel box, at full resolution; every pixel that the box touches, at least 1 x 1."""
    width, height = image.size
    left, top = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    right, bottom = max(left + 1, min(math.ceil(box[2]), width)), max(top + 1, min(math.ceil(box[3]), height))
    return image.crop((left, top, right, bottom))
