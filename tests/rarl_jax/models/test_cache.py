"""Attention over the cache equals attention with a mask, in every layout and in pieces; what a chunk leaves in the cache."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models import cache, flash
from rarl_jax.models.cache import AXES, attend_apart, attend_by_lengths, attend_cached, empty_layer, write

B, S, N, K, H = 3, 24, 4, 2, 8
START = np.array([0, 5, 11])


def filled(kind, width):
    """A cache that held START tokens of each row, a chunk of `width` written behind them, the chunk, and all of it as [B S K H]."""
    rng = np.random.default_rng(0)
    keys, values = rng.standard_normal((2, B, S, K, H)).astype(np.float32)
    layer = empty_layer(kind, {'batch': B, 'length': S, 'kv_heads': K, 'head': H}, jnp.float32)
    before = np.where(np.arange(S - width) < START[:, None], np.arange(S - width), S)
    layer = write(kind, layer, keys[:, : S - width], values[:, : S - width], before)
    slots = START[:, None] + np.arange(width)
    chunk = tuple(np.take_along_axis(x, slots[..., None, None], axis=1) for x in (keys, values))
    return write(kind, layer, *chunk, slots), chunk, (keys, values)


@partial(jax.jit, static_argnames='kind')
def plain(q, keys, values, kind='xla'):
    """The reference: a mask that is made of numbers."""
    seen = np.arange(S) <= (START[:, None] + np.arange(q.shape[1]))[:, :, None]
    return jax.nn.dot_product_attention(q, keys, values, mask=seen[:, None], implementation=kind)


def like_flash(q, keys, values, lengths):
    """What the package says that its kernel does."""
    out, total = jax.nn.dot_product_attention(
        q, keys, values, key_value_seq_lengths=lengths, return_residual=True, implementation='xla'
    )
    return out, total.transpose(0, 2, 1)


@pytest.mark.parametrize('width', [1, 7])
@pytest.mark.parametrize('kind', AXES)
def test_it_equals_attention_with_a_mask(kind, width, monkeypatch):
    layer, chunk, whole = filled(kind, width)
    q = np.random.default_rng(1).standard_normal((B, width, N, H)).astype(np.float32)
    if kind == 'xla':
        out = jax.jit(partial(attend_cached, kind))(q, layer, START, chunk)
    else:  # the kernels of another device, the same arithmetic around them
        monkeypatch.setattr(flash, 'kernel', like_flash)
        over_cache = flash.attend_lengths if kind == 'fa3' else partial(attend_by_lengths, 'xla')
        out = jax.jit(partial(attend_apart, over_cache=over_cache, implementation='xla'))(q, layer, START, chunk)
    np.testing.assert_allclose(out, plain(q, *whole), atol=1e-5)


def test_many_queries_go_piece_by_piece(monkeypatch):
    layer, chunk, whole = filled('xla', 7)
    q = np.random.default_rng(1).standard_normal((B, 7, N, H)).astype(np.float32)
    monkeypatch.setattr(cache, 'SCORES_AT_ONCE', B * N * S * 2)
    np.testing.assert_allclose(attend_cached('xla', q, layer, START, chunk), plain(q, *whole), atol=1e-5)


@pytest.mark.parametrize('kind', AXES)
def test_a_first_chunk_stands_at_the_beginning(kind):
    chunk = np.random.default_rng(0).standard_normal((2, B, 5, K, H)).astype(np.float32)
    layer = empty_layer(kind, {'batch': B, 'length': S, 'kv_heads': K, 'head': H}, jnp.bfloat16)
    for array, new, axes in zip(write(kind, layer, *chunk, None), chunk, AXES[kind], strict=True):
        order = [axes.index(axis) for axis in ('batch', 'length', 'kv_heads', 'head')]
        expected = np.zeros((B, S, K, H), np.float32)
        expected[:, :5] = new
        assert array.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(array, np.float32).transpose(order), expected, rtol=1e-2)
