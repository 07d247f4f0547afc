"""RARL on drawn comic pages: a small policy learns to zoom, on two CPU cores, in minutes.

    python -m rarl_jax.main --config=configs/quickstart.py

Starts from the small base policy in experiments/quickstart_base, which knows where figures are but names loose boxes and often guesses. Measures it,
teaches it by RARL's warm start and main stage, measures it again on the same held-out pages, and writes runs/quickstart/report/index.html.
Variant qwen3_vl: the same from the small Qwen3-VL in experiments/quickstart_base_qwen3_vl. Variant wider: all three categories one after the other, from
experiments/wider_base, and wider_joint all of them at once. Variants smoke, qwen3_vl_smoke, wider_smoke and wider_joint_smoke: the same stages for a moment,
on a policy of random weights.
"""

from dataclasses import replace
from typing import Any

from ml_collections import ConfigDict

from configs._parts import (
    ALL_CATEGORIES,
    LONGER,
    SMALL_TASKS,
    choose,
    recipe,
    shrink,
    small_model,
    small_qwen3_vl,
    small_world,
    wider_world,
)
from input_pipeline.schema import Task
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.settings import ModelSettings, RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import RlSettings

MEASURE = EvaluateSettings(tasks=SMALL_TASKS, questions=300, modes=('zoom', 'blank_crop'), batch_size=150)
MEASURE_ALL = replace(MEASURE, tasks=ALL_CATEGORIES, questions=150, modes=('zoom',))

REORDER: tuple[Task, ...] = ('panel_reordering',)
CHARACTER: tuple[Task, ...] = ('character_counting', 'character_identification')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, qwen3_vl, wider and wider_joint; smoke, qwen3_vl_smoke, wider_smoke and wider_joint_smoke."""
    other = small_qwen3_vl('experiments/quickstart_base_qwen3_vl')
    variants = {
        '': quickstart,
        'qwen3_vl': lambda: quickstart(other),
        'wider': wider,
        'wider_joint': wider_joint,
        'smoke': lambda: shrink(quickstart(), main=2),
        'qwen3_vl_smoke': lambda: shrink(quickstart(other), small=small_qwen3_vl, main=2),
        'wider_smoke': lambda: replace(shrink(wider()), conversation=LONGER),
        'wider_joint_smoke': lambda: replace(shrink(wider_joint()), conversation=LONGER),
    }
    return choose(__file__, variant, variants)


def quickstart(model: ModelSettings | None = None) -> RunSettings:
    """From the first family's policy where no other is given."""
    stages = {
        'base': MEASURE,
        'warm_start': updates(5, RewardSettings().warm_start()),
        'main': updates(45, RewardSettings()),
        'rarl': MEASURE,
    }
    world = small_world(model or small_model('experiments/quickstart_base'), {'train': 400, 'test': 420})
    return recipe(stages, compare=('base:zoom', 'rarl:zoom', 'rarl:blank_crop'), **world)


def wider() -> RunSettings:
    """Category by category, as configs/rarl.py has it, each measured on all tasks."""
    several = RewardSettings(max_paid_zooms=3)
    stages = {
        'base': MEASURE_ALL,
        'warm_start': longer(updates(5, RewardSettings().warm_start())),
        'recognition': longer(updates(25, RewardSettings())),
        'recognised': MEASURE_ALL,
        'reorder': longer(updates(25, several), REORDER),
        'reordered': MEASURE_ALL,
        'character': replace(longer(updates(25, several), CHARACTER), task_weights=(1.0, 1.0)),
        'rarl': MEASURE_ALL,
    }
    return recipe(stages, ('base', 'recognised', 'reordered', 'rarl'), **wider_pages())


def wider_joint() -> RunSettings:
    """As many updates on all categories at once, each as often as the others."""
    apart = wider().stage
    tasks = (*SMALL_TASKS, *REORDER, *CHARACTER)
    joint = replace(apart['character'], steps=75, tasks=tasks, task_weights=(1.0, 1.0, 2.0, 1.0, 1.0))
    stages = {'base': MEASURE_ALL, 'warm_start': apart['warm_start'], 'joint': joint, 'rarl': MEASURE_ALL}
    return recipe(stages, ('base', 'rarl'), **wider_pages())


def wider_pages() -> dict[str, Any]:
    world = wider_world(small_model('experiments/wider_base'), {'train': 400, 'test': 420})
    sizes = {'lengths': (32, 96, 160), 'cache_lengths': (160, 224, 384, 512)}
    return world | {'sampler': replace(world['sampler'], **sizes)}


def longer(stage: RlSettings, tasks: tuple[Task, ...] = SMALL_TASKS) -> RlSettings:
    """The same on other tasks, with room for conversations of several crops; half the questions, as such a conversation has several times the tokens."""
    buckets = Buckets(
        lengths=(480, 720, 960, 1216, 1536, 1792, 2048, 2560),
        prompts=(96, 160),
        segments=(96, 128, 160, 192, 256, 352),
        images=(80, 320, 960, 1664),
        windows=(1792, 4096, 7168),
        patches=(192,),
        chosen=(32, 72, 144),
        scored=(256, 576, 1152),
    )
    return replace(stage, tasks=tasks, questions=16, buckets=buckets)


def updates(steps: int, reward: RewardSettings) -> RlSettings:
    """So many GRPO updates of 32 questions x 8 attempts; the tower is frozen, so that updates take its features from the rollout."""
    return RlSettings(
        steps=steps,
        questions=32,
        group_size=8,
        tasks=SMALL_TASKS,
        reward=reward,
        optimizer=OptimizerSettings(learning_rate=1e-3, b2=0.99, frozen=('vision',)),
        loss=LossSettings(),
        pack=8,
        micro_batch=8,  # a row of 480 tokens: what a CPU core works on stays in its cache
        # One shape or two: each costs a compilation of some seconds.
        buckets=Buckets(
            lengths=(384, 480, 640),
            prompts=(96,),
            segments=(96,),
            images=(80, 320),
            windows=(1152, 1792),
            patches=(192,),
            chosen=(72,),
            scored=(192, 576),
        ),
        show_every=16,
    )
