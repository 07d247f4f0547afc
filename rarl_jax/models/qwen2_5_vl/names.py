"""The hub's names of the params: (pattern of the path, name in a checkpoint, how the array is kept there).

'{}' stands for the layer where the layers are stacked. 'same': as here. 'transposed': a matrix as [out, in]. 'kernel': a matrix as a convolution,
[out, channels, frames, rows, columns].
"""

from __future__ import annotations

NAMES = (
    (r'text/embed', 'model.embed_tokens.weight', 'same'),
    (r'text/head', 'lm_head.weight', 'same'),
    (r'text/norm/scale', 'model.norm.weight', 'same'),
    (r'text/layers/input_norm/scale', 'model.layers.{}.input_layernorm.weight', 'same'),
    (r'text/layers/post_norm/scale', 'model.layers.{}.post_attention_layernorm.weight', 'same'),
    (r'text/layers/attention/(\w)/w', r'model.layers.{}.self_attn.\1_proj.weight', 'transposed'),
    (r'text/layers/attention/(\w)/b', r'model.layers.{}.self_attn.\1_proj.bias', 'same'),
    (r'text/layers/mlp/(\w+)/w', r'model.layers.{}.mlp.\1_proj.weight', 'transposed'),
    (r'vision/patch/w', 'visual.patch_embed.proj.weight', 'kernel'),
    (r'vision/blocks/(norm\d)/scale', r'visual.blocks.{}.\1.weight', 'same'),
    (r'vision/blocks/(qkv|proj)/w', r'visual.blocks.{}.attn.\1.weight', 'transposed'),
    (r'vision/blocks/(qkv|proj)/b', r'visual.blocks.{}.attn.\1.bias', 'same'),
    (r'vision/blocks/mlp/(\w+)/w', r'visual.blocks.{}.mlp.\1_proj.weight', 'transposed'),
    (r'vision/blocks/mlp/(\w+)/b', r'visual.blocks.{}.mlp.\1_proj.bias', 'same'),
    (r'vision/merger/norm/scale', 'visual.merger.ln_q.weight', 'same'),
    (r'vision/merger/up/w', 'visual.merger.mlp.0.weight', 'transposed'),
    (r'vision/merger/up/b', 'visual.merger.mlp.0.bias', 'same'),
    (r'vision/merger/down/w', 'visual.merger.mlp.2.weight', 'transposed'),
    (r'vision/merger/down/b', 'visual.merger.mlp.2.bias', 'same'),
)
