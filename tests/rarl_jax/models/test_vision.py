import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.interface import build_model
from rarl_jax.models.layers import move_rows
from rarl_jax.models.params import unstack
from rarl_jax.models.vision_batch import VisionSizes, plan_vision
from rarl_jax.models.vision_layers import PatchEmbed
from tests.rarl_jax.models.small import FAMILIES, VISION, small_image, small_params

IMAGES = (small_image(140, 84, 1), small_image(56, 56, 2), small_image(28, 112, 3))
LARGE = VisionSizes(images=5, windows=15, patches=80)


@pytest.fixture(params=FAMILIES)
def config(request):
    return FAMILIES[request.param]


def encode(config, params, images, sizes=None, scan=False):
    """Every feature of each image's tokens, side by side."""
    batch, model = plan_vision(images, config.vision, sizes), build_model(config, scan=scan)
    features = jax.jit(lambda p: model.apply({'params': p}, batch, method='encode_images'))(params)
    features = jnp.concatenate(jax.tree.leaves(features), axis=-1)
    return [features[number, : image.merged(2)] for number, image in enumerate(images)]


def test_layout_of_a_small_image():
    """Three by five merged tokens in windows of 2 x 2: 2 x 3 windows, those at the edges ragged."""
    batch = plan_vision(IMAGES[:1], VISION)
    assert batch.pixels.shape == (6, 16, 588)
    assert batch.window_lengths.tolist() == [16, 16, 8, 8, 8, 4]
    assert batch.merged_slots[0, [0, 1, 5, 6]].tolist() == [0, 1, 2, 3]  # the first window
    assert batch.merged_slots[0, 14] == 5 * 4  # the last token is alone in the last window
    rows = np.concatenate([batch.pixels.reshape(-1, 588)[batch.image_slots[0]]])
    assert np.array_equal(rows, IMAGES[0].frame)


def test_the_frames_of_a_still_image_go_through_as_one(config):
    params = small_params(config)['vision']['patch']
    embed = PatchEmbed(config.vision, config.init_scale, 'b' in params, jnp.float32)
    plain = IMAGES[0].pixels @ params['w'] + params.get('b', 0)
    np.testing.assert_allclose(embed.apply({'params': params}, IMAGES[0].frame), plain, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('scan', [False, True])
def test_an_image_has_its_features_in_any_company(config, scan):
    params = small_params(config)
    together = encode(config, params, IMAGES, LARGE, scan)
    for image, features in zip(IMAGES, together, strict=True):
        (alone,) = encode(config, params, [image])
        assert np.allclose(features, alone, atol=1e-5)


def test_padding_has_no_gradient_and_gives_none(config):
    """The gradient in padded arrays is that of exact arrays."""

    def loss(params, batch):
        features = build_model(config).apply({'params': params}, batch, method='encode_images')
        features = jnp.concatenate(jax.tree.leaves(features), axis=-1)
        return sum(jnp.sum(jnp.sin(features[number, : image.merged(2)])) for number, image in enumerate(IMAGES))

    gradients = [
        jax.jit(jax.grad(loss))(small_params(config), plan_vision(IMAGES, config.vision, sizes))['vision']
        for sizes in (None, LARGE)
    ]
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-4), *gradients)


def test_unstacked_params_give_the_same(config):
    params = small_params(config)
    both = zip(encode(config, params, IMAGES), encode(config, unstack(params), IMAGES), strict=True)
    assert all(np.array_equal(stacked, sliced) for stacked, sliced in both)


def test_windows_without_attention_of_their_own():
    """Sixteen merged tokens in raster order each; an image's last window is ragged."""
    batch = plan_vision(IMAGES, FAMILIES['qwen3_vl'].vision)
    assert batch.window_lengths.tolist() == [60, 16, 16] and batch.image_sides.tolist() == [[6, 10], [4, 4], [8, 2]]
    assert batch.merged_slots[0].tolist() == list(range(15))


def test_move_rows_there_and_back():
    x = jnp.arange(8.0).reshape(4, 2)
    there, back = jnp.array([2, 0, 9]), jnp.array([1, 9, 0, 9])
    y, pull = jax.vjp(lambda x: move_rows(x, there, back), x)
    assert y.tolist() == [[4, 5], [0, 1], [0, 0]]
    plain = jax.vjp(lambda x: x.at[there].get(mode='fill', fill_value=0), x)[1]
    assert np.array_equal(pull(y)[0], plain(y)[0])


@pytest.mark.parametrize(
    ('sizes', 'message'),
    [
        (LARGE._replace(images=2), '3 images, but there is room for 2'),
        (LARGE._replace(windows=8), '9 windows, but there is room for 8'),
        (LARGE._replace(patches=56), '60 patches, but there is room for 56'),
    ],
)
def test_sizes_that_are_too_small(sizes, message):
    with pytest.raises(ValueError, match=message):
        plan_vision(IMAGES, VISION, sizes)


def test_no_image():
    with pytest.raises(ValueError, match='no image'):
        plan_vision([], VISION)
