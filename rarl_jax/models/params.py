"""One table of every weight: its shape, its logical axes, how it starts, its name on the hub.

Initialisation, sharding, parameter counts, reading and writing checkpoints are all driven by it. The params themselves are a plain
nested dict of arrays with the table's structure; weights of repeated layers are stacked along a leading axis [L, ...].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from rarl_jax.models.qwen2_5_vl.config import Config, TextConfig, VisionConfig

Params = dict[str, Any]  # nested dict of arrays
LAYERS = 'layers'  # the logical axis along which repeated layers are stacked


@dataclass(frozen=True)
class Weight:
    """One array of the params."""

    shape: tuple[int, ...]  # as kept here: a matrix is [in, out]
    axes: tuple[str, ...]  # logical name of each axis
    hub: str  # name in a checkpoint; '{}' stands for the layer where the weight is stacked
    start: Literal['normal', 'ones', 'zeros']  # how it is initialised; 'normal' has the config's init_scale
    transposed: bool = False  # the checkpoint keeps a matrix as [out, in]
    hub_shape: tuple[int, ...] | None = (
        None  # of one layer in the checkpoint, where it is not the shape or its transpose
    )

    @property
    def stacked(self) -> bool:
        return self.axes[0] == LAYERS


def weight_table(config: Config) -> Params:
    """The params' structure with a Weight at every leaf."""
    return {'text': _text(config.text), 'vision': _vision(config.vision)}


def logical_axes(config: Config) -> Params:
    """The params' structure with the tuple of logical axis names at every leaf, for a rules table to shard."""
    return jax.tree.map(lambda weight: weight.axes, weight_table(config))


def abstract_params(config: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """The params' structure with shapes and dtypes only; no memory is taken."""
    return jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, dtype), weight_table(config))


def count_params(config: Config) -> int:
    """Numbers in all weights together."""
    return sum(math.prod(weight.shape) for weight in jax.tree.leaves(weight_table(config)))


def init_params(key: PRNGKeyArray, config: Config, dtype: DTypeLike = jnp.float32) -> Params:
    """Fresh params: matrices normal with config.init_scale, biases 0, norms 1. Pure: jit it with out_shardings for large models."""
    weights, structure = jax.tree.flatten(weight_table(config))
    keys = jax.random.split(key, len(weights))
    arrays = [_start(weight, one, config.init_scale, dtype) for weight, one in zip(weights, keys, strict=True)]
    return jax.tree.unflatten(structure, arrays)


def unstack(params: Params) -> Params:
    """The same params with each stack of layers as a tuple of per-layer dicts, the form that decoding wants: slice once, not once per token."""
    text, vision = params['text'], params['vision']
    return {
        'text': {**text, 'layers': unstack_layers(text['layers'])},
        'vision': {**vision, 'blocks': unstack_layers(vision['blocks'])},
    }


def unstack_layers(layers: Params) -> tuple[Params, ...]:
    """Stacked weights [L, ...] -> L dicts. Its gradient is one concatenation per weight."""
    leaves, structure = jax.tree.flatten(layers)
    return tuple(
        jax.tree.unflatten(structure, layer) for layer in zip(*(jnp.unstack(leaf) for leaf in leaves), strict=True)
    )


def _start(weight: Weight, key: PRNGKeyArray, scale: float, dtype: DTypeLike) -> Array:
    if weight.start == 'ones':
        return jnp.ones(weight.shape, dtype)
    if weight.start == 'zeros':
        return jnp.zeros(weight.shape, dtype)
    return (scale * jax.random.normal(key, weight.shape, jnp.float32)).astype(dtype)


def _norm(size: int, axis: str, hub: str, layers: int | None = None) -> Weight:
    if layers is None:
        return Weight((size,), (axis,), hub, 'ones')
    return Weight((layers, size), (LAYERS, axis), hub, 'ones')


