import dataclasses
import json
import math

import flax.linen as nn
import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rarl_jax.models.interface import build_model, config_from_hf, read_config
from rarl_jax.models.params import abstract_params, count_params, init_params, logical_axes
from rarl_jax.models.qwen2_5_vl.config import PRESETS, TEXT_SIZES, VISION_SIZES, Config
from tests.rarl_jax.models.small import CONFIG, TIED

# Parameters of Qwen2.5-VL-*-Instruct as the hub counts them.
PUBLISHED = {'3B': 3_754_622_976, '7B': 8_292_166_656, '32B': 33_452_718_336, '72B': 73_410_777_344}


@pytest.mark.parametrize('size', PUBLISHED)
def test_published_sizes(size):
    config = PRESETS[size]
    fresh = jax.eval_shape(lambda key: init_params(key, build_model(config)), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == count_params(build_model(config)) == PUBLISHED[size]
    assert jax.tree.map(lambda leaf: leaf.shape, fresh) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(build_model(config))
    )
    assert fresh['text']['layers']['attention']['k']['w'].shape == (
        config.text.num_layers,
        config.text.hidden_size,
        config.text.num_kv_heads * 128,
    )


@pytest.mark.parametrize('config', [CONFIG, TIED, PRESETS['3B'], PRESETS['7B']])
def test_to_hugging_face_and_back(config, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
    assert read_config(tmp_path) == config


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


def test_rope_in_two_places():
    flat = CONFIG.to_hf()
    assert Config.from_hf(
        {**flat, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 7.0}}
    ) == dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, rope_theta=7.0))


def test_every_weight_has_an_axis_name_per_dimension():
    axes = jax.tree.leaves(logical_axes(build_model(CONFIG)), is_leaf=lambda node: isinstance(node, tuple))
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract_params(build_model(CONFIG)))]
    assert [len(one) for one in axes] == [len(shape) for shape in shapes]


@pytest.mark.parametrize('scan', [False, True])
def test_module_init_stacks_the_layers(scan):
    model = build_model(CONFIG, scan=scan)
    fresh = jax.eval_shape(lambda key: model.init(key, *model.example()), jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, nn.unbox(fresh['params'])) == jax.tree.map(
        lambda leaf: leaf.shape, abstract_params(build_model(CONFIG))
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
        ({'vision_config': {}}, 'out_hidden_size 3584 must equal'),
        ({'vision_config': []}, 'vision_config is a list'),
        ({'text_config': 'none'}, 'text_config is a str'),
        ({'quantization_config': {'quant_method': 'awq', 'bits': 4}}, r'the weights are quantized \(awq\)'),
        ({'text_config': {'quantization_config': {'quant_method': 'gptq'}}}, r'the weights are quantized \(gptq\)'),
        ({'compression_config': {'format': 'int-quantized'}}, 'the weights are quantized'),
        ({'model_type': 'qwen3_vl_moe'}, 'model_type is qwen3_vl_moe, a mixture of experts'),
        ({'model_type': ['x'] * 10**6}, "model_type is .'x'"),
        ({'image_token_id': 48}, 'image_token_id 48 must lie below vocab_size 48'),
        ({'rope_scaling': 'yarn'}, "rope type is 'yarn'"),
    ],
)
def test_configs_that_do_not_fit(change, message, tmp_path):
    values = {**CONFIG.to_hf(), **change}
    if 'hidden_size' in change:
        values['rope_scaling'] = {'type': 'mrope', 'mrope_section': [2, 2, 4]}
    (tmp_path / 'config.json').write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path)


SIZES = [
    *(hub for hub, _, _ in TEXT_SIZES.values()),
    'image_token_id',
    *(f'vision_config.{name}' for name in VISION_SIZES),
]
NO_SIZE = [-1, 10**30, 1e400, math.nan, 2.5, 400.0, True, '12', [], {}]


@pytest.mark.parametrize('name', [*SIZES, 'rope_theta', 'rms_norm_eps', 'initializer_range'])
def test_numbers_are_bounded(name):
    """One sentence, before anything of that size is made."""
    part, _, field = name.rpartition('.')
    real = name in ('rope_theta', 'rms_norm_eps', 'initializer_range')
    for value in (-1, 0, 10**30, 1e400, math.nan, True, '12', [], {}) if real else NO_SIZE:
        values = CONFIG.to_hf()
        (values[part] if part else values)[field] = value
        with pytest.raises(ValueError, match=f'{field} is ') as told:
            Config.from_hf(values)
        assert ('vision_config: ' in str(told.value)) == bool(part)
        assert len(str(told.value)) < 200 and '\n' not in str(told.value)


