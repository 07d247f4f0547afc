"""Whether what is learned from actions and depth helps at a task that was not trained: character identification.

    python -m experiments.run transfer

From experiments/wider_base. The base and what 30 updates on actions and depth make of it are the evaluations `base` and `recognised` of curriculum's first arm;
`identification` has as many updates on that task itself, which is what transfer can be measured by.
"""

from experiments.arms import Arm, Experiment, shared
from experiments.counting.experiment import alone

ALONE = {**alone('character_identification'), 'stage.character.reward.max_paid_zooms': 1}
EXPERIMENT = Experiment(
    question='Does a policy that was trained on actions and depth identify characters better than before?',
    arms={
        'recognition': shared('curriculum', 'sequential', 'trained on actions and depth', full={'compare': ()}),
        'identification': Arm(
            'trained on identification',
            config='configs/quickstart.py:wider',
            changes={**ALONE, 'stage.character.task_weights': ()},
            full=ALONE,
        ),
    },
)
