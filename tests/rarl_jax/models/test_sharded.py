"""On eight virtual devices: loading, loss, gradient and greedy tokens equal one device's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.interface import build_model
from rarl_jax.models.params import abstract_params, logical_axes, unstack
from rarl_jax.models.positions import mrope_positions
from rarl_jax.models.vision_batch import VisionSizes, plan_vision
from rarl_jax.models.weights import load_params, save_params, tensors_of
from rarl_jax.runtime.sharding import MeshSettings, constrain, make_mesh, param_shardings, replicated
from tests.commands import on_eight_devices
from tests.rarl_jax.models.small import FAMILIES, small_image, small_params

ROWS, STEPS = 8, 4


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_on_eight_devices(family, tmp_path):
    done = on_eight_devices(__name__, family, str(tmp_path))
    assert done.returncode == 0, done.stderr


def make_batch(vision):
    """Eight rows of text of different lengths, each with an image of its own size."""
    rng = np.random.default_rng(0)
    images = [small_image(28 * int(rng.integers(1, 5)), 28 * int(rng.integers(1, 4)), row) for row in range(ROWS)]
    batch = plan_vision(images, vision, VisionSizes(ROWS, 48, 48))
    ids, positions = np.zeros((ROWS, 32), np.int32), np.zeros((3, ROWS, 32), np.int32)
    index, lengths = np.full((ROWS, 32), -1, np.int32), np.zeros(ROWS, np.int32)
    for row, image in enumerate(images):
        talk = np.array([3, *[40] * image.merged(2), *rng.integers(3, 40, rng.integers(4, 16))])
        lengths[row] = len(talk)
        ids[row, : len(talk)] = talk
        positions[:, row, : len(talk)] = mrope_positions(talk, [image.grid], 40, 2)[0]
        index[row, 1 : 1 + image.merged(2)] = row * batch.image_rows + np.arange(image.merged(2))
    return ids, positions, index, batch, lengths


def loss(model, params, ids, positions, index, batch, lengths):
    rows = jax.nn.log_softmax(model.apply({'params': params}, ids, positions, index, batch)[:, :-1])
    chosen = jnp.take_along_axis(rows, ids[:, 1:, None], axis=-1)[..., 0]
    counts = jnp.arange(ids.shape[1] - 1) < lengths[:, None] - 1
    return -jnp.sum(chosen * counts) / jnp.sum(counts)


def greedy(model, params, ids, positions, index, batch, lengths):
    """A prefill and STEPS decoded tokens, in one program."""
    inside = partial(model.apply, {'params': params})
    embeds = inside(ids, inside(batch, method='encode_images'), index, method='embed')
    hidden, cache = inside(model.init_cache(ROWS, ids.shape[1] + STEPS), embeds, positions, method='prefill')
    last, rows = lengths - 1, jnp.arange(ROWS)
    token, position = jnp.argmax(inside(hidden[rows, last], method='logits'), axis=-1), positions[:, rows, last] + 1
    tokens = [token]
    for step in range(STEPS):
        embeds, place = inside(token[:, None], method='embed'), (position + step)[:, :, None]
        hidden, cache = inside(cache, embeds, place, lengths + step, jnp.ones_like(lengths), method='extend')
        token = jnp.argmax(inside(hidden[:, 0], method='logits'), axis=-1)
        tokens.append(token)
    return jnp.stack(tokens, axis=1)


def assert_close(mine, theirs):
    """Within 1e-5 of the norm of the weight's gradient."""
    assert np.abs(mine - theirs).max() <= 1e-5 * np.linalg.norm(theirs)


def check_on_eight_devices(family, folder):
    config = FAMILIES[family]
    start = small_params(config)
    assert jax.device_count() == 8
    save_params(folder, start, config, 30_000)
    inputs = make_batch(config.vision)
    expected_loss, expected = jax.jit(jax.value_and_grad(partial(loss, build_model(config))))(start, *inputs)
    expected_tokens = jax.jit(partial(greedy, build_model(config)))(unstack(start), *inputs)
    # Each mesh with one of the ways through the layers: a compilation on eight devices takes its time.
    for sizes, scan, remat in (((1, 8, 1), False, 'none'), ((1, 4, 2), True, 'attention'), ((2, 2, 2), True, 'none')):
        mesh = make_mesh(MeshSettings(*sizes))
        places = param_shardings(abstract_params(build_model(config)), logical_axes(build_model(config)), mesh)
        params = load_params(folder, config, jnp.float32, places)
        assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding == place, params, places))
        stored = dict(tensors_of(params, config))
        assert all(np.array_equal(stored[name], array) for name, array in tensors_of(start, config))
        up = params['text']['layers']['mlp']['up']['w'].addressable_shards[0].data.shape
        assert up == (
            config.text.num_layers,
            config.text.hidden_size // sizes[1],
            config.text.intermediate_size // sizes[2],
        )

        held = jax.tree.map(lambda x, mesh=mesh: jax.device_put(x, replicated(mesh, x.ndim)), inputs)
        model = build_model(config, scan=scan, remat=remat, constrain=constrain(mesh))
        step = jax.jit(jax.value_and_grad(partial(loss, model)), out_shardings=(None, places))
        for _ in range(2):
            value, gradient = step(params, *held)
        assert step._cache_size() == 1
        np.testing.assert_allclose(value, expected_loss, rtol=1e-5)
        jax.tree.map(assert_close, gradient, expected)
        tokens = jax.jit(partial(greedy, build_model(config, constrain=constrain(mesh))))(
            jax.jit(unstack)(params), *held
        )
        assert np.array_equal(tokens, expected_tokens)
    assert len(np.unique(expected_tokens)) > 8
