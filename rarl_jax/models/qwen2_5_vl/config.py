"""The architecture of a Qwen2.5-VL policy as plain frozen dataclasses, read from and written to Hugging Face's config.json.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923; field names of the hub's config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from rarl_jax.models import config
from rarl_jax.models.config import TOKEN_IDS, part, real, refuse_quantized, special_tokens, text_fields, whole, wholes

# Per-channel mean and standard deviation of CLIP's training images, in [0, 1] (Radford et al., arXiv 2103.00020).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
FULL_BLOCKS = (7, 15, 23, 31)


@dataclass(frozen=True)
class TextConfig(config.TextConfig):
    """The decoder."""

    qkv_bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False

    def __post_init__(self):
        if self.hidden_size != self.num_heads * self.head_dim:
            raise ValueError(
                f'text config: hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}; correct config.json.'
            )
        super().__post_init__()

    @property
    def mrope_axes(self) -> Int[np.ndarray, 'H/2']:
        """Three contiguous sections."""
        return np.repeat(np.arange(3), self.mrope_section)


@dataclass(frozen=True)
class VisionConfig(config.VisionConfig):
    """The vision tower. Its windows are those of its attention, and lie in the image as squares."""

    box_frame: ClassVar[Literal['model', 'normalized']] = 'model'
    processor: ClassVar[str] = 'Qwen2_5_VLProcessor'
    image_mean: ClassVar[tuple[float, float, float]] = CLIP_MEAN
    image_std: ClassVar[tuple[float, float, float]] = CLIP_STD

    patch_size: int = 14
    # Blocks in which a patch sees its whole image; in the others it sees a window.
    fullatt_block_indexes: tuple[int, ...] = FULL_BLOCKS
    window_size: int = 112  # side of an attention window, px

    def __post_init__(self):
        super().__post_init__()
        if self.window_size % self.merged_side:
            raise ValueError(
                f'window_size {self.window_size} must be a multiple of a merged token, {self.merged_side} px; correct config.json.'
            )
        if any(not 0 <= index < self.depth for index in self.fullatt_block_indexes):
            raise ValueError(
                f'fullatt_block_indexes {self.fullatt_block_indexes} must lie below depth {self.depth}; '
                'correct config.json.'
            )

    @property
    def window_side(self) -> int:
        """Merged tokens along a side of a window (4 as published)."""
        return self.window_size // self.merged_side

    @property
    def window_patches(self) -> int:
        """64 as published."""
        return self.window_side**2 * self.merge_unit

    def windows(self, grid: tuple[int, int, int]) -> int:
        """Those at the edges of an image may be smaller."""
        side = self.window_side * self.spatial_merge_size
        return grid[0] * -(-grid[1] // side) * -(-grid[2] // side)

    def window_plan(self, grid: tuple[int, int, int]) -> list[Int[np.ndarray, 'M']]:
        """Windows in raster order; those at the right and lower edge may be smaller.

        an image of 4 x 6 patches = 2 x 3 merged tokens, windows of 2 x 2 merged tokens:

            merged tokens, raster     windows        order in which the tower holds them
                0 1 2                  A A B          A: 0 1 3 4   B: 2 5
                3 4 5                  A A B
        """
        (t, h, w), side = (
            (grid[0], grid[1] // self.spatial_merge_size, grid[2] // self.spatial_merge_size),
            self.window_side,
        )
        numbers = np.arange(t * h * w, dtype=np.int32).reshape(t, h, w)
        return [
            numbers[frame, top : top + side, left : left + side].ravel()
            for frame in range(t)
            for top in range(0, h, side)
            for left in range(0, w, side)
        ]


@dataclass(frozen=True)
class Config(config.Config):
    """A whole policy."""

    model_type: ClassVar[str] = 'qwen2_5_vl'
    text: TextConfig
    vision: VisionConfig

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Config:
        """In the hub's flat form, which keeps the decoder's fields at the top level, or the nested form of transformers 5."""
        text = values if values.get('text_config') is None else part(values, 'text_config')
        vision = part(values, 'vision_config')
        refuse_quantized(values, text, vision)
        for name, fields in (('decoder', text), ('vision tower', vision)):
            if (found := fields.get('hidden_act', 'silu')) != 'silu':
                raise ValueError(f"the {name}'s hidden_act is {found!r}, expected 'silu'; correct it.")
        return cls(
            text=_text_from_hf(text, values),
            vision=_vision_from_hf(vision),
            init_scale=real(text, 'initializer_range', cls.init_scale, 100),
            **special_tokens(values, text),
        )

    def to_hf(self) -> dict[str, Any]:
        """In the hub's flat form."""
        text, vision = self.text, self.vision
        common = {'hidden_act': 'silu', 'initializer_range': self.init_scale}
        eos = self.eos_token_id
        return {
            'architectures': ['Qwen2_5_VLForConditionalGeneration'],
            'model_type': 'qwen2_5_vl',
            **{name: getattr(self, name) for name in (*TOKEN_IDS, 'bos_token_id')},
            'eos_token_id': list(eos) if isinstance(eos, tuple) else eos,
            **{hub: getattr(text, field) for field, (hub, _, _) in TEXT_SIZES.items()},
            'rms_norm_eps': text.rms_norm_eps,
            'rope_theta': text.rope_theta,
            'rope_scaling': {'type': 'mrope', 'mrope_section': list(text.mrope_section)},
            'use_sliding_window': False,
            'attention_dropout': 0.0,
            'tie_word_embeddings': text.tie_word_embeddings,
            **common,
            'vision_config': {
                'model_type': 'qwen2_5_vl',
                **{field: getattr(vision, field) for field in VISION_SIZES},
                'in_chans': vision.in_channels,
                'spatial_patch_size': vision.patch_size,
                'fullatt_block_indexes': list(vision.fullatt_block_indexes),
                **common,
            },
        }


