"""What the config files are put together from.

`to_config` writes settings out with their defaults, so that every one of them can be set on the command line.
"""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.schema import Task
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.conversation.dialogue import Budget
from rarl_jax.models.images import PixelLimits
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, ModelSettings, RunSettings
from rarl_jax.small.policy import SmallShape

SMALL_TASKS: tuple[Task, ...] = ('action_recognition', 'depth_comparison')
SMALL_SHAPE = SmallShape(mlp=256, vision_layers=3, vision_mlp=192, vision_window=56, full_blocks=(1, 2), rope_theta=1e4)


def to_config(settings: Any) -> ConfigDict:
    """A settings object with all its fields as a config."""
    return ConfigDict({name: _plain(value) for name, value in vars(settings).items()})


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return ConfigDict(asdict(value))
    if isinstance(value, dict):
        return ConfigDict({name: _plain(each) for name, each in value.items()})
    return value


def small_model(path: str) -> ModelSettings:
    """A small policy on a CPU: a page is 168 x 224 px to it (48 tokens), a crop at most 112 x 112 (16 tokens)."""
    return ModelSettings(
        path=path,
        small=SMALL_SHAPE,
        page=PixelLimits(56 * 56, 168 * 224),
        crop=PixelLimits(56 * 56, 112 * 112),
        scan_layers=False,
        remat='none',
    )


def small_data(train: int, validation: int = 0, test: int = 0) -> DataSettings:
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
        model_pixels=168 * 224,
    )
    return DataSettings(
        draw=DrawSettings(), pages={'train': train, 'validation': validation, 'test': test}, tasks=tasks
    )


def small_sampler(max_turns: int = 3) -> SamplerSettings:
    """Short conversations: a call has 11 tokens, an answer 4."""
    return SamplerSettings(budget=Budget(max_turns=max_turns, turn_tokens=24, total_tokens=512), segment=16)


def small_run(model: ModelSettings, data: DataSettings, stages: dict[str, Any], compare: tuple[str, ...]) -> ConfigDict:
    """A run of the small world, on all GPUs or on two CPU cores; `stages` are its stages by name, in order."""
    return to_config(
        RunSettings(
            seed=0,
            model=model,
            data=data,
            sampler=small_sampler(),
            mesh=MeshSettings(data=0, cpu_devices=2),
            stages=tuple(stages),
            stage=stages,
            compare=compare,
        )
    )
