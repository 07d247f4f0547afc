"""A policy of a few thousand numbers, with every feature of a real one."""

import dataclasses

import jax
import numpy as np
from PIL import Image

from rarl_jax.models.images import Patches, PixelLimits, patchify
from rarl_jax.models.interface import build_model
from rarl_jax.models.params import Params, init_params
from rarl_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig

TEXT = TextConfig(48, 32, 40, 3, 4, 2, 8, 100.0, (1, 1, 2), 1e-6, tie_word_embeddings=False)
VISION = VisionConfig(3, 16, 24, 2, 32, fullatt_block_indexes=(1,), window_size=56)
CONFIG = Config(TEXT, VISION, 40, 41, 42, 43, 1, 2, init_scale=0.3)
TIED = dataclasses.replace(CONFIG, text=dataclasses.replace(TEXT, tie_word_embeddings=True))
LIMITS = PixelLimits(28 * 28, 28 * 28 * 40)


def small_params(config: Config = CONFIG, seed: int = 0) -> Params:
    """Fresh params with biases and norms moved off their neutral start."""
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(seed), build_model(config))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params)


def small_image(width: int, height: int, seed: int = 0) -> Patches:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return patchify(Image.fromarray(noise), LIMITS, VISION)
