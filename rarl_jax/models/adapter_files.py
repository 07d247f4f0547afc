"""Adapters in PEFT's layout: a file of factors and one of settings (https://huggingface.co/docs/peft)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from rarl_jax.models.hub_files import Outgoing, inspect_file, read_tensor, shortened, to_host, write_file
from rarl_jax.models.interface import Config
from rarl_jax.models.lora import PREFIX, LoraConfig, adapter_table
from rarl_jax.models.names import plain_name
from rarl_jax.models.params import Params
from rarl_jax.runtime.files import load_json, write_json

FILE, SETTINGS = 'adapter_model.safetensors', 'adapter_config.json'
# Fields of PEFT's settings that change nothing of what an adapter is once it is trained. Whatever else is set, is refused.
IDLE = {
    *(
        'auto_mapping',
        'base_model_name_or_path',
        'inference_mode',
        'lora_dropout',
        'peft_version',
        'revision',
        'task_type',
    ),
    *('corda_config', 'ensure_weight_tying', 'eva_config', 'lora_ga_config', 'megatron_config', 'megatron_core'),
    *('exclude_modules', 'layers_pattern', 'qalora_group_size', 'r', 'lora_alpha', 'runtime_config', 'target_modules'),
}
# The same, where they have such a value.
NEUTRAL = {
    'peft_type': ('LORA',),
    'bias': ('none',),
    'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
}


def save_adapter(folder: str | Path, adapter: Params, config: Config, lora: LoraConfig, base: str) -> None:
    """Writes the adapter; `base` is the folder or hub name of the model it belongs to, a folder being named from the root.

    Every process of a multi-host run calls it; the first one writes.
    """
    folder, first = Path(folder), jax.process_index() == 0
    weights, structure = jax.tree.flatten(adapter_table(config, lora))
    if jax.tree.structure(adapter) != structure:
        raise ValueError('adapter: its weights are not those of the lora settings; give the settings it was made with.')
    outgoing = [
        Outgoing(weight.hub.format(n), np.dtype(array.dtype), weight.shape[:0:-1], partial(_fetch, array, n))
        for weight, array in zip(weights, jax.tree.leaves(adapter), strict=True)
        for n in range(weight.shape[0])
    ]
    write_file(folder / FILE, outgoing, write=first)
    if first:
        settings = {
            'peft_type': 'LORA',
            'task_type': 'CAUSAL_LM',
            'base_model_name_or_path': str(Path(base).resolve()) if Path(base).exists() else base,
            'r': lora.rank,
            'lora_alpha': lora.alpha,
            'lora_dropout': 0.0,
            'bias': 'none',
            'target_modules': _pattern([weight.hub for weight in weights]),
            'inference_mode': True,
        }
        write_json(folder / SETTINGS, settings)


def load_adapter(folder: str | Path, config: Config, lora: LoraConfig, dtype: DTypeLike = jnp.float32) -> Params:
    """Reads an adapter that save_adapter or PEFT wrote, over the names of transformers 5 or of before 4.52.

    ValueError lists all that is missing, unexpected, misshapen, of another scale, or set and not honoured here.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file() or not (folder / SETTINGS).is_file():
        raise FileNotFoundError(
            f'{folder}: {FILE} or {SETTINGS} is missing; give a folder with an adapter in PEFT layout.'
        )
    problems = _problems(load_json(folder / SETTINGS, fix='fetch or save the adapter again'), lora)
    found, wrong = inspect_file(folder / FILE)
    tensors = {_plain(name): stored for name, stored in found.items()}
    wrong += [f'{name}: twice, by names of two versions' for name in found if tensors[_plain(name)].name != name]
    weights, structure = jax.tree.flatten(adapter_table(config, lora))
    names = [[_plain(weight.hub.format(layer)) for layer in range(weight.shape[0])] for weight in weights]
    expected = {name: weight.shape[:0:-1] for weight, layers in zip(weights, names, strict=True) for name in layers}
    problems += wrong + [f'{name}: missing' for name in expected if name not in tensors]
    problems += [f'{name}: unexpected' for name in tensors if name not in expected]
    problems += [
        f'{name}: shape {tensors[name].shape}, expected {shape}'
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        listed = shortened(problems, '\n  - ')
        raise ValueError(f'{folder}: the adapter does not fit; give the settings it was made with:\n  - {listed}')
    stacks = [np.stack([read_tensor(tensors[name]).T for name in layers]) for layers in names]
    return jax.tree.unflatten(structure, [jnp.asarray(stack, dtype) for stack in stacks])


def _problems(settings: dict[str, Any], lora: LoraConfig) -> list[str]:
    """What PEFT's settings say that is not so here."""
    found, expected = (settings.get('r'), settings.get('lora_alpha')), (lora.rank, lora.alpha)
    problems = []
    if found != expected:
        problems.append(f'{SETTINGS}: rank {found[0]} and alpha {found[1]}, expected {expected[0]} and {expected[1]}')
    for name, value in settings.items():
        if value and name not in IDLE and value not in NEUTRAL.get(name, ()):
            problems.append(f'{SETTINGS}: {name} is {value!r:.60}, which is not supported: only plain LoRA is read')
    return problems


def _plain(name: str) -> str:
    """A factor's name without PEFT's prefix and adapter name, over the hub's name of its module."""
    return plain_name(name.removeprefix(PREFIX)).replace('.default.weight', '.weight')


def _fetch(array: Array, layer: int) -> np.ndarray:
    return to_host(array[layer]).T


def _pattern(hubs: list[str]) -> str:
    """A regular expression that fits exactly the adapted modules' full names: the towers share some of their maps' names."""
    names = [
        name.removesuffix('.lora_A.weight').removeprefix(PREFIX) for name in hubs if name.endswith('.lora_A.weight')
    ]
    return '|'.join(name.replace('.', r'\.').replace('{}', r'\d+') for name in names)
