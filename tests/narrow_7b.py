"""The paper's recipe on a policy with all that 7B's config has, but few layers and narrow sizes, preceded by grounding and supervised steps.

Loaded as --config. Heads have 7B's 128 dimensions and rotary sections and share a key head, embeddings are untied, the tower has
windows of 112 px. Sizes of batches are one each, so that little is compiled.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import SHORT, choose, small_data
from configs.rarl import full, lora
from input_pipeline.traces import TraceSettings
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.models.images import PixelLimits
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.sampler.settings import SamplerSettings
from rarl_jax.settings import RunSettings
from rarl_jax.small.grounding import GroundingSettings
from rarl_jax.small.policy import SmallShape
from rarl_jax.stages.sft import SftSettings

SHAPE = SmallShape(
    hidden=256,  # 2 heads of 128
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=256,
    rope_theta=1e6,
    vision_hidden=80,
    vision_layers=2,
    vision_heads=2,
    vision_mlp=128,
    full_blocks=(1,),
)
# eps: Adam would turn what is nothing but rounding into a step of full length.
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, eps=1e-2)
ROWS = 8  # a row of a batch for each device
BUCKETS = Buckets(lengths=(384,), images=(24,), windows=(128,), patches=(192,), chosen=(72,))


def get_config(variant: str) -> ConfigDict:
    """Variants: full and lora."""
    return choose(__file__, variant, {'full': lambda: narrow(full()), 'lora': lambda: narrow(lora())})


def narrow(recipe: RunSettings) -> RunSettings:
    """Grounding (of all weights), supervised learning, and of the recipe a warm start, a stage and an evaluation."""
    eyes = GroundingSettings(steps=1, pages=ROWS, optimizer=OPTIMIZER)
    taught = SftSettings(
        steps=1, pages=ROWS, traces=TraceSettings(), optimizer=OPTIMIZER, tasks=eyes.crop_tasks, buckets=BUCKETS
    )
    few = {'steps': 1, 'questions': ROWS // 2, 'group_size': 2, 'micro_batch': ROWS // 8, 'buckets': BUCKETS}
    stages = {} if recipe.model.lora else {'eyes': eyes}
    stages |= {'taught': taught}
    for name in ('warm_start', 'recognition'):
        stage = recipe.stage[name]
        # Random weights earn nothing: without this term nothing would move.
        stages[name] = replace(stage, **few, optimizer=OPTIMIZER, loss=replace(stage.loss, entropy_weight=0.1))
    stages['rarl'] = replace(recipe.stage['rarl'], questions=2, modes=('zoom',), tasks=eyes.crop_tasks)
    limits = {'page': PixelLimits(56 * 56, 168 * 224), 'crop': PixelLimits(56 * 56, 112 * 112)}
    model = replace(recipe.model, fresh=SHAPE, dtype='float32', param_dtype='float32', attention='xla', **limits)
    return replace(
        recipe,
        stages=tuple(stages),
        stage=stages,
        compare=('rarl:zoom',),
        model=model,
        data=small_data({'train': 8, 'test': 2}),  # whose answers are words: grounding says them
        conversation=SHORT,
        sampler=SamplerSettings(lengths=(256,), cache_lengths=(384,)),
        mesh=MeshSettings(),
    )
