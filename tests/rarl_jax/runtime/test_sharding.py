"""Shardings by hand, and on eight virtual devices an update that equals one device's."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rarl_jax.runtime.sharding import MeshSettings, batch_sharding, make_mesh, spec
from tests.commands import on_eight_devices


def test_a_mesh_of_one_device_splits_nothing():
    mesh = make_mesh(MeshSettings())
    assert spec((8, 4), ('embed', 'mlp'), mesh) == P(None, None)


def test_a_mesh_needs_its_devices():
    with pytest.raises(ValueError, match='fsdp=64 x tensor=1 needs 64 devices, found'):
        make_mesh(MeshSettings(fsdp=64))


def test_every_axis_needs_a_name():
    with pytest.raises(ValueError, match='has 2 axes, but 1 logical names'):
        spec((8, 4), ('embed',), make_mesh(MeshSettings()))


@pytest.mark.slow
def test_on_eight_devices():
    done = on_eight_devices(__name__)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- runs in a process of its own

AXES = {
    'embed': ('vocab', 'embed'),
    'layers': {'up': ('layers', 'embed', 'mlp'), 'down': ('layers', 'mlp', 'embed'), 'norm': ('layers', 'norm')},
}


def check_on_eight_devices():
    import jax.numpy as jnp

    from rarl_jax.learner.optim import OptimizerSettings, apply, make_optimizer
    from rarl_jax.runtime.sharding import optimizer_shardings, param_shardings, put_batch

    assert jax.device_count() == 8
    draw = np.random.default_rng(0).normal
    shapes = {'embed': (24, 8), 'layers': {'up': (3, 8, 16), 'down': (3, 16, 8), 'norm': (3, 8)}}
    params = jax.tree.map(lambda s: draw(size=s).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    batch = {'ids': np.arange(40).reshape(8, 5) % 24, 'positions': np.ones((3, 8, 5), np.float32)}
    optimizer = make_optimizer(OptimizerSettings(0.1, weight_decay=0.1, frozen=('layers/norm',)), params, 10)

    def step(params, opt_state, batch):
        def loss(p):
            x = p['embed'][batch['ids']] * batch['positions'].sum(0)[..., None]
            for up, down, norm in zip(*(p['layers'][k] for k in ('up', 'down', 'norm')), strict=True):
                x = x + jax.nn.gelu((x * norm) @ up) @ down
            return jnp.square(x @ p['embed'].T).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return *apply(optimizer, params, opt_state, gradient, value)[:2], value

    def run(sizes):
        mesh = make_mesh(MeshSettings(*sizes))
        places = param_shardings(params, AXES, mesh)
        states = optimizer_shardings(optimizer, params, places)
        state = jax.device_put(params, places), jax.device_put(optimizer.init(params), states)
        placed = put_batch(batch, mesh, {'ids': 0, 'positions': 1})
        jitted = jax.jit(step, out_shardings=(places, states, None), donate_argnums=(0, 1))
        for _ in range(3):
            *state, value = jitted(*state, placed)
        assert jitted._cache_size() == 1  # neither the first output nor a later one is another program's input
        return mesh, state, float(value)

    _, (alone, _), loss = run((1, 1, 1))
    for sizes in ((1, 8, 1), (1, 4, 2), (2, 2, 2)):
        mesh, (found, state), value = run(sizes)
        np.testing.assert_allclose(value, loss, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, alone)
        up, moments = found['layers']['up'], [x for x in jax.tree.leaves(state) if x.shape == (3, 8, 16)]
        fsdp, tensor = sizes[1], sizes[2]
        assert up.addressable_shards[0].data.shape == (3, 8 // fsdp, 16 // tensor)
        assert len(moments) == 2
        assert all(m.sharding.is_equivalent_to(up.sharding, 3) for m in moments)
        assert all(len(x.sharding.spec) == x.ndim for x in jax.tree.leaves(found))
    check_specs(mesh)


def check_specs(mesh):
    """`mesh` is 2 x 2 x 2."""
    assert spec((8, 4), ('embed', 'mlp'), mesh) == P('fsdp', 'tensor')
    assert spec((3, 7, 4), ('layers', 'embed', 'heads'), mesh) == P(None, None, 'tensor')  # 7 is not even
    assert batch_sharding(mesh, (3, 8, 2), axis=1).spec == P(None, ('data', 'fsdp'), None)
    with pytest.raises(ValueError, match='needs 3 devices, found 8'):
        make_mesh(MeshSettings(data=3))
