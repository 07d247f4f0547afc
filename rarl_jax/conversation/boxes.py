"""Boxes: the frame a policy writes them in, and the page they lie on.

Three frames are in use. 'original': pixels of the page's file, in which annotations are. 'model': pixels of the page as resized
for the policy, in which Qwen2.5-VL writes boxes. 'normalized': thousandths of width and height, Qwen3-VL's. Only this module maps between
them; crops are always cut from the original.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Box = tuple[float, float, float, float]  # x1, y1, x2, y2; x2 and y2 exclusive
BoxFrame = Literal['model', 'original', 'normalized']
MAX_ASPECT = 50.0  # a longer crop grows across: Qwen2.5-VL's resize refuses aspects beyond 200


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


def iou(a: Float[np.ndarray, 'n 4'], b: Float[np.ndarray, 'm 4']) -> Float[np.ndarray, 'n m']:
    """Intersection over union of every pair of boxes; 0 where both are empty."""
    a = np.asarray(a, np.float64).reshape(-1, 4)[:, None]
    b = np.asarray(b, np.float64).reshape(-1, 4)[None]
    overlap = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(-1)
    areas = np.maximum(a[..., 2:] - a[..., :2], 0).prod(-1) + np.maximum(b[..., 2:] - b[..., :2], 0).prod(-1)
    union = areas - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
