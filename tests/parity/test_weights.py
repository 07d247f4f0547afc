"""Folders that transformers and peft write and read."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

from rarl_jax.models.adapter_files import save_adapter
from rarl_jax.models.interface import PRESETS, Config, build_model, read_config
from rarl_jax.models.lora import LoraConfig, init_adapter, join, merge
from rarl_jax.models.names import plain_name, weight_table
from rarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from rarl_jax.models.qwen3_vl import config as qwen3_vl
from rarl_jax.models.vision_batch import plan_vision
from rarl_jax.models.weights import load_params, save_params
from tests.parity.reference import CONFIGS, REFERENCES, conversation, random_reference, relative


def logits(config: Config, params: dict) -> np.ndarray:
    talk = conversation(config)
    batch = plan_vision(talk.images, config.vision)
    index = talk.feature_index(batch.image_rows)
    run = jax.jit(lambda p, *inputs: build_model(config).apply({'params': p}, *inputs))
    return np.asarray(run(params, talk.ids[None], talk.positions[:, None], index[None], batch))[0]


def reference_logits(config: Config, model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(**conversation(config).torch_inputs()).logits[0].float().numpy()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('shard', ['100MB', '40KB'])
def test_their_folder_through_us_is_equal_to_the_bit(name, dtype, shard, tmp_path):
    """HF -> here -> HF, single and sharded, tied and not."""
    random_reference(CONFIGS[name]).to(dtype).save_pretrained(tmp_path / 'theirs', max_shard_size=shard)
    assert read_config(tmp_path / 'theirs') == CONFIGS[name]
    params = load_params(tmp_path / 'theirs', CONFIGS[name], jnp.dtype(str(dtype).removeprefix('torch.')))
    save_params(tmp_path / 'ours', params, CONFIGS[name], 40_000)
    theirs, ours = (
        {name: array for file in (tmp_path / side).glob('*.safetensors') for name, array in load_file(file).items()}
        for side in ('theirs', 'ours')
    )
    assert len(list((tmp_path / 'theirs').glob('*.safetensors'))) > 1 or shard == '100MB'
    assert theirs.keys() == ours.keys()  # transformers saves under the hub's names too
    assert all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes() for name in theirs
    )


def test_transformers_loads_our_folder(name, tmp_path):
    """config.json and weights of our own make the same model there, on every weight."""
    config = CONFIGS[name]
    random_reference(config).save_pretrained(tmp_path / 'theirs')
    save_params(tmp_path / 'ours', load_params(tmp_path / 'theirs', config, jnp.float32), config, 40_000)
    loaded, report = REFERENCES[config.model_type][1].from_pretrained(
        tmp_path / 'ours', attn_implementation='eager', output_loading_info=True
    )
    assert not report['missing_keys'] and not report['unexpected_keys'] and not report['mismatched_keys']
    assert loaded.dtype == torch.float32
    assert np.array_equal(reference_logits(config, loaded), reference_logits(config, random_reference(config)))


@pytest.mark.parametrize('size', PRESETS)
def test_config_as_they_save_it(size, tmp_path):
    """Nested, and without what equals the defaults of their classes."""
    config_class = REFERENCES[PRESETS[size].model_type][0]
    theirs = config_class(**PRESETS[size].to_hf(), use_cache=True, sliding_window=32768, vision_token_id=151654)
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / 'config.json').read_text())
    assert 'text_config' in written and 'vocab_size' not in written
    assert read_config(tmp_path) == PRESETS[size]


@pytest.mark.parametrize(
    ('ours', 'text', 'vision', 'blocks', 'name'),
    [
        (qwen2_5_vl, Qwen2_5_VLTextConfig(), Qwen2_5_VLVisionConfig(), 'FULL_BLOCKS', 'fullatt_block_indexes'),
        (qwen3_vl, Qwen3VLTextConfig(), Qwen3VLVisionConfig(), 'DEEPSTACK_BLOCKS', 'deepstack_visual_indexes'),
    ],
    ids=['qwen2_5_vl', 'qwen3_vl'],
)
def test_their_defaults_are_ours(ours, text, vision, blocks, name):
    assert {hub: getattr(text, hub) for hub, _, _ in ours.TEXT_SIZES.values()} == {
        hub: default for hub, default, _ in ours.TEXT_SIZES.values()
    }
    assert {each: getattr(vision, each) for each in ours.VISION_SIZES} == {
        each: one for each, (one, _) in ours.VISION_SIZES.items()
    }
    assert (tuple(getattr(vision, name)), text.rms_norm_eps, text.default_theta) == (
        getattr(ours, blocks),
        ours.RMS_NORM_EPS,
        ours.ROPE_THETA,
    )


@pytest.mark.parametrize(
    ('name', 'vision', 'maps'),
    [
        ('untied', False, ('gate_proj', 'down_proj')),
        ('untied', True, ('gate_proj', 'down_proj')),
        ('qwen3_untied', True, ('down_proj', 'linear_fc1', 'qkv')),
    ],
)
def test_peft_loads_our_adapter(name, vision, maps, tmp_path):
    config, lora = CONFIGS[name], LoraConfig(4, 8.0, ('q_proj', 'v_proj', *maps), vision)
    model = random_reference(config)
    model.save_pretrained(tmp_path / 'base')
    params = load_params(tmp_path / 'base', config, jnp.float32)
    noise = np.random.default_rng(0)
    adapter = init_adapter(jax.random.key(0), config, lora)
    adapter = jax.tree.map(lambda leaf: leaf + 0.1 * noise.standard_normal(leaf.shape).astype(np.float32), adapter)
    save_adapter(tmp_path / 'adapter', adapter, config, lora, str(tmp_path / 'base'))
    base = reference_logits(config, model)
    adapted = PeftModel.from_pretrained(model, tmp_path / 'adapter')
    trained = {name for name, _ in adapted.named_parameters() if 'lora_' in name}
    assert len(trained) == sum(len(factor) for factor in jax.tree.leaves(adapter))  # layers, stacked
    expected = reference_logits(config, adapted)
    assert relative(expected, base) > 0.1
    assert relative(logits(config, join(params, adapter, lora)), expected) < 1e-4
    assert relative(logits(config, merge(params, adapter, lora)), expected) < 1e-4


@pytest.mark.parametrize('size', PRESETS)
def test_published_shapes_are_theirs(size):
    """Every weight of every published size has the name and the shape that transformers gives it, without taking memory."""

    with torch.device('meta'):
        config_class, model_class = REFERENCES[PRESETS[size].model_type]
        model = model_class(config_class(**PRESETS[size].to_hf()))
    theirs = {plain_name(name): tuple(weight.shape) for name, weight in model.named_parameters()}
    ours = {}
    for weight in jax.tree.leaves(weight_table(PRESETS[size])):
        layers = range(weight.shape[0]) if weight.stacked else [0]
        ours |= {plain_name(weight.hub.format(layer)): weight.hub_shape for layer in layers}
    assert ours == theirs