def _dense(
    fan_in: tuple[int, str], fan_out: tuple[int, str], hub: str, bias: bool, layers: int | None = None
) -> Params:
    """A linear map's weights; `fan_in` and `fan_out` are (size, logical axis)."""
    lead, lead_axes = ((), ()) if layers is None else ((layers,), (LAYERS,))
    w = Weight(
        (*lead, fan_in[0], fan_out[0]), (*lead_axes, fan_in[1], fan_out[1]), f'{hub}.weight', 'normal', transposed=True
    )
    if not bias:
        return {'w': w}
    return {'w': w, 'b': Weight((*lead, fan_out[0]), (*lead_axes, fan_out[1]), f'{hub}.bias', 'zeros')}


def _text(text: TextConfig) -> Params:
    depth, embed, mlp = text.num_layers, (text.hidden_size, 'embed'), (text.intermediate_size, 'mlp')
    heads = (text.num_heads * text.head_dim, 'heads')
    kv_heads = (text.num_kv_heads * text.head_dim, 'kv_heads')
    at = 'model.layers.{}.'
    table = {
        'embed': Weight((text.vocab_size, text.hidden_size), ('vocab', 'embed'), 'model.embed_tokens.weight', 'normal'),
        'layers': {
            'input_norm': _norm(text.hidden_size, 'norm', at + 'input_layernorm.weight', depth),
            'q': _dense(embed, heads, at + 'self_attn.q_proj', True, depth),
            'k': _dense(embed, kv_heads, at + 'self_attn.k_proj', True, depth),
            'v': _dense(embed, kv_heads, at + 'self_attn.v_proj', True, depth),
            'o': _dense(heads, embed, at + 'self_attn.o_proj', False, depth),
            'post_norm': _norm(text.hidden_size, 'norm', at + 'post_attention_layernorm.weight', depth),
            'gate': _dense(embed, mlp, at + 'mlp.gate_proj', False, depth),
            'up': _dense(embed, mlp, at + 'mlp.up_proj', False, depth),
            'down': _dense(mlp, embed, at + 'mlp.down_proj', False, depth),
        },
        'norm': _norm(text.hidden_size, 'norm', 'model.norm.weight'),
    }
    if not text.tie_word_embeddings:
        table['head'] = Weight((text.vocab_size, text.hidden_size), ('vocab', 'embed'), 'lm_head.weight', 'normal')
    return table


def _vision(vision: VisionConfig) -> Params:
    depth, width, mlp = vision.depth, (vision.hidden_size, 'vision_embed'), (vision.intermediate_size, 'vision_mlp')
    qkv, heads = (3 * vision.hidden_size, 'vision_qkv'), (vision.hidden_size, 'vision_heads')
    merged = (vision.hidden_size * vision.merge_unit, 'vision_merged')
    kernel = (vision.hidden_size, vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    at = 'visual.blocks.{}.'
    return {
        'patch': {
            'w': Weight(
                (vision.patch_dim, vision.hidden_size),
                ('patch', 'vision_embed'),
                'visual.patch_embed.proj.weight',
                'normal',
                transposed=True,
                hub_shape=kernel,
            )
        },
        'blocks': {
            'norm1': _norm(vision.hidden_size, 'norm', at + 'norm1.weight', depth),
            'qkv': _dense(width, qkv, at + 'attn.qkv', True, depth),
            'proj': _dense(heads, width, at + 'attn.proj', True, depth),
            'norm2': _norm(vision.hidden_size, 'norm', at + 'norm2.weight', depth),
            'gate': _dense(width, mlp, at + 'mlp.gate_proj', True, depth),
            'up': _dense(width, mlp, at + 'mlp.up_proj', True, depth),
            'down': _dense(mlp, width, at + 'mlp.down_proj', True, depth),
        },
        'merger': {
            'norm': _norm(vision.hidden_size, 'norm', 'visual.merger.ln_q.weight'),
            'up': _dense(merged, (merged[0], 'vision_mlp'), 'visual.merger.mlp.0', True),
            'down': _dense((merged[0], 'vision_mlp'), (vision.out_hidden_size, 'embed'), 'visual.merger.mlp.2', True),
        },
    }
