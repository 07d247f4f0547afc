"""What the rest of the project knows of a model family."""

from __future__ import annotations

from rarl_jax.models.qwen2_5_vl.config import PRESETS, Config, TextConfig, VisionConfig
from rarl_jax.models.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.models.qwen2_5_vl.text import Cache, LayerCache
from rarl_jax.models.qwen2_5_vl.vision import VisionBatch, VisionBuckets, as_part, plan_vision

__all__ = [
    'PRESETS',
    'Cache',
    'Config',
    'LayerCache',
    'Qwen2_5_VL',
    'TextConfig',
    'VisionBatch',
    'VisionBuckets',
    'VisionConfig',
    'as_part',
    'plan_vision',
]
