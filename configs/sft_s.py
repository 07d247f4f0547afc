"""SFT-S, the paper's plain supervised baseline: questions and their answers, no look at anything but the page; Qwen2.5-VL-7B on eight 80 GB GPUs.

    python -m rarl_jax.main --config=configs/sft_s.py --config.model.path=DIR --config.data.dir=DIR

Rate 1e-5 with a warm-up and a cosine, tower and projector frozen, as many conversations as three epochs have. They are made from the annotations;
--config.stage.sft.taught=FILE.jsonl takes a file's in their place, see rarl_jax/stages/taught.py. The variant lora trains an adapter on one GPU, small the
quickstart's base policy in as many updates as the quickstart has; smoke, lora_smoke and small_smoke run the same stages for a moment. With reasoning:
configs/sft_r.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from ml_collections import ConfigDict

from configs import rarl
from configs._parts import SMALL_TASKS, choose, recipe, shrink, small_model, small_world
from configs.quickstart import MEASURE
from input_pipeline.schema import TASKS
from input_pipeline.traces import TraceSettings
from rarl_jax.evaluation.records import Mode
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.runtime.sharding import MeshSettings
from rarl_jax.settings import DataSettings, RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.sft import SftSettings

ANSWERS = TraceSettings(answer=0.0, direct=1.0, guess_rate=0.0)
# Three epochs of some 5,600 questions: seven tasks, four a page of each, 200 training pages of AI4VA's 282.
STEPS, CONVERSATIONS = 264, 64


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, lora and small; smoke, lora_smoke and small_smoke."""
    return choose(__file__, variant, variants(ANSWERS, 'direct'))


def variants(traces: TraceSettings, mode: Mode) -> Mapping[str, Callable[[], RunSettings]]:
    """The recipe on these traces, measured in `mode`, by the names of its variants."""
    return {
        '': lambda: full(traces, mode),
        'lora': lambda: lora(traces, mode),
        'small': lambda: small(traces, mode),
        'smoke': lambda: shrink(full(traces, mode), rarl.DRAWN),
        'lora_smoke': lambda: shrink(lora(traces, mode), rarl.DRAWN),
        'small_smoke': lambda: shrink(small(traces, mode)),
    }


def full(traces: TraceSettings, mode: Mode) -> RunSettings:
    """All weights of the decoder, on eight GPUs."""
    stage = SftSettings(
        steps=STEPS,
        pages=CONVERSATIONS,
        traces=traces,
        optimizer=cosine(1e-5),
        tasks=TASKS,
        micro_batch=1,
        buckets=rarl.BUCKETS,
    )
    world = {
        'model': rarl.MODEL,
        'data': DataSettings(),
        'conversation': rarl.CONVERSATION,
        'sampler': rarl.SAMPLER,
        'mesh': MeshSettings(fsdp=8),
    }
    measure = EvaluateSettings(tasks=TASKS, questions=0, modes=(mode,), judge='token_f1')
    stages = {'base': measure, 'sft': stage, 'tuned': measure}
    return recipe(stages, ('base', 'tuned'), **world)


def lora(traces: TraceSettings, mode: Mode) -> RunSettings:
    """A low-rank adapter of the decoder, on one GPU, as configs/rarl.py trains it."""
    run, adapter = full(traces, mode), rarl.lora()
    optimizer, buckets = replace(cosine(1e-4), frozen=()), adapter.stage['recognition'].buckets
    stage = replace(run.stage['sft'], optimizer=optimizer, buckets=buckets)
    world = {'model': adapter.model, 'sampler': adapter.sampler, 'mesh': adapter.mesh}
    return replace(run, **world, stage={**run.stage, 'sft': stage})


def small(traces: TraceSettings, mode: Mode) -> RunSettings:
    """The quickstart's base, its pages, and as many updates with as many questions as its reinforcement has."""
    measure = replace(MEASURE, modes=(mode,))
    world = small_world(small_model('experiments/quickstart_base'), {'train': 400, 'test': 420})
    stages = {'base': measure, 'sft': small_stage(traces, 50), 'tuned': measure}
    return recipe(stages, ('base', 'tuned'), **world)


def small_stage(traces: TraceSettings, steps: int) -> SftSettings:
    return SftSettings(steps=steps, pages=32, traces=traces, optimizer=cosine(3e-4), tasks=SMALL_TASKS)


def cosine(rate: float) -> OptimizerSettings:
    return OptimizerSettings(learning_rate=rate, schedule='cosine', warmup=0.1, b2=0.99, frozen=('vision',))
