"""What the configs of all families have in common, and how numbers are read from config.json. A family adds its own to these classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    # Whether the maps to queries, keys and values have a bias.
    qkv_bias: ClassVar[bool]
    # Whether each head's queries and keys go through an RMSNorm.
    qk_norm: ClassVar[bool]

    vocab_size: int  # rows of the embedding table (V)
    hidden_size: int  # width of the residual stream (D)
    intermediate_size: int  # width of the gated MLP (F)
    num_layers: int  # decoder layers (L)
    num_heads: int  # query heads (N)
    num_kv_heads: int  # key and value heads (K), divides num_heads
    head_dim: int  # width of a head (H)
    rope_theta: float  # base of the rotary frequencies
    mrope_section: tuple[int, int, int]  # frequencies that turn with time, height and width; they sum to half a head
    rms_norm_eps: float  # added to the mean square in every norm of the decoder
    tie_word_embeddings: bool  # the head is the embedding table
    # Longest context the weights were trained for, tokens; told to other programs only.
    max_position_embeddings: int = 128_000

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f'text config: num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}; '
                'correct config.json.'
            )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f'text config: mrope_section {self.mrope_section} must be 3 numbers that sum to half the head size '
                f'{self.head_dim}; correct config.json.'
            )

    @property
    def mrope_axes(self) -> Int[np.ndarray, 'H/2']:
        """For each rotary frequency the axis that it turns with: 0 time, 1 height, 2 width."""
        raise NotImplementedError


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower.

    It holds images window by window: a window is a run of patches of one image, padded to `window_patches` slots.
    """

    # How it writes boxes: in pixels of an image as it sees it, or in thousandths of its sides.
    box_frame: ClassVar[Literal['model', 'normalized']]
    # The class in transformers that makes its inputs; told to other programs only.
    processor: ClassVar[str]
    # Per colour, of pixels in [0, 1].
    image_mean: ClassVar[tuple[float, float, float]]
    image_std: ClassVar[tuple[float, float, float]]

    depth: int  # blocks (L)
    hidden_size: int  # width of a patch (C)
    intermediate_size: int  # width of the MLP
    num_heads: int  # attention heads
    out_hidden_size: int  # width of a merged token = the decoder's hidden_size
    patch_size: int  # side of a patch, px
    temporal_patch_size: int = 2  # frames a patch spans; a still image is repeated
    spatial_merge_size: int = 2  # patches along a side of a merged token
    in_channels: int = 3  # colours

    def __post_init__(self):
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f'hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple of 4 '
                f'(two axes of rotary pairs); correct config.json.'
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def frame_dim(self) -> int:
        """Numbers in one frame of a flattened patch."""
        return self.in_channels * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches in one merged token (4 as published)."""
        return self.spatial_merge_size**2

    @property
    def merged_side(self) -> int:
        """Side of a merged token, px: images are resized to multiples of it."""
        return self.patch_size * self.spatial_merge_size

    @property
    def window_patches(self) -> int:
        """Patches in a whole window."""
        raise NotImplementedError

    def windows(self, grid: tuple[int, int, int]) -> int:
        """Windows of an image whose `grid` counts frames, rows and columns in patches."""
        raise NotImplementedError

    def window_plan(self, grid: tuple[int, int, int]) -> list[Int[np.ndarray, 'M']]:
        """The merged tokens (raster numbers) of each window of an image."""
        raise NotImplementedError


@dataclass(frozen=True)
class Config:
    """A whole policy."""

    model_type: ClassVar[str]
    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655  # stands for one merged token
    video_token_id: int = 151656
    vision_start_token_id: int = 151652  # precedes an image's tokens, and follows them
    vision_end_token_id: int = 151653
    bos_token_id: int | None = 151643  # kept for other programs: ours reads them from the tokenizer
    eos_token_id: int | tuple[int, ...] | None = 151645
    init_scale: float = 0.02  # standard deviation of freshly drawn weight matrices

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"config: the vision tower's out_hidden_size {self.vision.out_hidden_size} must equal the decoder's "
                f'hidden_size {self.text.hidden_size}; correct config.json.'
            )
        if not 0 <= self.image_token_id < self.text.vocab_size:
            raise ValueError(
                f'config: image_token_id {self.image_token_id} must lie below vocab_size {self.text.vocab_size}; correct it.'
            )

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Config:
        """Builds the config from the content of config.json. ValueError where a field is not what it must be."""
        raise NotImplementedError

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json, in the hub's form."""
        raise NotImplementedError


