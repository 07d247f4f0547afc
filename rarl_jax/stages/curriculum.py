"""Which questions a stage asks, and in what proportion: its own tasks', and those of stages before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from input_pipeline.schema import Task
from rarl_jax.stages.registry import TrainingSettings
from rarl_jax.stages.rl_settings import RlSettings
from rarl_jax.stages.sft import SftSettings

if TYPE_CHECKING:
    from rarl_jax.settings import RunSettings


def mixture_of(settings: RunSettings, name: str) -> tuple[tuple[tuple[Task, ...], float], ...]:
    """What LoaderSettings.mixture is to be for the stage `name`; () where every question of its tasks is asked alike.

    ValueError where a share of earlier tasks is asked for and there are none.
    """
    stage = settings.stage[name]
    if not stage.task_weights and not stage.replay:
        return ()
    weights = stage.task_weights or (1.0,)
    parts = [(task,) for task in stage.tasks] if stage.task_weights else [stage.tasks]
    own = [(part, (1 - stage.replay) * weight / sum(weights)) for part, weight in zip(parts, weights, strict=True)]
    if not stage.replay:
        return tuple(own)
    earlier = earlier_tasks(settings, name)
    if not earlier:
        raise ValueError(
            f'config.stage.{name}.replay is {stage.replay}, but no stage before has taught other tasks: set it to 0.'
        )
    return (*own, (earlier, stage.replay))


def earlier_tasks(settings: RunSettings, name: str) -> tuple[Task, ...]:
    """Tasks that the policy of a stage was taught before it, but the stage's own, in order."""
    earlier: dict[Task, None] = {}
    for other in settings.stages[: settings.stages.index(name) + 1]:
        stage = settings.stage[other]
        if isinstance(stage, TrainingSettings):
            earlier = {} if stage.from_start else earlier
        if isinstance(stage, RlSettings | SftSettings) and other != name:
            earlier |= dict.fromkeys(stage.tasks)
    return tuple(task for task in earlier if task not in settings.stage[name].tasks)
