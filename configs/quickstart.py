"""RARL on drawn comic pages: a small policy learns to zoom, on two CPU cores, in ten minutes.

    python -m rarl_jax.main --config=configs/quickstart.py

Starts from the small base policy in experiments/quickstart_base, which knows where figures are but names loose boxes and often guesses. Measures it,
teaches it by RARL's warm start and main stage, measures it again on the same held-out pages, and writes runs/quickstart/report/index.html.
"""

from typing import Any

from ml_collections import ConfigDict

from configs._parts import SMALL_TASKS, small_data, small_model, small_run
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.settings import DataSettings, EvaluateSettings, ModelSettings, RlSettings


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, and smoke, which runs the same stages for a moment on a policy of random weights."""
    return small_run(*parts('quickstart', variant), compare=('base:zoom', 'rarl:zoom', 'rarl:blank_crop'))


def parts(name: str, variant: str) -> tuple[ModelSettings, DataSettings, dict[str, Any]]:
    """The policy, the questions and the stages. ValueError for an unknown variant of the config `name`."""
    if variant not in ('', 'smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/{name}.py: expected smoke or none.')
    smoke = variant == 'smoke'
    measure = EvaluateSettings(
        kind='evaluate',
        tasks=SMALL_TASKS,
        questions=4 if smoke else 300,
        modes=('zoom', 'blank_crop'),
        batch_size=150,
    )
    stages = {
        'base': measure,
        'warm_start': rl_stage(1 if smoke else 5, smoke, RewardSettings().warm_start()),
        'main': rl_stage(2 if smoke else 45, smoke, RewardSettings()),
        'rarl': measure,
    }
    data = small_data(train=8, test=4) if smoke else small_data(train=400, test=420)
    return small_model('' if smoke else 'experiments/quickstart_base'), data, stages


def rl_stage(steps: int, smoke: bool, reward: RewardSettings, offer_tool: bool = True) -> RlSettings:
    """So many GRPO updates of 32 questions x 8 attempts; the tower is frozen, which makes an update twice as fast."""
    return RlSettings(
        kind='rl',
        steps=steps,
        questions=2 if smoke else 32,
        group_size=2 if smoke else 8,
        tasks=SMALL_TASKS,
        reward=reward,
        optimizer=OptimizerSettings(learning_rate=1e-3, b2=0.99, frozen=('vision',)),
        loss=LossSettings(),
        offer_tool=offer_tool,
        pack=2 if smoke else 4,
        # One shape or two: each costs a compilation of some seconds.
        buckets=Buckets()
        if smoke
        else Buckets((256,), (160, 320), (768, 1152, 1792), (192,), chosen=(24, 72), groups=(288, 352, 416, 512)),
        save_every=20,
        show_every=1 if smoke else 16,
    )
