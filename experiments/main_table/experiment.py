"""The paper's main table in small: the same base policy untouched, taught by answers, by looks, by reinforcement without and with the tool.

    python -m experiments.run main_table

Every arm that learns has 50 updates with 32 questions each, RL on top of SFT-R these after SFT-R's own; attempts of reinforcement come on top, eight per
question. Each is measured as it was taught, and with the right crops given (`oracle_zoom`). Zero-shot and RARL are arms of `warm_start`, which are not run
again.
"""

from experiments.arms import Arm, Experiment, shared
from experiments.reward_parts.experiment import FULL_STAGES

LOOKING = ('zoom', 'oracle_zoom')
RL = {'stages': ('warm_start', 'main', 'rarl'), 'stage.rarl.modes': LOOKING, 'compare': ()}
# Of configs/rarl.py, all but its first evaluation.
STAGES = ('warm_start', *FULL_STAGES, 'rarl')
RL_FULL = {'stages': STAGES, 'stage.rarl.modes': LOOKING, 'compare': ()}
NO_TOOL = {
    f'stage.{stage}.{name}': value
    for stage in FULL_STAGES
    for name, value in (('offer_tool', False), ('reward.tool_count', 0.0), ('reward.tool_iou', 0.0))
}

EXPERIMENT = Experiment(
    question='What does each way of training bring, on the same pages and with as many updates?',
    arms={
        'zero_shot': shared(
            'warm_start',
            'base',
            'zero-shot',
            full={'stages': ('base',), 'stage.base.modes': ('direct', *LOOKING), 'compare': ()},
        ),
        'sft_s': Arm(
            'SFT-S',
            config='configs/sft_s.py:small',
            changes={'stages': ('sft', 'tuned'), 'compare': ()},
            full_config='configs/sft_s.py',
            full={'stages': ('sft', 'tuned'), 'compare': ()},
        ),
        'sft_r': Arm(
            'SFT-R',
            config='configs/sft_r.py:small',
            changes={'stages': ('sft', 'tuned'), 'stage.tuned.modes': LOOKING, 'compare': ()},
            full_config='configs/sft_r.py',
            full={'stages': ('sft', 'tuned'), 'stage.tuned.modes': LOOKING, 'compare': ()},
        ),
        'plain_rl': Arm(
            'RL without tool',
            config='configs/quickstart_compare.py',
            changes={'stages': ('plain', 'plain_rl'), 'compare': ()},
            full={'stages': STAGES[1:], 'stage.rarl.modes': ('direct',), 'compare': (), **NO_TOOL},
        ),
        'rl_after_sft_r': Arm('RL on top of SFT-R', changes=RL, full=RL_FULL, begins_with='sft_r'),
        'rarl': shared('warm_start', 'warm_start', 'RARL', full=RL_FULL),
    },
)
