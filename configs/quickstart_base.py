"""Makes the small base policy of experiments/quickstart_base from nothing, in an hour on two CPU cores.

    python -m rarl_jax.main --config=configs/quickstart_base.py

The vision tower first learns what lies under each image token, and the decoder to look from a name at whose name it is (without the one, pointing
stays at an IoU of 0.1 for long; without the other, calls name the exact box of just any figure). Then the decoder learns to point and to read crops,
with the tower frozen, which would forget who is who. Whole conversations follow, and last loose boxes and guesses: a policy as a general model is
on comics, which knows more than it does.
"""

from ml_collections import ConfigDict

from configs._parts import SMALL_TASKS, small_data, small_model, small_run
from input_pipeline.traces import TraceSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.settings import EvaluateSettings, GroundingSettings, SftSettings


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, and smoke, which runs the same stages for a moment."""
    if variant not in ('', 'smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/quickstart_base.py: expected smoke or none.')
    smoke = variant == 'smoke'

    def muon(
        rate: float,
        matrix_rate: float = 10.0,
        schedule: str = 'hold',
        warmup: float = 0.02,
        frozen: tuple[str, ...] = (),
    ) -> OptimizerSettings:
        return OptimizerSettings(
            kind='muon',
            learning_rate=rate,
            matrix_rate=matrix_rate,
            schedule=schedule,
            warmup=warmup,
            end_fraction=0.03,
            b2=0.98,
            frozen=frozen,
        )

    def supervised(steps: int, traces: TraceSettings, optimizer: OptimizerSettings) -> SftSettings:
        steps, pages = (2, 2) if smoke else (steps, 24)
        return SftSettings('sft', steps, pages, traces, optimizer, SMALL_TASKS, crops_a_page=2, save_every=100)

    measure = EvaluateSettings(
        kind='evaluate',
        tasks=SMALL_TASKS,
        questions=4 if smoke else 300,
        modes=('direct', 'zoom', 'oracle_zoom', 'blank_crop'),
        batch_size=150,
        split='validation',  # the test pages are for what starts from here
    )
    eyes = GroundingSettings(
        kind='grounding',
        steps=2 if smoke else 600,
        pages=2 if smoke else 16,
        optimizer=muon(2e-3, matrix_rate=5.0, schedule='constant', warmup=0.04),
        crops_a_page=3,
        crop_scale=(1.0, 1.15),
        pages_alone=1 if smoke else 300,
    )
    point = TraceSettings(crop=0.2, point=0.8, answer=0.0)
    talk = TraceSettings(crop=0.1, point=0.6, answer=0.3)
    # Two ways to name a box, wide and exact, so that attempts at one question differ in what reinforcement looks at.
    loose = TraceSettings(
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
    stages = {
        'eyes': eyes,
        'point': supervised(500, point, muon(1e-3, schedule='constant', frozen=('vision',))),
        'talk': supervised(500, talk, muon(5e-4)),
        'knows': measure,
        'loosen': supervised(240, loose, muon(3e-4)),
        'base': measure,
    }
    data = small_data(train=8, validation=4) if smoke else small_data(train=8000, validation=420)
    return small_run(small_model(''), data, stages, compare=('knows:zoom', 'base:zoom', 'base:blank_crop'))
