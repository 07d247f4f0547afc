"""The architecture of a Qwen2.5-VL policy as plain frozen dataclasses, read from and written to Hugging Face's config.json.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923; field names of the hub's config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


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
    # Longest context the weights were trained for, tokens; told to other programs only.
    max_position_embeddings: int = 128_000

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
    # Blocks in which a patch sees its whole image; in the others it sees a window.
    fullatt_block_indexes: tuple[int, ...]
    window_size: int = 112  # side of an attention window, px
    patch_size: int = 14  # side of a patch, px
    temporal_patch_size: int = 2  # frames a patch spans; a still image is repeated
    spatial_merge_size: int = 2  # patches along a side of a merged token
    in_channels: int = 3  # colours

    def __post_init__(self):
        if self.hidden_size % self.num_heads or self.head_dim % 4:
            raise ValueError(
                f'hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple of 4 '
                f'(two axes of rotary pairs); correct config.json.'
            )
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError(
                f'window_size {self.window_size} must be a multiple of a merged token, '
                f'{self.patch_size * self.spatial_merge_size} px; correct config.json.'
            )
        if any(not 0 <= index < self.depth for index in self.fullatt_block_indexes):
            raise ValueError(
                f'fullatt_block_indexes {self.fullatt_block_indexes} must lie below depth {self.depth}; '
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

    def windows(self, grid: tuple[int, int, int]) -> int:
        """Windows of an image whose `grid` counts frames, rows and columns in patches; those at its edges may be smaller."""
        side = self.window_side * self.spatial_merge_size
        return grid[0] * -(-grid[1] // side) * -(-grid[2] // side)


@dataclass(frozen=True)
class Config:
    """A whole policy."""

    model_type: ClassVar[str] = 'qwen2_5_vl'
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
        # The hub keeps the decoder's fields at the top level.
        text = values if values.get('text_config') is None else _part(values, 'text_config')
        vision = _part(values, 'vision_config')
        _refuse_quantized(values, text, vision)
        for part, fields in (('decoder', text), ('vision tower', vision)):
            if (found := fields.get('hidden_act', 'silu')) != 'silu':
                raise ValueError(f"the {part}'s hidden_act is {found!r}, expected 'silu'; correct it.")
        ids = {name: _whole(values, name, getattr(cls, name), MAX_TOKEN) for name in TOKEN_IDS}
        return cls(
            text=_text_from_hf(text, values),
            vision=_vision_from_hf(vision),
            init_scale=_real(text, 'initializer_range', cls.init_scale, 100),
            bos_token_id=_ending(text, 'bos_token_id', cls.bos_token_id),
            eos_token_id=_ending(text, 'eos_token_id', cls.eos_token_id),
            **ids,
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of config.json in the hub's flat form."""
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
FULL_BLOCKS, MROPE_SECTION, ROPE_THETA, RMS_NORM_EPS = (7, 15, 23, 31), (16, 24, 24), 1e6, 1e-5
TOKEN_IDS = ('image_token_id', 'video_token_id', 'vision_start_token_id', 'vision_end_token_id')
MAX_TOKEN = 10_000_000


def _text_from_hf(text: Mapping[str, Any], whole: Mapping[str, Any]) -> TextConfig:
    if text.get('use_sliding_window'):
        raise ValueError('use_sliding_window is true, which no published Qwen2.5-VL uses; set it to false.')
    if text.get('num_key_value_heads', 0) is None:  # as many as there are query heads
        text = {**text, 'num_key_value_heads': text.get('num_attention_heads', TEXT_SIZES['num_heads'][1])}
    rope: dict[str, Any] = {}
    for found in (part.get(name) for part in (whole, text) for name in ('rope_scaling', 'rope_parameters')):
        rope |= found if isinstance(found, dict) else {'rope_type': found} if found else {}
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind not in ('mrope', 'default'):
        raise ValueError(f"rope type is {kind!r}, expected 'mrope' or 'default'; other scalings are not supported.")
    return TextConfig(
        rope_theta=_real({**text, **rope}, 'rope_theta', ROPE_THETA, 1e12),
        mrope_section=_list(rope, 'mrope_section', MROPE_SECTION),
        rms_norm_eps=_real(text, 'rms_norm_eps', RMS_NORM_EPS, 1),
        tie_word_embeddings=bool(whole.get('tie_word_embeddings') or text.get('tie_word_embeddings')),
        **{field: _whole(text, hub, default, most, 1) for field, (hub, default, most) in TEXT_SIZES.items()},
    )


