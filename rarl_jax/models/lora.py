"""Low-rank adapters: w + (alpha / rank) a b with a [in, rank], b [rank, out] trained and w frozen (arXiv 2106.09685).

An adapter is a plain dict that holds only the trained factors, at the places of the weights they belong to:

    adapter = init_adapter(key, config, lora)
    loss(adapter) = f(join(params, adapter, lora))          # gradient for the adapter alone; the base is a constant
    save_params(folder, merge(params, adapter, lora), ...)  # or save_adapter(...), which `peft` loads
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from rarl_jax.models.hub_files import Outgoing, inspect_file, read_tensor, to_host, write_file
from rarl_jax.models.params import LAYERS, Params, Weight, weight_table
from rarl_jax.models.qwen2_5_vl.config import Config

RANK_AXIS = 'lora_rank'  # logical axis of the factors' short side
FILE, SETTINGS = 'adapter_model.safetensors', 'adapter_config.json'  # PEFT's names
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


def save_adapter(folder: str | Path, adapter: Params, config: Config, lora: LoraConfig, base: str) -> None:
    """Writes the adapter in PEFT's layout; `base` is the folder or hub name of the model it belongs to.

    Every process of a multi-host run calls it; the first one writes.
    """
    folder, first = Path(folder), jax.process_index() == 0
    folder.mkdir(parents=True, exist_ok=True)
    outgoing = [one for weight, array in _pairs(adapter, config, lora) for one in _outgoing(weight, array)]
    write_file(folder / FILE, outgoing, write=first)
    if not first:
        return
    settings = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': lora.rank,
        'lora_alpha': lora.alpha,
        'lora_dropout': 0.0,
        'bias': 'none',
        'target_modules': _pattern(config, lora),
        'inference_mode': True,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + '\n')


def load_adapter(folder: str | Path, config: Config, lora: LoraConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Reads what save_adapter wrote. ValueError lists all that is missing, unexpected, misshapen or of another scale."""
    folder = Path(folder)
    if not (folder / FILE).is_file() or not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f'{folder}: {FILE} or {SETTINGS} is missing; give a folder with an adapter in PEFT layout.'
        )
    tensors, problems = inspect_file(folder / FILE)
    settings = json.loads((folder / SETTINGS).read_text())
    if (settings['r'], settings['lora_alpha']) != (lora.rank, lora.alpha):
        problems.append(
            f'{SETTINGS}: rank {settings["r"]} and alpha {settings["lora_alpha"]}, expected {lora.rank} and {lora.alpha}'
        )
    weights, structure = jax.tree.flatten(adapter_table(config, lora))
    expected = {weight.hub.format(layer): weight.shape[:0:-1] for weight in weights for layer in range(weight.shape[0])}
    problems += [f'{name}: missing' for name in expected if name not in tensors]
    problems += [f'{name}: unexpected' for name in tensors if name not in expected]
    problems += [
        f'{name}: shape {tensors[name].shape}, expected {shape}'
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise ValueError(
            f'{folder}: the adapter does not fit; give the settings it was made with:'
            + ''.join(f'\n  - {one}' for one in problems)
        )
    stacks = [
        np.stack([read_tensor(tensors[weight.hub.format(layer)]).T for layer in range(weight.shape[0])])
        for weight in weights
    ]
    return jax.tree.unflatten(structure, [jnp.asarray(stack, dtype) for stack in stacks])


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


def _pairs(adapter: Params, config: Config, lora: LoraConfig) -> list[tuple[Weight, Array]]:
    weights, structure = jax.tree.flatten(adapter_table(config, lora))
    if jax.tree.structure(adapter) != structure:
        raise ValueError('adapter: its weights are not those of the lora settings; give the settings it was made with.')
    return list(zip(weights, jax.tree.leaves(adapter), strict=True))


def _outgoing(weight: Weight, array: Array) -> list[Outgoing]:
    dtype, shape = np.dtype(array.dtype), weight.shape[:0:-1]
    return [
        Outgoing(weight.hub.format(n), dtype, shape, partial(lambda n: to_host(array[n]).T, n))
        for n in range(weight.shape[0])
    ]


def _pattern(config: Config, lora: LoraConfig) -> str:
    """A regular expression that fits exactly the adapted modules' full names: the towers share some of their maps' names."""
    factors = jax.tree.leaves(adapter_table(config, lora), is_leaf=lambda node: 'lora_a' in node)
    names = [one['lora_a'].hub.removesuffix('.lora_A.weight').removeprefix('base_model.model.') for one in factors]
    return '|'.join(name.replace('.', r'\.').replace('{}', r'\d+') for name in names)
