"""Warm start against a single phase, at the quickstart's size: 50 updates each, the same base policy, questions and pages.

    python -m experiments.run warm_start

The notebooks on what the crop is read for (`reads_crop`) and on stability (`stability`) read these runs too, hence all controls and five seeds.
"""

from configs.quickstart_compare import CONTROLS
from experiments.arms import Arm, Experiment

EXPERIMENT = Experiment(
    question='Does a warm start, which pays form and tool use alone, lead to better boxes and answers than the full reward from the first step?',
    arms={
        'base': Arm(
            'base policy',
            changes={'stages': ('base',), 'stage.base.modes': CONTROLS, 'compare': ()},
            full={'stages': ('base',), 'stage.base.modes': CONTROLS, 'compare': ()},
        ),
        'warm_start': Arm(
            'warm start',
            changes={'stages': ('warm_start', 'main', 'rarl'), 'stage.rarl.modes': CONTROLS, 'compare': ()},
            full={
                'stages': ('warm_start', 'recognition', 'rarl'),
                'stage.recognition.steps': 64,
                'stage.rarl.modes': CONTROLS,
                'compare': (),
            },
        ),
        'single_phase': Arm(
            'single phase',
            changes={'stages': ('main', 'rarl'), 'stage.rarl.modes': CONTROLS, 'compare': ()},
            sizes={'stage.main.steps': 50},
            full={
                'stages': ('recognition', 'rarl'),
                'stage.recognition.steps': 80,
                'stage.rarl.modes': CONTROLS,
                'compare': (),
            },
        ),
    },
    seeds=(0, 1, 2, 3, 4),
)
