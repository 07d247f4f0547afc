"""Checkpoints as files: names, dtypes, shards, damage. What transformers itself reads and writes is in tests/parity."""

import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from rarl_jax.models.hub_files import inspect_file, write_file
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.models.params import abstract_params
from rarl_jax.models.weights import load_params, save_params, tensors_of
from rarl_jax.runtime.metrics import CompileCounter
from tests.rarl_jax.models.small import CONFIG, TIED, small_params

SMALL_SHARD = 30_000  # bytes: some ten files


@pytest.fixture(scope='module')
def tensors():
    return dict(tensors_of(small_params(), CONFIG))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A sound checkpoint in several files."""
    folder = tmp_path_factory.mktemp('sound')
    save_params(folder, small_params(), CONFIG, SMALL_SHARD)
    return folder


def bits_equal(one, other):
    return jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other)
    )


@pytest.mark.parametrize('config', [CONFIG, TIED], ids=['untied', 'tied'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('max_bytes', [10**9, SMALL_SHARD], ids=['single', 'sharded'])
def test_round_trip_is_equal_to_the_bit(config, dtype, max_bytes, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), small_params(config))
    save_params(tmp_path, params, config, max_bytes)
    assert bits_equal(load_params(tmp_path, config, dtype), params)
    assert (tmp_path / 'model.safetensors').is_file() == (max_bytes == 10**9)
    assert not list(tmp_path.glob('.*'))


def test_files_are_as_the_hub_has_them(folder, tensors):
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    files = sorted(path.name for path in folder.glob('*.safetensors'))
    assert sorted(set(index['weight_map'].values())) == files and len(files) > 3
    assert files[0] == f'model-00001-of-{len(files):05d}.safetensors'
    stored = {name: array for file in files for name, array in load_file(folder / file).items()}
    assert stored.keys() == tensors.keys() == index['weight_map'].keys()
    assert all(np.array_equal(stored[name], tensors[name]) for name in tensors)
    assert stored['model.layers.1.mlp.down_proj.weight'].shape == (
        CONFIG.text.hidden_size,
        CONFIG.text.intermediate_size,
    )
    assert stored['visual.patch_embed.proj.weight'].shape == (CONFIG.vision.hidden_size, 3, 2, 14, 14)
    assert index['metadata']['total_size'] == sum(array.nbytes for array in tensors.values())


def name_of_transformers_5(name):
    if name.startswith('model.'):
        return name.replace('model.', 'model.language_model.', 1)
    return name.replace('visual.', 'model.visual.', 1)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('shards', [1, 3])
def test_names_of_transformers_5(dtype, shards, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), small_params())
    tensors = {name_of_transformers_5(name): np.ascontiguousarray(x) for name, x in tensors_of(params, CONFIG)}
    files = [f'model-{n}.safetensors' for n in range(shards)] if shards > 1 else ['model.safetensors']
    listed = {name: files[n % shards] for n, name in enumerate(tensors)}
    for file in files:
        save_file({name: x for name, x in tensors.items() if listed[name] == file}, tmp_path / file)
    if shards > 1:
        (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': listed}))
    assert bits_equal(load_params(tmp_path, CONFIG, dtype), params)


@pytest.fixture(params=[True, False], ids=['on the host', 'on the devices'])
def on_host(request, monkeypatch):
    """Where arrays are put together: small ones on the host, unless nothing counts as small."""
    if not request.param:
        monkeypatch.setattr('rarl_jax.models.weights.ON_HOST', 0)
    return request.param


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_what_is_small_needs_no_program(on_host, dtype, folder, tmp_path):
    """Neither read nor written; what comes of it is the same."""
    counter = CompileCounter()
    params = load_params(folder, CONFIG, dtype)
    save_params(tmp_path, params, CONFIG)
    counter.close()
    assert bool(counter.names) != on_host
    expected = jax.tree.map(lambda leaf: leaf.astype(dtype), small_params())
    assert bits_equal(params, expected) and bits_equal(load_params(tmp_path, CONFIG, dtype), expected)


def test_straight_into_shards(folder, on_host):
    """Every weight is laid out as asked: here over 1 device, with a spec that shards stacks, matrices and their transposes."""
    mesh = Mesh(np.array(jax.devices()[:1]), ('x',))
    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, PartitionSpec(*[None] * (len(leaf.shape) - 1), 'x')),
        abstract_params(build_model(CONFIG)),
    )
    params = load_params(folder, CONFIG, jnp.float32, shardings)
    assert bits_equal(params, small_params())
    assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, params, shardings))


def test_the_host_holds_one_tensor_at_a_time(tmp_path):
    """1.3 times the largest file is the bound; what the devices hold is not the host's."""
    params = small_params(seed=1)
    params['text']['embed'] = jnp.ones((200_000, CONFIG.text.hidden_size))
    params['text']['head'] = jnp.ones((200_000, CONFIG.text.hidden_size))
    text = CONFIG.text.__class__(**{**vars(CONFIG.text), 'vocab_size': 200_000})
    config = CONFIG.__class__(**{**vars(CONFIG), 'text': text})
    save_params(tmp_path, params, config)
    tracemalloc.start()
    save_params(tmp_path, params, config)  # both tables in one file
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * params['text']['head'].nbytes
    save_params(tmp_path, params, config, max_shard_bytes=26_000_000)
    largest = max(path.stat().st_size for path in tmp_path.glob('*.safetensors'))
    load_params(tmp_path, config, jnp.float32)  # compiles
    tracemalloc.start()
    load_params(tmp_path, config, jnp.float32)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.3 * largest


