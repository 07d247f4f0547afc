"""A whole run that trains an adapter: nothing else moves, nothing else is saved, and it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.rarl import LORA
from rarl_jax.models.adapter_files import load_adapter
from rarl_jax.models.interface import read_config
from rarl_jax.models.lora import merge
from rarl_jax.models.names import plain_name
from rarl_jax.models.weights import load_params, tensors_of
from rarl_jax.settings import settings_from
from tests.commands import FULL, launch

STAGES = ('warm_start', 'recognition', 'reorder', 'character')
FEWER = ["--config.stages=('warm_start', 'recognition', 'rarl')", '--config.compare=()']
RUNS = {  # by family: the stages that train, and the command
    'qwen2_5_vl': (STAGES, ['--config=configs/rarl.py:lora_smoke']),
    'qwen3_vl': (STAGES[:2], ['--config=configs/rarl.py:qwen3_vl_lora_smoke', *FEWER]),
}
# A rate and an entropy bonus that move the adapter of a policy which earns nothing yet.
MOVING = [f'--config.stage.{name}.optimizer.learning_rate=0.01' for name in STAGES]
MOVING += [f'--config.stage.{name}.loss.entropy_weight=0.1' for name in STAGES]
MOVING += ['--config.stage.character.loss.kl_weight=0.1']
pytestmark = pytest.mark.slow


def run(workdir: Path, family: str) -> None:
    done = launch(*RUNS[family][1], f'--workdir={workdir}', *MOVING)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope='module', params=RUNS)
def family(request) -> str:
    return request.param


@pytest.fixture(scope='module')
def finished(family, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('lora')
    run(workdir, family)
    return workdir


first_family = pytest.mark.parametrize('family', ['qwen2_5_vl'], indirect=True)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / 'model.safetensors')


def test_only_the_adapted_maps_have_moved(finished):
    before, after = weights(finished / 'init'), weights(finished / 'export')
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    adapted = {
        name for name in before if plain_name(name).startswith('model.layers.') and name.split('.')[-2] in LORA.targets
    }
    assert moved == {name for name in adapted if name.endswith('weight')}


def test_the_export_is_the_base_with_its_adapter(finished):
    config = read_config(finished / 'init')
    adapter = load_adapter(finished / 'export' / 'adapter', config, LORA)
    merged = merge(load_params(finished / 'init', config, 'float32'), adapter, LORA)
    after = weights(finished / 'export')
    for name, expected in tensors_of(merged, config):
        np.testing.assert_allclose(after[name], expected, atol=1e-6)


def test_the_sampler_used_the_adapter(finished, family):
    """Were it the bare base that answers, log-probs of the last stage would be far from the trainer's."""
    lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
    stages = RUNS[family][0]
    gaps = [line['policy/ratio_gap'] for line in lines if line['stage'] in stages]
    assert len(gaps) == len(stages) and max(gaps) < 1e-3


@first_family
def test_the_reference_is_the_base_under_the_adapter(finished):
    """Three stages have moved the adapter when the fourth begins; before its first update only the base is another policy."""
    rows = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
    apart = {row['stage']: row['policy/kl'] for row in rows if 'policy/kl' in row}
    assert [*apart] == ['character'] and apart['character'] > 1e-6, 'a reference is held where it is weighed'


def test_checkpoints_hold_the_adapter_alone(finished):
    newest = max((finished / 'checkpoints').iterdir())
    arrays = json.loads((newest / 'arrays' / 'description.json').read_text())['arrays']
    assert all('lora_' in name for name, (shape, _) in arrays.items() if len(shape) > 1)
    moments = [name for name in arrays if name.startswith('opt_state') and 'lora_a' in name]
    assert len(moments) == 2 * len(LORA.targets)  # Adam's two, stacked over layers


@first_family
def test_resumed(finished, tmp_path):
    """What is trained from an earlier checkpoint is bit-equal to the whole run's."""
    newest = max(path.name for path in (finished / 'checkpoints').iterdir())
    again = tmp_path / 'again'
    shutil.copytree(finished, again, ignore=shutil.ignore_patterns(newest, 'rarl', 'export', 'report'))
    run(again, 'qwen2_5_vl')
    for path in (Path('model.safetensors'), Path('adapter') / 'adapter_model.safetensors'):
        whole, resumed = (load_file(folder / 'export' / path) for folder in (finished, again))
        assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parity
def test_peft_loads_it(finished):
    """The base with the adapter on it, in PEFT, has the logits of the merged export."""
    torch = pytest.importorskip('torch')
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText as Reference

    ids = torch.arange(300, 340)[None]

    def logits(model):
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy()

    base, merged = (Reference.from_pretrained(finished / name, dtype=torch.float32) for name in ('init', 'export'))
    bare = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, finished / 'export' / 'adapter'))
    scale = np.abs(bare).max()
    np.testing.assert_allclose(adapted, logits(merged), atol=1e-4 * scale)
    assert np.abs(adapted - bare).max() > 1e-2 * scale


def test_7b_fits_one_gpu():
    """The base, its copy for the sampler, and the longest conversations that the config allows."""
    # FULL: what is told of a GPU must be told of the programs that a user's run compiles.
    done = launch('--config=configs/rarl.py:lora', '--preflight', compiled=FULL)
    assert done.returncode == 0, done.stderr
    assert 'It fits' in done.stdout and '8.29 B parameters' in done.stdout


@first_family
def test_a_stage_that_trains_all_weights_is_refused(finished):
    config = json.loads((finished / 'config.json').read_text())
    eyes = {'kind': 'rarl_jax.small.grounding', 'steps': 1, 'pages': 1, 'optimizer': {'learning_rate': 1e-3}}
    with pytest.raises(ValueError, match=r'Stage eyes trains all weights, which model\.lora leaves alone'):
        settings_from(config | {'stages': ['eyes'], 'stage': {'eyes': eyes}})
