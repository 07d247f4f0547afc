"""The optimizer by hand: first steps of AdamW, schedules, clip, what is frozen, what is skipped."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rarl_jax.learner.optim import (
    OptimizerSettings,
    all_finite,
    apply,
    label,
    make_optimizer,
    make_schedule,
    path_name,
    stop_frozen,
)

PLAIN = OptimizerSettings(learning_rate=0.1, max_grad_norm=1e9)
PARAMS = {
    'text': {'norm': jnp.ones(2), 'layers': {'q': {'w': jnp.ones((3, 2, 2)), 'b': jnp.ones((3, 2))}}},
    'vision': {'patch': {'w': jnp.ones((2, 2))}, 'norm1': jnp.ones((3, 2))},
}
GRADS = jax.tree.map(lambda x: 0.5 * jnp.ones_like(x), PARAMS)


def stepped(settings, grads=GRADS, loss=1.0, updates=1):
    optimizer = make_optimizer(settings, PARAMS, 10)
    state = PARAMS, optimizer.init(PARAMS)
    step = jax.jit(lambda p, s, g, x: apply(optimizer, p, s, g, x))
    for _ in range(updates):
        *state, numbers = step(*state, grads, jnp.float32(loss))
    return *state, numbers


def test_first_step_of_adam_moves_by_the_learning_rate():
    params, _, numbers = stepped(PLAIN)
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 0.9, rtol=1e-6), params)
    size = sum(x.size for x in jax.tree.leaves(PARAMS))
    np.testing.assert_allclose(numbers['optimizer/gradient_norm'], 0.5 * size**0.5, rtol=1e-6)
    assert numbers['optimizer/skipped'] == 0


@pytest.mark.parametrize(
    ('kind', 'decayed_names'), [('adamw', ['text/layers/q/w', 'vision/patch/w']), ('muon', ['text/layers/q/w'])]
)
def test_decay_leaves_norms_and_biases_alone(kind, decayed_names):
    settings = replace(PLAIN, kind=kind, matrix_rate=1.0)
    plain, decayed = (stepped(replace(settings, weight_decay=decay))[0] for decay in (0.0, 0.5))
    lost = jax.tree.map(lambda a, b: a - b, plain, decayed)
    for path, x in jax.tree_util.tree_leaves_with_path(lost):
        np.testing.assert_allclose(x, 0.1 * 0.5 * (path_name(path) in decayed_names), rtol=1e-5)


def test_clip_scales_the_whole_gradient():
    settings = replace(PLAIN, max_grad_norm=0.1, eps=1.0)  # a large eps makes Adam's first step g / (|g| + 1)
    params, _, numbers = stepped(settings)
    g = 0.1 / sum(x.size for x in jax.tree.leaves(PARAMS)) ** 0.5
    jax.tree.map(lambda x: np.testing.assert_allclose(x, 1 - 0.1 * g / (g + 1), rtol=1e-6), params)
    assert numbers['optimizer/gradient_norm'] > 1  # logged as it was before the clip


def test_schedules_by_hand():
    constant = make_schedule(replace(PLAIN, warmup=0.4), 10)
    np.testing.assert_allclose([constant(i) for i in range(6)], [0.025, 0.05, 0.075, 0.1, 0.1, 0.1], rtol=1e-6)
    cosine = make_schedule(replace(PLAIN, schedule='cosine', warmup=0.2, end_fraction=0.1), 10)
    np.testing.assert_allclose([cosine(i) for i in (0, 1, 2, 6, 10)], [0.05, 0.1, 0.1, 0.055, 0.01], rtol=1e-6)
    hold = make_schedule(replace(PLAIN, schedule='hold', warmup=0.2, end_fraction=0.2), 10)
    np.testing.assert_allclose([hold(i) for i in (0, 1, 2, 5, 7.5, 10)], [0.05, 0.1, 0.1, 0.1, 0.06, 0.02], rtol=1e-6)
    assert make_schedule(PLAIN, 10)(0) == pytest.approx(0.1)


def test_muon_moves_matrices_in_all_directions_alike():
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), PARAMS)
    params, _, _ = stepped(replace(PLAIN, kind='muon', matrix_rate=2.0, frozen=('vision',)), grads)
    moved = np.asarray(params['text']['layers']['q']['w'] - 1) / (0.1 * 2.0)
    for matrix in moved:  # each layer by itself
        np.testing.assert_allclose(
            np.linalg.svd(matrix, compute_uv=False), 1, atol=0.35
        )  # what five Newton-Schulz steps leave
    for x in (params['text']['norm'], params['text']['layers']['q']['b']):
        np.testing.assert_allclose(abs(x - 1), 0.1 * 1.47, rtol=0.02)  # AdamW with Nesterov's look ahead
    jax.tree.map(np.testing.assert_array_equal, params['vision'], PARAMS['vision'])


def test_frozen_params_stay_and_cost_no_moments():
    settings = replace(PLAIN, frozen=('vision', 'text/layers/q/b'), weight_decay=0.5)
    huge = {**GRADS, 'vision': jax.tree.map(lambda x: 1e6 * x, GRADS['vision'])}
    params, opt_state, _ = stepped(settings, huge, updates=3)
    jax.tree.map(np.testing.assert_array_equal, params['vision'], PARAMS['vision'])
    np.testing.assert_array_equal(params['text']['layers']['q']['b'], 1)
    assert (params['text']['norm'] < 1).all()
    moments = [x.shape for x in jax.tree.leaves(opt_state) if x.ndim]
    assert sorted(moments) == [(2,), (2,), (3, 2, 2), (3, 2, 2)]


def test_stop_frozen_cuts_the_gradient():
    labels = label(PARAMS, ('vision',))
    grads = jax.grad(lambda p: sum(x.sum() for x in jax.tree.leaves(stop_frozen(p, labels))))(PARAMS)
    assert not any(x.any() for x in jax.tree.leaves(grads['vision']))
    assert all(x.all() for x in jax.tree.leaves(grads['text']))


def test_frozen_names_must_name_something():
    assert label({'vision': 0, 'vision2': 0}, ('vision',)) == {'vision': 'frozen', 'vision2': 'trained'}
    with pytest.raises(ValueError, match=r"under \['visual'\].*'text', 'vision'"):
        label(PARAMS, ('visual',))


@pytest.mark.parametrize(('bad', 'loss'), [(np.nan, 1.0), (np.inf, 1.0), (0.5, np.nan)])
def test_what_is_not_finite_is_skipped_and_counted(bad, loss):
    grads = {**GRADS, 'text': {**GRADS['text'], 'norm': jnp.array([0.5, bad])}}
    params, opt_state, numbers = stepped(PLAIN, grads, loss, updates=2)
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert all(np.isfinite(x).all() and not x.any() for x in jax.tree.leaves(opt_state))
    assert numbers['optimizer/skipped'] == 1
    assert np.isfinite(numbers['optimizer/gradient_norm']) == np.isfinite(bad)


def choose(optimizer, params, state, gradient, loss):
    """The plain way of a step: old and new, then one of them."""
    updates, stepped = optimizer.update(gradient, state, params)
    moved = optax.apply_updates(params, updates)
    good = all_finite([loss, gradient, updates, moved])
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), (moved, stepped), (params, state))


@pytest.mark.parametrize('kind', ['adamw', 'muon'])
@pytest.mark.parametrize('loss', [1.0, np.nan])
def test_a_step_is_what_choosing_between_old_and_new_gives(kind, loss):
    optimizer = make_optimizer(replace(PLAIN, kind=kind, weight_decay=0.1), PARAMS, 10)
    before = PARAMS, optimizer.init(PARAMS), GRADS, jnp.float32(loss)
    found, plain = (jax.jit(partial(step, optimizer))(*before)[:2] for step in (apply, choose))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, plain)


def test_a_step_holds_no_second_state():
    """Weights and their means are most of what a device holds: there is no room for them twice."""
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    params = {f'layer{number}': {'w': shape} for number in range(8)}
    optimizer = make_optimizer(PLAIN, params, 10)
    arguments = params, jax.eval_shape(optimizer.init, params), params, jax.ShapeDtypeStruct((), jnp.float32)
    sizes = [
        jax.jit(partial(step, optimizer), donate_argnums=(0, 1)).lower(*arguments).compile().memory_analysis()
        for step in (apply, choose)
    ]
    lean, plain = (size.temp_size_in_bytes / (8 * 256 * 256 * 4) for size in sizes)  # in sizes of the weights
    assert lean < 2 and plain > 3


def test_an_update_that_is_not_finite_is_not_applied():
    """Loss and gradient are finite, what the optimizer makes of them is not."""
    optimizer = optax.scale(float('inf'))
    params, _, numbers = apply(optimizer, PARAMS, optimizer.init(PARAMS), GRADS, jnp.float32(1))
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert numbers['optimizer/skipped'] == 1 and not np.isfinite(numbers['optimizer/update_norm'])


def test_a_weight_that_would_overflow_is_not_moved():
    """The update is finite and its norm too, the sum is not."""
    params = {'w': jnp.array([3.4e38, 1.0])}
    optimizer = optax.scale(1e18)
    for gradient, skipped in ((1.0, 0), (1e18, 1)):
        after, _, told = apply(
            optimizer, params, optimizer.init(params), {'w': jnp.array([gradient, 0])}, jnp.float32(1)
        )
        assert (told['optimizer/skipped'], np.array_equal(after['w'], params['w'])) == (skipped, True)


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_one_number_that_is_not_finite_is_found(bad, dtype):
    arrays = {'params': {'w': jnp.ones((3, 4), dtype)}, 'opt_state': [jnp.zeros((), jnp.int32), jnp.ones(2)]}
    assert all_finite(arrays)
    assert not all_finite(arrays | {'params': {'w': arrays['params']['w'].at[2, 1].set(bad)}})
    assert not all_finite(arrays | {'opt_state': [jnp.zeros((), jnp.int32), jnp.full(2, bad)]})


@pytest.mark.parametrize(
    'change',
    [{'learning_rate': float('nan')}, {'learning_rate': -1.0}, {'b2': 1.0}, {'warmup': 1.5}, {'max_grad_norm': 0.0}],
)
def test_ranges(change):
    with pytest.raises(ValueError, match=f'{next(iter(change))} is'):
        replace(PLAIN, **change)
