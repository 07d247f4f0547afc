"""How long a warm start should be: 0 to 20 of 50 updates; the rest have the full reward.

    python -m experiments.run warm_length

At 7B the stage of recognition has what the warm start leaves of 96 updates, 16 + 80 in the recipe.
"""

from experiments.arms import Arm, Experiment

LENGTHS, UPDATES, FULL_UPDATES = (0, 5, 10, 16, 20), 50, 96


def arm(length: int) -> Arm:
    """So many updates of warm start; without any the stage is left out."""
    first = ('warm_start',) if length else ()
    sizes = {'stage.main.steps': UPDATES - length} | ({'stage.warm_start.steps': length} if length else {})
    full = {'stage.recognition.steps': FULL_UPDATES - length} | ({'stage.warm_start.steps': length} if length else {})
    return Arm(
        f'{length} updates',
        changes={'stages': (*first, 'main', 'rarl'), 'stage.rarl.modes': ('zoom',), 'compare': ()},
        sizes=sizes,
        full={'stages': (*first, 'recognition', 'rarl'), 'compare': (), **full},
    )


EXPERIMENT = Experiment(
    question='How many updates of warm start are best, when the number of updates is given?',
    arms={f'warm_{length}': arm(length) for length in LENGTHS},
)
