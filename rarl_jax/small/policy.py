"""A small policy from nothing, a Qwen2.5-VL here: a Hugging Face folder with configuration, tokenizer, processor, chat template and random weights.

It is the published architecture at small sizes, in the hub's own file formats, so whatever reads a published folder reads this one.
The tokenizer is byte-level BPE (any text round-trips) with Qwen2.5's special tokens. The whole numbers 0..255 are tokens whose id is
their value: a box coordinate is one token, and `smooth_number_embeddings` lets near numbers start out near.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from input_pipeline.schema import Question
from rarl_jax.conversation.protocol import CHAT_TEMPLATE, fixed_strings
from rarl_jax.models.images import PixelLimits, processor_settings
from rarl_jax.models.interface import Config, config_from_hf
from rarl_jax.models.names import plain_name, weight_table
from rarl_jax.runtime.files import replacing, write_json, write_whole
from rarl_jax.runtime.plugins import PolicyKind

NUMBERS = 256  # 0..255 are whole tokens, with ids 0..255
SPECIAL = (
    '<|endoftext|>',
    '<|im_start|>',
    '<|im_end|>',
    '<|object_ref_start|>',
    '<|object_ref_end|>',
    '<|box_start|>',
    '<|box_end|>',
    '<|quad_start|>',
    '<|quad_end|>',
    '<|vision_start|>',
    '<|vision_end|>',
    '<|vision_pad|>',
    '<|image_pad|>',
    '<|video_pad|>',
)
MARKERS = ('<tool_call>', '</tool_call>')  # single tokens, but not special ones: decoding keeps them, as with Qwen2.5
MAX_LENGTH = 32_768  # tokens; told to other programs only
PATCH_SCALE = 0.3  # of the patch projection's weights: they sum 1176 numbers, or 588 twice
# Which matrix is drawn first, second, ... of those in one place: a seed gives the same weights whatever the order of the table of names.
DRAWN = (
    *('embed_tokens', 'patch_embed', 'merger'),
    *('q_proj', 'k_proj', 'v_proj', 'o_proj', 'qkv', 'attn.proj', 'gate_proj', 'up_proj', 'down_proj'),
)


@dataclass(frozen=True)
class SmallSizes:
    """What small policies of all families have in common; a family adds its own."""

    model_type: ClassVar[str]

    # Import path of the module that makes it.
    kind: str
    # Width of the decoder, its layers, query heads, key and value heads, and the width inside its MLP.
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 384
    # Small: at 1e4 the column axis of M-RoPE would turn 0.003 rad a token, too little to be seen.
    rope_theta: float = 10.0
    # Width of the vision tower, its blocks, heads, and the width inside its MLP.
    vision_hidden: int = 96
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp: int = 256
    vocab_size: int = 768  # tokens in all, special ones included; fewer where the corpus yields no more

    def own_fields(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Of config.json's text_config and vision_config, what the family alone has, and the rotary sections."""
        raise NotImplementedError


@dataclass(frozen=True)
class SmallShape(SmallSizes):
    """Sizes of a small Qwen2.5-VL; the defaults have 1.7 M parameters."""

    model_type: ClassVar[str] = 'qwen2_5_vl'

    kind: str = 'rarl_jax.small.policy'
    vision_window: int = 112  # side of an attention window, px
    # Vision blocks that attend over the whole image; the others attend over windows.
    full_blocks: tuple[int, ...] = (1, 3)

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Rotary frequencies of time, row and column: a quarter and twice three eighths of the half head, as published."""
        half = self.hidden // self.heads // 2
        rows = half * 3 // 8
        return (half - 2 * rows, rows, rows)

    def own_fields(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See SmallSizes."""
        rope = {'type': 'mrope', 'mrope_section': list(self.mrope_section)}
        vision = {'window_size': self.vision_window, 'fullatt_block_indexes': list(self.full_blocks)}
        return {'rope_scaling': rope}, vision


def make_policy(folder: Path, shape: SmallSizes, questions: Sequence[Question], page: PixelLimits, seed: int) -> Path:
    """A folder for the small world: every answer of the questions is one token of its tokenizer, and so is every fixed string of a conversation."""
    return write_small_folder(
        folder,
        corpus=[question.prompt for question in questions],
        phrases=(*fixed_strings(), *sorted({question.answer for question in questions})),
        chat_template=CHAT_TEMPLATE,
        shape=shape,
        page_pixels=(page.min_pixels, page.max_pixels),
        seed=seed,
    )


