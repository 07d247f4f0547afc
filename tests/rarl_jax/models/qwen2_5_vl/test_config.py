import dataclasses
import json

import jax
import pytest

from rarl_jax.models.interface import PRESETS, Config, Qwen2_5_VL
from rarl_jax.models.params import abstract_params, count_params, init_params, logical_axes
from tests.rarl_jax.models.small import CONFIG, TIED

# Parameters of Qwen2.5-VL-*-Instruct as the hub counts them.
PUBLISHED = {'3B': 3_754_622_976, '7B': 8_292_166_656, '32B': 33_452_718_336, '72B': 73_410_777_344}


@pytest.mark.parametrize('size', PUBLISHED)
def test_published_sizes(size):
    config = PRESETS[size]
    fresh = jax.eval_shape(lambda key: init_params(key, config), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == count_params(config) == PUBLISHED[size]
    assert jax.tree.map(lambda leaf: leaf.shape, fresh) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(config)
    )
    assert fresh['text']['layers']['k']['w'].shape == (
        config.text.num_layers,
        config.text.hidden_size,
        config.text.num_kv_heads * 128,
    )


@pytest.mark.parametrize('config', [CONFIG, TIED, PRESETS['3B'], PRESETS['7B']])
def test_to_hugging_face_and_back(config, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
    assert Config.from_folder(tmp_path) == config


def test_nested_form():
    flat = CONFIG.to_hf()
    names = (
        'rope_theta',
        'rope_scaling',
        'vocab_size',
        'hidden_size',
        'intermediate_size',
        'num_hidden_layers',
        'num_attention_heads',
    )
    names += (
        'num_key_value_heads',
        'max_position_embeddings',
        'rms_norm_eps',
        'bos_token_id',
        'eos_token_id',
        'initializer_range',
    )
    text = {name: flat.pop(name) for name in names}
    rope = {'rope_type': 'default', 'rope_theta': text.pop('rope_theta'), **text.pop('rope_scaling')}
    assert Config.from_hf({**flat, 'text_config': {**text, 'rope_parameters': rope}}) == CONFIG


def test_every_weight_has_an_axis_name_per_dimension():
    axes = jax.tree.leaves(logical_axes(CONFIG), is_leaf=lambda node: isinstance(node, tuple))
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract_params(CONFIG))]
    assert [len(one) for one in axes] == [len(shape) for shape in shapes]


def test_module_init_draws_the_table(tmp_path):
    fresh = jax.eval_shape(
        lambda key: Qwen2_5_VL(CONFIG).init(key, jax.numpy.zeros((1, 2), int), method='embed'), jax.random.key(0)
    )
    assert jax.tree.map(lambda leaf: leaf.shape, fresh['params']) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(CONFIG)
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model_type': 'llava'}, "model_type is 'llava'"),
        ({'num_attention_heads': 5}, 'multiple of num_heads 5'),
        ({'rope_scaling': {'type': 'mrope', 'mrope_section': [2, 2]}}, 'sum to half the head size 8'),
        ({'rope_scaling': {'type': 'yarn', 'mrope_section': [1, 1, 2]}}, "rope type is 'yarn'"),
        ({'hidden_size': 64}, 'out_hidden_size 32 must equal'),
        ({'use_sliding_window': True}, 'use_sliding_window'),
        ({'hidden_act': 'gelu'}, "decoder's hidden_act is 'gelu'"),
        ({'vision_config': {'hidden_act': 'quick_gelu'}}, "vision tower's hidden_act is 'quick_gelu'"),
        ({'vision_config': {}}, "the field 'depth' is missing"),
    ],
)
def test_configs_that_do_not_fit(change, message, tmp_path):
    values = {**CONFIG.to_hf(), **change}
    if 'hidden_size' in change:
        values['rope_scaling'] = {'type': 'mrope', 'mrope_section': [2, 2, 4]}
    (tmp_path / 'config.json').write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        Config.from_folder(tmp_path)


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'config\.json: no such file'):
        Config.from_folder(tmp_path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='not valid JSON'):
        Config.from_folder(tmp_path)


@pytest.mark.parametrize(
    ('field', 'value'), [('hidden_size', 18), ('window_size', 100), ('fullatt_block_indexes', (1, 3))]
)
def test_vision_towers_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG.vision, **{field: value})
