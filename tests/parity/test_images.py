"""Patches equal those of transformers' Pillow image processor bit for bit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rarl_jax.models.images import PixelLimits, patchify
from rarl_jax.models.interface import PRESETS, VisionConfig

VISION = PRESETS['Qwen2.5-VL-7B'].vision
FAMILIES = {'qwen2_5_vl': VISION, 'qwen3_vl': PRESETS['Qwen3-VL-8B'].vision}
LIMITS = {
    'published': PixelLimits(56 * 56, 28 * 28 * 1280),
    'narrow': PixelLimits(28 * 28 * 48, 28 * 28 * 64),  # most sizes are resized, up or down
    'small': PixelLimits(28 * 28, 28 * 28 * 12),
    'odd': PixelLimits(5001, 99_999),  # no multiple of a merged token
}
# width, height: single pixels, thin in both directions up to the largest ratio, halves of a merged token (rounding to even), pages, primes, huge.
SIZES = [
    *[
        (1, 1),
        (1, 2),
        (2, 1),
        (1, 200),
        (200, 1),
        (5, 1000),
        (1000, 5),
        (3, 600),
        (27, 27),
        (28, 28),
        (29, 29),
        (13, 14),
        (14, 14),
        (15, 13),
    ],
    *[
        (42, 42),
        (70, 98),
        (98, 70),
        (126, 14),
        (14, 126),
        (154, 210),
        (41, 43),
        (55, 57),
        (56, 56),
        (83, 85),
        (84, 84),
        (112, 111),
        (140, 252),
    ],
    *[
        (168, 224),
        (224, 168),
        (170, 230),
        (251, 397),
        (397, 251),
        (333, 777),
        (640, 480),
        (480, 640),
        (500, 501),
        (499, 719),
        (800, 600),
    ],
    *[
        (1000, 100),
        (100, 1000),
        (1200, 60),
        (61, 1201),
        (997, 1009),
        (1024, 768),
        (768, 1024),
        (1275, 1650),
        (1400, 1400),
        (1700, 2200),
    ],
    *[(2000, 10), (10, 2000), (2480, 1748), (3000, 16), (1988, 3056)],
]


def test_there_are_enough_sizes():
    assert len(set(SIZES)) >= 50


def reference(image: Image.Image, limits: PixelLimits, vision: VisionConfig = VISION) -> tuple[np.ndarray, np.ndarray]:
    processor = Qwen2VLImageProcessorPil(
        size={'shortest_edge': limits.min_pixels, 'longest_edge': limits.max_pixels},
        patch_size=vision.patch_size,
        image_mean=list(vision.image_mean),
        image_std=list(vision.image_std),
    )
    out = processor(image, return_tensors='np')
    return out['pixel_values'], out['image_grid_thw']


def random_image(width: int, height: int, mode: str = 'RGB') -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(width * 10_007 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(noise.squeeze(-1) if channels == 1 else noise, mode=mode)


@pytest.mark.parametrize(('family', 'limits'), [*(('qwen2_5_vl', limits) for limits in LIMITS), ('qwen3_vl', 'small')])
def test_every_size(family, limits):
    vision = FAMILIES[family]
    sizes = (
        SIZES if limits != 'published' else SIZES[::2]
    )  # the published limits leave large images large: half of them will do
    for width, height in sizes:
        image = random_image(width, height)
        pixels, grid = reference(image, LIMITS[limits], vision)
        ours = patchify(image, LIMITS[limits], vision)
        assert [list(ours.grid)] == grid.tolist(), (width, height)
        assert ours.pixels.dtype == np.float32 and np.array_equal(ours.pixels, pixels), (width, height)


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', 'CMYK', '1'])
def test_every_mode(mode):
    image = (
        random_image(97, 61).convert('1')
        if mode == '1'
        else random_image(97, 61, mode if mode != 'P' else 'L').convert(mode)
    )
    pixels, _ = reference(image, LIMITS['small'])
    assert np.array_equal(patchify(image, LIMITS['small'], VISION).pixels, pixels)


def test_another_patch_size():
    vision = dataclasses.replace(VISION, patch_size=16, window_size=128)
    pixels, grid = reference(random_image(150, 90), LIMITS['small'], vision)
    ours = patchify(random_image(150, 90), LIMITS['small'], vision)
    assert [list(ours.grid)] == grid.tolist() and np.array_equal(ours.pixels, pixels)


@pytest.mark.parametrize('size', [(1, 201), (2011, 10)])
def test_both_refuse_thinner_images(size):
    for process in (reference, lambda image, limits: patchify(image, limits, VISION)):
        with pytest.raises(ValueError, match='200'):
            process(random_image(*size), LIMITS['small'])
