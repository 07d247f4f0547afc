"""RARL on drawn comic pages: a small policy learns to zoom, on two CPU cores, in minutes.

    python -m rarl_jax.main --config=configs/quickstart.py

Starts from the small base policy in experiments/quickstart_base, which knows where figures are but names loose boxes and often guesses. Measures it,
teaches it by RARL's warm start and main stage, measures it again on the same held-out pages, and writes runs/quickstart/report/index.html.
Variant qwen3_vl: the same from the small Qwen3-VL in experiments/quickstart_base_qwen3_vl. Variants smoke and qwen3_vl_smoke: the same stages for a
moment, on a policy of random weights.
"""

from ml_collections import ConfigDict

from configs._parts import SMALL_TASKS, choose, recipe, shrink, small_model, small_qwen3_vl, small_world
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.settings import ModelSettings, RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import RlSettings

MEASURE = EvaluateSettings(tasks=SMALL_TASKS, questions=300, modes=('zoom', 'blank_crop'), batch_size=150)


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, qwen3_vl, smoke and qwen3_vl_smoke."""
    other = small_qwen3_vl('experiments/quickstart_base_qwen3_vl')
    variants = {
        '': quickstart,
        'qwen3_vl': lambda: quickstart(other),
        'smoke': lambda: shrink(quickstart(), main=2),
        'qwen3_vl_smoke': lambda: shrink(quickstart(other), small=small_qwen3_vl, main=2),
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
        # One shape or two: each costs a compilation of some seconds.
        buckets=Buckets(
            lengths=(384, 480, 640),
            prompts=(96,),
            segments=(96,),
            images=(320,),
            windows=(1152, 1792),
            patches=(192,),
            chosen=(32, 72),
        ),
        show_every=16,
    )
