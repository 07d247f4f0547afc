"""Whether the recipe does for a small Qwen3-VL what it does for a small Qwen2.5-VL.

    python -m experiments.run two_families

The quickstart of both families. Their base policies were taught by one recipe, the second's shortened, and know differently much, so gains are compared with each
one's own base and with what it does when the right crops are shown. The first family's arms are those of `warm_start`.
"""

from configs.quickstart_compare import CONTROLS
from experiments.arms import Arm, Experiment, shared

EXPERIMENT = Experiment(
    question='Does the same recipe do for another family what it does for the first?',
    arms={
        'qwen2_5_vl_base': shared('warm_start', 'base', 'Qwen2.5-VL, base'),
        'qwen2_5_vl': shared('warm_start', 'warm_start', 'Qwen2.5-VL, RARL'),
        'qwen3_vl': Arm(
            'Qwen3-VL, RARL',
            config='configs/quickstart.py:qwen3_vl',
            changes={'stage.base.modes': CONTROLS, 'stage.rarl.modes': CONTROLS, 'compare': ()},
            full_config='configs/rarl.py:qwen3_vl',
            full={'compare': ()},
        ),
    },
)
