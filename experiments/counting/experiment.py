"""Why counting fails, and whether paying for every figure that is looked at repairs it.

    python -m experiments.run counting

From experiments/wider_base, which was taught to call once for each figure. The paper pays one zoom, whatever the question; its policy never learns to crop every panel.
The regions of a question are all figures that are counted, and IoU is over all of them in every arm but the last. The base is curriculum's.
"""

from experiments.arms import Arm, Experiment, shared

MOST = 6  # zooms that the tool grants


def arm(label: str, **reward: float) -> Arm:
    """Counting alone: five updates of warm start, which are the same for all, and 40 with this reward."""
    alone = {
        'stages': ('warm_start', 'character', 'rarl'),
        'stage.warm_start.tasks': ('character_counting',),
        'stage.character.tasks': ('character_counting',),
        'compare': (),
    }
    changed = {f'stage.character.reward.{name}': value for name, value in reward.items()}
    return Arm(
        label,
        config='configs/quickstart.py:wider',
        changes={
            **alone,
            'stage.character.task_weights': (),
            'stage.rarl.modes': ('zoom', 'blank_crop'),
            **changed,
        },
        full={**alone, **changed},
    )


EXPERIMENT = Experiment(
    question='Does counting fail because one zoom alone is paid?',
    arms={
        'base': shared('curriculum', 'sequential', 'base policy'),
        'one': arm('one zoom paid', max_paid_zooms=1),
        'every': arm('every zoom paid', max_paid_zooms=MOST),
        'every_shared': arm('every zoom paid, a sixth of one each', max_paid_zooms=MOST, tool_count=1 / MOST),
        'answer': arm('no zoom paid', tool_count=0.0, tool_iou=0.0),
    },
)
