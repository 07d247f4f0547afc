"""A config file's values as typed, frozen settings: the only place where a config's keys are named.

Every key must be known and every field without a default must be given: a misspelt key is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import dacite

from input_pipeline.build import BuildSettings
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.conversation.dialogue import ConversationSettings
from rarl_jax.conversation.tool import load_tool
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.lora import LoraConfig
from rarl_jax.runtime.plugins import load_policy_kind
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.runtime.wandb_board import WandbSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.stages.registry import load_kind

PUBLISHED_LIMITS = PixelLimits(56 * 56, 3584 * 3584)  # of the published processor


@dataclass(frozen=True)
class ModelSettings:
    """The policy."""

    path: str  # a Hugging Face folder: config.json, *.safetensors, tokenizer, chat template; '' = a fresh one, made now
    # The published model whose shapes --preflight takes where `path` is empty.
    published: str = 'Qwen2.5-VL-7B'
    # A policy that is made from nothing: settings whose `kind` is the import path of the module that makes it.
    fresh: Any = None
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations and the KV cache
    param_dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the weights; an adapter is float32
    # The stages train a low-rank adapter and leave the weights alone; None = they train the weights.
    lora: LoraConfig | None = None
    page: PixelLimits = PUBLISHED_LIMITS  # how large the policy sees a page
    crop: PixelLimits = PUBLISHED_LIMITS  # how large the policy sees a crop
    scan_layers: bool = True  # one compiled layer, scanned: quick to compile; False unrolls, which a CPU runs faster
    # What the backward pass recomputes: nothing, all but attention, all.
    remat: Literal['none', 'attention', 'full'] = 'attention'
    attention: Literal['xla', 'cudnn', 'fa3'] = 'xla'  # cudnn, and fa3 over the cache: on GPUs


@dataclass(frozen=True)
class DataSettings:
    """The questions."""

    dir: str = ''  # a data set built before; '' = read `raw` (or draw pages) and build one inside the workdir
    raw: str = ''  # a folder in AI4VA's format; '' = draw pages
    draw: DrawSettings | None = None  # how pages are drawn where `raw` is empty
    pages: Mapping[str, int] = field(default_factory=dict)  # pages to draw for each split
    tasks: TaskSettings = field(default_factory=TaskSettings)  # how questions are made
    # Share of the training pages that no stage learns from: what a stage's `held_out` evaluations ask about.
    held_out: float = 0.0

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f'data.held_out is {self.held_out}, expected a share below 1.')
        if negative := [split for split, count in self.pages.items() if count < 0]:
            raise ValueError(f'pages.{negative[0]} is {self.pages[negative[0]]}, expected 0 or more.')


@dataclass(frozen=True)
class RunSettings:
    """A whole run."""

    seed: int
    model: ModelSettings
    data: DataSettings
    sampler: SamplerSettings
    mesh: MeshSettings
    stages: tuple[str, ...]  # names, in the order they run
    stage: Mapping[str, Any]  # what each name means: settings of a stage kind, see stages/registry.py
    compare: tuple[str, ...] = ()  # evaluations that the closing table sets side by side: 'STAGE' or 'STAGE:MODE'
    conversation: ConversationSettings = field(default_factory=ConversationSettings)
    keep_checkpoints: int = 2  # newest ones that stay on disk
    # A part of a training step that takes longer than so many times its median is told, with the stacks of all threads; 0 = never.
    hang_factor: float = 10.0
    wandb: WandbSettings = field(default_factory=WandbSettings)

    def __post_init__(self):
        if unknown := [name for name in self.stages if name not in self.stage]:
            raise ValueError(
                f'config.stages names {unknown}, but config.stage describes only {sorted(self.stage)}: add or correct them.'
            )
        whole = [name for name in self.stages if not load_kind(self.stage[name].kind).takes_adapter]
        if self.model.lora is not None and whole:
            raise ValueError(
                f'Stage {whole[0]} trains all weights, which model.lora leaves alone: take one of them out.'
            )
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f'config.seed is {self.seed}, expected 0 to 2^31 - 1.')
        if self.hang_factor < 0:
            raise ValueError(f'config.hang_factor is {self.hang_factor}, expected 0 or more.')
        if self.keep_checkpoints < 1:
            raise ValueError(
                f'config.keep_checkpoints is {self.keep_checkpoints}, expected at least 1: a run needs one to go on from.'
            )
        # What does not train is measured in modes.
        evaluations = {name: self.stage[name].modes for name in self.stages if 'modes' in vars(self.stage[name])}
        known = [*evaluations, *(f'{name}:{mode}' for name, modes in evaluations.items() for mode in modes)]
        if unknown := [item for item in self.compare if item not in known]:
            raise ValueError(
                f'config.compare names {unknown}, which no evaluation of this run gives: choose from {known}.'
            )


@dataclass(frozen=True)
class ComparedModel:
    """The policy of a comparison."""

    path: str  # a Hugging Face folder
    page: PixelLimits  # how large it sees the page
    crop: PixelLimits  # how large it sees the crop
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # of weights and activations on both sides


@dataclass(frozen=True)
class CompareSettings:
    """A comparison with transformers."""

    stages: tuple[Literal['compare_torch']]  # what tells it from a run
    model: ComparedModel
    reference: str = ''  # the folder that transformers reads; '' = model.path
    tolerance: float = 1e-4  # relative difference up to which a layer agrees
    greedy_tokens: int = 32  # tokens that are continued after the question, and again after the crop
    seed: int = 0  # of the drawn page


def settings_from(config: Mapping[str, Any]) -> RunSettings | BuildSettings | CompareSettings:
    """Typed settings of a resolved config. ValueError names the key, what was found and what was expected."""
    if wrong := next(not_finite(config, 'config'), None):
        raise ValueError(f'{wrong} is NaN or infinite, expected a number.')
    if tuple(config['stages']) == ('build',):
        return _typed(BuildSettings, config['data'], 'config.data')
    if tuple(config['stages']) == ('compare_torch',):
        return _typed(CompareSettings, config, 'config')
    stages = {name: _stage(values, f'config.stage.{name}') for name, values in config['stage'].items()}
    parts = {
        'stage': stages,
        'model': _model(config['model']),
        'conversation': _conversation(config.get('conversation', {})),
    }
    return _typed(RunSettings, {**config, **parts}, 'config')


def not_finite(value: Any, path: str) -> Iterator[str]:
    """Dotted names of the numbers in a config that are NaN or infinite."""
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from not_finite(each, f'{path}.{name}')
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from not_finite(each, f'{path}[{number}]')
    elif isinstance(value, float) and not math.isfinite(value):
        yield path


def _stage(values: Mapping[str, Any], path: str) -> Any:
    """The settings of one stage, as its kind has them."""
    if 'kind' not in values:
        raise ValueError(f'{path} lacks kind: add it to the config file.')
    return _typed(load_kind(values['kind']).settings, values, path)


def _model(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, `fresh` as the module that makes the policy has it."""
    if values.get('fresh') is None:
        return values
    fresh = values['fresh']
    return {**values, 'fresh': _typed(load_policy_kind(fresh.get('kind')).settings, fresh, 'config.model.fresh')}


