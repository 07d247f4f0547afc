"""The optimizer of a stage: AdamW with a schedule, a global clip, frozen subtrees, and updates that skip what is not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float
from optax import contrib

Params = dict[str, Any]  # nested dict of arrays
Labels = dict[str, Any]  # the params' structure with 'trained' or 'frozen' at every leaf


@dataclass(frozen=True)
class OptimizerSettings:
    """One stage's optimizer."""

    learning_rate: float  # the schedule's peak
    kind: Literal['adamw', 'muon'] = 'adamw'  # muon: matrices move along orthogonalised momentum, all else by AdamW
    matrix_rate: float = 10.0  # muon: the matrices' learning rate, as a multiple of learning_rate
    # After the warm-up; cosine and hold (level to the middle, then straight) fall to end_fraction at the last update.
    schedule: Literal['constant', 'cosine', 'hold'] = 'constant'
    warmup: float = 0.0  # share of the stage's steps in which the rate rises linearly from 0
    end_fraction: float = 0.0  # cosine: the last rate, as a share of the peak
    b1: float = 0.9  # decay of the mean of gradients
    b2: float = 0.999  # decay of the mean of squared gradients
    eps: float = 1e-8  # added to the root of that mean
    # Times the learning rate; norms and biases are left alone, with muon all that AdamW moves.
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients of a larger global norm are scaled down to it
    frozen: tuple[str, ...] = ()  # params that don't learn, by the start of their path: 'vision', 'text/embed'

    def __post_init__(self):
        for name in ('learning_rate', 'matrix_rate', 'weight_decay', 'eps'):
            if not 0 <= getattr(self, name) < float('inf'):
                raise ValueError(f'{name} is {getattr(self, name)}, expected a number from 0 on.')
        for name in ('b1', 'b2', 'warmup', 'end_fraction'):
            if not 0 <= getattr(self, name) <= 1 or (name[0] == 'b' and getattr(self, name) == 1):
                raise ValueError(f'{name} is {getattr(self, name)}, expected a share from 0 to 1.')
        if not self.max_grad_norm > 0:
            raise ValueError(f'max_grad_norm is {self.max_grad_norm}, expected a positive number; inf clips nothing.')


def make_optimizer(settings: OptimizerSettings, params: Params, steps: int) -> optax.GradientTransformation:
    """The settings' optimizer for a stage of `steps` updates. `params` may be abstract: only paths are read."""
    schedule = make_schedule(settings, steps)
    if settings.kind == 'muon':
        rule = _muon(settings, schedule)
    else:
        rule = optax.chain(
            optax.scale_by_adam(settings.b1, settings.b2, settings.eps, mu_dtype=jnp.float32),
            optax.add_decayed_weights(settings.weight_decay, mask=_decayed),
            optax.scale_by_learning_rate(schedule),
        )
    trained = optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), rule)
    return optax.partition({'trained': trained, 'frozen': optax.set_to_zero()}, label(params, settings.frozen))


