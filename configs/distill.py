"""Zooming distilled away, after arXiv 2602.11858: what a policy finds out with the right crops, a student learns to say from the page at once.

    python -m rarl_jax.main --config=configs/distill.py --config.model.path=DIR --config.data.dir=DIR

RARL first, as configs/rarl.py has it on eight GPUs; its policy answers the training questions with the right regions shown; then the student, which begins
with the policy that RARL began with, is taught these answers without the tool, as configs/sft_s.py teaches the true ones. If it matches RARL, zooming
was needed for learning alone. The variant small does so with the quickstart's policy, and with a second student whose tower learns too; smoke and
small_smoke run the same stages for a moment, with that policy: one of random weights answers nothing that could be taught.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs import rarl, sft_s
from configs._parts import choose, recipe, shrink, small_model, small_world
from configs.quickstart import MEASURE, quickstart
from configs.sft_s import ANSWERS
from input_pipeline.schema import TASKS
from rarl_jax.settings import RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings

BASE = small_model('experiments/quickstart_base')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, small, smoke and small_smoke."""
    variants = {
        '': full,
        'small': small,
        'smoke': lambda: replace(shrink(full(), rarl.DRAWN), model=BASE),
        'small_smoke': lambda: replace(shrink(small()), model=BASE),
    }
    return choose(__file__, variant, variants)


def full() -> RunSettings:
    """All weights of the decoder, on eight GPUs."""
    run, taught = rarl.full(), sft_s.full(ANSWERS, 'direct').stage
    stages = {
        **{name: stage for name, stage in run.stage.items() if name != 'base'},
        'teacher': EvaluateSettings(tasks=TASKS, questions=0, modes=('oracle_zoom',), split='train', judge='token_f1'),
        'student': replace(taught['sft'], taught='teacher', from_start=True),
        'distilled': taught['tuned'],
    }
    return replace(run, stages=tuple(stages), stage=stages, compare=('rarl:zoom', 'distilled'))


def small() -> RunSettings:
    """The student has four times as many updates as RARL, so that too few are no answer."""
    measure = replace(MEASURE, modes=('direct',))
    student = replace(sft_s.small_stage(ANSWERS, 200), taught='teacher', from_start=True)
    seeing = replace(student, optimizer=replace(student.optimizer, frozen=()))
    stages = {
        **{name: stage for name, stage in quickstart().stage.items() if name != 'base'},
        'teacher': replace(MEASURE, questions=800, modes=('oracle_zoom',), split='train'),
        'student': student,
        'distilled': measure,
        'student_tower': seeing,
        'distilled_tower': measure,
    }
    world = small_world(BASE, {'train': 400, 'test': 420})
    return recipe(stages, ('rarl:zoom', 'distilled', 'distilled_tower'), **world)
