"""SFT-R, the paper's supervised baseline with reasoning: conversations that look before they answer; Qwen2.5-VL-7B on eight 80 GB GPUs.

    python -m rarl_jax.main --config=configs/sft_r.py --config.model.path=DIR --config.data.dir=DIR

Made from the annotations: a call for each region that matters, four at most, then the answer; annotations hold no thoughts, so traces that reason in words come from a
file, --config.stage.sft.taught=FILE.jsonl. Otherwise as configs/sft_s.py, with the same variants.
"""

from ml_collections import ConfigDict

from configs._parts import choose
from configs.sft_s import variants
from input_pipeline.traces import TraceSettings

LOOKS = TraceSettings(answer=1.0, looks=4)  # as many as the tool grants


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none, lora and small; smoke, lora_smoke and small_smoke."""
    return choose(__file__, variant, variants(LOOKS, 'zoom'))
