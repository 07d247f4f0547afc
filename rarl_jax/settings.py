"""A config file's values as typed, frozen settings: the only place where a config's keys are named.

Every key must be known and every field without a default must be given: a misspelt key is an error that names the nearest one.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dacite

from input_pipeline.build import BuildSettings
from input_pipeline.schema import Task
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from input_pipeline.traces import TraceSettings
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.evaluation.records import Mode
from rarl_jax.learner.advantages import Estimator
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.lora import LoraConfig
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.small.policy import SmallShape

PUBLISHED_LIMITS = PixelLimits(56 * 56, 3584 * 3584)  # of the published processor


@dataclass(frozen=True)
class ModelSettings:
    """The policy."""

    path: (
        str  # a Hugging Face folder: config.json, *.safetensors, tokenizer, chat template; '' = a `small` one, made now
    )
    small: SmallShape | None = None  # sizes of a policy that is made from nothing
    dtype: Literal['float32', 'bfloat16'] = 'float32'  # of activations and the KV cache
    param_dtype: Literal['float32', 'bfloat16'] = 'float32'  # of the weights; an adapter is float32
    lora: LoraConfig | None = (
        None  # the stages train a low-rank adapter and leave the weights alone; None = they train the weights
    )
    page: PixelLimits = PUBLISHED_LIMITS  # how large the policy sees a page
    crop: PixelLimits = PUBLISHED_LIMITS  # how large the policy sees a crop
    scan_layers: bool = True  # one compiled layer, scanned: quick to compile; False unrolls, which a CPU runs faster
    remat: Literal['none', 'attention', 'full'] = (
        'attention'  # what the backward pass recomputes: nothing, all but attention, all
    )
    attention: Literal['xla', 'cudnn'] = 'xla'  # cudnn: on GPUs


@dataclass(frozen=True)
class DataSettings:
    """The questions."""

    dir: str = ''  # a data set built before; '' = read `raw` (or draw pages) and build one inside the workdir
    raw: str = ''  # a folder in AI4VA's format; '' = draw pages
    draw: DrawSettings | None = None  # how pages are drawn where `raw` is empty
    pages: Mapping[str, int] = dataclasses.field(default_factory=dict)  # pages to draw for each split
    tasks: TaskSettings = dataclasses.field(default_factory=TaskSettings)  # how questions are made


@dataclass(frozen=True)
class GroundingSettings:
    """A stage that teaches a vision tower from nothing."""

    kind: Literal['grounding']
    steps: int
    pages: int  # pages a step
    optimizer: OptimizerSettings
    page_tasks: tuple[Task, ...] = ('character_identification',)  # their answers and regions are read off the page
    crop_tasks: tuple[Task, ...] = ('action_recognition', 'depth_comparison')  # their answers are read off crops
    crops_a_page: int = 1  # crops cut from each page
    recited: int = 4  # names of each page after which the decoder says a box
    pages_alone: int = (
        0  # first steps, in which neither of them counts: Muon gives what is not yet learnt its full share of a step
    )
    crop_scale: tuple[float, float] = (1.0, 1.3)  # width and height of a crop, in those of its region
    crop_shift: float = 0.05  # most by which its centre lies off, in widths and heights of the region
    save_every: int = 100  # steps


@dataclass(frozen=True)
class SftSettings:
    """A stage of supervised learning on conversations made from annotations."""

    kind: Literal['sft']
    steps: int
    pages: int  # pages a step, one conversation about each
    traces: TraceSettings
    optimizer: OptimizerSettings
    tasks: tuple[Task, ...]
    buckets: Buckets = dataclasses.field(default_factory=Buckets)  # sizes that batches are padded to
    crops_a_page: int = 4  # conversations about each page where they show a crop alone
    micro_batch: int = 0  # conversations a device pass; 0 = the whole batch
    save_every: int = 50  # steps


@dataclass(frozen=True)
class RlSettings:
    """A stage of GRPO."""

    kind: Literal['rl']
    steps: int  # one policy update each
    questions: int  # questions a step
    group_size: int  # episodes a question
    tasks: tuple[Task, ...]
    reward: RewardSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    buckets: Buckets = dataclasses.field(default_factory=Buckets)  # sizes that batches are padded to
    offer_tool: bool = True  # False = plain RL: the policy answers from the page alone
    from_start: bool = (
        False  # begin with the policy that the run began with, not with the last stage's: a baseline beside it
    )
    temperature: float = 1.0
    advantage: Estimator = 'grpo'
    drop_cut_off: bool = False  # leave episodes that a budget ended out of the loss
    micro_batch: int = 0  # episodes a device pass, a multiple of group_size; 0 = the whole batch
    pack: int = 1  # episodes of a group that share a row, and their prompt, in an update: pays where prompts are longer than answers
    save_every: int = 20  # steps
    show_every: int = 10  # steps between the episodes that are kept for the report

    def __post_init__(self):
        if self.group_size % self.pack:
            raise ValueError(
                f'pack is {self.pack}, expected a number that divides group_size, {self.group_size}: episodes of one group share a row.'
            )


@dataclass(frozen=True)
class EvaluateSettings:
    """A stage that answers held-out questions."""

    kind: Literal['evaluate']
    tasks: tuple[Task, ...]
    questions: int  # questions a task; 0 = all of the split
    modes: tuple[Mode, ...] = ('zoom',)
    split: Literal['train', 'validation', 'test'] = 'test'
    samples: int = 1  # attempts a question; 1 = greedy
    temperature: float = 1.0  # where there are several attempts
    batch_size: int = 64  # questions answered together
    judge: Literal['none', 'exact', 'token_f1', 'endpoint'] = (
        'none'  # of open answers; an endpoint is named by the environment
    )


TrainingSettings = GroundingSettings | SftSettings | RlSettings
StageSettings = TrainingSettings | EvaluateSettings


@dataclass(frozen=True)
class RunSettings:
    """A whole run."""

    seed: int
    model: ModelSettings
    data: DataSettings
    sampler: SamplerSettings
    mesh: MeshSettings
    stages: tuple[str, ...]  # names, in the order they run
    stage: Mapping[str, StageSettings]  # what each name means
    compare: tuple[str, ...] = ()  # evaluations that the closing table sets side by side
    keep_checkpoints: int = 2  # newest ones that stay on disk

    def __post_init__(self):
        if unknown := [name for name in self.stages if name not in self.stage]:
            raise ValueError(
                f'config.stages names {unknown}, but config.stage describes only {sorted(self.stage)}: add or correct them.'
            )
        grounding = [name for name in self.stages if self.stage[name].kind == 'grounding']
        if self.model.lora is not None and grounding:
            raise ValueError(
                f'Stage {grounding[0]} trains all weights, which model.lora leaves alone: take one of them out.'
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
    if tuple(config['stages']) == ('build',):
        return _typed(BuildSettings, config['data'], 'config.data')
    if tuple(config['stages']) == ('compare_torch',):
        return _typed(CompareSettings, config, 'config')
    return _typed(RunSettings, config, 'config')


def _typed(kind: type, values: Mapping[str, Any], path: str) -> Any:
    check_keys(kind, values, path)
    try:
        return dacite.from_dict(kind, dict(values), dacite.Config(strict=True, cast=[tuple]))
    except dacite.WrongTypeError as error:
        expected = str(error.field_type).replace('typing.', '')
        raise ValueError(f'{path}.{error.field_path} is {error.value!r}, expected {expected}.') from error
    except dacite.DaciteError as error:
        raise ValueError(f'{path}: {error}; correct it in the config file or on the command line.') from error


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
    """The member of a union that `value` is meant for: a stage by its `kind`, an optional by what it is when given."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    members = [member for member in typing.get_args(kind) if member is not type(None)]
    if len(members) == 1:
        return members[0]
    for member in members:
        if isinstance(value, Mapping) and value.get('kind') in typing.get_args(typing.get_type_hints(member)['kind']):
            return member
    kinds = [typing.get_args(typing.get_type_hints(member)['kind'])[0] for member in members]
    found = value.get('kind') if isinstance(value, Mapping) else value
    raise ValueError(f'A stage has kind {found!r}, expected one of {kinds}.')