def _muon(settings: OptimizerSettings, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (https://kellerjordan.github.io/posts/muon) for the matrices inside layers; AdamW for embeddings, the patch projection, norms and biases."""
    return contrib.muon(
        lambda count: settings.matrix_rate * schedule(count),
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        adam_learning_rate=schedule,
        weight_decay=settings.weight_decay,
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Params) -> Any:
    """For each leaf inside layers that is a matrix, which of its last two axes is contracted: layers are stacked, so it may have three."""

    def axes(path: tuple, leaf: Array) -> contrib.MuonDimensionNumbers | None:
        name = path_name(path)
        if not name.endswith('/w') or 'patch' in name:
            return None
        return contrib.MuonDimensionNumbers((leaf.ndim - 2,), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def make_schedule(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """Update number (from 0) -> learning rate."""
    peak, rising = settings.learning_rate, round(settings.warmup * steps)
    if settings.schedule == 'constant':
        after = optax.constant_schedule(peak)
    elif settings.schedule == 'hold':
        level = max(steps // 2 - rising, 0)
        after = optax.linear_schedule(peak, settings.end_fraction * peak, max(steps - rising - level, 1), level)
    else:
        after = optax.cosine_decay_schedule(peak, max(steps - rising, 1), settings.end_fraction)
    if not rising:
        return after
    # The first update already moves: with a rate of 0 it would be spent for nothing.
    return optax.join_schedules([optax.linear_schedule(peak / rising, peak, rising - 1), after], [rising])


def label(params: Params, frozen: Sequence[str]) -> Labels:
    """'frozen' for each leaf whose path starts with one of `frozen`, 'trained' for the others. ValueError for a name that no path starts with."""
    unused = set(frozen)

    def name(path: tuple, leaf: Array) -> str:
        matching = {start for start in frozen if f'{path_name(path)}/'.startswith(f'{start}/')}
        unused.difference_update(matching)
        return 'frozen' if matching else 'trained'

    labels = jax.tree_util.tree_map_with_path(name, params)
    if unused:
        raise ValueError(
            f'No parameter lies under {sorted(unused)}: optimizer.frozen takes the start of a path, such as one of {sorted(params)}.'
        )
    return labels


def stands(params: Params, frozen: Sequence[str], part: str) -> bool:
    """Whether nothing under `part` of the params learns; an adapter that leaves it alone has nothing there."""
    return all(name == 'frozen' for name in jax.tree.leaves(label(params, frozen).get(part, {})))


@jax.jit
def equal(some: Any, others: Any) -> Bool[Array, '']:
    """Whether the arrays of two pytrees are the same, number by number."""
    return jnp.stack(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), some, others))).all()


def path_name(path: tuple) -> str:
    """A key path of a pytree as 'text/layers/q/w'."""
    return jax.tree_util.keystr(path, simple=True, separator='/')


def stop_frozen(params: Params, labels: Labels) -> Params:
    """The same params, frozen ones cut off from the gradient, so that the backward pass leaves them out."""
    return jax.tree.map(lambda x, name: stop_gradient(x) if name == 'frozen' else x, params, labels)


def apply(
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: optax.OptState,
    gradient: Params,
    loss: Float[Array, ''],
) -> tuple[Params, optax.OptState, dict[str, Float[Array, '']]]:
    """One step down the gradient -> new params, new state, and numbers for the log.

    Where the loss, the gradient, what the optimizer makes of it or a weight that comes of it is not finite, both stay as they are (the schedule does
    not move on) and optimizer/skipped is 1; the norms tell which of them it was.
    """
    updates, _ = optimizer.update(gradient, opt_state, params)
    norms = {
        'optimizer/gradient_norm': optax.global_norm(gradient),
        'optimizer/update_norm': optax.global_norm(updates),
    }
    good = all_finite([loss, *norms.values(), optax.apply_updates(params, updates)])

    def step(params: Params, opt_state: optax.OptState, gradient: Params) -> tuple[Params, optax.OptState]:
        updates, stepped = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), stepped

    # Reckoned once more: what is chosen between would exist twice, three times the weights' size beside them.
    params, opt_state = jax.lax.cond(
        good, step, lambda params, opt_state, _: (params, opt_state), params, opt_state, gradient
    )
    return params, opt_state, norms | {'optimizer/skipped': jnp.float32(~good)}


def all_finite(arrays: Any) -> Bool[Array, '']:
    """Whether no array of a pytree holds NaN or infinity."""
    numbers = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in numbers]).all()


def _decayed(params: Params) -> Any:
    """Which leaves weight decay shrinks: all but norms and biases, told by name because layers are stacked and their ranks say nothing."""

    def is_matrix(path: tuple, leaf: Array) -> bool:
        name = path_name(path)
        return not ('norm' in name or name.endswith('/b'))

    return jax.tree_util.tree_map_with_path(is_matrix, params)