def _conversation(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same, `tool` as its kind has it."""
    if 'tool' not in values:
        return values
    tool = values['tool']
    return {**values, 'tool': _typed(load_tool(tool.get('kind', 'zoom')), tool, 'config.conversation.tool')}


def _typed(kind: type, values: Mapping[str, Any], path: str) -> Any:
    check_keys(kind, values, path)
    try:
        return dacite.from_dict(kind, dict(values), dacite.Config(strict=True, cast=[tuple]))
    except dacite.WrongTypeError as error:
        expected = str(error.field_type).replace('typing.', '')
        raise ValueError(f'{path}.{error.field_path} is {error.value!r}, expected {expected}.') from error
    except dacite.DaciteError as error:
        raise ValueError(f'{path}: {error}; correct it in the config file or on the command line.') from error
    except ValueError as error:
        raise ValueError(f'{"" if str(error).startswith(path) else f"{path}: "}{error}') from error


def check_keys(kind: Any, values: Any, path: str) -> None:
    """Raises ValueError for a key of `values` that `kind` does not have, naming the nearest one, and for a field that is missing."""
    kind = _concrete(kind, values)
    if typing.get_origin(kind) in (Mapping, dict) or kind in (Mapping, dict):
        for name, value in values.items():
            check_keys(typing.get_args(kind)[1], value, f'{path}.{name}')
    if not dataclasses.is_dataclass(kind) or not isinstance(values, Mapping):
        return
    fields = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f'did you mean {near[0]!r}?' if near else f'it has {", ".join(fields)}.'
            raise ValueError(f'Unknown key {path}.{name}: {hint}')
        check_keys(fields[name], values[name], f'{path}.{name}')
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f'{path} lacks {", ".join(missing)}: add it to the config file.')


def _concrete(kind: Any, value: Any) -> Any:
    """What an optional is when it is given."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    return next(member for member in typing.get_args(kind) if member is not type(None))