@pytest.mark.parametrize('value', [[-1], [10**30], [1.5], ['1'], 'abc', 3, {}])
@pytest.mark.parametrize('field', ['fullatt_block_indexes', 'mrope_section'])
def test_lists_are_lists_of_small_whole_numbers(field, value):
    values = CONFIG.to_hf()
    values['vision_config' if field.startswith('full') else 'rope_scaling'][field] = value
    with pytest.raises(ValueError, match=field):
        Config.from_hf(values)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), value=ANYTHING)
@settings(max_examples=300, deadline=None)
def test_any_value_in_any_field(data, value):
    """A config that can be compiled for, or one sentence."""
    values = CONFIG.to_hf()
    part = data.draw(st.sampled_from([values, values['vision_config'], values['rope_scaling']]))
    part[data.draw(st.sampled_from(sorted({*part, 'text_config', 'rope_parameters', 'quantization_config'})))] = value
    try:
        hash(config_from_hf(values))
    except ValueError as told:
        assert '\n' not in str(told) and len(str(told)) < 300


# ---- what others leave out

HUB_VISION = {**PRESETS['7B'].to_hf()['vision_config'], 'tokens_per_second': 2}


@pytest.mark.parametrize(
    'missing', [*VISION_SIZES, 'fullatt_block_indexes', 'everything that equals the default'], ids=str
)
def test_vision_fields_that_equal_the_default(missing):
    """transformers saves only what differs from its classes' defaults; the published width, 1280, differs."""
    kept = ('hidden_size', 'in_chans') if missing.startswith('everything') else HUB_VISION.keys() - {missing}
    vision = {name: HUB_VISION[name] for name in kept}
    read = Config.from_hf({**PRESETS['7B'].to_hf(), 'vision_config': vision})
    if missing == 'hidden_size':
        assert read.vision.hidden_size == 3584
    else:
        assert read == PRESETS['7B']


def test_text_fields_that_equal_the_default():
    """The 72B is the class's default, but for the norm's epsilon and the longest context."""
    flat, big = PRESETS['72B'].to_hf(), PRESETS['72B']
    said = {name: flat[name] for name in ('rms_norm_eps', 'max_position_embeddings')}
    top = {'model_type': 'qwen2_5_vl', 'vision_config': flat['vision_config']}
    assert Config.from_hf({**top, **said}) == big
    assert Config.from_hf({**top, 'text_config': said}) == big
    assert Config.from_hf({**top, **said, 'rope_scaling': None, 'text_config': None}) == big
    assert Config.from_hf({**top, 'text_config': said, 'rope_scaling': flat['rope_scaling']}) == big
    text = Config.from_hf(top).text
    assert (text.rms_norm_eps, text.max_position_embeddings) == (1e-5, 32_768)
    alone = Config.from_hf({**top, 'text_config': {**said, 'num_key_value_heads': None}})
    assert alone.text.num_kv_heads == 64


@pytest.mark.parametrize('eos', [[2, 1], [2], None, 7, []])
@pytest.mark.parametrize('bos', [None, 3])
def test_end_tokens_of_any_form(eos, bos):
    values = {**CONFIG.to_hf(), 'eos_token_id': eos, 'bos_token_id': bos}
    config = Config.from_hf(values)
    assert hash(config) == hash(Config.from_hf(config.to_hf()))  # it is a static argument of jitted functions
    assert config.to_hf() == values


@pytest.mark.parametrize('eos', ['2', [2, '1'], 1.0, -1, {}, [[1]], 10**12])
def test_end_tokens_that_are_none(eos):
    with pytest.raises(ValueError, match='eos_token_id'):
        Config.from_hf({**CONFIG.to_hf(), 'eos_token_id': eos})


@pytest.mark.parametrize('outer', [True, False, None])
@pytest.mark.parametrize('inner', [True, False, None])
def test_tied_where_either_level_says_so(outer, inner):
    """As transformers 4.57 and 5.24 do."""
    flat = CONFIG.to_hf()
    text = {**{name: flat[name] for name in flat if name not in ('vision_config', 'tie_word_embeddings')}}
    levels = {'tie_word_embeddings': outer} if outer is not None else {}
    text |= {'tie_word_embeddings': inner} if inner is not None else {}
    values = {'model_type': 'qwen2_5_vl', 'image_token_id': 40, 'vision_config': flat['vision_config']}
    assert Config.from_hf({**values, **levels, 'text_config': text}).text.tie_word_embeddings == bool(outer or inner)


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'config\.json: no such file'):
        read_config(tmp_path)
    (tmp_path / 'config.json').write_text('{')
    with pytest.raises(ValueError, match='is not JSON'):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ('field', 'value'), [('hidden_size', 18), ('window_size', 100), ('fullatt_block_indexes', (1, 3))]
)
def test_vision_towers_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG.vision, **{field: value})
