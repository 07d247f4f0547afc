"""The architecture of a dense Qwen3-VL policy as plain frozen dataclasses, read from and written to Hugging Face's config.json.

Source: Qwen3-VL Technical Report, arXiv 2511.21631; field names of the hub's config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from rarl_jax.models import config
from rarl_jax.models.config import TOKEN_IDS, part, real, refuse_quantized, special_tokens, text_fields, whole, wholes

DEEPSTACK_BLOCKS = (8, 16, 24)
WINDOW_TOKENS = 16  # merged tokens


@dataclass(frozen=True)
class TextConfig(config.TextConfig):
    """The decoder."""

    qkv_bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True

    @property
    def mrope_axes(self) -> Int[np.ndarray, 'H/2']:
        """Interleaved: time height width time height width ..., until height and width have theirs; the rest is time's."""
        axes = np.zeros(sum(self.mrope_section), int)
        for axis in (1, 2):
            axes[axis : 3 * self.mrope_section[axis] : 3] = axis
        return axes


@dataclass(frozen=True)
class VisionConfig(config.VisionConfig):
    """The vision tower. Every block sees whole images, so that windows are nothing but a way to hold them: 64 patches in a row."""

    box_frame: ClassVar[Literal['model', 'normalized']] = 'normalized'
    processor: ClassVar[str] = 'Qwen3VLProcessor'
    image_mean: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)
    image_std: ClassVar[tuple[float, float, float]] = (0.5, 0.5, 0.5)

    patch_size: int = 16
    # Rows of the table of positions, a square that is stretched over each image.
    num_position_embeddings: int = 2304
    # Blocks behind which patches also go to the decoder, each through a merger of its own.
    deepstack_visual_indexes: tuple[int, ...] = DEEPSTACK_BLOCKS

    def __post_init__(self):
        super().__post_init__()
        if self.table_side**2 != self.num_position_embeddings:
            raise ValueError(
                f'num_position_embeddings {self.num_position_embeddings} must be a square; correct config.json.'
            )
        found = self.deepstack_visual_indexes
        if any(not 0 <= index < self.depth for index in found) or list(found) != sorted(set(found)):
            raise ValueError(
                f'deepstack_visual_indexes {found} must lie below depth {self.depth} and rise; correct config.json.'
            )

    @property
    def table_side(self) -> int:
        """Rows, and columns, of the table of positions (48 as published)."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def window_patches(self) -> int:
        """64 as published."""
        return WINDOW_TOKENS * self.merge_unit

    def windows(self, grid: tuple[int, int, int]) -> int:
        """The last one of an image may be smaller."""
        return -(-math.prod(grid) // self.window_patches)

    def window_plan(self, grid: tuple[int, int, int]) -> list[Int[np.ndarray, 'M']]:
        """Merged tokens in raster order, 16 a window."""
        numbers = np.arange(math.prod(grid) // self.merge_unit, dtype=np.int32)
        return [numbers[start : start + WINDOW_TOKENS] for start in range(0, len(numbers), WINDOW_TOKENS)]


@dataclass(frozen=True)
class Config(config.Config):
    """A whole policy."""

    model_type: ClassVar[str] = 'qwen3_vl'
    text: TextConfig
    vision: VisionConfig

    def __post_init__(self):
        super().__post_init__()
        if (count := len(self.vision.deepstack_visual_indexes)) > self.text.num_layers:
            raise ValueError(
                f'config: {count} deepstack_visual_indexes, but the decoder has {self.text.num_layers} layers that could take '
                'what they give; correct config.json.'
            )

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Config:
        """Of transformers 4.57 or of 5, which differ in where rope_theta and tie_word_embeddings stand."""
        text, vision = part(values, 'text_config'), part(values, 'vision_config')
        refuse_quantized(values, text, vision)
        for name, fields, expected in (('decoder', text, 'silu'), ('vision tower', vision, 'gelu_pytorch_tanh')):
            if (found := fields.get('hidden_act', expected)) != expected:
                raise ValueError(f"the {name}'s hidden_act is {found!r}, expected {expected!r}; correct it.")
        return cls(
            text=_text_from_hf(text, values),
            vision=_vision_from_hf(vision),
            init_scale=real(text, 'initializer_range', cls.init_scale, 100),
            **special_tokens(values, text),
        )

    def to_hf(self) -> dict[str, Any]:
        """In the hub's nested form."""
        text, vision = self.text, self.vision
        eos = self.eos_token_id
        return {
            'architectures': ['Qwen3VLForConditionalGeneration'],
            'model_type': 'qwen3_vl',
            **{name: getattr(self, name) for name in TOKEN_IDS},
            'tie_word_embeddings': text.tie_word_embeddings,
            'text_config': {
                'model_type': 'qwen3_vl_text',
                'bos_token_id': self.bos_token_id,
                'eos_token_id': list(eos) if isinstance(eos, tuple) else eos,
                **{hub: getattr(text, field) for field, (hub, _, _) in TEXT_SIZES.items()},
                'rms_norm_eps': text.rms_norm_eps,
                'rope_theta': text.rope_theta,
                'rope_scaling': {
                    'rope_type': 'default',
                    'mrope_interleaved': True,
                    'mrope_section': list(text.mrope_section),
                },
                'attention_bias': False,
                'attention_dropout': 0.0,
                'tie_word_embeddings': text.tie_word_embeddings,
                'hidden_act': 'silu',
                'initializer_range': self.init_scale,
            },
            'vision_config': {
                'model_type': 'qwen3_vl',
                **{field: getattr(vision, field) for field in VISION_SIZES},
                'deepstack_visual_indexes': list(vision.deepstack_visual_indexes),
                'hidden_act': 'gelu_pytorch_tanh',
                'initializer_range': self.init_scale,
            },
        }


