"""The policy that a run starts from: its folder, tokenizer, model, weights and adapter."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from input_pipeline.loader import read_questions
from rarl_jax.conversation.chat import IMAGE_PAD, Chat
from rarl_jax.models import interface
from rarl_jax.models.flash import check_flash
from rarl_jax.models.interface import Config, Model
from rarl_jax.models.lora import LoraConfig, adapter_axes, init_adapter
from rarl_jax.models.params import Params, abstract_params, logical_axes
from rarl_jax.models.weights import load_params
from rarl_jax.runtime.plugins import load_policy_kind
from rarl_jax.runtime.sharding import Rules, constrain, param_shardings

if TYPE_CHECKING:
    from rarl_jax.settings import ModelSettings


def prepare_model(settings: ModelSettings, data_dir: Path, workdir: Path, seed: int) -> Path:
    """The folder of the policy that the run starts from; with an empty path one with random weights is made, as settings.fresh says."""
    if settings.path:
        return Path(settings.path)
    folder, made = workdir / 'init', workdir / 'init.incomplete'
    if not folder.is_dir():  # a folder of that name is whole
        make = load_policy_kind(settings.fresh.kind).make
        shutil.rmtree(made, ignore_errors=True)
        make(made, settings.fresh, read_questions(data_dir, 'train'), settings.page, seed)
        made.rename(folder)
    return folder


def build_model(settings: ModelSettings, config: Config, mesh: Mesh) -> Model:
    """The model as the settings want it. ValueError where its attention cannot be had."""
    if settings.attention == 'fa3':
        check_flash(config.text.head_dim, settings.dtype)
    return interface.build_model(
        config,
        dtype=jnp.dtype(settings.dtype),
        param_dtype=jnp.dtype(settings.param_dtype),
        scan=settings.scan_layers,
        remat=settings.remat,
        attention=settings.attention,
        constrain=constrain(mesh),
    )


def open_chat(folder: Path, config: Config) -> Chat:
    """A folder's tokenizer and chat template. ValueError where they are of another model than its config.json."""
    chat = Chat.from_folder(folder)
    if chat.image_id != config.image_token_id:
        raise ValueError(
            f"{folder}: config.json's image_token_id is {config.image_token_id}, but {IMAGE_PAD} is {chat.image_id} in its "
            'tokenizer.json: no picture would be seen; take both from the same model.'
        )
    if chat.vocab_size > config.text.vocab_size:
        raise ValueError(
            f"{folder}: its tokenizer.json has {chat.vocab_size} tokens, but config.json's vocab_size is "
            f'{config.text.vocab_size}; take both from the same model.'
        )
    return chat


def load_policy(folder: Path, model: Model, mesh: Mesh, rules: Rules) -> Params:
    """A folder's weights, each where the mesh wants it."""
    shardings = param_shardings(abstract_params(model), logical_axes(model), mesh, rules)
    return load_params(folder, model.config, model.param_dtype, shardings)


def start_adapter(key: Key[Array, ''], config: Config, lora: LoraConfig, mesh: Mesh, rules: Rules) -> Params:
    """A fresh adapter, in float32, split over the mesh as the weights that it belongs to."""
    fresh = partial(init_adapter, config=config, lora=lora)
    shardings = param_shardings(jax.eval_shape(fresh, key), adapter_axes(config, lora), mesh, rules)
    return jax.jit(fresh, out_shardings=shardings)(key)
