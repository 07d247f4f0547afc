"""M-RoPE positions, deltas, window permutation and boundaries equal those of transformers exactly."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from rarl_jax.models.positions import mrope_positions, patch_coordinates
from tests.parity.reference import CONFIGS, END, IMAGE, REFERENCES, START

# Conversations with grids ragged against each other; an image may open or close the row.
TALKS = {
    'two': [3, (1, 4, 4), 2, (1, 4, 6), 3],
    'wide_then_tall': [4, (1, 2, 20), 1, (1, 22, 2), 6],
    'page_and_three_crops': [9, (1, 16, 12), 30, (1, 6, 6), 12, (1, 2, 2), 7, (1, 8, 14), 5],
    'image_first_and_last': [0, (1, 6, 4), 1, (1, 4, 10), 0],
    'text_only': [11],
    'one_token': [0, (1, 2, 2), 0],
}


@pytest.fixture(scope='module', params=[(Qwen2_5_VLModel, 'tied'), (Qwen3VLModel, 'qwen3_tied')], ids=['2.5', '3'])
def reference(request):
    model_class, name = request.param
    config = CONFIGS[name]
    with torch.device('meta'):
        return model_class._from_config(REFERENCES[config.model_type][0](**config.to_hf()))


def row(talk: list) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Token ids of a talk: numbers are lengths of text, triples images, whose tokens stand between markers."""
    ids: list[int] = []
    for part in talk:
        ids += [7] * part if isinstance(part, int) else [START, *[IMAGE] * (part[1] * part[2] // 4), END]
    return np.array(ids), [part for part in talk if not isinstance(part, int)]


@pytest.mark.parametrize('side', ['left', 'right'])
def test_a_padded_batch(reference, side):
    rows = [row(talk) for talk in TALKS.values()]
    longest = max(len(ids) for ids, _ in rows) + 3
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    places = [slice(longest - len(one), longest) if side == 'left' else slice(0, len(one)) for one, _ in rows]
    for number, ((one, _), place) in enumerate(zip(rows, places, strict=True)):
        ids[number, place], mask[number, place] = one, 1
    grids = torch.tensor([grid for _, grids in rows for grid in grids])
    tensors = torch.from_numpy(ids), torch.from_numpy((ids == IMAGE).astype(np.int32))
    positions, deltas = reference.get_rope_index(*tensors, image_grid_thw=grids, attention_mask=torch.from_numpy(mask))
    for number, ((one, grids), place) in enumerate(zip(rows, places, strict=True)):
        ours, delta = mrope_positions(one, grids, IMAGE, 2)
        assert np.array_equal(ours, positions[:, number, place].numpy()) and delta == deltas[number].item()


@pytest.mark.parametrize('talk', ['page_and_three_crops', 'wide_then_tall'])
def test_appended_piece_by_piece(reference, talk):
    """The positions of a chunk that goes onto a cache are those of the whole conversation."""
    ids, grids = row(TALKS[talk])
    tensors = torch.from_numpy(ids)[None], torch.from_numpy((ids == IMAGE).astype(np.int32))[None]
    whole, _ = reference.get_rope_index(*tensors, image_grid_thw=torch.tensor(grids))
    cuts = [0, *(np.flatnonzero(ids == END) + 1), len(ids)]
    start = 0
    for number, (first, last) in enumerate(itertools.pairwise(cuts)):
        positions, delta = mrope_positions(ids[first:last], grids[number : number + 1], IMAGE, 2, start)
        assert np.array_equal(positions, whole[:, 0, first:last].numpy())
        start = last - first + delta


@pytest.mark.parametrize('window', [56, 84, 112])
@pytest.mark.parametrize(
    'grids', [[(1, 16, 16)], [(1, 4, 6), (1, 18, 10), (1, 2, 2)], [(1, 2, 50), (1, 34, 4)], [(1, 24, 36), (1, 10, 10)]]
)
def test_windows_and_coordinates(window, grids):
    order, bounds = get_vision_window_index(torch.tensor(grids), 2, window, 14)
    vision = dataclasses.replace(CONFIGS['tied'].vision, window_size=window)
    plans = [vision.window_plan(grid) for grid in grids]
    offsets = np.cumsum([0, *(h * w // 4 for _, h, w in grids)])
    ours = np.concatenate([tokens + offset for plan, offset in zip(plans, offsets, strict=False) for tokens in plan])
    assert np.array_equal(ours, order.numpy())
    assert np.array_equal(np.cumsum([0, *(4 * len(tokens) for plan in plans for tokens in plan)]), bounds.numpy())
    coordinates = np.concatenate([patch_coordinates(grid, 2) for grid in grids])
    assert np.array_equal(coordinates, get_vision_position_ids(torch.tensor(grids), 2).numpy())
