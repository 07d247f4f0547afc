"""Measures a policy on a data set: directly, with its own zooms, with the right region shown, and with crops that show nothing of use.

    python -m rarl_jax.main --config=configs/evaluate.py --config.model.path=DIR --config.data.dir=DIR

`model.path` is a Hugging Face folder (a run's export, or Qwen2.5-VL or Qwen3-VL itself), `data.dir` a data set made by configs/build_ai4va_fg.py. All GPUs of the
node answer, each with a copy of the weights. Sampled instead of greedy: --config.stage.evaluation.samples=8. A run that was stopped goes on without
asking again what was answered. Variants: qwen3_vl, which shows pictures as configs/rarl.py:qwen3_vl does; small, for policies of the quickstart; smoke, a random
small policy on a few drawn pages.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import choose, recipe, shrink, small_data, small_model, small_world
from configs.rarl import CONVERSATION, MODEL, QWEN3_VL, SAMPLER
from input_pipeline.schema import TASKS
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.settings import DataSettings, ModelSettings, RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings

MODES = ('direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop')
STAGES = {'evaluation': EvaluateSettings(tasks=TASKS, questions=0, modes=MODES)}


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, qwen3_vl, small and smoke."""
    drawn = small_data({'train': 8, 'test': 4})
    variants = {'': full, 'qwen3_vl': lambda: full(QWEN3_VL), 'small': small, 'smoke': lambda: shrink(small(), drawn)}
    return choose(__file__, variant, variants)


def full(model: ModelSettings = MODEL) -> RunSettings:
    model = replace(model, param_dtype='bfloat16')
    mesh = MeshSettings(data=0)
    return recipe(
        STAGES,
        ('evaluation',),
        model=model,
        data=DataSettings(),
        conversation=CONVERSATION,
        sampler=SAMPLER,
        mesh=mesh,
    )


def small() -> RunSettings:
    return recipe(STAGES, ('evaluation',), **(small_world(small_model(''), {}) | {'data': DataSettings()}))
