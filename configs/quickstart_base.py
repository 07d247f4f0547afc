"""Makes the small base policy of experiments/quickstart_base from nothing, in an hour on two CPU cores.

    python -m rarl_jax.main --config=configs/quickstart_base.py

The vision tower first learns what lies under each image token, and the decoder to look from a name at whose name it is (without the one, pointing
stays at an IoU of 0.1 for long; without the other, calls name the exact box of just any figure). Then the decoder learns to point and to read crops,
with the tower frozen, which would forget who is who. Whole conversations follow, and last loose boxes and guesses: a policy as a general model is
on comics, which knows more than it does. Variant qwen3_vl: the same for experiments/quickstart_base_qwen3_vl. Variant wider: a policy that knows all
three categories; wider_loosen: from its export, runs/quickstart_base_wider/export, the loose policy in experiments/wider_base. The variants with _smoke run the
same stages for a moment.
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
from input_pipeline.traces import TraceSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.settings import ModelSettings, RunSettings
from rarl_jax.small.grounding import GroundingSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.sft import SftSettings

# Two ways to name a box, wide and exact, so that attempts at one question differ in what reinforcement looks at.
LOOSE = TraceSettings(
    crop=0.15,
    answer=0.6,
    direct=0.25,
    crop_scale=(1.0, 1.15),
    box_scale=(1.5, 1.9),
    box_shift=0.08,
    exact_rate=0.22,
    zoom_rate=0.55,
    malformed_rate=0.15,
)


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, qwen3_vl, wider, wider_loosen, and smoke, qwen3_vl_smoke, wider_smoke, wider_loosen_smoke."""
    few = {'eyes': 2, 'point': 2, 'talk': 2, 'loosen': 2}
    variants = {
        '': lambda: base(small_model('')),
        'qwen3_vl': lambda: base(small_qwen3_vl('')),
        'wider': wider,
        'wider_loosen': wider_loosen,
        'smoke': lambda: shrink(base(small_model('')), **few),
        'qwen3_vl_smoke': lambda: shrink(base(small_qwen3_vl('')), small=small_qwen3_vl, **few),
        'wider_smoke': lambda: replace(shrink(wider(), **few), conversation=LONGER),
        'wider_loosen_smoke': lambda: replace(shrink(wider_loosen()), conversation=LONGER),
    }
    return choose(__file__, variant, variants)


def base(model: ModelSettings) -> RunSettings:
    measure = EvaluateSettings(
        tasks=SMALL_TASKS,
        questions=300,
        modes=('direct', 'zoom', 'oracle_zoom', 'blank_crop'),
        batch_size=150,
        split='validation',  # the test pages are for what starts from here
    )
    eyes = GroundingSettings(
        steps=600,
        pages=16,
        optimizer=muon(2e-3, matrix_rate=5.0, schedule='constant', warmup=0.04),
        crops_a_page=3,
        crop_scale=(1.0, 1.15),
        pages_alone=300,
    )
    point = TraceSettings(crop=0.2, point=0.8, answer=0.0)
    talk = TraceSettings(crop=0.1, point=0.6, answer=0.3)
    stages = {
        'eyes': eyes,
        'point': supervised(500, point, muon(1e-3, schedule='constant', frozen=('vision',))),
        'talk': supervised(500, talk, muon(5e-4)),
        'knows': measure,
        'loosen': supervised(240, LOOSE, muon(3e-4)),
        'base': measure,
    }
    compare = ('knows:zoom', 'base:zoom', 'base:blank_crop')
    return recipe(stages, compare, **small_world(model, {'train': 8000, 'validation': 420}))


def wider() -> RunSettings:
    """All three categories: what needs several looks is taught as looks first, one call for each figure or panel, and the answer last.

    Some answers are asked for at once, without the tool, so that what can be read off the page is known too.
    """
    model = small_model('')
    measure = EvaluateSettings(
        tasks=ALL_CATEGORIES, questions=200, modes=('direct', 'zoom', 'blank_crop'), batch_size=100, split='validation'
    )
    crops = ('action_recognition', 'depth_comparison', 'character_identification')
    eyes = replace(base(model).stage['eyes'], crop_tasks=crops)
    point = TraceSettings(crop=0.2, point=0.8, answer=0.0)
    talk = TraceSettings(crop=0.1, point=0.25, answer=0.5, direct=0.15, guess_rate=0.0, by_task=True, count_aloud=True)
    stages = {
        'eyes': eyes,
        'point': supervised(500, point, muon(1e-3, schedule='constant', frozen=('vision',)), ALL_CATEGORIES),
        'talk': supervised(900, talk, muon(5e-4), ALL_CATEGORIES),
        'knows': measure,
    }
    return recipe(
        stages,
        ('knows:direct', 'knows:zoom', 'knows:blank_crop'),
        **wider_world(model, {'train': 8000, 'validation': 420}),
    )


def wider_loosen() -> RunSettings:
    """Loose boxes and guesses as in the quickstart's base, in all tasks; guesses where one looks several times, too."""
    known = wider()
    loose = replace(LOOSE, by_task=True, count_aloud=True)
    stages = {
        'loosen': supervised(240, loose, muon(3e-4), ALL_CATEGORIES),
        'base': replace(known.stage['knows'], modes=('direct', 'zoom', 'oracle_zoom', 'blank_crop')),
    }
    model = replace(known.model, path='runs/quickstart_base_wider/export')
    compare = ('base:zoom', 'base:direct', 'base:blank_crop')
    return replace(known, model=model, stages=tuple(stages), stage=stages, compare=compare)


def supervised(
    steps: int, traces: TraceSettings, optimizer: OptimizerSettings, tasks: tuple[Task, ...] = SMALL_TASKS
) -> SftSettings:
    return SftSettings(
        steps=steps, pages=24, traces=traces, optimizer=optimizer, tasks=tasks, crops_a_page=2, save_every=100
    )


def muon(rate: float, **settings: Any) -> OptimizerSettings:
    defaults = {'schedule': 'hold', 'warmup': 0.02, 'end_fraction': 0.03, 'b2': 0.98}
    return OptimizerSettings(kind='muon', learning_rate=rate, **(defaults | settings))
