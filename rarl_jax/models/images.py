"""From a picture to the vision tower's input: the size the policy sees, and its patches. Host side, numpy and Pillow only."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from input_pipeline.pictures import MAX_ASPECT, as_rgb
from rarl_jax.models.config import VisionConfig

COLOURS = 3


@dataclass(frozen=True)
class PixelLimits:
    """How large an image the policy sees."""

    # Width x height, px; a smaller image is enlarged.
    min_pixels: int
    # A larger one is reduced.
    max_pixels: int


@dataclass(frozen=True)
class Patches:
    """One image, ready for the vision tower."""

    # Normalised patches, 2 x 2 blocks together, blocks in raster order; X = (channel, row, column).
    frame: Float32[np.ndarray, 'P X']
    # Frames, rows, columns, counted in patches.
    grid: tuple[int, int, int]
    # Frames that a patch spans: a still image is repeated.
    frames: int = 2

    @functools.cached_property
    def pixels(self) -> Float32[np.ndarray, 'P F*X']:
        """As Hugging Face's processors write them: every frame, in the order (channel, frame, row, column)."""
        colours = self.frame.reshape(len(self.frame), COLOURS, 1, -1)
        return np.tile(colours, (1, 1, self.frames, 1)).reshape(len(self.frame), -1)

    def merged(self, merge_size: int) -> int:
        """Image tokens in the conversation."""
        t, h, w = self.grid
        return t * (h // merge_size) * (w // merge_size)


def smart_resize(height: int, width: int, factor: int, limits: PixelLimits) -> tuple[int, int]:
    """The size an image is resized to: multiples of `factor` within the limits, at nearly the same aspect ratio.

    Args:
        height, width: px.
        factor: px, the side of a merged token (patch_size * spatial_merge_size).

    Returns:
        height and width in px.

    Raises:
        ValueError: a side is 0, or one is more than 200 times the other.
    """
    if min(height, width) < 1 or max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError(
            f'image of {width} x {height} px: one side is 0 or over {MAX_ASPECT} times the other; crop or drop it.'
        )
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > limits.max_pixels:
        shrink = math.sqrt(height * width / limits.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < limits.min_pixels:
        grow = math.sqrt(limits.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def patchify(image: Image.Image, limits: PixelLimits, vision: VisionConfig) -> Patches:
    """Resizes (bicubic), normalises and cuts an image into patches, bit for bit as Hugging Face's Pillow image processor does."""
    height, width = smart_resize(image.height, image.width, vision.merged_side, limits)
    pixels = np.asarray(as_rgb(image).resize((width, height), Image.Resampling.BICUBIC))
    merge, side = vision.spatial_merge_size, vision.patch_size
    rows, columns = height // side, width // side
    blocks = pixels.reshape(rows // merge, merge, side, columns // merge, merge, side, COLOURS)
    # Block row, block column, row in block, column in block, channel, y, x.
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    normal = _normalised(blocks.reshape(-1, COLOURS, side * side), vision)
    return Patches(normal.reshape(rows * columns, -1), (1, rows, columns), vision.temporal_patch_size)


def processor_settings(limits: PixelLimits, vision: VisionConfig) -> dict[str, Any]:
    """The content of preprocessor_config.json: what transformers and servers need to do the same; limits wherever their versions look for them."""
    low, high = limits.min_pixels, limits.max_pixels
    return {
        'image_processor_type': 'Qwen2VLImageProcessor',
        'processor_class': vision.processor,
        'min_pixels': low,
        'max_pixels': high,
        'size': {'shortest_edge': low, 'longest_edge': high},
        'patch_size': vision.patch_size,
        'temporal_patch_size': vision.temporal_patch_size,
        'merge_size': vision.spatial_merge_size,
        'image_mean': list(vision.image_mean),
        'image_std': list(vision.image_std),
    }


def _normalised(pixels: UInt8[np.ndarray, 'P 3 X'], vision: VisionConfig) -> Float32[np.ndarray, 'P 3 X']:
    """A byte has 256 values: a table of them per channel replaces the arithmetic, and is exact."""
    table = _byte_table(vision.image_mean, vision.image_std)
    return np.stack([table[channel][pixels[:, channel]] for channel in range(COLOURS)], axis=1)


@functools.cache
def _byte_table(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, '3 256']:
    # Rounded before the mean is taken, as the reference does.
    unit = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (unit[None] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