# ---- what is wrong is said at once, all of it


def rewrite(folder, target, change):
    """A single-file copy of the checkpoint with `change` applied to its tensors."""
    stored = {name: array for file in sorted(folder.glob('*.safetensors')) for name, array in load_file(file).items()}
    change(stored)
    target.mkdir(exist_ok=True)
    save_file(stored, target / 'model.safetensors')


def test_one_report_of_everything(folder, tmp_path, monkeypatch):
    def change(stored):
        del stored['model.layers.2.self_attn.q_proj.bias'], stored['visual.merger.ln_q.weight']
        stored['model.layers.3.mlp.up_proj.weight'] = np.zeros((2, 2), np.float32)
        stored['model.norm.weight'] = np.zeros(31, np.float32)
        stored['lm_head.weight'] = stored['lm_head.weight'].astype(np.int32)

    rewrite(folder, tmp_path, change)
    monkeypatch.setattr('rarl_jax.models.weights.read_tensor', lambda stored: pytest.fail('read before it was checked'))
    with pytest.raises(ValueError) as report:
        load_params(tmp_path, CONFIG, jnp.float32)
    lines = str(report.value).split('\n  - ')
    assert '5 problems' in lines[0] and 'fetch the folder again' in lines[0]
    assert sorted(lines[1:]) == [
        'lm_head.weight: dtype I32, expected one of F32, F16, BF16',
        'model.layers.2.self_attn.q_proj.bias: missing',
        'model.layers.3.mlp.up_proj.weight: unexpected, no weight of this config',
        'model.norm.weight: shape (31,), expected (32,)',
        'visual.merger.ln_q.weight: missing',
    ]


def test_files_and_tensors_in_one_report(folder, tmp_path, monkeypatch):
    """A truncated file, one that is not there, one with too much, too little and the wrong shape: all said at once, before an array is made."""
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    truncated, lost, changed = sorted(copy.glob('*.safetensors'))[:3]
    truncated.write_bytes(truncated.read_bytes()[:-10])
    names = sorted(load_file(lost))
    lost.unlink()
    stored = load_file(changed)
    (gone, _), (bent, _) = stored.popitem(), stored.popitem()
    save_file({**stored, bent: np.zeros((2, 2), np.float32), 'model.extra': np.zeros(3, np.float32)}, changed)
    monkeypatch.setattr('rarl_jax.models.hub_files.MAX_LINES', 1000)
    for step in ('read_tensor', '_loading'):
        monkeypatch.setattr(f'rarl_jax.models.weights.{step}', lambda *_: pytest.fail('begun before it was checked'))
    with pytest.raises(ValueError) as report:
        load_params(copy, CONFIG, jnp.float32)
    told = str(report.value)
    assert f'{truncated.name}: truncated or damaged' in told
    assert f'{lost.name}: no such file' in told and all(f'{name}: missing' in told for name in (*names, gone))
    assert f'{bent}: shape (2, 2), expected' in told and 'model.extra: unexpected' in told


def damage_truncate(folder):
    file = min(folder.glob('*.safetensors'))
    file.write_bytes(file.read_bytes()[:-10])


def damage_cut_header(folder):
    file = min(folder.glob('*.safetensors'))
    file.write_bytes(file.read_bytes()[:40])


