"""Checkpoints in Hugging Face's format <-> params, driven by names.weight_table.

Reading goes tensor by tensor in the order of the files: each is read on its own, put on the devices with its layer's sharding, and
written into its donated stack there. So the host holds one tensor at a time, whatever the checkpoint's size. Small arrays are put together on the
host instead, and no program is compiled for them.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from jaxtyping import Array

from rarl_jax.models.hub_files import (
    DTYPES,
    Outgoing,
    Stored,
    inspect_folder,
    read_tensor,
    shortened,
    to_host,
    write_folder,
)
from rarl_jax.models.interface import Config
from rarl_jax.models.names import Weight, plain_name, weight_table
from rarl_jax.models.params import Params
from rarl_jax.runtime.files import write_json

HEAD = 'lm_head.weight'
ON_HOST = 1 << 23  # bytes of an array of the params that the host may hold whole


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the checkpoint goes."""

    # Number of the weight among the params' leaves.
    leaf: int
    # Place in its stack, None where it is not stacked.
    layer: int | None


def load_params(folder: str | Path, config: Config, dtype: DTypeLike, shardings: Params | None = None) -> Params:
    """Reads a folder of safetensors: names of any version of transformers, one file or several with an index, any of bf16, fp16, fp32.

    Args:
        dtype: of the params; the cast happens on the devices.
        shardings: the params' structure with a Sharding at every leaf; None = the default device.

    Raises:
        FileNotFoundError: no safetensors there.
        ValueError: every missing, unexpected, misshapen or damaged tensor in one report, before any memory is taken.
    """
    folder = Path(folder)
    weights, structure = jax.tree.flatten(weight_table(config))
    slots = _slots(weights)
    known = {plain_name(name): name for name in slots}
    tensors, problems = inspect_folder(folder, lambda name: known.get(plain_name(name), name))
    problems += _mismatches(weights, slots, tensors, config.text.tie_word_embeddings)
    if not problems and HEAD in tensors and HEAD not in slots:
        problems += _untied(tensors[HEAD], tensors[known['model.embed_tokens.weight']])
    if problems:
        raise ValueError(
            f'{folder}: {len(problems)} problems; fetch the folder again, or give the config that belongs to it:\n  - '
            + shortened(problems, '\n  - ')
        )
    places = (
        [SingleDeviceSharding(jax.devices()[0])] * len(weights) if shardings is None else jax.tree.leaves(shardings)
    )
    loading = [_loading(weight, place, jnp.dtype(dtype)) for weight, place in zip(weights, places, strict=True)]
    for name, stored in tensors.items():
        if name in slots:
            loading[slots[name].leaf].take(read_tensor(stored), slots[name].layer)
    return jax.tree.unflatten(structure, [one.array for one in loading])


