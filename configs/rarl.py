"""The paper's recipe: Qwen2.5-VL-7B on eight 80 GB GPUs, a warm start, then one category after the other.

    python -m rarl_jax.main --config=configs/rarl.py --config.model.path=DIR --config.data.dir=DIR

`model.path` is a folder of Qwen2.5-VL-7B-Instruct, `data.dir` a data set made by configs/build_ai4va_fg.py. What the paper does not publish
(learning rate, batch, group, pixel limits, the share of the 200 steps that each category gets) follows the nearest public recipe; see README.
The variant smoke runs the same stages for a moment on drawn pages and a small policy.
"""

from ml_collections import ConfigDict

from configs._parts import small_model, small_run, to_config
from input_pipeline.schema import TASKS, Task
from input_pipeline.synthetic import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.episode import Budget
from rarl_jax.losses import LossSettings
from rarl_jax.optim import OptimizerSettings
from rarl_jax.qwen2_5_vl.images import PixelLimits
from rarl_jax.rewards import RewardSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, EvaluateSettings, ModelSettings, RlSettings, RunSettings
from rarl_jax.sharding import MeshSettings

RECOGNITION: tuple[Task, ...] = ('action_recognition', 'depth_comparison')
REORDER: tuple[Task, ...] = ('dialogue_reordering', 'panel_reordering')
CHARACTER: tuple[Task, ...] = ('character_counting', 'character_identification')


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, and smoke."""
    if variant not in ('', 'smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/rarl.py: expected smoke or none.')
    smoke = variant == 'smoke'
    stages = recipe(smoke)
    compare = ('base:zoom', 'rarl:zoom')
    if smoke:
        tasks = TaskSettings(open_share=0.5, model_pixels=168 * 224)
        draw = DrawSettings(panels=(4, 9), figures=(4, 8), balloon_rate=1.0, repeat_cast=True)
        data = DataSettings(draw=draw, pages={'train': 16, 'test': 4}, tasks=tasks)
        return small_run(small_model(''), data, stages, compare)
    return to_config(
        RunSettings(
            seed=0,
            model=ModelSettings(
                path='',
                dtype='bfloat16',
                page=PixelLimits(256 * 28 * 28, 2048 * 28 * 28),
                crop=PixelLimits(64 * 28 * 28, 1024 * 28 * 28),
                attention='cudnn',
            ),
            data=DataSettings(),
            sampler=SamplerSettings(
                budget=Budget(max_turns=5, turn_tokens=4096, total_tokens=24_576), segment=64, early_exit=False
            ),
            mesh=MeshSettings(fsdp=8),
            stages=tuple(stages),
            stage=stages,
            compare=compare,
        )
    )


def recipe(smoke: bool) -> dict[str, RlSettings | EvaluateSettings]:
    """Sixteen steps of warm start (format and tool use alone), then 200 of the full reward, category by category."""
    measure = EvaluateSettings(
        kind='evaluate', tasks=TASKS, questions=2 if smoke else 0, modes=('direct', 'zoom'), judge='token_f1'
    )

    def learn(steps: int, tasks: tuple[Task, ...], reward: RewardSettings) -> RlSettings:
        return RlSettings(
            kind='rl',
            steps=1 if smoke else steps,
            questions=2 if smoke else 128,
            group_size=2 if smoke else 8,
            tasks=tasks,
            reward=reward,
            optimizer=OptimizerSettings(learning_rate=1e-6, b2=0.99, frozen=('vision',)),
            loss=LossSettings(clip_high=0.28),
            micro_batch=4 if smoke else 16,
        )

    return {
        'base': measure,
        'warm_start': learn(16, RECOGNITION, RewardSettings().warm_start()),
        'recognition': learn(80, RECOGNITION, RewardSettings()),
        'reorder': learn(60, REORDER, RewardSettings(max_paid_zooms=3)),
        'character': learn(60, CHARACTER, RewardSettings(max_paid_zooms=3)),
        'rarl': measure,
    }