def write_small_folder(
    directory: str | Path,
    *,
    corpus: Iterable[str],
    phrases: Iterable[str],
    chat_template: str,
    shape: SmallSizes | None = None,
    init_scale: float = 0.09,
    smooth_numbers: bool = True,
    page_pixels: tuple[int, int] = (56 * 56, 224 * 224),
    seed: int = 0,
) -> Path:
    """Writes a folder that AutoTokenizer, AutoProcessor and AutoModelForImageTextToText load.

    Args:
        directory: made if needed; files in it are replaced.
        corpus: texts that the BPE merges are learned from (questions, answers, calls).
        phrases: fixed strings that become one token each; split where they hold a special token.
        chat_template: Jinja source.
        shape: sizes; `SmallShape()` if None.
        init_scale: standard deviation of every weight matrix; at width 128 the published 0.02 lets image tokens drown.
        smooth_numbers: start number embeddings as sinusoids of their value.
        page_pixels: (min_pixels, max_pixels) of the processor.
        seed: of the weights.
    Returns: the directory.
    """
    shape = SmallShape() if shape is None else shape
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(corpus, phrases, shape.vocab_size)
    config = _model_config(shape, tokenizer, init_scale)
    stops = [config.eos_token_id, config.bos_token_id]
    write_json(directory / 'config.json', {**config.to_hf(), 'torch_dtype': 'float32'})
    tokenizer.save(str(directory / 'tokenizer.json'))
    write_json(directory / 'tokenizer_config.json', _tokenizer_config(chat_template, config.vision.processor))
    write_whole(directory / 'chat_template.jinja', chat_template)
    write_json(directory / 'preprocessor_config.json', processor_settings(PixelLimits(*page_pixels), config.vision))
    write_json(
        directory / 'generation_config.json', {'eos_token_id': stops, 'pad_token_id': stops[1], 'do_sample': False}
    )
    weights = random_weights(config, init_scale, seed)
    if smooth_numbers:
        weights[_named(weights, 'model.embed_tokens.weight')][:NUMBERS] = smooth_number_embeddings(
            shape.hidden, init_scale
        )
    with replacing(directory / 'model.safetensors') as file:
        save_file(weights, file, metadata={'format': 'pt'})
    return directory


# ---- tokenizer ----


