from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.interface import build_model
from rarl_jax.models.packed import Segments
from rarl_jax.models.params import unstack
from tests.rarl_jax.models.small import FAMILIES, TIED, small_params

LENGTH = 20


@pytest.fixture(scope='module', params=FAMILIES)
def config(request):
    return FAMILIES[request.param]


@pytest.fixture(scope='module')
def params(config):
    return small_params(config)


@pytest.fixture(scope='module')
def rows(config):
    """Embeddings, leaves [2, T, D], and positions [3, 2, T] with three different axes."""
    rng = np.random.default_rng(0)
    embeds = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), embedded(config, LENGTH))
    return embeds, np.cumsum(rng.integers(0, 3, (3, 2, LENGTH)), axis=-1)


def embedded(config, length):
    """Two rows of embeddings in the family's form, those of images among them."""
    model, ids = build_model(config), jnp.zeros((2, length), jnp.int32)
    features = jax.tree.map(jnp.asarray, model.no_features(1, 1))
    return model.apply({'params': small_params(config)}, ids, features, ids, method='embed')


@partial(jax.jit, static_argnames=('config', 'scan', 'remat'))
def full(config, params, embeds, positions, segments=None, scan=False, remat='none'):
    return build_model(config, scan=scan, remat=remat).apply(
        {'params': params}, embeds, positions, segments, method='hidden'
    )


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(config, params, *chunk):
    return build_model(config).apply({'params': params}, *chunk, method='prefill')


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def extend(config, params, *chunk):
    return build_model(config).apply({'params': params}, *chunk, method='extend')


def part(embeds, *where):
    return jax.tree.map(lambda x: x[where], embeds)


def test_cached_passes_equal_the_full_pass(config, params, rows):
    """Rows of different lengths: prefill, a chunk, single steps; each row at its own place."""
    (embeds, positions), decoding = rows, unstack(params)
    expected = full(config, params, embeds, positions)
    held, empty = np.array([7, 5]), build_model(config).init_cache(2, LENGTH)
    hidden, cache = prefill(config, decoding, empty, part(embeds, slice(None), slice(8)), positions[:, :, :8])
    for row in range(2):
        np.testing.assert_allclose(hidden[row, : held[row]], expected[row, : held[row]], atol=1e-5)
    for lengths in ([4, 6], [1, 1], [1, 0], [0, 1], [1, 1]):
        width = 6 if max(lengths) > 1 else 1
        places = np.minimum(held[:, None] + np.arange(width), LENGTH - 1)
        chunk = jax.tree.map(lambda x, places=places: np.take_along_axis(x, places[..., None], 1), embeds)
        places = np.take_along_axis(positions, places[None], 2)
        hidden, cache = extend(config, decoding, cache, chunk, places, held, np.array(lengths))
        for row in range(2):
            np.testing.assert_allclose(
                hidden[row, : lengths[row]], expected[row, held[row] : held[row] + lengths[row]], atol=1e-5
            )
        held = held + lengths


def test_a_chunk_writes_its_own_slots_and_none_past_the_end(config, params, rows):
    (embeds, positions), model = rows, build_model(config)
    cache = tuple((jnp.full_like(k, 7.0), jnp.full_like(v, 7.0)) for k, v in model.init_cache(2, 6))
    chunk = part(embeds, slice(None), slice(4)), positions[:, :, :4]
    _, cache = extend(config, unstack(params), cache, *chunk, np.array([1, 4]), np.array([3, 4]))
    for array, axes in zip(cache[0], model.cache_axes, strict=True):
        untouched = np.all(np.asarray(array) == 7.0, axis=(axes.index('kv_heads'), axes.index('head')))
        assert untouched.tolist() == [[True, False, False, False, True, True], [True, True, True, True, False, False]]


@pytest.mark.parametrize('remat', ['attention', 'full'])
def test_scanned_and_rematerialised_equal_the_plain_pass(config, params, rows, remat):
    """Gradients of what is embedded too."""
    embeds, positions = rows

    def loss(params, embeds, scan, remat):
        return jnp.sum(jnp.sin(full(config, params, embeds, positions, scan=scan, remat=remat)))

    gradient = jax.value_and_grad(loss, (0, 1))
    plain, other = (gradient(params, embeds, scan, how) for scan, how in ((False, 'none'), (True, remat)))
    jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4), plain, other)


def test_packed_rows_equal_padded_rows(config, params, rows):
    embeds, positions = rows
    packed = (
        jax.tree.map(lambda x: np.concatenate([x[:1, :12], x[1:, :8]], axis=1), embeds),
        np.concatenate([positions[:, :1, :12], positions[:, 1:, :8]], axis=2),
    )
    hidden = full(config, params, *packed, segments=Segments(np.array([[1] * 12 + [2] * 8])))
    expected = full(config, params, embeds, positions)
    np.testing.assert_allclose(hidden[0, :12], expected[0, :12], atol=1e-5)
    np.testing.assert_allclose(hidden[0, 12:], expected[1, :8], atol=1e-5)


def test_padding_on_the_right_changes_nothing(config, params, rows):
    embeds, positions = rows
    short = full(config, params, part(embeds, slice(None), slice(9)), positions[:, :, :9])
    np.testing.assert_allclose(short, full(config, params, embeds, positions)[:, :9], atol=1e-5)


def test_features_take_the_place_of_tokens(config, params):
    model, ids = build_model(config), np.array([[3, 40, 40, 5], [3, 40, 6, 0]])
    features = jnp.arange(2 * 2 * 32.0).reshape(2, 2, 32)
    everything = jax.tree.map(lambda _: features, model.no_features(2, 2))
    index = np.array([[-1, 2, 3, -1], [-1, 2, -1, -1]])  # both rows show the second image: a group shares its page
    embeds, *added = jax.tree.leaves(model.apply({'params': params}, ids, everything, index, method='embed'))
    table = params['text']['embed']
    for more in added:
        assert np.array_equal(more[:, 1:3], [features[1], [features[1, 0], np.zeros(32)]]) and not more[:, ::3].any()
    assert np.array_equal(embeds[0], jnp.stack([table[3], features[1, 0], features[1, 1], table[5]]))
    assert np.array_equal(embeds[1], jnp.stack([table[3], features[1, 0], table[6], table[0]]))


def test_tied_head_is_the_table():
    params = small_params(TIED)
    hidden = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    logits = build_model(TIED).apply({'params': params}, hidden, method='logits')
    np.testing.assert_allclose(logits, hidden @ np.asarray(params['text']['embed']).T, rtol=1e-5, atol=1e-5)


def test_bf16_activations_keep_float32_logits(config, params, rows):
    model, (embeds, positions) = build_model(config, dtype=jnp.bfloat16), rows
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), embeds)
    hidden = model.apply({'params': params}, half, positions, method='hidden')
    logits = model.apply({'params': params}, hidden, method='logits')
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    expected = full(config, params, embeds, positions)
    assert np.abs(hidden.astype(np.float32) - expected).max() < 0.1 * np.abs(expected).max()
