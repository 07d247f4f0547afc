"""Measures a policy on a data set: directly, with its own zooms, with the right region shown, and with crops that show nothing of use.

    python -m rarl_jax.main --config=configs/evaluate.py --config.model.path=DIR --config.data.dir=DIR

`model.path` is a Hugging Face folder (a run's export, or Qwen2.5-VL itself), `data.dir` a data set made by configs/build_ai4va_fg.py. Sampled instead of
greedy: --config.stage.evaluation.samples=8. A run that was stopped goes on without asking again what was answered.
"""

from ml_collections import ConfigDict

from configs._parts import small_data, small_model, small_run, to_config
from input_pipeline.schema import TASKS
from rarl_jax.models.images import PixelLimits
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, EvaluateSettings, ModelSettings, RunSettings

MODES = ('direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none; small, for policies of the quickstart; and smoke, a random small policy on a few drawn pages."""
    if variant not in ('', 'small', 'smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/evaluate.py: expected small, smoke or none.')
    stage = EvaluateSettings(kind='evaluate', tasks=TASKS, questions=2 if variant == 'smoke' else 0, modes=MODES)
    stages, compare = {'evaluation': stage}, ('evaluation',)
    if variant:
        data = small_data(train=8, test=4) if variant == 'smoke' else DataSettings()
        return small_run(small_model(''), data, stages, compare)
    model = ModelSettings(
        path='',
        dtype='bfloat16',
        page=PixelLimits(256 * 28 * 28, 2048 * 28 * 28),
        crop=PixelLimits(64 * 28 * 28, 1024 * 28 * 28),
    )
    settings = RunSettings(
        seed=0,
        model=model,
        data=DataSettings(),
        sampler=SamplerSettings(),
        mesh=MeshSettings(),
        stages=tuple(stages),
        stage=stages,
        compare=compare,
    )
    return to_config(settings)
