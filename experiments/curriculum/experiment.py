"""One category after the other against all at once: what is forgotten, and what helps.

    python -m experiments.run curriculum

All arms start from experiments/wider_base and have 80 updates of 16 questions: five of warm start, then 25 for each category, or 75 for all.
Every task is measured at the end, and where categories are learned apart at the base and after each stage, too.
"""

from experiments.arms import Arm, Changes, Experiment

JOINT_FULL = {'stages': ('warm_start', 'all', 'rarl'), 'compare': ()}
RATE = 1e-3  # of configs/quickstart.py


def apart(label: str, replay: float, full: Changes) -> Arm:
    """Category by category, with a share of questions from earlier ones."""
    shares = {f'stage.{stage}.replay': replay for stage in ('reorder', 'character')} if replay else {}
    stages = ('base', 'warm_start', 'recognition', 'recognised', 'reorder', 'reordered', 'character', 'rarl')
    return Arm(
        label, config='configs/quickstart.py:wider', changes={'stages': stages, 'compare': (), **shares}, full=full
    )


def joint(label: str, rate: float) -> Arm:
    """All at once, at the recipe's rate times `rate`."""
    changes = {'stage.joint.optimizer.learning_rate': RATE * rate} if rate != 1 else {}
    full = {'stage.all.optimizer.learning_rate': 1e-6 * rate} if rate != 1 else {}
    return Arm(
        label,
        config='configs/quickstart.py:wider_joint',
        changes={'stages': ('warm_start', 'joint', 'rarl'), 'compare': (), **changes},
        full_config='configs/rarl.py:joint',
        full={**JOINT_FULL, **full},
    )


REPLAYED = {f'stage.{stage}.replay': 0.25 for stage in ('reorder', 'character')}
EXPERIMENT = Experiment(
    question='Is it better to learn one category after the other than all at once, and what does it cost the earlier ones?',
    arms={
        'sequential': apart('one after the other', 0.0, full={'compare': ()}),
        'replay': apart('with a quarter of earlier questions', 0.25, full={'compare': (), **REPLAYED}),
        'joint': joint('all at once', 1.0),
        'joint_slow': joint('all at once, a third of the rate', 1 / 3),
    },
)
