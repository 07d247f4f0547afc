"""The policy of a run: its folder, model, weights and adapter, and its export as a Hugging Face folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from input_pipeline.loader import read_questions
from input_pipeline.schema import Question
from rarl_jax.models.adapter_files import save_adapter
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import Config, Qwen2_5_VL
from rarl_jax.models.lora import LoraConfig, adapter_axes, init_adapter, merge
from rarl_jax.models.params import Params, abstract_params, logical_axes
from rarl_jax.models.weights import load_params, save_params
from rarl_jax.runtime import processes
from rarl_jax.runtime.plugins import load_plugin
from rarl_jax.runtime.sharding import Rules, constrain, param_shardings

if TYPE_CHECKING:
    from rarl_jax.settings import ModelSettings
    from rarl_jax.stages.context import Run

TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
    'merges.txt',
    'added_tokens.json',
    'special_tokens_map.json',
    'chat_template.jinja',
    'chat_template.json',
    'preprocessor_config.json',
    'processor_config.json',
    'video_preprocessor_config.json',
    'generation_config.json',
)


@dataclass(frozen=True)
class PolicyKind:
    """How a policy is made from nothing: what the module that config.model.fresh.kind names offers as POLICY."""

    settings: type  # a frozen dataclass with the field `kind`
    # (folder, settings, questions of the training split, how large it will see a page, seed): writes a Hugging Face folder.
    make: Callable[[Path, Any, Sequence[Question], PixelLimits, int], object]


def load_policy_kind(kind: str) -> PolicyKind:
    """The PolicyKind of a module's import path; ValueError where there is none."""
    return load_plugin(kind, 'POLICY', PolicyKind, 'config.model.fresh.kind')


def prepare_model(settings: ModelSettings, data_dir: Path, workdir: Path, seed: int) -> Path:
    """The folder of the policy that the run starts from; with an empty path one with random weights is made, as settings.fresh says."""
    if settings.path:
        return Path(settings.path)
    folder = workdir / 'init'
    if not (folder / 'model.safetensors').is_file():
        make = load_policy_kind(settings.fresh.kind).make
        make(folder, settings.fresh, read_questions(data_dir, 'train'), settings.page, seed)
    return folder


def build_model(settings: ModelSettings, config: Config, mesh: Mesh) -> Qwen2_5_VL:
    return Qwen2_5_VL(
        config,
        dtype=jnp.dtype(settings.dtype),
        param_dtype=jnp.dtype(settings.param_dtype),
        scan=settings.scan_layers,
        remat=settings.remat,
        attention=settings.attention,
        constrain=constrain(mesh),
    )


def export(folder: Path, this: Run) -> None:
    """The policy as a Hugging Face folder that transformers loads, with tokenizer, processor and chat template; its adapter by itself in `adapter`."""
    weights = this.params
    if this.adapted is not None:
        save_adapter(folder / 'adapter', this.params, this.model.config, this.adapted.lora, str(this.model_dir))
        weights = merge(this.adapted.base, this.params, this.adapted.lora)
    save_params(folder, weights, this.model.config)
    if not processes.is_first():
        return
    for name in TOKENIZER_FILES:
        if (source := this.model_dir / name).is_file():
            shutil.copyfile(source, folder / name)


def load_policy(folder: Path, model: Qwen2_5_VL, mesh: Mesh, rules: Rules) -> Params:
    """A folder's weights, each where the mesh wants it."""
    shardings = param_shardings(abstract_params(model.config), logical_axes(model.config), mesh, rules)
    return load_params(folder, model.config, model.param_dtype, shardings)


def start_adapter(key: Key[Array, ''], config: Config, lora: LoraConfig, mesh: Mesh, rules: Rules) -> Params:
    """A fresh adapter, in float32, split over the mesh as the weights that it belongs to."""
    fresh = partial(init_adapter, config=config, lora=lora)
    shardings = param_shardings(jax.eval_shape(fresh, key), adapter_axes(config, lora), mesh, rules)
    return jax.jit(fresh, out_shardings=shardings)(key)
