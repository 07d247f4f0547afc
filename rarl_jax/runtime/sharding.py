"""Where every array lives: a mesh, one table from logical axis names to mesh axes, and shardings for params, moments and batches.

    mesh axes   data    copies of the weights, each with its part of the batch
                fsdp    the batch is split further; weights are split too and gathered where they are used
                tensor  heads, MLP and vocabulary are split: a weight is used in pieces

Arrays are handed to jitted functions with these shardings and XLA adds the communication. Every PartitionSpec has the rank of its array: a shorter
spec means the same but is a different key of the compilation cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import flax.linen as nn
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
ACTIVATION_RULES: Rules = {
    'batch': ('data', 'fsdp'),
    'windows': ('data', 'fsdp'),
    'images': ('data', 'fsdp'),
    'kv_heads': ('tensor',),
}


@dataclass(frozen=True)
class MeshSettings:
    """How many devices each mesh axis has, their product being the number of devices, and what is split over which."""

    # 0 = all devices that the other axes leave.
    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    cpu_devices: int = 1  # where there is no accelerator: devices that the CPU is cut into, a core each
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(RULES))  # of the params' axes

    def __post_init__(self):
        if self.data < 0 or min(self.fsdp, self.tensor, self.cpu_devices) < 1:
            raise ValueError(
                f'data is {self.data}, fsdp {self.fsdp}, tensor {self.tensor} and cpu_devices {self.cpu_devices}: expected 0 or more '
                'of the first, and 1 or more of the others.'
            )
        if unknown := [f'{name}={axes}' for name, axes in self.rules.items() if not set(axes) <= set(AXES)]:
            raise ValueError(f'rules has {unknown[0]}, expected mesh axes of {AXES}.')


def make_mesh(settings: MeshSettings) -> Mesh:
    """The mesh (data, fsdp, tensor) over the first devices there are.

    ValueError if there are fewer than it needs, or a tensor axis leaves its process: rollouts are each process's own.
    """
    rest = settings.fsdp * settings.tensor
    shape = (settings.data or max(jax.device_count() // rest, 1), settings.fsdp, settings.tensor)
    needed, found = int(np.prod(shape)), jax.device_count()
    if needed > found or found % needed:
        raise ValueError(
            f'The mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} needs {needed} devices, found {found}: set config.mesh to their number.'
        )
    if jax.process_count() > 1 and (needed < found or jax.local_device_count() % shape[2]):
        raise ValueError(
            f'The mesh data={shape[0]} x fsdp={shape[1]} x tensor={shape[2]} does not fit {jax.process_count()} processes of '
            f'{jax.local_device_count()} devices: use all {found}, and a tensor axis that divides those of a process.'
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:needed])


def cut_cpu(settings: MeshSettings) -> None:
    """Cuts the CPU into settings.cpu_devices: small programs run on one core, so two devices with half a batch each are nearly twice as fast.

    To be called before JAX has looked for its devices. Several processes bring their own.
    """
    if settings.cpu_devices > 1 and not jax.distributed.is_initialized():
        jax.config.update('jax_num_cpu_devices', settings.cpu_devices)


def spec(shape: tuple[int, ...], logical: Logical, mesh: Mesh, rules: Rules = RULES) -> PartitionSpec:
    """The PartitionSpec of one array. A name without a rule is not split; nor is an axis that its mesh axes don't divide evenly."""
    if len(shape) != len(logical):
        raise ValueError(
            f'An array of shape {shape} has {len(shape)} axes, but {len(logical)} logical names {logical}.'
        )
    wanted = nn.logical_to_mesh_axes(logical, tuple(rules.items()))
    return PartitionSpec(*(_divided(size, axes, mesh) for size, axes in zip(shape, wanted, strict=True)))


def _divided(size: int, wanted: tuple[str, ...] | str | None, mesh: Mesh) -> tuple[str, ...] | str | None:
    axes = tuple(axis for axis in ((wanted,) if isinstance(wanted, str) else wanted or ()) if mesh.shape[axis] > 1)
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
        partial(jax.eval_shape, optimizer.init),
        lambda moment, sharding: moment if is_frozen(moment) else sharding,
        jax.eval_shape(optimizer.init, params),
        shardings,
        transform_non_params=lambda x: replicated(mesh, x.ndim),
        is_leaf=is_frozen,
    )


def replicated(mesh: Mesh, rank: int) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * rank))


def everywhere(arrays: Any, mesh: Mesh) -> Any:
    """Small arrays, the same in every process, as copies on every device."""
    return jax.tree.map(lambda x: put(np.asarray(x), replicated(mesh, x.ndim)), arrays)


