"""Policies of a few thousand numbers, with every feature of real ones."""

import dataclasses

import jax
import numpy as np
from PIL import Image

from rarl_jax.models.config import Config, VisionConfig
from rarl_jax.models.images import Patches, PixelLimits, patchify
from rarl_jax.models.interface import build_model
from rarl_jax.models.params import Params, init_params
from rarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from rarl_jax.models.qwen3_vl import config as qwen3_vl

TEXT = qwen2_5_vl.TextConfig(48, 32, 40, 3, 4, 2, 8, 100.0, (1, 1, 2), 1e-6, tie_word_embeddings=False)
VISION = qwen2_5_vl.VisionConfig(3, 16, 24, 2, 32, fullatt_block_indexes=(1,), window_size=56)
CONFIG = qwen2_5_vl.Config(TEXT, VISION, 40, 41, 42, 43, 1, 2, init_scale=0.3)
TIED = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, tie_word_embeddings=True))
QWEN3 = qwen3_vl.Config(
    # Heads that are together wider than the residual stream.
    qwen3_vl.TextConfig(48, 32, 40, 3, 4, 2, 12, 100.0, (2, 2, 2), 1e-6, tie_word_embeddings=False),
    # Patches of 14 px as above, so that the same images have the same tokens.
    qwen3_vl.VisionConfig(3, 16, 24, 2, 32, 14, num_position_embeddings=25, deepstack_visual_indexes=(0, 1)),
    *(40, 41, 42, 43, 1, 2, 0.3),
)
FAMILIES = {config.model_type: config for config in (CONFIG, QWEN3)}
LIMITS = PixelLimits(28 * 28, 28 * 28 * 40)


def small_params(config: Config = CONFIG, seed: int = 0) -> Params:
    """Fresh params with biases and norms moved off their neutral start."""
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(seed), build_model(config))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params)


def small_image(width: int, height: int, seed: int = 0, vision: VisionConfig = VISION) -> Patches:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return patchify(Image.fromarray(noise), LIMITS, vision)
