"""Boxes: the frame a policy writes them in, the page they lie on, and the crops cut out of it.

Three frames are in use. 'original': pixels of the page's file, in which annotations are. 'model': pixels of the page as resized
for the policy, in which Qwen2.5-VL writes boxes. 'normalized': thousandths of width and height. Only this module maps between
them; crops are always cut from the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

Box = tuple[float, float, float, float]  # x1, y1, x2, y2; x2 and y2 exclusive
BoxFrame = Literal['model', 'original', 'normalized']
ZoomStatus = Literal[
    'ok', 'duplicate', 'bad_json', 'bad_arguments', 'bad_box', 'unknown_tool', 'several_calls', 'no_budget'
]
MAX_ASPECT = 50.0  # a longer crop grows across: Qwen2.5-VL's resize refuses aspects beyond 200


@dataclass(frozen=True)
class ToolSettings:
    """The zoom tool."""

    box_frame: BoxFrame = 'model'  # frame in which the policy writes boxes
    max_crops: int = 4  # crops shown for a question; a further call is refused
    min_side: int = 28  # px of the original; a smaller box grows about its centre
    duplicate_iou: float = 0.9  # a box that overlaps an earlier one at least this much is refused as seen already


@dataclass(frozen=True)
class PageFrame:
    """The two sizes of a page."""

    width: int  # px of the original
    height: int  # px of the original
    model_width: int  # px of the page as resized for the policy
    model_height: int  # px of the page as resized for the policy

    def size_in(self, frame: BoxFrame) -> tuple[float, float]:
        """(width, height) of the whole page in units of `frame`."""
        sizes = {
            'original': (self.width, self.height),
            'model': (self.model_width, self.model_height),
            'normalized': (1000.0, 1000.0),
        }
        return sizes[frame]


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


def to_original(box: Box, frame: BoxFrame, page: PageFrame) -> Box:
    """A box in `frame` as original pixels."""
    width, height = page.size_in(frame)
    sx, sy = page.width / width, page.height / height
    return (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)


def from_original(box: Box, frame: BoxFrame, page: PageFrame) -> Box:
    """A box in original pixels as `frame` has it."""
    width, height = page.size_in(frame)
    sx, sy = width / page.width, height / page.height
    return (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)


def settle(box: Box, page: PageFrame, min_side: int) -> Box | None:
    """The part of an original-pixel box that can be cut: clipped to the page; a thin or tiny one grows about its centre, inside the page.

    None for a box that is not finite, reversed, of zero area, or off the page.
    """
    if not all(math.isfinite(v) for v in box):
        return None
    x1, y1, x2, y2 = box
    if x1 >= x2 or y1 >= y2:
        return None
    x1, x2 = max(x1, 0.0), min(x2, float(page.width))
    y1, y2 = max(y1, 0.0), min(y2, float(page.height))
    if x1 >= x2 or y1 >= y2:
        return None
    x1, x2 = _grow(x1, x2, max(min_side, (y2 - y1) / MAX_ASPECT), page.width)
    y1, y2 = _grow(y1, y2, max(min_side, (x2 - x1) / MAX_ASPECT), page.height)
    return (x1, y1, x2, y2)


def _grow(low: float, high: float, side: float, limit: float) -> tuple[float, float]:
    if high - low >= side:
        return low, high
    side = min(side, float(limit))
    low = min(max((low + high - side) / 2, 0.0), limit - side)
    return low, low + side


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The crop of a settled original-pixel box, at full resolution; every pixel that the box touches, at least 1 x 1."""
    width, height = image.size
    left, top = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    right, bottom = max(left + 1, min(math.ceil(box[2]), width)), max(top + 1, min(math.ceil(box[3]), height))
    return image.crop((left, top, right, bottom))


def iou(a: Float[np.ndarray, 'n 4'], b: Float[np.ndarray, 'm 4']) -> Float[np.ndarray, 'n m']:
    """Intersection over union of every pair of boxes; 0 where both are empty."""
    a = np.asarray(a, np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(b, np.float64).reshape(-1, 4)[None]
    overlap = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    areas = np.maximum(a[..., 2:] - a[..., :2], 0).prod(-1) + np.maximum(b[..., 2:] - b[..., :2], 0).prod(-1)
    union = areas - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