def train_tokenizer(corpus: Iterable[str], phrases: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `corpus` with whole numbers, Qwen2.5's special tokens and one token a phrase.

    ValueError where `vocab_size` is too small to hold bytes, numbers, special tokens and phrases, or where a phrase that is none of the numbers begins or
    ends with a digit.
    """
    fixed, numbers = [*SPECIAL, *MARKERS], [str(value) for value in range(NUMBERS)]
    # Phrases are matched before anything else: a phrase '5' would leave '57' in two.
    phrases = _unique(piece for phrase in phrases for piece in _split_at(phrase, fixed) if piece not in numbers)
    if tearing := [phrase for phrase in phrases if phrase[0].isdecimal() or phrase[-1].isdecimal()]:
        raise ValueError(f'Phrases {tearing[:3]} would tear numbers beside them: let none begin or end with a digit.')
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set('0123456789'))
    learned = vocab_size - len(numbers) - len(alphabet) - len(fixed) - len(phrases)
    if learned < 1:
        raise ValueError(
            f'vocab_size {vocab_size} is too small: bytes, numbers, special tokens and phrases take {vocab_size - learned}; raise it.'
        )
    pieces, merges = _learn_merges(corpus, [*fixed, *phrases], learned)
    vocab = {piece: index for index, piece in enumerate(_unique([*numbers, *alphabet, ',Ġ', *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_unique([*_number_merges(), (',', 'Ġ'), *merges])))
    tokenizer.pre_tokenizer = _pre_tokenizer(r'[0-9]{1,3}')
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in [*MARKERS, *phrases]])
    return tokenizer


def _unique(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def _split_at(text: str, tokens: list[str]) -> list[str]:
    """The parts of `text` between special tokens, empty ones left out."""
    for token in tokens:
        text = text.replace(token, '\0')
    return [part for part in text.split('\0') if part]


def _pre_tokenizer(digits: str) -> pre_tokenizers.PreTokenizer:
    """Words with their leading space, numbers apart, ', ' between numbers whole."""
    pattern = rf', (?=[0-9])|{digits}| ?\p{{L}}+| ?[^\s\p{{L}}0-9]+|\s+(?=\s\S)|\s+'
    split = pre_tokenizers.Split(Regex(pattern), behavior='isolated')
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _learn_merges(corpus: Iterable[str], fixed: list[str], count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """At most `count` pieces and their merges, learned from the text outside the fixed strings; none holds a digit."""
    longest_first = sorted(fixed, key=len, reverse=True)
    bytes_ = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _pre_tokenizer('[0-9]')  # digits one by one: nothing to merge
    trainer = trainers.BpeTrainer(
        vocab_size=len(bytes_) + count, initial_alphabet=bytes_, show_progress=False, min_frequency=2
    )
    learner.train_from_iterator((part for text in corpus for part in _split_at(text, longest_first)), trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())['model']['merges']]
    return [left + right for left, right in merges], merges


def _number_merges() -> list[tuple[str, str]]:
    """Merges by which BPE builds every number of two and three digits below NUMBERS.

    BPE applies the merge of lowest rank first; ranks here follow the value of the pair. In 'abc' the smaller of ab and bc is
    merged first (bc only where it does not start with 0), which decides how the three join.
    """
    merges = [(str(value // 10), str(value % 10)) for value in range(10, 100)]
    for value in range(100, NUMBERS):
        text = str(value)
        first, second = int(text[:2]), int(text[1:])
        merges.append((text[:2], text[2]) if second < 10 or first <= second else (text[0], text[1:]))
    return merges


# ---- files beside the weights ----


def _model_config(shape: SmallSizes, tokenizer: Tokenizer, init_scale: float) -> Config:
    """Sizes that are not named are those of the published models; the vocabulary is padded to a multiple of 64."""
    token, (text, vision) = tokenizer.token_to_id, shape.own_fields()
    return config_from_hf(
        {
            'model_type': shape.model_type,
            'vision_start_token_id': token('<|vision_start|>'),
            'vision_end_token_id': token('<|vision_end|>'),
            'image_token_id': token('<|image_pad|>'),
            'video_token_id': token('<|video_pad|>'),
            'tie_word_embeddings': True,
            'text_config': {
                'vocab_size': -(-tokenizer.get_vocab_size() // 64) * 64,
                'hidden_size': shape.hidden,
                'intermediate_size': shape.mlp,
                'num_hidden_layers': shape.layers,
                'num_attention_heads': shape.heads,
                'num_key_value_heads': shape.kv_heads,
                'rms_norm_eps': 1e-6,
                'rope_theta': shape.rope_theta,
                'initializer_range': init_scale,
                'bos_token_id': token('<|endoftext|>'),
                'eos_token_id': token('<|im_end|>'),
                **text,
            },
            'vision_config': {
                'depth': shape.vision_layers,
                'hidden_size': shape.vision_hidden,
                'intermediate_size': shape.vision_mlp,
                'num_heads': shape.vision_heads,
                'out_hidden_size': shape.hidden,
                **vision,
            },
        }
    )


def _tokenizer_config(chat_template: str, processor: str) -> dict[str, Any]:
    return {
        'tokenizer_class': 'PreTrainedTokenizerFast',  # takes tokenizer.json as it is; Qwen2Tokenizer would split words its own way
        'processor_class': processor,
        'eos_token': '<|im_end|>',
        'pad_token': '<|endoftext|>',
        'model_max_length': MAX_LENGTH,
        'clean_up_tokenization_spaces': False,
        'chat_template': chat_template,
    }


# ---- weights ----


def random_weights(config: Config, scale: float, seed: int) -> dict[str, Float[np.ndarray, '...']]:
    """Every weight under the hub's name, float32: matrices normal with deviation `scale`, norms one, biases zero.

    The patch projection starts smaller, and query weights start near the key weights of their group.
    """
    rng, weights = np.random.default_rng(seed), {}
    for name, shape in sorted(_hub_shapes(config).items(), key=_drawing_order):
        if len(shape) == 1:
            weights[name] = np.full(shape, not name.endswith('bias'), np.float32)
        else:
            weights[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
    weights[_named(weights, 'visual.patch_embed.proj.weight')] *= PATCH_SCALE
    text = config.text
    for name in [name for name in weights if name.endswith('q_proj.weight')]:
        keys = weights[name.replace('q_proj', 'k_proj')].reshape(text.num_kv_heads, -1, text.hidden_size)
        queries = np.repeat(keys, text.num_heads // text.num_kv_heads, axis=0).reshape(weights[name].shape)
        weights[name] = queries + weights[name] / 3  # a token first attends to what is like itself
    return weights


def _hub_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {
        weight.hub.format(layer): weight.hub_shape
        for weight in jax.tree.leaves(weight_table(config))
        for layer in range(weight.shape[0] if weight.stacked else 1)
    }


def _named(weights: Iterable[str], plain: str) -> str:
    """The name of theirs that every family's checkpoint has, in its own form."""
    return next(name for name in weights if plain_name(name) == plain)


def _drawing_order(named: tuple[str, tuple[int, ...]]) -> tuple[bool, int, int, str]:
    """The decoder before the vision tower; in both, what is no layer, then layer by layer."""
    name = plain_name(named[0])
    layer = re.search(r'(?:layers|blocks)\.(\d+)', name)
    kind = next((rank for rank, part in enumerate(DRAWN) if part in name), len(DRAWN))
    return name.startswith('visual'), int(layer[1]) if layer else -1, kind, name


def smooth_number_embeddings(width: int, scale: float, count: int = NUMBERS) -> Float[np.ndarray, 'count width']:
    """Rows for the numbers 0..count-1: sines and cosines of the value, wavelengths from 4 to 2 * count in geometric steps.

    Neighbours start out alike and the dot product falls with distance, so a box head learns a place, not 256 classes. Entries have
    root mean square `scale`, as random rows of that deviation would.
    """
    waves = 4.0 * (count / 2.0) ** np.linspace(0.0, 1.0, width // 2)
    phase = 2 * np.pi * np.arange(count)[:, None] / waves
    rows = np.concatenate([np.sin(phase), np.cos(phase)], axis=1) * (scale * np.sqrt(2.0))
    return np.pad(rows, ((0, 0), (0, width % 2))).astype(np.float32)


POLICY = PolicyKind(SmallShape, make_policy)