def save_params(folder: str | Path, params: Params, config: Config, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes config.json and the params in their own dtype under the hub's names, as one file or several with an index.

    Every process of a multi-host run calls it; the first one writes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outgoing = _outgoing(params, config)
    first = jax.process_index() == 0
    write_folder(folder, outgoing, max_shard_bytes, write=first)
    if first:
        write_json(folder / 'config.json', {**config.to_hf(), 'torch_dtype': outgoing[0].dtype.name})


def tensors_of(params: Params, config: Config) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that the params (or a gradient, or anything of their structure) become in a checkpoint: its hub name and its array."""
    return ((one.name, one.fetch()) for one in _outgoing(params, config))


def _slots(weights: list[Weight]) -> dict[str, Slot]:
    slots = {}
    for leaf, weight in enumerate(weights):
        if weight.stacked:
            slots |= {weight.hub.format(layer): Slot(leaf, layer) for layer in range(weight.shape[0])}
        else:
            slots[weight.hub] = Slot(leaf, None)
    return slots


def _mismatches(weights: list[Weight], slots: dict[str, Slot], tensors: dict[str, Stored], tied: bool) -> list[str]:
    allowed = {HEAD} if tied else set()  # a redundant copy of the embedding table
    problems = [f'{name}: missing' for name in slots if name not in tensors]
    problems += [
        f'{name}: unexpected, no weight of this config' for name in tensors if name not in slots and name not in allowed
    ]
    for name, slot in slots.items():
        expected = weights[slot.leaf].hub_shape
        if name in tensors and tensors[name].shape != expected:
            problems.append(f'{name}: shape {tensors[name].shape}, expected {expected}')
    return problems


def _untied(head: Stored, embedding: Stored) -> list[str]:
    """A head next to an embedding table that the config ties to it must be the same numbers."""
    same = (
        head.shape == embedding.shape
        and head.dtype == embedding.dtype
        and np.array_equal(read_tensor(head), read_tensor(embedding))
    )
    return (
        [] if same else [f'{HEAD}: differs from the embedding table, but config.json ties them (tie_word_embeddings)']
    )


def _loading(weight: Weight, sharding: Sharding, dtype: np.dtype) -> _OnHost | _OnDevices:
    kind = _OnHost if math.prod(weight.shape) * dtype.itemsize <= ON_HOST else _OnDevices
    return kind(weight, sharding, dtype)


class _OnHost:
    """A small array of the params while it is filled."""

    def __init__(self, weight: Weight, sharding: Sharding, dtype: np.dtype):
        self.weight, self.sharding = weight, sharding
        self.whole, self.missing = np.empty(weight.shape, dtype), weight.shape[0] if weight.stacked else 1
        self.array = None

    def take(self, raw: np.ndarray, layer: int | None) -> None:
        self.whole[... if layer is None else layer] = _oriented(self.weight, _as_matrix(self.weight, raw))
        self.missing -= 1
        if not self.missing:
            self.array = jax.make_array_from_callback(self.weight.shape, self.sharding, self.whole.__getitem__)
            del self.whole


class _OnDevices:
    """One array of the params while it is filled, layer by layer where it is a stack."""

    def __init__(self, weight: Weight, sharding: Sharding, dtype: np.dtype):
        self.weight, self.raw_sharding = weight, _raw_sharding(weight, sharding)
        if weight.stacked:
            self.array = jax.jit(partial(jnp.zeros, weight.shape, dtype), out_shardings=sharding)()
            self.fill = jax.jit(partial(_fill_layer, weight), donate_argnums=0, out_shardings=sharding)
        else:
            self.array = None
            self.fill = jax.jit(lambda raw: _oriented(weight, raw).astype(dtype), out_shardings=sharding)

    def take(self, raw: np.ndarray, layer: int | None) -> None:
        raw = _as_matrix(self.weight, raw)
        raw = jax.make_array_from_callback(raw.shape, self.raw_sharding, raw.__getitem__)
        self.array = self.fill(raw) if layer is None else self.fill(self.array, raw, layer)
        jax.block_until_ready(self.array)
        del raw
        gc.collect(0)  # JAX lets go of the host's copy at a collection: it goes before the next tensor is read


def _as_matrix(weight: Weight, raw: np.ndarray) -> np.ndarray:
    """A kernel is a matrix [out, in] once its last axes are one."""
    return raw.reshape(raw.shape[0], -1) if weight.transform == 'kernel' else raw


def _oriented(weight: Weight, raw: Array) -> Array:
    return raw if weight.transform == 'same' else raw.T


def _fill_layer(weight: Weight, stack: Array, raw: Array, layer: int) -> Array:
    return jax.lax.dynamic_update_index_in_dim(stack, _oriented(weight, raw).astype(stack.dtype), layer, 0)


def _raw_sharding(weight: Weight, sharding: Sharding) -> Sharding:
    """The sharding of one layer as the checkpoint keeps it, so that each device gets just its part."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    spec = (*sharding.spec, *([None] * (len(weight.shape) - len(sharding.spec))))
    spec = spec[1:] if weight.stacked else spec
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec if weight.transform == 'same' else spec[::-1])))


def _outgoing(params: Params, config: Config) -> list[Outgoing]:
    """The tensors of the checkpoint that the params become."""
    weights, structure = jax.tree.flatten(weight_table(config))
    arrays, given = jax.tree.flatten(params)
    if given != structure:
        raise ValueError(
            'params: not the plain stacked dict of this config; merge adapters and stack layers before saving.'
        )
    outgoing = []
    for weight, array in zip(weights, arrays, strict=True):
        if tuple(array.shape) != weight.shape or np.dtype(array.dtype) not in DTYPES.values():
            raise ValueError(
                f'{weight.hub}: params have shape {tuple(array.shape)} and dtype {array.dtype}, expected {weight.shape} and one of '
                f'{", ".join(map(str, DTYPES.values()))}; give the config of these params, and cast them.'
            )
        for layer in range(weight.shape[0]) if weight.stacked else [None]:
            fetch = partial(_fetch, weight, array, layer)
            outgoing.append(Outgoing(weight.hub.format(layer), np.dtype(array.dtype), weight.hub_shape, fetch))
    return outgoing


@jax.jit
def _layer(stack: Array, layer: int) -> Array:
    """One layer of a stack; which, is an argument: a program for each shape."""
    return jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False)


def _fetch(weight: Weight, array: Array, layer: int | None) -> np.ndarray:
    if layer is None:
        value = to_host(array)
    elif array.nbytes <= ON_HOST:
        value = to_host(array)[layer]
    else:
        value = to_host(_layer(array, layer))
    return _oriented(weight, value).reshape(weight.hub_shape)
