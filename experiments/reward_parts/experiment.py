"""What each part of the reward does: parts left out or weighed otherwise, after the same warm start.

    python -m experiments.run reward_parts

R = R_acc + R_format + (constant + gate 1[R_acc > 0]) (w_count R_count + w_iou R_iou); every arm but the first changes one of these, `no_tool` two.
"""

from experiments.arms import Arm, Experiment, shared

MEASURED = {'stages': ('warm_start', 'main', 'rarl'), 'stage.rarl.modes': ('zoom', 'blank_crop'), 'compare': ()}
FULL_STAGES = ('recognition', 'reorder', 'character')  # of configs/rarl.py, those with the full reward


def arm(label: str, **reward: float) -> Arm:
    """The quickstart with another reward in its main stage, and the same in the stages of the 7B recipe."""
    small = {f'stage.main.reward.{name}': value for name, value in reward.items()}
    full = {f'stage.{stage}.reward.{name}': value for stage in FULL_STAGES for name, value in reward.items()}
    return Arm(label, changes=MEASURED | small, full=full)


EXPERIMENT = Experiment(
    question='Which parts of the reward does the policy need to look at the right place and to answer from what it sees?',
    arms={
        'paper': shared('warm_start', 'warm_start', 'the paper’s reward', full={}),
        'no_iou': arm('without tool IoU', tool_iou=0.0),
        'no_count': arm('without tool count', tool_count=0.0),
        'no_tool': arm('accuracy and form alone', tool_iou=0.0, tool_count=0.0),
        'no_constant': arm('without the constant', constant=0.0),
        'no_gate': arm('without the gate', gate=0.0),
        'iou_half': arm('tool IoU × 0.5', tool_iou=0.5),
        'iou_double': arm('tool IoU × 2', tool_iou=2.0),
        'count_double': arm('tool count × 2', tool_count=2.0),
    },
)
