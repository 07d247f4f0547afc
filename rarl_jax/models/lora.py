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
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rarl_jax.models.params import LAYERS, Params, Weight, weight_table
from rarl_jax.models.qwen2_5_vl.config import Config

RANK_AXIS = 'lora_rank'  # logical axis of the factors' short side
# What PEFT prefixes, and transformers 5's names of the towers (params.py keeps the hub's).
PREFIXES = {
    'text': ('model.', 'base_model.model.model.language_model.'),
    'vision': ('visual.', 'base_model.model.model.visual.'),
}


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
    towers = {'text': ('layers', weight_table(config)['text']['layers'])}
    if lora.vision:
        towers['vision'] = ('blocks', weight_table(config)['vision']['blocks'])
    maps = {
        tower: {name: one['w'] for name, one in table.items() if isinstance(one, dict)}
        for tower, (_, table) in towers.items()
    }
    known = {_module(weight).rpartition('.')[2] for table in maps.values() for weight in table.values()}
    if unknown := sorted(set(lora.targets) - known):
        raise ValueError(f'lora targets {unknown}: no linear map of that name; choose from {sorted(known)}.')
    return {
        tower: {
            layers: {
                name: _factors(weight, lora, tower) for name, weight in maps[tower].items() if _chosen(weight, lora)
            }
        }
        for tower, (layers, _) in towers.items()
    }


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
    """Params whose adapted maps also hold the factors, b scaled: what the model's functions take. Costs no copy of the base."""
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, factor: factor * lora.scale if path[-1].key == 'lora_b' else factor, adapter
    )
    return beside(params, scaled)


def beside(params: Params, adapter: Params) -> Params:
    """Params whose adapted maps also hold the factors as they are. For whatever has this structure: shapes, shardings."""
    return _combine(params, adapter, lambda weights, factors: {**weights, **factors})


def merge(params: Params, adapter: Params, lora: LoraConfig) -> Params:
    """Plain params with the product added in float32, for sampling and export."""
    return _combine(
        params, adapter, lambda weights, factors: {**weights, 'w': _added(weights['w'], factors, lora.scale)}
    )


def _module(weight: Weight) -> str:
    """Name of the linear map that a matrix belongs to."""
    return weight.hub.removesuffix('.weight')


def _chosen(weight: Weight, lora: LoraConfig) -> bool:
    return _module(weight).rpartition('.')[2] in lora.targets


def _factors(weight: Weight, lora: LoraConfig, tower: str) -> Params:
    layers, fan_in, fan_out = weight.shape
    old, new = PREFIXES[tower]
    at = new + _module(weight).removeprefix(old)
    a_axes, b_axes = (LAYERS, weight.axes[1], RANK_AXIS), (LAYERS, RANK_AXIS, weight.axes[2])
    return {
        'lora_a': Weight((layers, fan_in, lora.rank), a_axes, f'{at}.lora_A.weight', 'normal', transposed=True),
        'lora_b': Weight((layers, lora.rank, fan_out), b_axes, f'{at}.lora_B.weight', 'zeros', transposed=True),
    }


def _start(weight: Weight, key: PRNGKeyArray, dtype: DTypeLike) -> Array:
    if weight.start == 'zeros':
        return jnp.zeros(weight.shape, dtype)
    bound = 1 / math.sqrt(weight.shape[1])
    return jax.random.uniform(key, weight.shape, jnp.float32, -bound, bound).astype(dtype)


def _combine(params: Params, adapter: Params, change) -> Params:
    """Params with `change(weights, factors)` in place of every adapted map's weights."""
    combined = {tower: dict(part) for tower, part in params.items()}
    for tower, part in adapter.items():
        for layers, maps in part.items():
            changed = {name: change(params[tower][layers][name], factors) for name, factors in maps.items()}
            combined[tower][layers] = {**params[tower][layers], **changed}
    return combined


def _added(w: Float[Array, 'L D F'], factors: Params, scale: float) -> Float[Array, 'L D F']:
    a, b = (factors[name].astype(jnp.float32) for name in ('lora_a', 'lora_b'))
    return (w.astype(jnp.float32) + scale * (a @ b)).astype(w.dtype)
