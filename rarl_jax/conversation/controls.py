"""What a zoom shows instead of the region, to learn whether the policy reads what it zooms into."""

from __future__ import annotations

import zlib
from typing import Literal

import numpy as np
from PIL import Image

from input_pipeline.schema import Question
from rarl_jax.conversation.boxes import Box, iou
from rarl_jax.conversation.dialogue import Show
from rarl_jax.conversation.tool import cut

CropControl = Literal['real', 'blank', 'shuffled', 'oracle']
CANDIDATES = 32  # boxes tried for a shuffled crop


def show_for(control: CropControl, question: Question, show: Show) -> Show:
    """The function that turns a settled box into the picture which the policy gets, where `show` is the tool's."""
    if control == 'blank':
        return blank
    if control == 'shuffled':
        return lambda image, box: show(image, elsewhere(image, box, question))
    return show


def blank(image: Image.Image, box: Box) -> Image.Image:
    """Grey, of the crop's size."""
    return Image.new('RGB', cut(image, box).size, (128, 128, 128))


def elsewhere(image: Image.Image, box: Box, question: Question) -> Box:
    """A box of the same size at another place of the page, away from the box and from the question's regions.

    Drawn by the question's id: the same in every run, whatever else is in the batch.
    """
    rng = np.random.default_rng(zlib.crc32(question.id.encode()))
    width, height = box[2] - box[0], box[3] - box[1]
    x = rng.uniform(0, max(image.width - width, 0), CANDIDATES)
    y = rng.uniform(0, max(image.height - height, 0), CANDIDATES)
    boxes = np.stack([x, y, x + width, y + height], axis=1)
    seen = iou(boxes, np.array([box, *question.regions])).max(axis=1)
    return tuple(float(v) for v in boxes[seen.argmin()])
