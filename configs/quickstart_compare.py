"""The quickstart beside plain RL: the same base, seed, questions and number of updates, but no tool is offered.

    python -m rarl_jax.main --config=configs/quickstart_compare.py

Longer than the quickstart by plain RL's updates and the controls. Besides the policy's own zooms, the trained policy is measured directly (without the tool), with the right region shown,
and with blank and shuffled crops. Variant smoke: the same for a moment.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import choose, recipe, shrink, small_model, small_world
from configs.quickstart import MEASURE, quickstart, updates
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.settings import RunSettings

CONTROLS = ('direct', 'zoom', 'oracle_zoom', 'blank_crop', 'shuffled_crop')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none and smoke."""
    return choose(__file__, variant, {'': compared, 'smoke': lambda: shrink(compared(), main=2, plain=3)})


def compared() -> RunSettings:
    stages = dict(quickstart().stage)
    plain = updates(stages['warm_start'].steps + stages['main'].steps, RewardSettings(tool_count=0.0, tool_iou=0.0))
    stages |= {
        'rarl': replace(MEASURE, modes=CONTROLS),
        'plain': replace(plain, offer_tool=False, from_start=True),
        'plain_rl': replace(MEASURE, modes=('direct',)),
    }
    compare = ('base:zoom', 'plain_rl:direct', *(f'rarl:{mode}' for mode in CONTROLS))
    return recipe(
        stages, compare, **small_world(small_model('experiments/quickstart_base'), {'train': 400, 'test': 420})
    )
