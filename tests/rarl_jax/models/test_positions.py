import numpy as np
import pytest

from rarl_jax.models.positions import mrope_positions, patch_coordinates
from tests.rarl_jax.models.small import VISION


def talk(*parts):
    """Numbers are lengths of text (token 1), tuples are grids (token 9 for each merged token)."""
    ids = [
        token for part in parts for token in ([1] * part if isinstance(part, int) else [9] * (part[1] * part[2] // 4))
    ]
    return np.array(ids), [part for part in parts if not isinstance(part, int)]


def test_two_images_worked_by_hand():
    ids, grids = talk(3, (1, 4, 4), 5, (1, 4, 6), 3)
    positions, delta = mrope_positions(ids, grids, 9, 2)
    assert positions[0].tolist() == [0, 1, 2, 3, 3, 3, 3, 5, 6, 7, 8, 9, 10, 10, 10, 10, 10, 10, 13, 14, 15]
    assert positions[1].tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7, 8, 9, 10, 10, 10, 11, 11, 11, 13, 14, 15]
    assert positions[2].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 10, 11, 12, 13, 14, 15]
    assert delta == 16 - len(ids) == -5


def test_text_is_a_line_and_start_moves_it():
    positions, delta = mrope_positions(np.ones(4, int), [], 9, 2, start=11)
    assert positions.tolist() == [[11, 12, 13, 14]] * 3
    assert len('abcd') + delta == 15


@pytest.mark.parametrize(
    ('ids', 'grids', 'message'),
    [
        ([9, 9, 9], [(1, 4, 4)], '3 image tokens, but its 1 images have 4'),
        ([9, 9, 1, 9, 9], [(1, 4, 4)], 'text cuts them apart'),
    ],
)
def test_tokens_that_do_not_fit_their_grids(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(np.array(ids), grids, 9, 2)


def test_windows_of_the_drawing():
    assert [window.tolist() for window in VISION.window_plan((1, 4, 6))] == [[0, 1, 3, 4], [2, 5]]


def test_coordinates_go_block_by_block():
    assert patch_coordinates((1, 2, 4), 2).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
