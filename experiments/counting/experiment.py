"""Why counting fails, and whether paying for every figure that is looked at repairs it.

    python -m experiments.run counting

From experiments/wider_base, which was taught to call once for each figure. The paper pays one zoom, whatever the question; its policy never learns to crop every panel.
The regions of a question are all figures that are counted, and IoU is over all of them in every arm but the last. The base is curriculum's.
"""

from experiments.arms import Arm, Changes, Experiment, shared
from input_pipeline.schema import Task

MOST = 6  # zooms that the tool grants


def alone(task: Task) -> Changes:
    """One task of the characters by itself, from the warm start on."""
    return {
        'stages': ('warm_start', 'character', 'rarl'),
        'stage.warm_start.tasks': (task,),
        'stage.character.tasks': (task,),
        'compare': (),
    }


def arm(label: str, **reward: float) -> Arm:
    """Counting alone: five updates of warm start, which are the same for all, and 25 with this reward."""
    changed = alone('character_counting') | {f'stage.character.reward.{name}': value for name, value in reward.items()}
    return Arm(
        label,
        config='configs/quickstart.py:wider',
        changes=changed | {'stage.character.task_weights': (), 'stage.rarl.modes': ('zoom', 'blank_crop')},
        full=changed,
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
