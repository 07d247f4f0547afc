"""The PyTorch reference at a size that a test can afford: random models with magnified weights, and conversations for both sides."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import (
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from rarl_jax.models.config import Config
from rarl_jax.models.images import Patches, PixelLimits, patchify
from rarl_jax.models.positions import mrope_positions
from rarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from rarl_jax.models.qwen3_vl import config as qwen3_vl

IMAGE, VIDEO, START, END = 100, 101, 102, 103  # token ids of the small vocabulary
SPECIAL = (IMAGE, VIDEO, START, END)
LIMITS = PixelLimits(28 * 28 * 2, 28 * 28 * 60)
# Page, crop, crop: windows are ragged at the right edge, at the lower edge, at both; the second is smaller than a window of 4 x 4.
SIZES = ((170, 230), (90, 60), (84, 300))


def _qwen2_5(text: qwen2_5_vl.TextConfig, vision: qwen2_5_vl.VisionConfig) -> Config:
    return qwen2_5_vl.Config(text, vision, IMAGE, VIDEO, START, END, bos_token_id=1, eos_token_id=2)


def _qwen3(text: qwen3_vl.TextConfig, vision: qwen3_vl.VisionConfig) -> Config:
    return qwen3_vl.Config(text, vision, IMAGE, VIDEO, START, END, bos_token_id=1, eos_token_id=2)


CONFIGS = {
    # tied head, 2 queries a key, windows of 2 x 2 merged tokens
    'tied': _qwen2_5(
        qwen2_5_vl.TextConfig(120, 64, 96, 3, 4, 2, 16, 100.0, (2, 3, 3), 1e-6, True),
        qwen2_5_vl.VisionConfig(4, 32, 48, 2, 64, fullatt_block_indexes=(1, 3), window_size=56),
    ),
    # untied, 4 queries a key, windows of 4 x 4, full attention in the first block
    'untied': _qwen2_5(
        qwen2_5_vl.TextConfig(136, 128, 72, 2, 8, 2, 16, 1e3, (2, 3, 3), 1e-5, False),
        qwen2_5_vl.VisionConfig(3, 48, 80, 3, 128, fullatt_block_indexes=(0, 2)),
    ),
    # every head its own key, 12 frequencies, windows of 3 x 3, full attention in a middle block only
    'one_to_one': _qwen2_5(
        qwen2_5_vl.TextConfig(112, 48, 64, 4, 2, 2, 24, 100.0, (2, 6, 4), 1e-6, False),
        qwen2_5_vl.VisionConfig(4, 32, 40, 1, 48, fullatt_block_indexes=(2,), window_size=84),
    ),
    # tied head, heads together wider than the residual stream, two features behind middle blocks
    'qwen3_tied': _qwen3(
        qwen3_vl.TextConfig(120, 64, 96, 4, 4, 2, 24, 100.0, (4, 4, 4), 1e-6, True),
        qwen3_vl.VisionConfig(4, 32, 48, 2, 64, num_position_embeddings=36, deepstack_visual_indexes=(1, 2)),
    ),
    # untied, 4 queries a key, as many features as layers, the last behind the last block
    'qwen3_untied': _qwen3(
        qwen3_vl.TextConfig(136, 128, 72, 2, 8, 2, 16, 1e3, (4, 2, 2), 1e-5, False),
        qwen3_vl.VisionConfig(3, 48, 80, 3, 128, num_position_embeddings=144, deepstack_visual_indexes=(0, 2)),
    ),
    # every head its own key, heads together narrower than the residual stream, a table smaller than any image, one feature
    'qwen3_one_to_one': _qwen3(
        qwen3_vl.TextConfig(112, 48, 64, 4, 2, 2, 16, 100.0, (2, 3, 3), 1e-6, False),
        qwen3_vl.VisionConfig(4, 32, 40, 1, 48, num_position_embeddings=9, deepstack_visual_indexes=(0,)),
    ),
}
REFERENCES: dict[str, tuple[type, type[PreTrainedModel]]] = {
    'qwen2_5_vl': (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    'qwen3_vl': (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}


def random_reference(config: Config, seed: int = 0) -> PreTrainedModel:
    """A float32 model whose matrices raise the scale of what they map by half, so that every mistake shows in the logits, and rounding does not."""
    config_class, model_class = REFERENCES[config.model_type]
    model = model_class._from_config(config_class(**config.to_hf()), attn_implementation='eager')
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            norm = name.endswith(('norm.weight', 'norm1.weight', 'norm2.weight', 'ln_q.weight'))
            scale = 0.1 if weight.ndim == 1 else 1.5 / np.sqrt(weight[0].numel())
            scale = 0.5 if name.endswith(('embed_tokens.weight', 'pos_embed.weight')) else scale
            weight.copy_(scale * torch.randn(weight.shape, generator=generator) + float(norm))
    return model.float().eval()


@dataclass(frozen=True)
class Conversation:
    """One row for both sides."""

    ids: np.ndarray  # [T]
    images: tuple[Patches, ...]
    positions: np.ndarray  # [3, T]
    delta: int

    @property
    def grids(self) -> list[tuple[int, int, int]]:
        return [image.grid for image in self.images]

    def torch_inputs(self) -> dict[str, torch.Tensor]:
        """What the reference's forward and generate take. mm_token_type_ids decides whether it uses three axes at all."""
        ids = torch.from_numpy(self.ids)[None]
        return {
            'input_ids': ids,
            'attention_mask': torch.ones_like(ids),
            'mm_token_type_ids': (ids == IMAGE).int(),
            'pixel_values': torch.from_numpy(np.concatenate([image.pixels for image in self.images])),
            'image_grid_thw': torch.tensor(self.grids),
        }

    def feature_index(self, merged: int) -> np.ndarray:
        """Rows of the flattened [I * merged] features, -1 for text."""
        index = np.full(len(self.ids), -1, np.int32)
        rows = [number * merged + np.arange(image.merged(2)) for number, image in enumerate(self.images)]
        index[self.ids == IMAGE] = np.concatenate(rows)
        return index


def picture(width: int, height: int, seed: int) -> Image.Image:
    """Noise on a gradient: no two patches alike."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 120, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return Image.fromarray((slope + rng.integers(0, 75, (height, width, 3))).astype(np.uint8))


def conversation(config: Config, sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0) -> Conversation:
    """Text, page, text, crop, ..., text."""
    rng = np.random.default_rng(seed)
    images = tuple(patchify(picture(*size, seed + number), LIMITS, config.vision) for number, size in enumerate(sizes))
    ids = list(rng.integers(3, IMAGE, 5))
    for image in images:
        ids += [START, *[IMAGE] * image.merged(2), END, *rng.integers(3, IMAGE, rng.integers(3, 9))]
    ids = np.array(ids, np.int64)
    positions, delta = mrope_positions(ids, [image.grid for image in images], IMAGE, 2)
    return Conversation(ids, images, positions, delta)


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference over the reference's largest number."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