def shardings_of(arrays: Any) -> Any:
    """Where the arrays of a pytree live; they may be abstract."""
    return jax.tree.map(lambda x: x.sharding, arrays)


# ---------------------------------------------------------------- processes


@functools.cache
def processes_of(mesh: Mesh) -> int:
    """How many processes the mesh's devices belong to."""
    return len({device.process_index for device in mesh.devices.flat})


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a mesh splits each process's rows of a batch."""
    return mesh.shape['data'] * mesh.shape['fsdp'] // processes_of(mesh)


@functools.cache
def local_mesh(mesh: Mesh) -> Mesh:
    """This process's devices of a mesh, with its tensor axis: where the process does what the others know nothing of."""
    if processes_of(mesh) == 1:
        return mesh
    local = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
    shape = (1, len(local) // mesh.shape['tensor'], mesh.shape['tensor'])
    return Mesh(np.array(local).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def whole_on_each(sharding: NamedSharding) -> NamedSharding:
    """The same sharding without data and fsdp: every device can use the array without asking the others of its row."""

    def kept(axes: tuple[str, ...] | str | None) -> str | None:
        return 'tensor' if axes is not None and 'tensor' in axes else None

    return NamedSharding(sharding.mesh, PartitionSpec(*map(kept, sharding.spec)))


@functools.cache
def first_part(mesh: Mesh) -> Mesh:
    """The first of a mesh's devices, with those that a tensor axis joins to it."""
    return Mesh(mesh.devices[:1, :1], AXES, axis_types=(AxisType.Auto,) * len(AXES))


def copy_on(mesh: Mesh, array: Array) -> Array:
    """The copy on a part of its mesh of an array that `whole_on_each` has placed: no byte is moved."""
    if mesh == array.sharding.mesh:
        return array
    held = {shard.device: shard.data for shard in array.addressable_shards}
    shards = [held[device] for device in mesh.devices.flat]
    return jax.make_array_from_single_device_arrays(array.shape, NamedSharding(mesh, array.sharding.spec), shards)


def local_rows(array: Array) -> np.ndarray:
    """This process's rows of an array that is split by rows over the devices, or whole on each."""
    pieces = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


# ---------------------------------------------------------------- batches


def batch_sharding(mesh: Mesh, shape: tuple[int, ...], axis: int = 0) -> NamedSharding:
    """Of arrays whose `axis` is the batch: split over data and fsdp, or a copy everywhere where it does not divide evenly."""
    logical = tuple('batch' if each == axis else None for each in range(len(shape)))
    return NamedSharding(mesh, spec(shape, logical, mesh, ACTIVATION_RULES))


def put(array: np.ndarray, sharding: NamedSharding) -> Array:
    """A host array on the mesh. With several processes, `array` is this process's part of the batch (all of it where nothing is split)."""
    return jax.make_array_from_process_local_data(sharding, array)


def put_batch(batch: Any, mesh: Mesh, axes: Any) -> Any:
    """A pytree of host arrays on the mesh.

    Args:
        batch: with several processes in the mesh, this process's rows.
        axes: has the batch's structure and says which axis of each array is the batch; -1 = a copy everywhere.
    Raises:
        ValueError: several processes' rows do not divide evenly over the devices.
    """
    processes = processes_of(mesh)

    def place(array: np.ndarray, axis: int) -> NamedSharding:
        if axis < 0:
            return replicated(mesh, array.ndim)
        shape = tuple(size * (processes if each == axis else 1) for each, size in enumerate(array.shape))
        if processes > 1 and array.shape[axis] % batch_parts(mesh):
            raise ValueError(
                f'A batch array has {array.shape[axis]} rows, expected a multiple of {batch_parts(mesh)} devices.'
            )
        return batch_sharding(mesh, shape, axis)

    arrays = jax.tree.map(np.asarray, batch)
    shardings = jax.tree.map(place, arrays, axes)
    if processes == 1:
        return jax.device_put(arrays, shardings)  # all at once: a call for each array takes longer than moving it
    return jax.tree.map(put, arrays, shardings)


@functools.cache
def constrain(mesh: Mesh) -> Callable[[Array, Logical], Array]:
    """(activation, logical names) -> the same activation pinned to where ACTIVATION_RULES put it: split by batch, so that weights travel, not
    tokens. One function a mesh: a model that holds another one would be compiled again."""

    def pin(x: Array, logical: Logical) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(x.shape, logical, mesh, ACTIVATION_RULES)))

    return pin