# ---------------------------------------------------------------- config.json

# What transformers' classes take where config.json leaves a field out (Qwen3VLConfig, 4.57 to 5.24), and the largest number that is believed.
# Here: the name in config.json.
TEXT_SIZES: dict[str, tuple[str, int, int]] = {
    'vocab_size': ('vocab_size', 151_936, 10_000_000),
    'hidden_size': ('hidden_size', 4096, 100_000),
    'intermediate_size': ('intermediate_size', 22_016, 1_000_000),
    'num_layers': ('num_hidden_layers', 32, 1000),
    'num_heads': ('num_attention_heads', 32, 1000),
    'num_kv_heads': ('num_key_value_heads', 32, 1000),
    'head_dim': ('head_dim', 128, 10_000),
    'max_position_embeddings': ('max_position_embeddings', 128_000, 1_000_000_000),
}
VISION_SIZES: dict[str, tuple[int, int]] = {
    'depth': (27, 1000),
    'hidden_size': (1152, 100_000),
    'intermediate_size': (4304, 1_000_000),
    'num_heads': (16, 1000),
    'out_hidden_size': (3584, 100_000),
    'num_position_embeddings': (2304, 1_000_000),
    'patch_size': (16, 1000),
    'temporal_patch_size': (2, 100),
    'spatial_merge_size': (2, 100),
    'in_channels': (3, 100),
}
MROPE_SECTION, ROPE_THETA, RMS_NORM_EPS = (24, 20, 20), 5e5, 1e-6


def _text_from_hf(text: Mapping[str, Any], values: Mapping[str, Any]) -> TextConfig:
    if text.get('attention_bias'):
        raise ValueError('attention_bias is true, which no published Qwen3-VL uses; set it to false.')
    return TextConfig(**text_fields(text, values, TEXT_SIZES, MROPE_SECTION, ROPE_THETA, RMS_NORM_EPS))


def _vision_from_hf(vision: Mapping[str, Any]) -> VisionConfig:
    try:
        sizes = {field: whole(vision, field, default, most, 1) for field, (default, most) in VISION_SIZES.items()}
        return VisionConfig(
            deepstack_visual_indexes=wholes(vision, 'deepstack_visual_indexes', DEEPSTACK_BLOCKS), **sizes
        )
    except ValueError as error:
        raise ValueError(f'vision_config: {error}') from error


def _published(*sizes: int, large_tower: bool = True, tied: bool = False) -> Config:
    """`sizes`: width, MLP, layers, query heads and kv heads of the decoder; the published models share what is no argument."""
    text = TextConfig(151_936, *sizes, 128, 5e6, MROPE_SECTION, 1e-6, tied, max_position_embeddings=262_144)
    if large_tower:
        return Config(text, VisionConfig(27, 1152, 4304, 16, text.hidden_size))
    return Config(text, VisionConfig(24, 1024, 4096, 16, text.hidden_size, deepstack_visual_indexes=(5, 11, 17)))


PRESETS: dict[str, Config] = {
    '2B': _published(2048, 6144, 28, 16, 8, large_tower=False, tied=True),
    '4B': _published(2560, 9728, 36, 32, 8, large_tower=False, tied=True),
    '8B': _published(4096, 12_288, 36, 32, 8),
    '32B': _published(5120, 25_600, 64, 64, 8),
}
