import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarl_jax.conversation.boxes import MAX_ASPECT, PageFrame, from_original, iou, settle, to_original
from rarl_jax.conversation.tool import cut

PAGE = PageFrame(width=4032, height=3024, model_width=3584, model_height=2688)


def test_boxes_of_the_resized_page_are_scaled_before_they_are_cut():
    """Failure mode 1: cropped unscaled, a box at 3584 of a page of 4032 px is 12 % off."""
    assert to_original((896.0, 672.0, 1792.0, 1344.0), 'model', PAGE) == (1008.0, 756.0, 2016.0, 1512.0)


@pytest.mark.parametrize('frame', ['model', 'original', 'normalized'])
def test_frames_round_trip(frame):
    box = (100.0, 200.0, 900.0, 1300.0)
    np.testing.assert_allclose(to_original(from_original(box, frame, PAGE), frame, PAGE), box)


def test_normalized_is_thousandths_of_each_side():
    assert from_original((0.0, 0.0, 4032.0, 1512.0), 'normalized', PAGE) == (0.0, 0.0, 1000.0, 500.0)


@pytest.mark.parametrize(
    'box',
    [
        (math.nan, 0, 10, 10),
        (0, 0, math.inf, 10),
        (20, 0, 10, 10),
        (0, 20, 10, 10),
        (5, 5, 5, 10),
        (-20, 0, -5, 10),
        (5000, 0, 6000, 10),
    ],
    ids=['nan', 'infinite', 'x reversed', 'y reversed', 'no area', 'left of the page', 'right of the page'],
)
def test_unusable_boxes_have_no_crop(box):
    assert settle(box, PAGE, 28) is None


def test_boxes_are_clipped_to_the_page():
    assert settle((-50, 3000 - 976, 1e9, 1e300), PAGE, 28) == (0, 2024, 4032, 3024)


def test_tiny_boxes_grow_about_their_centre_inside_the_page():
    """Failure mode 12."""
    assert settle((100, 200, 101, 202), PAGE, 28) == (86.5, 187, 114.5, 215)
    assert settle((0, 3023, 1, 3024), PAGE, 28) == (0, 2996, 28, 3024)


def test_thin_boxes_grow_across():
    x1, y1, x2, y2 = settle((0, 100, 4032, 101), PAGE, 28)
    assert (x2 - x1) / (y2 - y1) == pytest.approx(MAX_ASPECT)


def test_page_smaller_than_the_least_side():
    assert settle((2, 2, 3, 3), PageFrame(10, 12, 28, 28), 28) == (0, 0, 10, 12)


finite = st.floats(-1e6, 1e6)


@given(st.tuples(finite, finite, finite, finite), st.integers(1, 300), st.integers(1, 300))
def test_what_settles_can_be_cut(box, width, height):
    """Failure mode 12: a crop never has a side of zero, and lies on the page."""
    box = settle(box, PageFrame(width, height, 28, 28), 28)
    if box is None:
        return
    assert 0 <= box[0] < box[2] <= width + 1e-6 and 0 <= box[1] < box[3] <= height + 1e-6
    crop = cut(Image.new('RGB', (width, height)), box)
    assert crop.width >= 1 and crop.height >= 1 and crop.width <= width and crop.height <= height


def test_crops_are_cut_at_full_resolution():
    page = Image.fromarray(np.arange(12 * 10 * 3, dtype=np.uint8).reshape(12, 10, 3))
    crop = cut(page, (2.0, 3.0, 5.0, 7.5))
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(page)[3:8, 2:5])


def test_iou_of_every_pair():
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]])
    b = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]])
    np.testing.assert_allclose(iou(a, b), [[1, 1 / 7, 0], [0, 0, 0]])
