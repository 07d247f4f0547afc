"""Two processes on this machine, one device each, make of a run what one process makes of it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import QUICK, ROOT, launch_together
from tests.meshes import assert_same_change, lines

BASE = ROOT / 'experiments' / 'quickstart_base'
# A policy that earns something, held to its beginning, in a stage that ends after three of its nine steps and hands on the best policy of the
# three; then an evaluation. eps: Adam would turn what is nothing but rounding into a step of full length.
RUN = (
    "--config.stages=('main', 'rarl')",
    "--config.compare=('rarl:zoom',)",
    "--config.stage.rarl.modes=('zoom',)",
    '--config.stage.main.steps=9',
    '--config.stage.main.adaptive_end.window=3',
    '--config.stage.main.adaptive_end.zoom_rate=0.0',
    '--config.stage.main.adaptive_end.format=0.0',
    '--config.stage.main.adaptive_end.spread=1.0',
    '--config.data.held_out=0.25',
    '--config.stage.main.held_out.every=1',
    '--config.stage.main.held_out.questions=2',
    '--config.stage.main.held_out.take_best=True',
    '--config.stage.main.questions=4',
    '--config.stage.main.group_size=4',
    '--config.stage.main.mini_batches=2',
    '--config.stage.main.epochs=2',
    '--config.stage.main.micro_batch=2',
    '--config.stage.main.loss.kl_weight=0.1',
    '--config.stage.main.optimizer.eps=1e-2',
    '--config.mesh.cpu_devices=1',
)


# The first family's base earns something; the second's random weights are moved by the smoke run's entropy term.
POLICIES = {
    'qwen2_5_vl': ('--config=configs/quickstart.py:smoke', f'--config.model.path={BASE}'),
    'qwen3_vl': ('--config=configs/quickstart.py:qwen3_vl_smoke',),
}


def launch_processes(family: str, workdir: Path, count: int) -> list[subprocess.CompletedProcess]:
    """Types the command once for each process, with one device each, and waits for all."""
    command = [*POLICIES[family], *RUN, '--config.mesh.data=1', f'--config.mesh.fsdp={count}']
    return launch_together(workdir, command, count, os.environ | QUICK)


@pytest.mark.slow
@pytest.mark.parametrize('family', POLICIES)
def test_two_processes_make_what_one_makes(family, tmp_path):
    alone, both = tmp_path / 'alone', tmp_path / 'both'
    for workdir, count in ((alone, 1), (both, 2)):
        for done in launch_processes(family, workdir, count):
            assert done.returncode == 0, done.stdout
    assert [row['stage'] for row in lines(both)] == ['main'] * 3 + ['rarl']
    assert decided(alone) == decided(both) and decided(both)['taken'] == {'main': 3}
    for one, two in zip(lines(alone), lines(both), strict=True):
        assert one.keys() == two.keys()
        for name in one:  # 1e-4: after eight updates a gradient's norm is 2e-5 apart
            if not name.startswith(('time/', 'throughput/', 'compiles', 'sampler/')):
                assert two[name] == (one[name] if name == 'stage' else pytest.approx(one[name], rel=1e-4, abs=1e-6)), (
                    name
                )
    exports = [folder / 'export' / 'model.safetensors' for folder in (alone, both)]
    before = BASE if family == 'qwen2_5_vl' else alone / 'init'
    assert_same_change(*exports, before / 'model.safetensors')
    for name in ('results.md', 'report/index.html', 'export/tokenizer.json'):
        assert (both / name).is_file(), name
    if family == 'qwen2_5_vl':
        assert_restored(both)


def decided(workdir: Path) -> dict:
    """What the stage has come to: its steps, and its best score and the step that had it."""
    place = max((workdir / 'checkpoints').iterdir()) / 'arrays' / 'description.json'
    described = json.loads(place.read_text())['description']
    return {'taken': described['taken'], 'kept': described['kept'], 'best': described['notes']['best']}


def assert_restored(workdir: Path) -> None:
    """Both processes read the checkpoint that both have written: the export comes out the same again."""
    export = workdir / 'export' / 'model.safetensors'
    before = load_file(export)
    export.unlink()
    for done in launch_processes('qwen2_5_vl', workdir, 2):
        assert done.returncode == 0, done.stdout
    after = load_file(export)
    assert all(np.array_equal(before[name], after[name]) for name in before)
