"""Low-rank adapters: w + (alpha / rank) a b with a [in, rank], b [rank, out] trained and w frozen (arXiv 2106.09685).

An adapter is a plain dict that holds only the trained factors, at the places of the weights they belong to:

    adapter = init_adapter(key, config, lora)
    loss(adapter) = f(join(params, adapter, lora))          # gradient for the adapter alone; the base is a constant
    save_params(folder, merge(params, adapter, lora), ...)  # or save_adapter(...) of adapter_files, which `peft` loads
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rarl_jax.models.interface import Config
from rarl_jax.models.names import Weight, full_name, weight_table
from rarl_jax.models.params import LAYERS, STACKS, Params

RANK_AXIS = 'lora_rank'  # logical axis of the factors' short side
PREFIX = 'base_model.model.'  # PEFT's, before the name of a module


@dataclass(frozen=True)
class LoraConfig:
    """What is adapted, and how much."""

    rank: int  # width of the factors
    alpha: float  # the product is scaled by alpha / rank
    targets: tuple[str, ...]  # linear maps of every layer, by their names on the hub: 'q_proj', 'down_proj', 'qkv', ...
    vision: bool = False  # whether the vision tower is adapted too, where it has a map of these names

    def __post_init__(self):
        if self.rank < 1 or not self.targets:
            raise ValueError(f'lora: rank is {self.rank} and targets are {self.targets}; give at least 1 and one.')

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Adapted:
    """What an adapter belongs to."""

    base: Params  # weights that are not trained
    lora: LoraConfig


def adapter_table(config: Config, lora: LoraConfig) -> Params:
    """The adapter's structure with a Weight at every leaf. ValueError where a target is no linear map of the model."""
    towers = ('text', 'vision') if lora.vision else ('text',)
    stacks = tuple('/'.join(stack) + '/' for stack in STACKS if stack[0] in towers)
    weights = flatten_dict(weight_table(config), sep='/')
    maps = {path: weight for path, weight in weights.items() if path.startswith(stacks) and path.endswith('/w')}
    known = {_module(weight).rpartition('.')[2] for weight in maps.values()}
    if unknown := sorted(set(lora.targets) - known):
        raise ValueError(f'lora targets {unknown}: no linear map of that name; choose from {sorted(known)}.')
    factors = {}
    for path, weight in maps.items():
        if _module(weight).rpartition('.')[2] in lora.targets:
            at = path.removesuffix('/w')
            factors |= {f'{at}/{name}': factor for name, factor in _factors(weight, lora).items()}
    return unflatten_dict(factors, sep='/')


def adapter_axes(config: Config, lora: LoraConfig) -> Params:
    """The adapter's structure with the tuple of logical axis names at every leaf."""
    return jax.tree.map(lambda weight: weight.axes, adapter_table(config, lora))


def init_adapter(key: PRNGKeyArray, config: Config, lora: LoraConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """a uniform in +-1 / sqrt(in), b zero: the joined model starts as the base."""
    weights, structure = jax.tree.flatten(adapter_table(config, lora))
    keys = jax.random.split(key, len(weights))
    return jax.tree.unflatten(
        structure, [_start(weight, one, dtype) for weight, one in zip(weights, keys, strict=True)]
    )


def join(params: Params, adapter: Params, lora: LoraConfig) -> Params:
    """Params whose adapted maps also hold the factors, b scaled: what the model's modules take. Costs no copy of the base."""
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, factor: factor * lora.scale if path[-1].key == 'lora_b' else factor, adapter
    )
    return beside(params, scaled)


def beside(params: Params, adapter: Params) -> Params:
    """Params whose adapted maps also hold the factors as they are. For whatever has this structure: shapes, shardings."""
    return unflatten_dict(flatten_dict(params) | flatten_dict(adapter))


def merge(params: Params, adapter: Params, lora: LoraConfig) -> Params:
    """Plain params with the product added in float32, for sampling and export."""
    merged, factors = flatten_dict(params), flatten_dict(adapter)
    for path, a in factors.items():
        if path[-1] == 'lora_a':
            at = path[:-1]
            merged[(*at, 'w')] = _added(merged[(*at, 'w')], a, factors[(*at, 'lora_b')], lora.scale)
    return unflatten_dict(merged)


def _module(weight: Weight) -> str:
    """Name of the linear map that a matrix belongs to."""
    return weight.hub.removesuffix('.weight')


def _factors(weight: Weight, lora: LoraConfig) -> Params:
    layers, fan_in, fan_out = weight.shape
    at = PREFIX + full_name(_module(weight))
    a_axes, b_axes = (LAYERS, weight.axes[1], RANK_AXIS), (LAYERS, RANK_AXIS, weight.axes[2])
    return {
        'lora_a': Weight((layers, fan_in, lora.rank), a_axes, f'{at}.lora_A.weight', 'transposed'),
        'lora_b': Weight((layers, lora.rank, fan_out), b_axes, f'{at}.lora_B.weight', 'transposed'),
    }


def _start(weight: Weight, key: PRNGKeyArray, dtype: DTypeLike) -> Array:
    if weight.axes[1] == RANK_AXIS:
        return jnp.zeros(weight.shape, dtype)
    bound = 1 / math.sqrt(weight.shape[1])
    return jax.random.uniform(key, weight.shape, jnp.float32, -bound, bound).astype(dtype)


def _added(
    w: Float[Array, 'L D F'], a: Float[Array, 'L D R'], b: Float[Array, 'L R F'], scale: float
) -> Float[Array, 'L D F']:
    product = a.astype(jnp.float32) @ b.astype(jnp.float32)
    return (w.astype(jnp.float32) + scale * product).astype(w.dtype)
