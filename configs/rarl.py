"""The paper's recipe: Qwen2.5-VL-7B on eight 80 GB GPUs, a warm start, then one category after the other.

    python -m rarl_jax.main --config=configs/rarl.py --config.model.path=DIR --config.data.dir=DIR

`model.path` is a folder of Qwen2.5-VL-7B-Instruct, `data.dir` a data set made by configs/build_ai4va_fg.py. What the paper does not publish
(learning rate, batch, group, pixel limits, the share of the 200 steps that each category gets) follows the nearest public recipe; see README.
The variant lora trains a low-rank adapter of the decoder on one 80 GB GPU, with a sixteenth of the questions a step; its export holds the merged
policy and, in export/adapter, the adapter for PEFT. The variant dapo adds what the paper does not have: a warm start that ends when calls have come,
groups without variance replaced, length and calls priced, a replay of earlier categories, and a watch over pages held out from training; joint trains
all categories at once, by weight. The variants qwen3_vl and qwen3_vl_lora are the recipe and its adapter for Qwen3-VL-8B, at as many tokens an image.
The variants with _smoke run the same stages for a moment on drawn pages and a small policy.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ml_collections import ConfigDict

from configs._parts import choose, recipe, shrink, small_model, small_qwen3_vl
from input_pipeline.schema import TASKS, Task
from input_pipeline.synthetic.pages import DrawSettings
from input_pipeline.tasks import TaskSettings
from rarl_jax.conversation.dialogue import Budget, ConversationSettings
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.lora import LoraConfig
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import DataSettings, ModelSettings, RunSettings
from rarl_jax.stages.ends import AdaptiveEnd, Collapse
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import HeldOutSettings, RlSettings, StageBudget

RECOGNITION: tuple[Task, ...] = ('action_recognition', 'depth_comparison')
REORDER: tuple[Task, ...] = ('dialogue_reordering', 'panel_reordering')
CHARACTER: tuple[Task, ...] = ('character_counting', 'character_identification')

MODEL = ModelSettings(
    path='',
    dtype='bfloat16',
    page=PixelLimits(256 * 28 * 28, 2048 * 28 * 28),
    crop=PixelLimits(64 * 28 * 28, 1024 * 28 * 28),
    attention='cudnn',
)
# As many tokens of an image, each of 32 px.
QWEN3_VL = replace(
    MODEL,
    published='Qwen3-VL-8B',
    remat='full',  # more layers than the 7B, and wider: 24,576 tokens would keep more than a device holds
    page=PixelLimits(256 * 32 * 32, 2048 * 32 * 32),
    crop=PixelLimits(64 * 32 * 32, 1024 * 32 * 32),
)
CONVERSATION = ConversationSettings(budget=Budget(max_turns=5, turn_tokens=4096, total_tokens=24_576))
# 192 rows of a full cache take 34 GB of each GPU; the 1,024 episodes of a step take turns in them.
SAMPLER = SamplerSettings(
    rows=192,
    segment=64,
    early_exit=False,
    tokens_at_once=16_384,
    patches_at_once=65_536,
    lengths=(512, 1280, 2560, 4096, 8192),
    cache_lengths=(4096, 8192, 12_288, 16_384, 24_576),
)
# A compilation of the 7B update takes minutes: few shapes. The largest hold a group with its page and four crops an episode, however thin.
BUCKETS = Buckets(
    lengths=(4096, 8192, 16_384, 24_576),
    images=(24, 40),
    windows=(640, 1280, 2560, 4864),
    patches=(8192,),
    chosen=(1024, 4096, 20_480),
)
# The other family's windows are never thin: they only hold what attention sees whole.
QWEN3_VL_BUCKETS = replace(BUCKETS, windows=(640, 1280, 2560))
LORA = LoraConfig(
    rank=64,
    alpha=64.0,
    targets=('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'),
)
# What the smoke variants draw: pages on which every task finds something to ask.
DRAWN = DataSettings(
    draw=DrawSettings(panels=(4, 9), figures=(4, 8), balloon_rate=1.0, repeat_cast=True),
    pages={'train': 16, 'validation': 0, 'test': 4},
    tasks=TaskSettings(open_share=0.5, model_pixels=168 * 224),
)


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, lora, dapo, joint, qwen3_vl and qwen3_vl_lora; smoke, and each with _smoke."""
    variants = {'': full, 'lora': lora, 'dapo': dapo, 'joint': joint}
    others = {'qwen3_vl': qwen3_vl, 'qwen3_vl_lora': qwen3_vl_lora}
    small = {f'{name}_smoke'.lstrip('_'): partial(smoke, made, small_model) for name, made in variants.items()}
    small |= {f'{name}_smoke': partial(smoke, made, small_qwen3_vl) for name, made in others.items()}
    return choose(__file__, variant, variants | others | small)


def smoke(made: Callable[[], RunSettings], small: Callable[[str], ModelSettings]) -> RunSettings:
    return shrink(made(), DRAWN, small)


