"""The params of a policy: a plain nested dict of arrays.

Repeated layers are stacked along a leading axis [L, ...], or apart: {'0': ..., '1': ...}, the form that decoding wants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

Params = dict[str, Any]  # nested dict of arrays
LAYERS = 'layers'  # the logical axis along which repeated layers are stacked
ONE_INPUT = (('q', 'k', 'v'), ('gate', 'up'))  # linear maps of the same input
STACKS = (('text', 'layers'), ('vision', 'blocks'))  # where the stacks are


def init_params(key: PRNGKeyArray, model: nn.Module) -> Params:
    """Fresh params, layers stacked. Pure: jit it with out_shardings for large models."""
    return nn.unbox(_init(key, model))


def abstract_params(model: nn.Module, dtype: DTypeLike | None = None) -> Params:
    """The params' structure with shapes and dtypes (`dtype`, or the model's) only; no memory is taken."""
    abstract = jax.eval_shape(lambda: init_params(jax.random.key(0), model))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), abstract)


def logical_axes(model: nn.Module) -> Params:
    """The params' structure with the tuple of logical axis names at every leaf, as the modules name them, for a rules table to shard."""
    specs = nn.get_partition_spec(jax.eval_shape(lambda: _init(jax.random.key(0), model)))
    return jax.tree.map(tuple, specs, is_leaf=lambda node: isinstance(node, jax.sharding.PartitionSpec))


def _init(key: PRNGKeyArray, model: nn.Module) -> Params:
    return model.init(key, *model.example(), method='__call__')['params']


def count_params(model: nn.Module) -> int:
    """Numbers in all weights together."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(model)))


def unstack(params: Params) -> Params:
    """The same params with the layers of each stack apart: slice once, not once per token."""
    return map_stacks(params, lambda _, stack: unstack_layers(stack))


def map_stacks(params: Params, change: Callable[[str, Any], Any]) -> Params:
    """Params with `change(tower, stack)` in the place of each stack of layers."""
    return {
        tower: {name: change(tower, part) if (tower, name) in STACKS else part for name, part in parts.items()}
        for tower, parts in params.items()
    }


def unstack_layers(layers: Params) -> Params:
    """Stacked weights [L, ...] -> {'0': ..., '1': ...}. Its gradient is one concatenation per weight."""
    leaves, structure = jax.tree.flatten(layers)
    each = zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)
    return {str(index): jax.tree.unflatten(structure, layer) for index, layer in enumerate(each)}


def join_maps(params: Params, join: Callable[[Sequence[Any]], Any]) -> Params:
    """The same params with maps of one input as one matrix: small products cost more than their arithmetic. Maps with low-rank factors stay apart.

    Args:
        join: makes one leaf of those of the maps; arrays are to be concatenated along their last axis.
    """
    if not isinstance(params, dict):
        return params
    joined = {name: join_maps(part, join) for name, part in params.items()}
    for names in ONE_INPUT:
        if all(name in params and params[name].keys() <= {'w', 'b'} for name in names):
            maps = [joined.pop(name) for name in names]
            joined[joined_name(names)] = {leaf: join([each[leaf] for each in maps]) for leaf in maps[0]}
    return joined


def joined_name(names: Sequence[str]) -> str:
    """What maps are called when they are one matrix."""
    return '_'.join(names)
