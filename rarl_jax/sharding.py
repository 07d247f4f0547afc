"""Where every array lives: a mesh, one table from logical axis names to mesh axes, and shardings for params, moments and batches.

    mesh axes   data    copies of the weights, each with its part of the batch
                fsdp    the batch is split further; weights are split too and gathered where they are used
                tensor  heads, MLP and vocabulary are split: a weight is used in pieces

Arrays are handed to jitted functions with these shardings and XLA adds the communication. Every PartitionSpec has the rank of its array: a shorter
spec means the same but is a different key of the compilation cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

AXES = ('data', 'fsdp', 'tensor')
Rules = Mapping[str, tuple[str, ...]]  # logical axis -> the mesh axes it is split over
Logical = tuple[str | None, ...]  # logical name of each axis of an array

RULES: Rules = {
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'vocab': ('tensor',),
    'vision_embed': ('fsdp',),
    'vision_heads': ('tensor',),
    'vision_qkv': ('tensor',),
    'vision_mlp': ('tensor',),
    'vision_merged': ('fsdp',),
}
ACTIVATION_RULES: Rules = {'batch': ('data', 'fsdp'), 'windows': ('data', 'fsdp'), 'images': ('data', 'fsdp')}


@dataclass(frozen=True)
class MeshSettings:
    """How many devices each mesh axis has; their product is the number of devices."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(settings: MeshSettings) -> Mesh:
    """The mesh (data, fsdp, tensor) over the first devices there are. ValueError if there are fewer than it needs."""
    shape = (settings.data, settings.fsdp, settings.tensor)
    needed, found = int(np.prod(shape)), jax.device_count()
    if needed > found or found % needed:
        raise ValueError(
            f'The mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} needs {needed} devices, found {found}: set config.mesh to their number.'
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:needed])


def spec(shape: tuple[int, ...], logical: Logical, mesh: Mesh, rules: Rules = RULES) -> PartitionSpec:
    """The PartitionSpec of one array. A name without a rule is not split; nor is an axis that its mesh axes don't divide evenly."""
    if len(shape) != len(logical):
        raise ValueError(
            f'An array of shape {shape} has {len(shape)} axes, but {len(logical)} logical names {logical}.'
        )
    return PartitionSpec(*(_split_over(size, name, mesh, rules) for size, name in zip(shape, logical, strict=True)))


def _split_over(size: int, name: str | None, mesh: Mesh, rules: Rules) -> tuple[str, ...] | str | None:
    axes = tuple(axis for axis in rules.get(name, ()) if mesh.shape[axis] > 1)
    if not axes or size % int(np.prod([mesh.shape[axis] for axis in axes])):
        return None
    return axes if len(axes) > 1 else axes[0]


def param_shardings(params: Any, logical: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for every leaf of (abstract) `params`; `logical` has their structure with a tuple of names at every leaf."""
    return jax.tree.map(lambda x, names: NamedSharding(mesh, spec(x.shape, names, mesh, rules)), params, logical)


def optimizer_shardings(optimizer: optax.GradientTransformation, params: Any, shardings: Any) -> Any:
    """Shardings of the optimizer's state: moments live where their params do, counters everywhere. No memory is taken."""
    mesh = jax.tree.leaves(shardings)[0].mesh

    def is_frozen(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    return optax.tree_utils.tree_map_params(
        optimizer,
        lambda moment, sharding: moment if is_frozen(moment) else sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda x: replicated(mesh, x.ndim),
        is_leaf=is_frozen,
    )


def replicated(mesh: Mesh, rank: int) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * rank))


def batch_sharding(mesh: Mesh, rank: int, axis: int = 0) -> NamedSharding:
    """Arrays whose `axis` is the batch, split over data and fsdp."""
    names: list[Any] = [None] * rank
    names[axis] = ('data', 'fsdp')
    return NamedSharding(mesh, PartitionSpec(*names))


def put(array: np.ndarray, sharding: NamedSharding) -> Array:
    """A host array on the mesh. With several processes, `array` is this process's part of the batch (all of it where nothing is split)."""
    return jax.make_array_from_process_local_data(sharding, array)


def put_batch(batch: Any, mesh: Mesh, axes: Any) -> Any:
    """A pytree of host arrays on the mesh. `axes` has its structure and says which axis of each array is the batch; -1 = a copy everywhere."""

    def place(array: np.ndarray, axis: int) -> Array:
        array = np.asarray(array)
        return put(array, replicated(mesh, array.ndim) if axis < 0 else batch_sharding(mesh, array.ndim, axis))

    return jax.tree.map(place, batch, axes)


def constrain(mesh: Mesh, rules: Rules = ACTIVATION_RULES) -> Callable[[Array, Logical], Array]:
    """(activation, logical names) -> the same activation pinned to where the rules put it: split by batch, so that weights travel, not tokens."""

    def pin(x: Array, logical: Logical) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x.shape, logical, mesh, rules)))

    return pin