# ---------------------------------------------------------------- config.json

TOKEN_IDS = ('image_token_id', 'video_token_id', 'vision_start_token_id', 'vision_end_token_id')
MAX_TOKEN = 10_000_000


def special_tokens(values: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """The token ids of a Config."""
    ids: dict[str, Any] = {name: whole(values, name, getattr(Config, name), MAX_TOKEN) for name in TOKEN_IDS}
    return ids | {name: ending(text, name, getattr(Config, name)) for name in ('bos_token_id', 'eos_token_id')}


def text_fields(
    text: Mapping[str, Any],
    values: Mapping[str, Any],
    sizes: Mapping[str, tuple[str, int, int]],
    mrope_section: tuple[int, ...],
    rope_theta: float,
    rms_norm_eps: float,
) -> dict[str, Any]:
    """The fields of a TextConfig that config.json has of every family.

    Args:
        text: the part of it that is the decoder's, and `values` the whole.
        sizes: by field its name there, what a missing one means, and the largest that is believed; the others are what missing ones mean.
    """
    if text.get('num_key_value_heads', 0) is None:  # as many as there are query heads
        text = {**text, 'num_key_value_heads': text.get('num_attention_heads', sizes['num_heads'][1])}
    rope = rope_settings(values, text)
    return {
        'rope_theta': real({**text, **rope}, 'rope_theta', rope_theta, 1e12),
        'mrope_section': wholes(rope, 'mrope_section', mrope_section),
        'rms_norm_eps': real(text, 'rms_norm_eps', rms_norm_eps, 1),
        'tie_word_embeddings': bool(values.get('tie_word_embeddings') or text.get('tie_word_embeddings')),
        **{field: whole(text, hub, default, most, 1) for field, (hub, default, most) in sizes.items()},
    }


def rope_settings(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """What the parts of config.json say of rotary embeddings, in the hub's words or those of transformers 5, a later part over an earlier one."""
    rope: dict[str, Any] = {}
    for found in (part.get(name) for part in parts for name in ('rope_scaling', 'rope_parameters')):
        rope |= found if isinstance(found, dict) else {'rope_type': found} if found else {}
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind not in ('mrope', 'default'):
        raise ValueError(f"rope type is {kind!r}, expected 'mrope' or 'default'; other scalings are not supported.")
    return rope


def part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = {} if values.get(name) is None else values[name]
    if not isinstance(part, dict):
        raise ValueError(f'{name} is a {type(part).__name__}, expected an object of fields; fetch the file again.')
    return part


def refuse_quantized(*parts: Mapping[str, Any]) -> None:
    names = ('quantization_config', 'compression_config')
    for found in (part[name] for part in parts for name in names if part.get(name)):
        method = found.get('quant_method', 'unnamed') if isinstance(found, dict) else found
        raise ValueError(
            f'the weights are quantized ({method}), which cannot be trained or read here; '
            'give the folder of the model in bfloat16, float16 or float32 that they were made from.'
        )


def whole(values: Mapping[str, Any], name: str, default: int, most: int, least: int = 0) -> int:
    """A whole number of config.json."""
    found = values.get(name, default)
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f'{name} is {found!r:.60}, expected a whole number from {least} to {most:,}; correct it.')
    return found


def real(values: Mapping[str, Any], name: str, default: float, most: float) -> float:
    """A positive number of config.json."""
    found = values.get(name, default)
    if type(found) not in (int, float) or not 0 < found <= most:
        raise ValueError(f'{name} is {found!r:.60}, expected a number above 0 and up to {most:,g}; correct it.')
    return float(found)


def wholes(values: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers of config.json."""
    found = values.get(name, default)
    if not isinstance(found, (list, tuple)) or not all(type(one) is int and 0 <= one <= 1000 for one in found):
        raise ValueError(f'{name} is {found!r:.60}, expected a list of whole numbers from 0 to 1,000; correct it.')
    return tuple(found)


def ending(values: Mapping[str, Any], name: str, default: int | None) -> int | tuple[int, ...] | None:
    """A token id, several, or none."""
    found = values.get(name, default)
    several = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(one) is int and 0 <= one <= MAX_TOKEN for one in several):
        raise ValueError(f'{name} is {found!r:.60}, expected a token id, a list of them, or null; correct it.')
    return tuple(found) if isinstance(found, list) else found