def _vision_from_hf(vision: Mapping[str, Any]) -> VisionConfig:
    if 'in_channels' not in vision and 'in_chans' in vision:
        vision = {**vision, 'in_channels': vision['in_chans']}
    try:
        sizes = {field: _whole(vision, field, default, most, 1) for field, (default, most) in VISION_SIZES.items()}
        return VisionConfig(fullatt_block_indexes=_list(vision, 'fullatt_block_indexes', FULL_BLOCKS), **sizes)
    except ValueError as error:
        raise ValueError(f'vision_config: {error}') from error


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = {} if values.get(name) is None else values[name]
    if not isinstance(part, dict):
        raise ValueError(f'{name} is a {type(part).__name__}, expected an object of fields; fetch the file again.')
    return part


def _refuse_quantized(*parts: Mapping[str, Any]) -> None:
    names = ('quantization_config', 'compression_config')
    for found in (part[name] for part in parts for name in names if part.get(name)):
        method = found.get('quant_method', 'unnamed') if isinstance(found, dict) else found
        raise ValueError(
            f'the weights are quantized ({method}), which cannot be trained or read here; '
            'give the folder of the model in bfloat16, float16 or float32 that they were made from.'
        )


def _whole(values: Mapping[str, Any], name: str, default: int, most: int, least: int = 0) -> int:
    """A whole number of config.json."""
    found = values.get(name, default)
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f'{name} is {found!r:.60}, expected a whole number from {least} to {most:,}; correct it.')
    return found


def _real(values: Mapping[str, Any], name: str, default: float, most: float) -> float:
    """A positive number of config.json."""
    found = values.get(name, default)
    if type(found) not in (int, float) or not 0 < found <= most:
        raise ValueError(f'{name} is {found!r:.60}, expected a number above 0 and up to {most:,g}; correct it.')
    return float(found)


def _list(values: Mapping[str, Any], name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """Whole numbers of config.json."""
    found = values.get(name, default)
    if not isinstance(found, (list, tuple)) or not all(type(one) is int and 0 <= one <= 1000 for one in found):
        raise ValueError(f'{name} is {found!r:.60}, expected a list of whole numbers from 0 to 1,000; correct it.')
    return tuple(found)


def _ending(values: Mapping[str, Any], name: str, default: int | None) -> int | tuple[int, ...] | None:
    """A token id, several, or none."""
    found = values.get(name, default)
    several = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(one) is int and 0 <= one <= MAX_TOKEN for one in several):
        raise ValueError(f'{name} is {found!r:.60}, expected a token id, a list of them, or null; correct it.')
    return tuple(found) if isinstance(found, list) else found


def _published(*sizes: int, vision_mlp: int = 3420, vocab: int = 152_064, tied: bool = False) -> Config:
    """`sizes`: width, MLP, layers, query heads and kv heads of the decoder; the published models share what is no argument."""
    text = TextConfig(vocab, *sizes, ROPE_THETA, MROPE_SECTION, 1e-6, tied)
    return Config(text, VisionConfig(32, 1280, vision_mlp, 16, text.hidden_size, FULL_BLOCKS))


PRESETS: dict[str, Config] = {
    '3B': _published(2048, 11008, 36, 16, 2, vocab=151_936, tied=True),
    '7B': _published(3584, 18944, 28, 28, 4),
    '32B': _published(5120, 27648, 64, 40, 8, vision_mlp=3456),
    '72B': _published(8192, 29568, 80, 64, 8, vision_mlp=3456),
}
