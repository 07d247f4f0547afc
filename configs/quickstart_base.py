"""Makes a small base policy from nothing: the recipe of experiments/quickstart_base.

    python -m rarl_jax.main --config=configs/quickstart_base.py

The vision tower first learns what lies under each image token; then the decoder learns to read tight crops and to point; then the whole
conversation, with loose boxes and guesses: a policy as a general model is on comics, which knows more than it does.
"""

from ml_collections import ConfigDict

from configs._parts import SMALL_TASKS, small_data, small_model, small_run
from input_pipeline.traces import TraceSettings
from rarl_jax.optim import OptimizerSettings
from rarl_jax.settings import EvaluateSettings, GroundingSettings, SftSettings


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, and smoke, which runs the same stages for a moment."""
    if variant not in ('', 'smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/quickstart_base.py: expected smoke or none.')
    smoke = variant == 'smoke'

    def muon(rate: float = 1e-3) -> OptimizerSettings:
        return OptimizerSettings(
            kind='muon', learning_rate=rate, schedule='hold', warmup=0.02, end_fraction=0.03, b2=0.98
        )

    def supervised(steps: int, traces: TraceSettings, rate: float = 1e-3) -> SftSettings:
        steps, pages = (2, 2) if smoke else (steps, 24)
        return SftSettings('sft', steps, pages, traces, muon(rate), SMALL_TASKS, crops_a_page=2, save_every=100)

    measure = EvaluateSettings(
        kind='evaluate',
        tasks=SMALL_TASKS,
        questions=4 if smoke else 300,
        modes=('direct', 'zoom', 'oracle_zoom', 'blank_crop'),
        batch_size=150,
    )
    loose = TraceSettings(
        answer=0.7,
        direct=0.3,
        box_scale=(1.3, 2.2),
        box_shift=0.15,
        zoom_rate=0.45,
        malformed_rate=0.1,
        all_answers=True,
    )
    stages = {
        'eyes': GroundingSettings('grounding', 2 if smoke else 1000, 2 if smoke else 16, muon(2e-3)),
        'crops': supervised(300, TraceSettings(crop=0.9, point=0.1, answer=0.0, crop_scale=(1.0, 1.1))),
        'point': supervised(1400, TraceSettings(point=0.6, crop=0.4, answer=0.0)),
        'talk': supervised(300, TraceSettings(point=0.4, crop=0.3, answer=0.3), rate=3e-4),
        'knows': measure,
        'loosen': supervised(150, loose, rate=2e-4),
        'base': measure,
    }
    data = small_data(train=8, test=4) if smoke else small_data(train=6000, test=300)
    return small_run(small_model(''), data, stages, compare=('knows:zoom', 'base:zoom', 'base:blank_crop'))
