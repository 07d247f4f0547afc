"""Attention over packed rows: what a layout allows to leave out changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.layers import attend_at_once
from rarl_jax.models.packed import RowLayout, Segments, attend_banded, attend_unpacked

LAYOUT = RowLayout(prompt=11, reach=40, count=3)
# Prompts and segments of each row, tokens: a short row, one whose second episode is missing, one without any, a full one.
ROWS = ((7, (3, 1, 9)), (11, (40, 0, 33)), (0, (0, 0, 0)), (9, (40, 40, 37)))
LENGTH = 130


def numbers() -> np.ndarray:
    rows = np.zeros((len(ROWS), LENGTH), np.int32)
    for row, (prompt, segments) in zip(rows, ROWS, strict=True):
        if prompt:
            row[prompt : LAYOUT.prompt] = -1
        ends = LAYOUT.prompt + np.cumsum(segments)
        for number, (end, count) in enumerate(zip(ends, segments, strict=True), 1):
            row[end - count : end] = number
    return rows


def banded(q, k, v, segments):
    return attend_banded(q, k, v, segments, LAYOUT)


def unpacked(q, k, v, segments):
    causal = partial(jax.nn.dot_product_attention, is_causal=True, implementation='xla')
    return attend_unpacked(causal, q, k, v, segments, LAYOUT)


@pytest.mark.parametrize('form', [banded, unpacked])
def test_a_layout_changes_neither_values_nor_gradients(form):
    segments = numbers()
    # Of tokens only: what the room of a prompt and padding get is nobody's.
    counts = (segments > 0) | ((segments == 0) & (np.arange(LENGTH) < LAYOUT.prompt))
    counts &= segments.any(axis=1)[:, None]
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, back = (jax.random.normal(key, (4, LENGTH, n, 8)) for key, n in zip(keys, (4, 2, 2, 4), strict=True))
    back *= counts[..., None, None]

    def dense(q, k, v):
        return attend_at_once(q, k, v, 'xla', True, None, Segments(segments))

    expected, expected_back = jax.vjp(dense, q, k, v)
    found, found_back = jax.vjp(lambda q, k, v: form(q, k, v, jnp.asarray(segments)), q, k, v)
    np.testing.assert_allclose(found[counts], expected[counts], atol=2e-6)
    for one, other in zip(found_back(back), expected_back(back), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(other).max() > 0.1
