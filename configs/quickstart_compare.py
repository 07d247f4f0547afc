"""The quickstart beside plain RL: the same base, seed, questions and number of updates, but no tool is offered.

    python -m rarl_jax.main --config=configs/quickstart_compare.py

Longer than the quickstart by plain RL's updates and the controls. Besides the policy's own zooms, the trained policy is measured directly (without the tool), with the right region shown,
and with blank and shuffled crops.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import small_run
from configs.quickstart import parts, rl_stage
from rarl_jax.conversation.rewards import RewardSettings

CONTROLS = ('direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, and smoke."""
    model, data, stages = parts('quickstart_compare', variant)
    updates = sum(stages[name].steps for name in ('warm_start', 'main'))
    plain = rl_stage(updates, variant == 'smoke', RewardSettings(tool_count=0.0, tool_iou=0.0), offer_tool=False)
    stages |= {
        'rarl': replace(stages['rarl'], modes=CONTROLS),
        'plain': replace(plain, from_start=True),
        'plain_rl': replace(stages['rarl'], modes=('direct',)),
    }
    compare = ('base:zoom', 'plain_rl:direct', *(f'rarl:{mode}' for mode in CONTROLS))
    return small_run(model, data, stages, compare)
