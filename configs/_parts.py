"""What the config files are put together from: the small world, the sizes of a node of GPUs, and `shrink`, which makes the variants `smoke`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.schema import Task
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.conversation.dialogue import Budget, ConversationSettings
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.learner.batches import Buckets
from rarl_jax.models.images import PixelLimits
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, ModelSettings, RunSettings
from rarl_jax.small.policy import SmallShape
from rarl_jax.small.qwen3 import SmallQwen3Shape
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import RlSettings

# ---------------------------------------------------------------- configs


def choose(file: str, variant: str, variants: Mapping[str, Callable[[], Any]]) -> ConfigDict:
    """The settings of a config file's variant as a config, with all defaults, so that every one of them can be set on the command line."""
    if variant not in variants:
        known = ', '.join(name or 'none' for name in variants)
        raise ValueError(f'Unknown variant {variant!r} of configs/{Path(file).name}: expected {known}.')
    return ConfigDict({name: _plain(value) for name, value in vars(variants[variant]()).items()})


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return ConfigDict(asdict(value))
    if isinstance(value, dict):
        return ConfigDict({name: _plain(each) for name, each in value.items()})
    return value


def recipe(stages: Mapping[str, Any], compare: tuple[str, ...], **settings: Any) -> RunSettings:
    """A run of these stages, by name and in order, with seed 0."""
    return RunSettings(seed=0, stages=tuple(stages), stage=dict(stages), compare=compare, **settings)


# ---------------------------------------------------------------- the small world

# A call has 11 tokens, an answer 4.
SHORT = ConversationSettings(
    tool=ZoomTool(box_frame='model'),  # a number below 256 is one token
    budget=Budget(max_turns=3, turn_tokens=24, total_tokens=512),
)
SMALL_TASKS: tuple[Task, ...] = ('action_recognition', 'depth_comparison')
# All three categories: a call for each of up to six figures that are counted, or of three panels that are ordered.
LONGER = replace(SHORT, tool=replace(SHORT.tool, max_crops=6), budget=replace(SHORT.budget, max_turns=8))
ALL_CATEGORIES: tuple[Task, ...] = (
    *SMALL_TASKS,
    'character_identification',
    'character_counting',
    'panel_reordering',
)


def small_world(model: ModelSettings, pages: Mapping[str, int]) -> dict[str, Any]:
    """A small policy on drawn pages, on two CPU cores or all GPUs: everything of a run but its stages."""
    return {
        'model': model,
        'data': small_data(pages, model.page.max_pixels),
        'conversation': SHORT,
        # Sizes that hold a prompt, a crop, and whole conversations: each costs a compilation of some seconds.
        'sampler': SamplerSettings(rows=256, streams=2, lengths=(32, 96), cache_lengths=(224,)),
        'mesh': MeshSettings(data=0, cpu_devices=2),
    }


def wider_world(model: ModelSettings, pages: Mapping[str, int]) -> dict[str, Any]:
    """The small world with a task or two of every category."""
    world = small_world(model, pages)
    data: DataSettings = world['data']
    tasks = replace(
        data.tasks, tasks=ALL_CATEGORIES, count_forms=('all',), count_region='characters', order_items=(3, 3)
    )
    return world | {'data': replace(data, tasks=tasks), 'conversation': LONGER}


def small_model(path: str) -> ModelSettings:
    """A page is 168 x 224 px to it (48 tokens), a crop at most 112 x 112 (16 tokens)."""
    shape = SmallShape(mlp=256, vision_layers=3, vision_mlp=192, vision_window=56, full_blocks=(1, 2), rope_theta=1e4)
    return ModelSettings(
        path=path,
        fresh=shape,
        page=PixelLimits(56 * 56, 168 * 224),
        crop=PixelLimits(56 * 56, 112 * 112),
        scan_layers=False,
        remat='none',
    )


def small_qwen3_vl(path: str) -> ModelSettings:
    """A page is 192 x 256 px to it, a crop at most 128 x 128: as many tokens as `small_model` has, of 32 px."""
    shape = SmallQwen3Shape(mlp=256, vision_layers=3, vision_mlp=192, deepstack_blocks=(0, 1), rope_theta=1e4)
    page, crop = PixelLimits(64 * 64, 192 * 256), PixelLimits(64 * 64, 128 * 128)
    return replace(small_model(path), fresh=shape, page=page, crop=crop)


def small_data(pages: Mapping[str, int], model_pixels: int = 168 * 224) -> DataSettings:
    """Drawn pages, so many of each split, with the two tasks of the small world.

    Figures are named by identity ("Violet", not "the leftmost in panel 3"): a small tower tells identities apart within minutes, while counting
    panels is what a small decoder is slow to learn.
    """
    tasks = TaskSettings(
        tasks=(*SMALL_TASKS, 'character_identification'),
        per_page=8,
        naming=('identity',),
        open_share=1.0,
        depth_things=('character',),
        depth_polarity=('nearer',),
        model_pixels=model_pixels,
    )
    return DataSettings(draw=DrawSettings(), pages={'train': 0, 'validation': 0, 'test': 0, **pages}, tasks=tasks)


# ---------------------------------------------------------------- smoke

FEW_PAGES = {'train': 16, 'validation': 4, 'test': 4}
# One shape of everything that a moment holds: compiling for another takes longer than the padding.
ONE_SHAPE = Buckets(
    lengths=(640,),
    prompts=(96,),
    segments=(256,),
    images=(32,),
    windows=(192,),
    patches=(192,),
    chosen=(80,),
    scored=(160,),
)
FEW = {'questions': 2, 'group_size': 2, 'pages': 2, 'pages_alone': 1, 'show_every': 1, 'buckets': ONE_SHAPE}


def shrink(
    settings: RunSettings,
    data: DataSettings | None = None,
    small: Callable[[str], ModelSettings] = small_model,
    **steps: int,
) -> RunSettings:
    """The same stages for a moment, on a few drawn pages and a small policy of random weights.

    Args:
        data: how pages are drawn and asked about; as in the settings if None.
        small: whose random weights.
        steps: of training stages, by name; the others take one.
    """
    data = data or settings.data
    few = replace(
        data,
        dir='',
        pages={split: min(count, FEW_PAGES[split]) for split, count in data.pages.items()},
        held_out=0.25 if settings.data.held_out else 0.0,
    )
    return replace(
        settings,
        model=replace(small(''), lora=settings.model.lora),
        data=few,
        conversation=SHORT,
        sampler=SamplerSettings(segment=16, lengths=(256,), cache_lengths=(512,)),
        mesh=MeshSettings(data=0, cpu_devices=2),
        stage={name: _shrink_stage(stage, steps.get(name, 1)) for name, stage in settings.stage.items()},
    )


def _shrink_stage(stage: Any, steps: int) -> Any:
    if isinstance(stage, EvaluateSettings):
        return replace(stage, questions=2 if len(stage.tasks) > 2 else 4)
    few = {item.name: FEW[item.name] for item in fields(stage) if item.name in FEW}
    if isinstance(stage, RlSettings):
        few |= {
            'pack': min(stage.pack, 2),
            'mini_batches': min(stage.mini_batches, 2),
            'held_out': replace(stage.held_out, every=min(stage.held_out.every, 1), questions=2),
            'micro_batch': min(stage.micro_batch, 2),
            # Random weights earn nothing: without this term a smoke run would move no weight, and resuming it would show nothing.
            'loss': replace(stage.loss, entropy_weight=0.01),
        }
    return replace(stage, steps=steps, **few)