def damage_header(folder):
    file = min(folder.glob('*.safetensors'))
    data = bytearray(file.read_bytes())
    data[8:12] = b'\xff[[['
    file.write_bytes(data)


def damage_lose_a_file(folder):
    min(folder.glob('*.safetensors')).unlink()


def damage_index(folder):
    index = json.loads((folder / 'model.safetensors.index.json').read_text())
    index['weight_map']['lm_head.weight'] = '../model.safetensors'
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (damage_truncate, r'00001-of-\d+\.safetensors: truncated or damaged \(\d+ bytes: .*file not fully covered'),
        (damage_cut_header, r'truncated or damaged \(40 bytes: invalid header length'),
        (damage_header, r'truncated or damaged \(\d+ bytes: invalid UTF-8 in header'),
        (damage_lose_a_file, r'00001-of-\d+\.safetensors: no such file'),
        (damage_index, r'\.\./model\.safetensors: not a file name'),
    ],
)
def test_damaged_files(folder, tmp_path, damage, message):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ValueError, match=message):
        load_params(copy, CONFIG, jnp.float32)


@pytest.mark.parametrize('offsets', [(-8, 0), (0, 16), (4, 12), (8, 0), (0, 8)], ids=str)
def test_offsets_must_tile_the_file(offsets, tmp_path):
    """Negative, beyond the end, a hole, reversed, bytes that are nobody's; and two tensors on the same bytes."""

    def write(**entries):
        header = json.dumps({name: {'dtype': 'F32', 'shape': [2], 'data_offsets': at} for name, at in entries.items()})
        path = tmp_path / 'model.safetensors'
        path.write_bytes(len(header).to_bytes(8, 'little') + header.encode() + bytes(12))
        return path

    for file in (write(a=offsets), write(a=(0, 8), b=(4, 12)), write(a=(0, 8), b=offsets)):
        assert 'truncated or damaged' in inspect_file(file)[1][0]