def full(model: ModelSettings = MODEL, sampler: SamplerSettings = SAMPLER, buckets: Buckets = BUCKETS) -> RunSettings:
    """All weights, on eight GPUs."""
    learner = RlSettings(
        steps=80,
        questions=128,
        group_size=8,
        tasks=RECOGNITION,
        reward=RewardSettings(),
        optimizer=OptimizerSettings(learning_rate=1e-6, b2=0.99, frozen=('vision',)),
        loss=LossSettings(),  # one update a batch, as the nearest public recipe has it: there is nothing to clip
        micro_batch=1,  # two of 24,576 tokens would keep 100 GB of activations
        buckets=buckets,
    )
    return run(model, sampler, MeshSettings(fsdp=8), learner)


def qwen3_vl() -> RunSettings:
    """All weights of Qwen3-VL-8B, on eight GPUs. Its cache has 2.6 times as many numbers a token."""
    return full(QWEN3_VL, replace(SAMPLER, rows=56), QWEN3_VL_BUCKETS)


def qwen3_vl_lora() -> RunSettings:
    """A low-rank adapter of its decoder, on one GPU."""
    return lora(QWEN3_VL, 6, QWEN3_VL_BUCKETS)


def lora(model: ModelSettings = MODEL, rows: int = 12, buckets: Buckets = BUCKETS) -> RunSettings:
    """A low-rank adapter of the decoder, on one GPU."""
    learner = RlSettings(
        steps=80,
        questions=8,
        group_size=8,
        tasks=RECOGNITION,
        reward=RewardSettings(),
        optimizer=OptimizerSettings(learning_rate=1e-5, b2=0.99),  # an adapter wants about ten times the rate
        loss=LossSettings(),
        micro_batch=1,
        buckets=replace(buckets, images=(2, 5), windows=(256, 640)),  # a row by itself holds a page and four crops
    )
    model = replace(model, param_dtype='bfloat16', lora=LORA)
    # Beside two copies of the weights: few rows of the cache, and prompts one by one.
    lengths = tuple(length for length in SAMPLER.lengths if length <= 4096)
    sampler = replace(SAMPLER, rows=rows, lengths=lengths, tokens_at_once=4096, patches_at_once=16_384)
    return run(model, sampler, MeshSettings(), learner)


def dapo() -> RunSettings:
    """The same, with DAPO's sampling and loss (arXiv 2503.14476), a replay against forgetting, and an eye on what is going wrong."""
    plain = full()
    changes = {
        'refills': 2,
        'masked_endings': ('turn_limit',),
        'mini_batches': 4,
        'loss': LossSettings(clip_high=0.28),
        'held_out': HeldOutSettings(every=10, take_best=True),
        'collapse': Collapse(window=10, zoom_drop=0.5, least_entropy=0.01),
    }
    stages = dict(plain.stage)
    stages['warm_start'] = replace(
        stages['warm_start'], budget=StageBudget(max_turns=3), adaptive_end=AdaptiveEnd(window=4)
    )
    for name in ('recognition', 'reorder', 'character'):
        stage = stages[name]
        # A call is worth its pay where the answer is right, and a little less than nothing where it is wrong.
        reward = replace(stage.reward, overlong_limit=16_384, overlong_buffer=4096, constant=0.0, call_cost=0.02)
        stages[name] = replace(stage, **changes, reward=reward, replay=0.0 if name == 'recognition' else 0.1)
    return replace(plain, stage=stages, data=replace(plain.data, held_out=0.02))


def joint() -> RunSettings:
    """All categories at once: what the paper found to cost the earlier ones. Reordering, the hardest to earn from, is asked most."""
    plain = full()
    stages = {name: plain.stage[name] for name in ('base', 'warm_start', 'recognition', 'rarl')}
    tasks = (*RECOGNITION, *REORDER, *CHARACTER)
    reward = RewardSettings(max_paid_zooms=3)
    stages['all'] = replace(
        stages.pop('recognition'), steps=200, tasks=tasks, reward=reward, task_weights=(1.0, 1.0, 2.0, 2.0, 1.0, 1.0)
    )
    stages['rarl'] = stages.pop('rarl')
    return replace(plain, stages=tuple(stages), stage=stages)


def run(model: ModelSettings, sampler: SamplerSettings, mesh: MeshSettings, learner: RlSettings) -> RunSettings:
    """Sixteen steps of warm start (format and tool use alone), then 200 of the full reward, category by category."""
    measure = EvaluateSettings(tasks=TASKS, questions=0, modes=('direct', 'zoom'), judge='token_f1')
    several = RewardSettings(max_paid_zooms=3)
    stages = {
        'base': measure,
        'warm_start': replace(learner, steps=16, reward=RewardSettings().warm_start()),
        'recognition': learner,
        'reorder': replace(learner, steps=60, tasks=REORDER, reward=several),
        'character': replace(learner, steps=60, tasks=CHARACTER, reward=several),
        'rarl': measure,
    }
    compare = ('base:zoom', 'rarl:zoom')
    return recipe(
        stages, compare, model=model, data=DataSettings(), conversation=CONVERSATION, sampler=sampler, mesh=mesh
    )
