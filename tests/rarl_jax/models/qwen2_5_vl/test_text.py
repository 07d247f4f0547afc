from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.interface import build_model
from rarl_jax.models.params import unstack
from tests.rarl_jax.models.small import CONFIG, TEXT, TIED, small_params

LENGTH = 20


@pytest.fixture(scope='module')
def params():
    return small_params()


@pytest.fixture(scope='module')
def rows():
    """Embeddings [2, T, D] and positions [3, 2, T] with three different axes."""
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((2, LENGTH, TEXT.hidden_size)).astype(np.float32)
    return embeds, np.cumsum(rng.integers(0, 3, (3, 2, LENGTH)), axis=-1)


@partial(jax.jit, static_argnames=('scan', 'remat', 'config'))
def full(params, embeds, positions, segments=None, scan=False, remat='none', config=CONFIG):
    return build_model(config, scan=scan, remat=remat).apply(
        {'params': params}, embeds, positions, segments, method='hidden'
    )


MODEL = build_model(CONFIG)
prefill = jax.jit(lambda params, *chunk: MODEL.apply({'params': params}, *chunk, method='prefill'), donate_argnums=1)
extend = jax.jit(lambda params, *chunk: MODEL.apply({'params': params}, *chunk, method='extend'), donate_argnums=1)


def test_cached_passes_equal_the_full_pass(params, rows):
    """Rows of different lengths: prefill, a chunk, single steps; each row at its own place."""
    (embeds, positions), decoding = rows, unstack(params)
    expected = full(params, embeds, positions)
    held = np.array([7, 5])
    hidden, cache = prefill(decoding, MODEL.init_cache(2, LENGTH), embeds[:, :8], positions[:, :, :8])
    for row in range(2):
        np.testing.assert_allclose(hidden[row, : held[row]], expected[row, : held[row]], atol=1e-5)
    for lengths in ([4, 6], [1, 1], [1, 0], [0, 1], [1, 1]):
        width = 6 if max(lengths) > 1 else 1
        places = np.minimum(held[:, None] + np.arange(width), LENGTH - 1)
        chunk = np.take_along_axis(embeds, places[..., None], 1), np.take_along_axis(positions, places[None], 2)
        hidden, cache = extend(decoding, cache, *chunk, held, np.array(lengths))
        for row in range(2):
            np.testing.assert_allclose(
                hidden[row, : lengths[row]], expected[row, held[row] : held[row] + lengths[row]], atol=1e-5
            )
        held = held + lengths


def test_a_chunk_writes_its_own_slots_and_none_past_the_end(params, rows):
    embeds, positions = rows
    cache = tuple((jnp.full_like(k, 7.0), jnp.full_like(v, 7.0)) for k, v in MODEL.init_cache(2, 6))
    chunk = embeds[:, :4], positions[:, :, :4]
    _, cache = extend(unstack(params), cache, *chunk, np.array([1, 4]), np.array([3, 4]))
    for array, axes in zip(cache[0], MODEL.cache_axes, strict=True):
        untouched = np.all(np.asarray(array) == 7.0, axis=(axes.index('kv_heads'), axes.index('head')))
        assert untouched.tolist() == [[True, False, False, False, True, True], [True, True, True, True, False, False]]


@pytest.mark.parametrize('remat', ['attention', 'full'])
def test_scanned_and_rematerialised_equal_the_plain_pass(params, rows, remat):
    def loss(params, scan, remat):
        return jnp.sum(jnp.sin(full(params, *rows, scan=scan, remat=remat)))

    plain, other = (jax.value_and_grad(loss)(params, scan, how) for scan, how in ((False, 'none'), (True, remat)))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4), plain, other)


def test_packed_rows_equal_padded_rows(params, rows):
    embeds, positions = rows
    packed = (
        np.concatenate([embeds[:1, :12], embeds[1:, :8]], axis=1),
        np.concatenate([positions[:, :1, :12], positions[:, 1:, :8]], axis=2),
    )
    hidden = full(params, *packed, segments=np.array([[1] * 12 + [2] * 8]))
    expected = full(params, embeds, positions)
    np.testing.assert_allclose(hidden[0, :12], expected[0, :12], atol=1e-5)
    np.testing.assert_allclose(hidden[0, 12:], expected[1, :8], atol=1e-5)


def test_padding_on_the_right_changes_nothing(params, rows):
    embeds, positions = rows
    np.testing.assert_allclose(
        full(params, embeds[:, :9], positions[:, :, :9]), full(params, embeds, positions)[:, :9], atol=1e-5
    )


def test_features_take_the_place_of_tokens(params):
    model, ids = build_model(CONFIG), np.array([[3, 40, 40, 5], [3, 40, 6, 0]])
    features = jnp.arange(2 * 2 * 32.0).reshape(2, 2, 32)
    index = np.array([[-1, 2, 3, -1], [-1, 2, -1, -1]])  # both rows show the second image: a group shares its page
    embeds = model.apply({'params': params}, ids, features, index, method='embed')
    table = params['text']['embed']
    assert np.array_equal(embeds[0], jnp.stack([table[3], features[1, 0], features[1, 1], table[5]]))
    assert np.array_equal(embeds[1], jnp.stack([table[3], features[1, 0], table[6], table[0]]))


def test_tied_head_is_the_table():
    params = small_params(TIED)
    hidden = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    logits = build_model(TIED).apply({'params': params}, hidden, method='logits')
    np.testing.assert_allclose(logits, hidden @ np.asarray(params['text']['embed']).T, rtol=1e-5, atol=1e-5)


def test_bf16_activations_keep_float32_logits(params, rows):
    model, (embeds, positions) = build_model(CONFIG, dtype=jnp.bfloat16), rows
    hidden = model.apply({'params': params}, embeds.astype(jnp.bfloat16), positions, method='hidden')
    logits = model.apply({'params': params}, hidden, method='logits')
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    expected = full(params, embeds, positions)
    assert np.abs(hidden.astype(np.float32) - expected).max() < 0.1 * np.abs(expected).max()
