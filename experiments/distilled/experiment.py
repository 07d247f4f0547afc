"""Whether a student that is taught from the page alone what was found out with the right crops matches a policy that zooms (after arXiv 2602.11858).

    python -m experiments.run distilled

The teacher is RARL's policy of the same seed, with the right crops shown, on training pages; see configs/distill.py. `truth` is taught the true answers, as
SFT-S of `main_table`; RARL itself is an arm of `warm_start`.
"""

from experiments.arms import Arm, Experiment, shared

EXPERIMENT = Experiment(
    question='Can a student say from the page at once what its teacher found out by zooming?',
    arms={
        'rarl': shared('warm_start', 'warm_start', 'RARL'),
        'truth': shared('main_table', 'sft_s', 'taught the true answers'),
        'distilled': Arm(
            'taught the teacher’s answers',
            config='configs/distill.py:small',
            changes={'compare': ()},
            full_config='configs/distill.py',
            full={'compare': ()},
        ),
    },
)