def test_an_index_that_is_none(folder, tmp_path):
    for text in ('[]', '{}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        (tmp_path / 'model.safetensors.index.json').write_text(text)
        with pytest.raises(ValueError, match=r'index\.json.* fetch the file again'):
            load_params(tmp_path, CONFIG, jnp.float32)


@pytest.mark.parametrize('first', [10**9, SMALL_SHARD, 60_000], ids=['one file', 'shards', 'fewer shards'])
@pytest.mark.parametrize('second', [10**9, SMALL_SHARD, 60_000], ids=['one file', 'shards', 'fewer shards'])
def test_nothing_of_an_earlier_save_is_left(first, second, tmp_path):
    params = small_params()
    save_params(tmp_path, jax.tree.map(lambda leaf: leaf + 1, params), CONFIG, first)
    (tmp_path / 'tokenizer.json').write_text('{}')
    save_params(tmp_path, params, CONFIG, second)
    save_params(tmp_path / 'clean', params, CONFIG, second)
    clean = {path.name for path in (tmp_path / 'clean').iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == clean | {'clean', 'tokenizer.json'}
    assert bits_equal(load_params(tmp_path, CONFIG, jnp.float32), params)


def test_a_save_that_was_killed_is_no_mixture(folder, tmp_path, monkeypatch):
    """New shards under the names of old ones: without an index nobody reads them as one."""
    shutil.copytree(folder, tmp_path / 'copy')
    written = []

    def die_at_the_third(path, *rest):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        write_file(path, *rest)

    monkeypatch.setattr('rarl_jax.models.hub_files.write_file', die_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        save_params(tmp_path / 'copy', small_params(seed=1), CONFIG, SMALL_SHARD)
    with pytest.raises(FileNotFoundError, match='found neither'):
        load_params(tmp_path / 'copy', CONFIG, jnp.float32)


def test_one_tensor_by_two_names(folder, tmp_path):
    """What another program has saved under its names over ours, without removing ours."""
    name = 'model.norm.weight'

    def add(stored):
        stored[name_of_transformers_5(name)] = stored[name] + 1

    rewrite(folder, tmp_path, add)
    with pytest.raises(ValueError, match=r'model\.norm\.weight: .* as model\..*norm\.weight in model\.safetensors'):
        load_params(tmp_path, CONFIG, jnp.float32)


def test_one_file_beside_the_index_of_others(folder, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    rewrite(folder, copy, lambda stored: None)
    with pytest.raises(ValueError, match='left over from an earlier save'):
        load_params(copy, CONFIG, jnp.float32)
    names = load_file(copy / 'model.safetensors')
    index = json.dumps({'weight_map': dict.fromkeys(names, 'model.safetensors')})
    (copy / 'model.safetensors.index.json').write_text(index)  # an index of that one file is none of another
    assert bits_equal(load_params(copy, CONFIG, jnp.float32), small_params())


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_names_its_tensor(dtype, value, tmp_path):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), small_params())
    params['text']['layers']['attention']['q']['w'] = (
        params['text']['layers']['attention']['q']['w'].at[1, 3, 2].set(value)
    )
    save_params(tmp_path, params, CONFIG)
    with pytest.raises(
        ValueError, match=r'model\.layers\.1\.self_attn\.q_proj\.weight holds numbers that are not finite'
    ):
        load_params(tmp_path, CONFIG, dtype)


def test_huge_weights_are_finite(tmp_path):
    """Their sum is not."""
    params = small_params()
    params['text']['norm']['scale'] = jnp.full(32, 3e38)
    save_params(tmp_path, params, CONFIG)
    assert bits_equal(load_params(tmp_path, CONFIG, jnp.float32), params)


def test_a_long_report_is_cut(folder, tmp_path):
    rewrite(folder, tmp_path, lambda stored: [stored.pop(name) for name in list(stored)[:37]])
    with pytest.raises(ValueError, match='37 problems') as report:
        load_params(tmp_path, CONFIG, jnp.float32)
    lines = str(report.value).split('\n')
    assert len(lines) == 11 and lines[-1] == '  - ... and 28 more'


def test_only_safetensors(tmp_path):
    (tmp_path / 'pytorch_model.bin').write_bytes(b'')
    with pytest.raises(FileNotFoundError, match=r'only pytorch_model\.bin.*only safetensors are read'):
        load_params(tmp_path, CONFIG, jnp.float32)
    with pytest.raises(FileNotFoundError, match='no such folder'):
        load_params(tmp_path / 'nowhere', CONFIG, jnp.float32)


def test_a_redundant_head_must_be_the_table(tmp_path):
    params = small_params(TIED)
    save_params(tmp_path / 'tied', params, TIED)
    table = np.asarray(params['text']['embed'])
    rewrite(tmp_path / 'tied', tmp_path / 'same', lambda stored: stored.update({'lm_head.weight': table}))
    assert bits_equal(load_params(tmp_path / 'same', TIED, jnp.float32), params)
    rewrite(tmp_path / 'tied', tmp_path / 'other', lambda stored: stored.update({'lm_head.weight': table + 1}))
    with pytest.raises(ValueError, match=r'lm_head\.weight: differs'):
        load_params(tmp_path / 'other', TIED, jnp.float32)


def test_a_head_of_its_own_is_never_dropped(folder, tmp_path):
    """The inner level alone says that the head is the table: the files say that it is not."""
    copy = tmp_path / 'copy'
    shutil.copytree(folder, copy)
    values = json.loads((copy / 'config.json').read_text())
    for tied, message in ((False, None), (True, r'lm_head\.weight: differs.*tie_word_embeddings')):
        text = {**{name: values[name] for name in values if name != 'vision_config'}, 'tie_word_embeddings': tied}
        (copy / 'config.json').write_text(json.dumps({**values, 'tie_word_embeddings': False, 'text_config': text}))
        if message is None:
            assert bits_equal(load_params(copy, read_config(copy), jnp.float32), small_params())
        else:
            with pytest.raises(ValueError, match=message):
                load_params(copy, read_config(copy), jnp.float32)
    save_params(tmp_path / 'tied', small_params(TIED), TIED)
    with pytest.raises(ValueError, match=r'lm_head\.weight: missing'):
        load_params(tmp_path / 'tied', CONFIG, jnp.float32)


def test_a_quantized_folder_is_refused_in_one_sentence(folder, tmp_path):
    shutil.copytree(folder, tmp_path / 'copy')
    path = tmp_path / 'copy' / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'quantization_config': {'quant_method': 'awq'}}))
    with pytest.raises(ValueError, match=r'config\.json: the weights are quantized \(awq\)') as told:
        read_config(path.parent)
    assert '\n' not in str(told.value)


def test_params_of_another_shape_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match='not the plain stacked dict'):
        save_params(tmp_path, small_params(), TIED)
    params = small_params()
    params['text']['norm']['scale'] = jnp.ones(31)
    with pytest.raises(ValueError, match=r'model\.norm\.weight: params have shape \(31,\)'):
        save_params(tmp_path, params, CONFIG)
