"""The comparison that a user runs: it agrees on a sound folder, and names the layer that was damaged in another."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from rarl_jax.compare_torch.compare import compare
from rarl_jax.models.images import PixelLimits
from rarl_jax.settings import ComparedModel, CompareSettings
from tests.commands import FULL, launch
from tests.rarl_jax.small_policy import folder

SMALL = PixelLimits(28 * 28, 28 * 28 * 40)


def settings(path: Path | str, reference: Path | str = '') -> CompareSettings:
    model = ComparedModel(str(path), SMALL, SMALL)
    return CompareSettings(('compare_torch',), model, str(reference), greedy_tokens=8)


def damaged(target: Path, name: str) -> Path:
    """A copy of the small folder in which one number of one weight is another."""
    shutil.copytree(folder(), target)
    tensors = load_file(target / 'model.safetensors')
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] += 3.0
    save_file(tensors, target / 'model.safetensors', metadata={'format': 'pt'})
    return target


@pytest.mark.slow
def test_as_a_user_a_sound_folder(tmp_path):
    done = launch('--config=configs/compare_torch.py:smoke', f'--workdir={tmp_path}', compiled=FULL)
    assert done.returncode == 0, done.stderr
    assert 'Verdict: agrees.' in done.stdout and '4 of 4 tokens equal' in done.stdout
    found = json.loads((tmp_path / 'comparison.json').read_text())
    what = [row['what'] for row in found['rows']]
    assert found['verdict'] == 'agrees' and found['largest_difference'] < 1e-4
    assert sum('vision block' in name for name in what) == 3 and sum('decoder layer' in name for name in what) == 4
    assert {'ids', 'positions', 'merger', 'logits', 'greedy, first turn', 'greedy, after the crop'} < set(what)


@pytest.mark.slow
def test_as_a_user_a_damaged_folder(tmp_path):
    path = damaged(tmp_path / 'damaged', 'model.layers.1.mlp.down_proj.weight')
    arguments = [f'--config.model.path={path}', f'--config.reference={folder()}', '--config.greedy_tokens=2']
    done = launch('--config=configs/compare_torch.py', f'--workdir={tmp_path / "run"}', *arguments, compiled=FULL)
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'differs, first at: decoder layer 1.' in done.stdout.replace('\n', ' ')


def test_a_sound_folder_of_the_other_family(tmp_path):
    report = compare(settings(folder('qwen3_vl')), tmp_path)
    assert report.verdict == 'agrees' and report.largest.difference < 1e-4
    assert {'DeepStack merger 0', 'ids', 'page pixels'} < {row.what for row in report.rows}


@pytest.mark.parametrize(
    ('name', 'first'),
    [
        ('visual.blocks.1.attn.proj.weight', 'vision block 1'),
        ('visual.merger.mlp.2.bias', 'merger'),
        ('model.norm.weight', 'logits'),
    ],
)
def test_the_damaged_part_is_named(name, first, tmp_path):
    report = compare(settings(damaged(tmp_path / 'damaged', name), folder()), tmp_path)
    assert (report.verdict, report.first_difference) == ('differs', first)


def test_a_processor_of_other_colours(tmp_path):
    """What lies beside the weights is compared too: here the policy would see other pixels in transformers."""
    shutil.copytree(folder(), tmp_path / 'other')
    path = tmp_path / 'other' / 'preprocessor_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'image_mean': [0.5, 0.5, 0.5]}))
    report = compare(settings(tmp_path / 'other'), tmp_path)
    assert report.first_difference == 'page pixels'
    assert all(row.agrees for row in report.rows if 'pixels' not in row.what)


def test_without_torch(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, 'rarl_jax.compare_torch.reference', raising=False)
    monkeypatch.delattr('rarl_jax.compare_torch.reference', raising=False)
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(ValueError, match=r'needs PyTorch .*python -m pip install torch'):
        compare(settings(folder()), tmp_path)


def test_folders_that_cannot_be_compared(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.model\.path is ''"):
        compare(settings(''), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.reference is 'nowhere'"):
        compare(settings(folder(), 'nowhere'), tmp_path)
    with pytest.raises(ValueError, match=r'has 3 vision blocks and 4 decoder layers, but .* has 2 and 2'):
        compare(settings(folder(), 'experiments/quickstart_base'), tmp_path)


def test_bfloat16(tmp_path):
    """Half the memory; rounding differs from layer to layer by no more than hundredths."""
    model = ComparedModel(str(folder()), SMALL, SMALL, 'bfloat16')
    report = compare(CompareSettings(('compare_torch',), model, tolerance=0.1, greedy_tokens=4), tmp_path)
    assert report.verdict == 'agrees' and report.largest.difference > 1e-4
