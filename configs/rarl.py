"""The paper's recipe: Qwen2.5-VL-7B on eight 80 GB GPUs, a warm start, then one category after the other.

    python -m rarl_jax.main --config=configs/rarl.py --config.model.path=DIR --config.data.dir=DIR

`model.path` is a folder of Qwen2.5-VL-7B-Instruct, `data.dir` a data set made by configs/build_ai4va_fg.py. What the paper does not publish
(learning rate, batch, group, pixel limits, the share of the 200 steps that each category gets) follows the nearest public recipe; see README.
The variant lora trains a low-rank adapter of the decoder on one 80 GB GPU, with a sixteenth of the questions a step; its export holds the merged
policy and, in export/adapter, the adapter for PEFT. The variants smoke and lora_smoke run the same stages for a moment on drawn pages and a small policy.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import small_model, small_run, to_config
from input_pipeline.schema import TASKS, Task
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.conversation.dialogue import Budget
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.lora import LoraConfig
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, EvaluateSettings, ModelSettings, RlSettings, RunSettings

# A compilation of the 7B update takes minutes: few shapes. The largest hold a group with its page and four crops an episode, however thin.
BUCKETS = Buckets(
    lengths=(4096, 8192, 16_384, 24_576),
    images=(24, 40),
    windows=(640, 1280, 2560, 4864),
    patches=(8192,),
    chosen=(1024, 4096, 20_480),
)
RECOGNITION: tuple[Task, ...] = ('action_recognition', 'depth_comparison')
REORDER: tuple[Task, ...] = ('dialogue_reordering', 'panel_reordering')
CHARACTER: tuple[Task, ...] = ('character_counting', 'character_identification')


LORA = LoraConfig(
    rank=64,
    alpha=64.0,
    targets=('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'),
)


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, smoke, lora and lora_smoke."""
    if variant not in ('', 'smoke', 'lora', 'lora_smoke'):
        raise ValueError(f'Unknown variant {variant!r} of configs/rarl.py: expected smoke, lora, lora_smoke or none.')
    smoke, lora = variant.endswith('smoke'), LORA if variant.startswith('lora') else None
    stages = recipe(smoke, lora is not None)
    compare = ('base:zoom', 'rarl:zoom')
    if smoke:
        tasks = TaskSettings(open_share=0.5, model_pixels=168 * 224)
        draw = DrawSettings(panels=(4, 9), figures=(4, 8), balloon_rate=1.0, repeat_cast=True)
        data = DataSettings(draw=draw, pages={'train': 16, 'test': 4}, tasks=tasks)
        return small_run(replace(small_model(''), lora=lora), data, stages, compare)
    return to_config(
        RunSettings(
            seed=0,
            model=ModelSettings(
                path='',
                dtype='bfloat16',
                param_dtype='float32' if lora is None else 'bfloat16',
                lora=lora,
                page=PixelLimits(256 * 28 * 28, 2048 * 28 * 28),
                crop=PixelLimits(64 * 28 * 28, 1024 * 28 * 28),
                attention='cudnn',
            ),
            data=DataSettings(),
            # 192 rows of a full cache take 34 GB of each GPU; the 1,024 episodes of a step are decoded in six rounds.
            sampler=SamplerSettings(
                budget=Budget(max_turns=5, turn_tokens=4096, total_tokens=24_576),
                rows=192 if lora is None else 16,  # of an adapter's run: 23 GB beside two copies of the weights
                segment=64,
                early_exit=False,
                patches_at_once=65_536,
                lengths=(512, 1280, 2560, 4096, 8192),
                cache_lengths=(4096, 8192, 12_288, 16_384, 24_576),
            ),
            mesh=MeshSettings(fsdp=8 if lora is None else 1),
            stages=tuple(stages),
            stage=stages,
            compare=compare,
        )
    )


def recipe(smoke: bool, lora: bool) -> dict[str, RlSettings | EvaluateSettings]:
    """Sixteen steps of warm start (format and tool use alone), then 200 of the full reward, category by category."""
    optimizer = OptimizerSettings(learning_rate=1e-6, b2=0.99, frozen=('vision',))
    if lora:  # an adapter wants about ten times the rate, and has no part in the tower
        optimizer = OptimizerSettings(learning_rate=1e-5, b2=0.99)
    questions, micro_batch, buckets = 128, 8, BUCKETS
    if lora:  # a row by itself holds a page and four crops
        questions, micro_batch, buckets = 8, 1, replace(BUCKETS, images=(2, 5), windows=(256, 640))
    measure = EvaluateSettings(
        kind='evaluate', tasks=TASKS, questions=2 if smoke else 0, modes=('direct', 'zoom'), judge='token_f1'
    )

    def learn(steps: int, tasks: tuple[Task, ...], reward: RewardSettings) -> RlSettings:
        return RlSettings(
            kind='rl',
            steps=1 if smoke else steps,
            questions=2 if smoke else questions,
            group_size=2 if smoke else 8,
            tasks=tasks,
            reward=reward,
            optimizer=optimizer,
            loss=LossSettings(clip_high=0.28),
            # A row for each GPU: two of 24,576 tokens would keep 100 GB of activations.
            micro_batch=4 if smoke else micro_batch,
            buckets=Buckets() if smoke else buckets,
        )

    return {
        'base': measure,
        'warm_start': learn(16, RECOGNITION, RewardSettings().warm_start()),
        'recognition': learn(80, RECOGNITION, RewardSettings()),
        'reorder': learn(60, REORDER, RewardSettings(max_paid_zooms=3)),
        'character': learn(60, CHARACTER, RewardSettings(max_paid_zooms=3)),
        'rarl': measure,
    }
