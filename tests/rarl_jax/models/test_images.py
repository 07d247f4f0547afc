import numpy as np
import pytest
from PIL import Image

from rarl_jax.models.images import PixelLimits, patchify, smart_resize
from rarl_jax.models.qwen2_5_vl.config import CLIP_MEAN, CLIP_STD
from tests.rarl_jax.models.small import VISION


@pytest.mark.parametrize(
    ('size', 'limits', 'expected'),
    [
        ((100, 100), (1, 10**9), (112, 112)),  # the nearest multiples
        ((42, 70), (1, 10**9), (56, 56)),  # 1.5 and 2.5 multiples: halves go to the even one
        ((1000, 600), (1, 28 * 28 * 50), (252, 140)),  # shrunk to stay below
        ((20, 100), (28 * 28 * 6, 10**9), (56, 168)),  # grown to reach the least
        (
            (20, 600),
            (1, 28 * 28 * 2),
            (28, 196),
        ),  # a side never goes below one token, even if the whole exceeds the limit
    ],
)
def test_smart_resize(size, limits, expected):
    assert smart_resize(*size, 28, PixelLimits(*limits)) == expected


def test_patches_of_a_picture_of_four_blocks():
    """Every merged token is one colour: order, channels and normalisation can be read off."""
    colours = np.arange(4 * 3, dtype=np.uint8).reshape(2, 2, 3) * 20
    image = Image.fromarray(colours.repeat(28, 0).repeat(28, 1))
    patches = patchify(image, PixelLimits(1, 10**6), VISION)
    assert patches.grid == (1, 4, 4) and patches.merged(2) == 4 and patches.pixels.shape == (16, 1176)
    expected = ((colours.reshape(4, 3) / 255 - CLIP_MEAN) / CLIP_STD).repeat(4, 0)  # 4 patches a token
    assert np.allclose(patches.pixels.reshape(16, 3, -1), expected[:, :, None], atol=1e-6)


def test_transparency_is_white():
    clear = Image.new('RGBA', (28, 28), (0, 0, 0, 0))
    white = Image.new('RGB', (28, 28), (255, 255, 255))
    limits = PixelLimits(1, 10**6)
    assert np.array_equal(patchify(clear, limits, VISION).pixels, patchify(white, limits, VISION).pixels)


def test_thin_images_are_refused():
    with pytest.raises(ValueError, match='image of 2010 x 10 px'):
        smart_resize(10, 2010, 28, PixelLimits(1, 10**6))