# ---------------------------------------------------------------- config.json

# What transformers' classes take where config.json leaves a field out, as its save_pretrained does with what equals it
# (Qwen2_5_VLConfig, 4.49 to 5.24), and the largest number that is believed. Here: the name in config.json.
TEXT_SIZES: dict[str, tuple[str, int, int]] = {
    'vocab_size': ('vocab_size', 152_064, 10_000_000),
    'hidden_size': ('hidden_size', 8192, 100_000),
    'intermediate_size': ('intermediate_size', 29_568, 1_000_000),
    'num_layers': ('num_hidden_layers', 80, 1000),
    'num_heads': ('num_attention_heads', 64, 1000),
    'num_kv_heads': ('num_key_value_heads', 8, 1000),
    'max_position_embeddings': ('max_position_embeddings', 32_768, 1_000_000_000),
}
VISION_SIZES: dict[str, tuple[int, int]] = {
    'depth': (32, 1000),
    'hidden_size': (3584, 100_000),  # the published towers have 1280, and say so
    'intermediate_size': (3420, 1_000_000),
    'num_heads': (16, 1000),
    'out_hidden_size': (3584, 100_000),
    'window_size': (112, 10_000),
    'patch_size': (14, 1000),
    'temporal_patch_size': (2, 100),
    'spatial_merge_size': (2, 100),
    'in_channels': (3, 100),
}
MROPE_SECTION, ROPE_THETA, RMS_NORM_EPS = (16, 24, 24), 1e6, 1e-5


def _text_from_hf(text: Mapping[str, Any], values: Mapping[str, Any]) -> TextConfig:
    if text.get('use_sliding_window'):
        raise ValueError('use_sliding_window is true, which no published Qwen2.5-VL uses; set it to false.')
    fields = text_fields(text, values, TEXT_SIZES, MROPE_SECTION, ROPE_THETA, RMS_NORM_EPS)
    return TextConfig(head_dim=fields['hidden_size'] // fields['num_heads'], **fields)


def _vision_from_hf(vision: Mapping[str, Any]) -> VisionConfig:
    if 'in_channels' not in vision and 'in_chans' in vision:
        vision = {**vision, 'in_channels': vision['in_chans']}
    try:
        sizes = {field: whole(vision, field, default, most, 1) for field, (default, most) in VISION_SIZES.items()}
        return VisionConfig(fullatt_block_indexes=wholes(vision, 'fullatt_block_indexes', FULL_BLOCKS), **sizes)
    except ValueError as error:
        raise ValueError(f'vision_config: {error}') from error


def _published(*sizes: int, vision_mlp: int = 3420, vocab: int = 152_064, tied: bool = False) -> Config:
    """`sizes`: width, MLP, layers, query heads and kv heads of the decoder; the published models share what is no argument."""
    text = TextConfig(vocab, *sizes, sizes[0] // sizes[3], ROPE_THETA, MROPE_SECTION, 1e-6, tied)
    return Config(text, VisionConfig(32, 1280, vision_mlp, 16, text.hidden_size))


PRESETS: dict[str, Config] = {
    '3B': _published(2048, 11008, 36, 16, 2, vocab=151_936, tied=True),
    '7B': _published(3584, 18944, 28, 28, 4),
    '32B': _published(5120, 27648, 64, 40, 8, vision_mlp=3456),
    '72B': _published(8192, 29568, 80, 64, 8, vision_mlp=3456),
}
