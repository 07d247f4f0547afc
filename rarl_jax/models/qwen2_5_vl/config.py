"""The architecture of a Qwen2.5-VL policy as plain frozen dataclasses, read from and written to Hugging Face's config.json.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923; field names of the hub's config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TextConfig:
    """The decoder."""

    vocab_size: int  # rows of the embedding table (V)
    hidden_size: int  # width of the residual stream (D)
    intermediate_size: int  # width of the gated MLP (F)
    num_layers: int  # decoder layers (L)
    num_heads: int  # query heads (N)
    num_kv_heads: int  # key and value heads (K), divides num_heads
    rope_theta: float  # base of the rotary frequencies
    mrope_section: tuple[int, int, int]  # frequencies that turn with time, height and width; they sum to half a head
    rms_norm_eps: float  # added to the mean square in every norm of the decoder
    tie_word_embeddings: bool  # the head is the embedding table
    max_position_embeddings: int = (
        128_000  # longest context the weights were trained for, tokens; told to other programs only
    )

    def __post_init__(self):
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f'text config: hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}, '
                f'and that of num_kv_heads {self.num_kv_heads}; correct config.json.'
            )
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f'text config: mrope_section {self.mrope_section} must be 3 numbers that sum to half the head size '
                f'{self.head_dim}; correct config.json.'
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower."""

    depth: int  # blocks (L)
    hidden_size: int  # width of a patch (C)
    intermediate_size: int  # width of the gated MLP
    num_heads: int  # attention heads
    out_hidden_size: int  # width of a merged token = the decoder's hidden_size
    fullatt_block_indexes: tuple[int, ...]  # blocks in which a patch sees its whole image; the others see a window
    window_size: int = 112  # side of an attention window, px
    patch_size: int = 14  # side of a patch, px
    temporal_patch_size: int = 2  # frames a patch spans; a still image is repeated
    spatial_merge_size: int = 2  # patches along a side of a merged token
    in_channels: int = 3  # colours

    def __post_init__(self):
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f'vision config: hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple of 4 '
                f'(two axes of rotary pairs); correct config.json.'
            )
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError(
                f'vision config: window_size {self.window_size} must be a multiple of a merged token, '
                f'{self.patch_size * self.spatial_merge_size} px; correct config.json.'
            )
        if any(not 0 <= index < self.depth for index in self.fullatt_block_indexes):
            raise ValueError(
                f'vision config: fullatt_block_indexes {self.fullatt_block_indexes} must lie below depth {self.depth}; '
                'correct config.json.'
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch (1176 as published)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches in one merged token (4 as published)."""
        return self.spatial_merge_size**2

    @property
    def window_side(self) -> int:
        """Merged tokens along a side of a window (4 as published)."""
        return self.window_size // (self.patch_size * self.spatial_merge_size)

    @property
    def window_patches(self) -> int:
        """Patches in a whole window (64 as published)."""
        return self.window_side**2 * self.merge_unit


@dataclass(frozen=True)
class Config:
    """A whole policy."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655  # stands for one merged token
    video_token_id: int = 151656
    vision_start_token_id: int = 151652  # precedes an image's tokens
    vision_end_token_id: int = 151653  # follows them
    bos_token_id: int | None = 151643
    eos_token_id: int | None = 151645
    init_scale: float = 0.02  # standard deviation of freshly drawn weight matrices

    def __post_init__(self):
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"config: the vision tower's out_hidden_size {self.vision.out_hidden_size} must equal the decoder's "
                f'hidden_size {self.text.hidden_size}; correct config.json.'
            )

    @classmethod
    def from_folder(cls, folder: str | Path) -> Config:
        """Reads `folder/config.json`, in the hub's flat form or the nested form of transformers 5."""
        path = Path(folder) / 'config.json'
        if not path.is_file():
            raise FileNotFoundError(
                f'{path}: no such file; give a folder saved in Hugging Face format (config.json, *.safetensors).'
            )
        try:
            values = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}: not valid JSON ({error}); fetch or save the folder again.') from error
        try:
            return cls.from_hf(values)
        except KeyError as error:
            raise ValueError(f'{path}: the field {error} is missing; fetch or save the folder again.') from error

    @classmethod
    def from_hf(cls, values: Mapping[str, Any]) -> Config:
        """Builds the config from the content of config.json. ValueError where the model is of another kind; KeyError names a missing field."""
        if values.get('model_type') != 'qwen2_5_vl':
            raise ValueError(
                f"config: model_type is {values.get('model_type')!r}, expected 'qwen2_5_vl'; give a Qwen2.5-VL folder."
            )
        text = values.get('text_config', values)  # the hub keeps the decoder's fields at the top level
        for part, own in (('decoder', text), ('vision tower', values['vision_config'])):
            if (found := own.get('hidden_act', 'silu')) != 'silu':
                raise ValueError(f"config: the {part}'s hidden_act is {found!r}, expected 'silu'; correct config.json.")
        tied = values.get('tie_word_embeddings', False) or text.get('tie_word_embeddings', False)
        ids = {name: values[name] for name in _TOKEN_IDS if name in values}
        ids |= {name: text[name] for name in ('bos_token_id', 'eos_token_id') if name in text}
        return cls(
            text=_text_from_hf(text, tied),
            vision=_vision_from_hf(values['vision_config']),
            init_scale=text.get('initializer_range', cls.init_scale),
            **ids,
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json in the hub's flat form."""
        text, vision = self.text, self.vision
        return {
            'architectures': ['Qwen2_5_VLForConditionalGeneration'],
            'model_type': 'qwen2_5_vl',
            **{name: getattr(self, name) for name in (*_TOKEN_IDS, 'bos_token_id', 'eos_token_id')},
            'vocab_size': text.vocab_size,
            'hidden_size': text.hidden_size,
            'intermediate_size': text.intermediate_size,
            'num_hidden_layers': text.num_layers,
            'num_attention_heads': text.num_heads,
            'num_key_value_heads': text.num_kv_heads,
            'hidden_act': 'silu',
            'max_position_embeddings': text.max_position_embeddings,
            'rms_norm_eps': text.rms_norm_eps,
            'rope_theta': text.rope_theta,
            'rope_scaling': {'type': 'mrope', 'mrope_section': list(text.mrope_section)},
            'use_sliding_window': False,
            'attention_dropout': 0.0,
            'initializer_range': self.init_scale,
            'tie_word_embeddings': text.tie_word_embeddings,
            'vision_config': _vision_to_hf(vision, self.init_scale),
        }


_TOKEN_IDS = ('image_token_id', 'video_token_id', 'vision_start_token_id', 'vision_end_token_id')


def _text_from_hf(text: Mapping[str, Any], tied: bool) -> TextConfig:
    if text.get('use_sliding_window'):
        raise ValueError(
            'config: use_sliding_window is true, which no published Qwen2.5-VL uses; set it to false in config.json.'
        )
    rope = text.get('rope_parameters') or text.get('rope_scaling') or {}
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind not in ('mrope', 'default'):
        raise ValueError(
            f"config: rope type is {kind!r}, expected 'mrope' or 'default'; other scalings are not supported."
        )
    return TextConfig(
        vocab_size=text['vocab_size'],
        hidden_size=text['hidden_size'],
        intermediate_size=text['intermediate_size'],
        num_layers=text['num_hidden_layers'],
        num_heads=text['num_attention_heads'],
        num_kv_heads=text['num_key_value_heads'],
        rope_theta=rope['rope_theta'] if 'rope_theta' in rope else text['rope_theta'],
        mrope_section=tuple(rope['mrope_section']),
        rms_norm_eps=text['rms_norm_eps'],
        tie_word_embeddings=tied,
        max_position_embeddings=text['max_position_embeddings'],
    )


def _vision_from_hf(vision: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        depth=vision['depth'],
        hidden_size=vision['hidden_size'],
        intermediate_size=vision.get(
            'intermediate_size', 3420
        ),  # some published files leave out what equals transformers' default
        num_heads=vision['num_heads'],
        out_hidden_size=vision['out_hidden_size'],
        fullatt_block_indexes=tuple(vision['fullatt_block_indexes']),
        window_size=vision['window_size'],
        patch_size=vision['patch_size'],
        temporal_patch_size=vision.get('temporal_patch_size', 2),
        spatial_merge_size=vision['spatial_merge_size'],
        in_channels=vision.get('in_channels', vision.get('in_chans', 3)),
    )


def _vision_to_hf(vision: VisionConfig, init_scale: float) -> dict[str, Any]:
    return {
        'model_type': 'qwen2_5_vl',
        'depth': vision.depth,
        'hidden_act': 'silu',
        'hidden_size': vision.hidden_size,
        'intermediate_size': vision.intermediate_size,
        'num_heads': vision.num_heads,
        'in_channels': vision.in_channels,
        'in_chans': vision.in_channels,
        'out_hidden_size': vision.out_hidden_size,
        'patch_size': vision.patch_size,
        'spatial_patch_size': vision.patch_size,
        'spatial_merge_size': vision.spatial_merge_size,
        'temporal_patch_size': vision.temporal_patch_size,
        'window_size': vision.window_size,
        'fullatt_block_indexes': list(vision.fullatt_block_indexes),
        'initializer_range': init_scale,
    }


def _published(
    hidden: int,
    mlp: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vision_mlp: int,
    vocab: int = 152_064,
    tied: bool = False,
) -> Config:
    """The published sizes share everything that is not an argument here."""
    section = (16, 24, 24)
    text = TextConfig(vocab, hidden, mlp, layers, heads, kv_heads, 1e6, section, 1e-6, tied)
    return Config(text, VisionConfig(32, 1280, vision_mlp, 16, hidden, (7, 15, 23, 31)))


PRESETS: dict[str, Config] = {
    '3B': _published(2048, 11008, 36, 16, 2, 3420, vocab=151_936, tied=True),
    '7B': _published(3584, 18944, 28, 28, 4, 3420),
    '32B': _published(5120, 27648, 64, 40, 8, 3456),
    '72B': _published(8192, 29568, 80, 64, 8, 3456),
}
