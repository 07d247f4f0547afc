"""On a GPU: attention by cuDNN, and over the cache by FlashAttention-3, equals XLA's within bfloat16's error at the head sizes of the 3B, for all that a run asks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.cache import AXES, attend_cached, empty_layer, write
from rarl_jax.models.flash import PACKAGE
from rarl_jax.models.layers import attend
from rarl_jax.models.packed import RowLayout, Segments

pytestmark = pytest.mark.gpu
N, K, H = 16, 2, 128  # Qwen2.5-VL-3B
TOLERANCE = 2e-2  # of values around 1 in bfloat16


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def close(found, expected, where=None):
    found, expected = (np.asarray(x, np.float32) for x in (found, expected))
    if where is not None:
        found, expected = found[where], expected[where]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1, np.abs(expected).max()))


def test_prefill_and_its_gradient():
    q, k, v = normal(0, 2, 1024, N, H), normal(1, 2, 1024, K, H), normal(2, 2, 1024, K, H)

    def run(kind):
        return jax.jit(lambda q, k, v: jax.vjp(partial(attend, implementation=kind, causal=True), q, k, v)[1](q))(
            q, k, v
        )

    for found, expected in zip(run('cudnn'), run('xla'), strict=True):
        close(found, expected)
    close(*(jax.jit(partial(attend, implementation=kind, causal=True))(q, k, v) for kind in ('cudnn', 'xla')))


@pytest.mark.parametrize('kind', ['cudnn', 'fa3'])
@pytest.mark.parametrize('width', [1, 256], ids=['decode', 'extend'])
def test_attention_over_the_cache(width, kind):
    if kind == 'fa3':
        pytest.importorskip(PACKAGE)
    start, length = np.array([0, 300, 1700], np.int32), 2048
    keys, values = normal(1, 3, length, K, H), normal(2, 3, length, K, H)
    slots = start[:, None] + np.arange(width)
    chunk = tuple(jnp.take_along_axis(x, slots[..., None, None], axis=1) for x in (keys, values))
    q = normal(0, 3, width, N, H)

    def run(kind):
        layer = empty_layer(kind, {'batch': 3, 'length': length, 'kv_heads': K, 'head': H}, jnp.bfloat16)
        layer = write(kind, write(kind, layer, keys, values, None), *chunk, slots)
        return jax.jit(partial(attend_cached, kind))(q, layer, start, chunk)

    assert AXES[kind] != AXES['xla']
    close(run(kind), run('xla'))


def test_a_packed_update():
    layout, counts = RowLayout(prompt=512, reach=384, count=4), (384, 100, 7, 250)
    numbers = np.zeros((2, 1536), np.int32)
    numbers[:, 500:512] = -1
    numbers[:, 512 : 512 + sum(counts)] = np.repeat(1 + np.arange(4), counts)
    tokens = (numbers > 0) | ((numbers == 0) & (np.arange(1536) < 512))
    q, k, v = normal(0, 2, 1536, N, H), normal(1, 2, 1536, K, H), normal(2, 2, 1536, K, H)
    back = normal(3, 2, 1536, N, H) * tokens[..., None, None]

    def run(kind, layout):
        seen = Segments(jnp.asarray(numbers), layout)
        one = partial(attend, implementation=kind, causal=True, segments=seen)
        return jax.jit(lambda q, k, v: (one(q, k, v), jax.vjp(one, q, k, v)[1](back)))(q, k, v)

    (expected, expected_back), (found, found_back) = run('xla', None), run('cudnn', layout)
    close(found, expected, tokens)
    for one, other in zip(found_back, expected_back, strict=True):
        close(one, other)
