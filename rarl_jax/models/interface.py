"""A model family as the rest of the project knows it, chosen by `model_type` of a folder's config.json.

A family is a folder in models/ with

    config.py   its Config with a TextConfig and a VisionConfig, see ../config.py, read by `from_hf` and written by `to_hf`; PRESETS: the published sizes
    model.py    its Model, see ../model.py: a pure function of a plain dict of params by `model.apply({'params': p}, ..., method=...)`:
                    encode_images(images) -> features            embed(ids, features, feature_index) -> embeds
                    image_embeds(features) -> features in the place of tokens
                    hidden(embeds, positions, segments) -> hidden    logits(hidden)
                    prefill(cache, embeds, positions) -> hidden, cache    extend(cache, embeds, positions, start, lengths) -> hidden, cache
                and, without params, init_cache(batch, length), cache_axes, no_features(images, rows) and example()
    names.py    NAMES: the hub's name of every param

Features, embeds and the cache are pytrees that nobody else looks into: leaves of features lead with the image, those of the cache with the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from rarl_jax.models.cache import Cache, LayerCache
from rarl_jax.models.config import Config, VisionConfig
from rarl_jax.models.model import Model
from rarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from rarl_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.models.qwen2_5_vl.names import NAMES as QWEN2_5_VL_NAMES
from rarl_jax.models.qwen3_vl import config as qwen3_vl
from rarl_jax.models.qwen3_vl.model import Qwen3_VL
from rarl_jax.models.qwen3_vl.names import NAMES as QWEN3_VL_NAMES
from rarl_jax.runtime.files import load_json

__all__ = [
    'PRESETS',
    'Cache',
    'Config',
    'Features',
    'LayerCache',
    'Model',
    'VisionConfig',
    'build_model',
    'config_from_hf',
    'names_of',
    'read_config',
]


Features = PyTree  # of images


@dataclass(frozen=True)
class Family:
    """What a folder in models/ offers."""

    name: str  # as people write it
    config: type[Config]
    presets: Mapping[str, Config]  # by size
    model: type[Model]
    # The hub's names, see qwen2_5_vl/names.py.
    names: tuple[tuple[str, str, str], ...]


FAMILIES = {  # by model_type
    'qwen2_5_vl': Family('Qwen2.5-VL', qwen2_5_vl.Config, qwen2_5_vl.PRESETS, Qwen2_5_VL, QWEN2_5_VL_NAMES),
    'qwen3_vl': Family('Qwen3-VL', qwen3_vl.Config, qwen3_vl.PRESETS, Qwen3_VL, QWEN3_VL_NAMES),
}
PRESETS: dict[str, Config] = {  # the published models: 'Qwen2.5-VL-7B', ...
    f'{family.name}-{size}': config for family in FAMILIES.values() for size, config in family.presets.items()
}


def read_config(folder: str | Path) -> Config:
    """The architecture that `folder/config.json` describes, in the hub's flat form or the nested form of transformers 5.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a family that is not known, or a field is not what it must be.
    """
    path = Path(folder) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path}: no such file; give a folder saved in Hugging Face format (config.json, *.safetensors).'
        )
    values = load_json(path, fix='fetch or save the folder again')
    try:
        return config_from_hf(values)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def config_from_hf(values: Mapping[str, Any]) -> Config:
    """The same of config.json's content."""
    family = FAMILIES.get(found) if isinstance(found := values.get('model_type'), str) else None
    if isinstance(found, str) and found.endswith('_moe'):
        raise ValueError(
            f'model_type is {found}, a mixture of experts, which is not supported; give a dense model of its family.'
        )
    if family is None:
        raise ValueError(f'model_type is {found!r:.60}, expected {" or ".join(FAMILIES)}; give such a folder.')
    return family.config.from_hf(values)


def build_model(config: Config, **settings: Any) -> Model:
    """The family's module for a config; `settings`: dtype, param_dtype, scan, remat, attention, constrain."""
    return FAMILIES[config.model_type].model(config, **settings)


def names_of(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The family's table of hub names."""
    return FAMILIES[config.model_type].names
