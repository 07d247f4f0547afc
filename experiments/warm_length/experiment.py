"""How long a warm start should be: 0 to 20 of 50 updates; the rest have the full reward.

    python -m experiments.run warm_length

None and five are the arms of `warm_start`, which are not run again. At 7B the stage of recognition has what the warm start leaves of 96 updates, 16 + 80 in
the recipe.
"""

from experiments.arms import Arm, Changes, Experiment, shared

UPDATES, FULL_UPDATES = 50, 96


def arm(length: int) -> Arm:
    """So many updates of warm start."""
    return Arm(
        f'{length} updates',
        changes={'stages': ('warm_start', 'main', 'rarl'), 'stage.rarl.modes': ('zoom',), 'compare': ()},
        sizes={'stage.main.steps': UPDATES - length, 'stage.warm_start.steps': length},
        full=full(length),
    )


def full(length: int) -> Changes:
    """The same at 7B; without any the stage is left out."""
    first = {'stage.warm_start.steps': length} if length else {}
    stages = ('warm_start', 'recognition', 'rarl') if length else ('recognition', 'rarl')
    return {'stages': stages, 'compare': (), 'stage.recognition.steps': FULL_UPDATES - length, **first}


EXPERIMENT = Experiment(
    question='How many updates of warm start are best, when the number of updates is given?',
    arms={
        'warm_0': shared('warm_start', 'single_phase', 'none', full(0)),
        'warm_5': shared('warm_start', 'warm_start', '5 updates', full(5)),
        'warm_10': arm(10),
        'warm_16': arm(16),
        'warm_20': arm(20),
    },
)
