"""Adapters by themselves; that PEFT loads them is shown in tests/parity."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from rarl_jax.models.adapter_files import load_adapter, save_adapter
from rarl_jax.models.interface import build_model
from rarl_jax.models.lora import LoraConfig, adapter_axes, init_adapter, join, merge
from rarl_jax.models.params import unstack
from rarl_jax.models.vision_batch import plan_vision
from tests.rarl_jax.models.small import CONFIG, VISION, small_image, small_params

LORA = LoraConfig(rank=2, alpha=6.0, targets=('q_proj', 'down_proj', 'qkv'), vision=True)
IMAGE = small_image(84, 56)
IDS = np.array([3, 40, 40, 40, 40, 40, 40, 5, 6])


def logits(params):
    batch = plan_vision([IMAGE], VISION)
    index = np.where(IDS == 40, np.cumsum(IDS == 40) - 1, -1)
    positions = np.broadcast_to(np.arange(len(IDS)), (3, 1, len(IDS)))
    return jax.jit(lambda p: build_model(CONFIG).apply({'params': p}, IDS[None], positions, index[None], batch))(params)


def moved_adapter(seed=0):
    adapter = init_adapter(jax.random.key(seed), CONFIG, LORA)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), adapter)


def test_a_fresh_adapter_is_the_base():
    params = small_params()
    assert np.array_equal(logits(join(params, init_adapter(jax.random.key(0), CONFIG, LORA), LORA)), logits(params))


def test_merged_equals_joined():
    params, adapter = small_params(), moved_adapter()
    joined = logits(join(params, adapter, LORA))
    np.testing.assert_allclose(joined, logits(merge(params, adapter, LORA)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(joined, logits(unstack(join(params, adapter, LORA))), rtol=1e-4, atol=1e-4)
    assert np.abs(joined - logits(params)).max() > 0.1


def test_merging_worked_by_hand():
    params, adapter = small_params(), moved_adapter()
    a, b = (np.asarray(adapter['text']['layers']['attention']['q'][name])[1] for name in ('lora_a', 'lora_b'))
    expected = np.asarray(params['text']['layers']['attention']['q']['w'])[1] + 3.0 * a @ b  # alpha / rank = 3
    np.testing.assert_allclose(
        merge(params, adapter, LORA)['text']['layers']['attention']['q']['w'][1], expected, rtol=1e-5, atol=1e-6
    )


def test_only_what_is_asked_for_is_adapted():
    def adapted(vision, *targets):
        adapter = init_adapter(jax.random.key(0), CONFIG, LoraConfig(1, 1.0, targets, vision))
        found = {tower: set() for tower in adapter}
        for path in flatten_dict(adapter):
            found[path[0]].add(path[-2])
        return {tower: sorted(maps) for tower, maps in found.items()}

    assert adapted(False, 'q_proj', 'gate_proj') == {'text': ['gate', 'q']}
    assert adapted(True, 'q_proj', 'gate_proj') == {'text': ['gate', 'q'], 'vision': ['gate']}
    axes = adapter_axes(CONFIG, LORA)['text']['layers']['mlp']['down']
    assert axes == {'lora_a': ('layers', 'mlp', 'lora_rank'), 'lora_b': ('layers', 'lora_rank', 'embed')}


def test_unknown_target():
    with pytest.raises(
        ValueError, match=r"lora targets \['attention'\]: no linear map of that name; choose from .*'q_proj'"
    ):
        init_adapter(jax.random.key(0), CONFIG, LoraConfig(1, 1.0, ('q_proj', 'attention')))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_saved_and_loaded(dtype, tmp_path):
    adapter = jax.tree.map(lambda leaf: leaf.astype(dtype), moved_adapter())
    save_adapter(tmp_path, adapter, CONFIG, LORA, 'some/base')
    loaded = load_adapter(tmp_path, CONFIG, LORA, dtype)
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), loaded, adapter))


def test_an_adapter_of_other_settings_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('rarl_jax.models.hub_files.MAX_LINES', 1000)
    save_adapter(tmp_path, moved_adapter(), CONFIG, LORA, 'some/base')
    with pytest.raises(ValueError) as report:
        load_adapter(tmp_path, CONFIG, LoraConfig(2, 2.0, ('q_proj', 'k_proj')))
    assert 'alpha 6.0, expected 2 and 2.0' in str(report.value)
    assert 'k_proj.lora_A.weight: missing' in str(
        report.value
    ) and 'visual.blocks.0.attn.qkv.lora_B.weight: unexpected' in str(report.value)
    with pytest.raises(FileNotFoundError, match=r'adapter_model\.safetensors'):
        load_adapter(tmp_path / 'nowhere', CONFIG, LORA)


# ---- PEFT's settings and names


def rewritten(folder, target, settings=lambda old: old, name=lambda old: old):
    """A copy of a saved adapter with other settings and names."""
    target.mkdir()
    tensors = load_file(folder / 'adapter_model.safetensors')
    save_file({name(key): array for key, array in tensors.items()}, target / 'adapter_model.safetensors')
    old = json.loads((folder / 'adapter_config.json').read_text())
    (target / 'adapter_config.json').write_text(json.dumps(settings(old)))
    return target


@pytest.fixture
def saved(tmp_path):
    save_adapter(tmp_path / 'saved', moved_adapter(), CONFIG, LORA, 'some/base')
    return tmp_path / 'saved'


OLD = {'model.model.language_model.': 'model.model.', 'model.model.visual.': 'model.visual.'}


@pytest.mark.parametrize(
    'name',
    [
        lambda key: functools.reduce(lambda name, new: name.replace(new, OLD[new]), OLD, key),
        lambda key: key.replace('.weight', '.default.weight'),
        lambda key: key.removeprefix('base_model.model.'),
    ],
    ids=['before transformers 4.52', 'with the name of the adapter', 'without the prefix'],
)
def test_names_of_other_versions(saved, tmp_path, name):
    loaded = load_adapter(rewritten(saved, tmp_path / 'other', name=name), CONFIG, LORA)
    assert jax.tree.all(jax.tree.map(lambda one, other: bool((one == other).all()), loaded, moved_adapter()))


@pytest.mark.parametrize(
    'extra',
    [
        {'use_rslora': True},
        {'use_dora': True},
        {'use_qalora': True},
        {'lora_bias': True},
        {'bias': 'all'},
        {'bias': 'lora_only'},
        {'rank_pattern': {'q_proj': 4}},
        {'alpha_pattern': {'q_proj': 32}},
        {'modules_to_save': ['lm_head']},
        {'layers_to_transform': [0, 1]},
        {'layer_replication': [[0, 2]]},
        {'fan_in_fan_out': True},
        {'init_lora_weights': 'pissa'},
        {'target_parameters': ['x']},
        {'trainable_token_indices': [1]},
        {'peft_type': 'LOHA'},
        {'a_setting_of_next_year': {'x': 1}},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_settings_that_are_not_honoured(saved, tmp_path, extra):
    folder = rewritten(saved, tmp_path / 'other', settings=lambda old: old | extra)
    with pytest.raises(ValueError, match=f'{next(iter(extra))} is .*only plain LoRA is read'):
        load_adapter(folder, CONFIG, LORA)


def test_one_factor_by_two_names(saved):
    path = saved / 'adapter_model.safetensors'
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({**tensors, name.replace('.weight', '.default.weight'): tensors[name] + 1}, path)
    with pytest.raises(ValueError, match='twice, by names of two versions'):
        load_adapter(saved, CONFIG, LORA)


def test_settings_that_mean_nothing(saved, tmp_path):
    """What PEFT writes of itself."""
    idle = {'use_rslora': False, 'rank_pattern': {}, 'modules_to_save': None, 'bias': 'none', 'init_lora_weights': True}
    idle |= {'megatron_core': 'megatron.core', 'peft_version': '0.21', 'qalora_group_size': 16, 'revision': 'main'}
    load_adapter(rewritten(saved, tmp_path / 'other', settings=lambda old: old | idle), CONFIG, LORA)
    for broken in ('[]', '{'):
        (saved / 'adapter_config.json').write_text(broken)
        with pytest.raises(ValueError, match=r'adapter_config\.json'):
            load_adapter(saved, CONFIG, LORA)


def test_the_base_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / 'base').mkdir()
    monkeypatch.chdir(tmp_path)
    for given, written in (('base', str(tmp_path / 'base')), ('Qwen/Qwen2.5-VL-7B-Instruct',) * 2):
        save_adapter('adapter', moved_adapter(), CONFIG, LORA, given)
        settings = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
        assert settings['base_model_name_or_path'] == written


def test_targets_are_the_adapted_modules(saved):
    pattern = json.loads((saved / 'adapter_config.json').read_text())['target_modules']
    text, vision = 'model.language_model.layers.{}.{}', 'model.visual.blocks.{}.{}'
    adapted = [text.format(0, 'self_attn.q_proj'), text.format(11, 'mlp.down_proj'), vision.format(1, 'attn.qkv')]
    others = ['lm_head', text.format(0, 'self_attn.k_proj'), vision.format(1, 'attn.proj'), 'x.' + adapted[0]]
    assert [bool(re.fullmatch(pattern, name)) for name in [*adapted, *others]] == [True] * 3 + [False] * 4
