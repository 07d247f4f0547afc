"""Two processes on this machine, one device each, make of a run what one process makes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import ONE_SHAPE, QUICK, ROOT, start_processes

LIMIT = 600  # seconds; gloo swallows SIGTERM, so what is late is killed
BASE = ROOT / 'experiments' / 'quickstart_base'
# Two updates of a policy that earns something, held to its beginning, and an evaluation. eps: Adam would turn what is nothing but rounding
# into a step of full length.
RUN = (
    "--config.stages=('main', 'rarl')",
    "--config.compare=('rarl:zoom',)",
    "--config.stage.rarl.modes=('zoom',)",
    '--config.stage.main.questions=4',
    '--config.stage.main.group_size=4',
    '--config.stage.main.mini_batches=2',
    '--config.stage.main.epochs=2',
    '--config.stage.main.micro_batch=8',
    '--config.stage.main.loss.kl_weight=0.1',
    *ONE_SHAPE,
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


def launch_together(
    workdir: Path, arguments: Sequence[str], count: int, environment: Mapping[str, str]
) -> list[subprocess.CompletedProcess]:
    """Types a command once for each of `count` processes of a run, and waits for all."""
    logs = [workdir.with_name(f'{workdir.name}-{number}.log') for number in range(count)]  # a full pipe would stop them
    started = start_processes(workdir, arguments, logs, environment)
    try:
        return [
            subprocess.CompletedProcess(each.args, each.wait(LIMIT), log.read_text())
            for each, log in zip(started, logs, strict=True)
        ]
    finally:
        for each in started:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize('family', POLICIES)
def test_two_processes_make_what_one_makes(family, tmp_path):
    alone, both = tmp_path / 'alone', tmp_path / 'both'
    for workdir, count in ((alone, 1), (both, 2)):
        for done in launch_processes(family, workdir, count):
            assert done.returncode == 0, done.stdout
    for one, two in zip(lines(alone), lines(both), strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if not name.startswith(('time/', 'throughput/', 'compiles', 'sampler/')):
                assert two[name] == (one[name] if name == 'stage' else pytest.approx(one[name], rel=1e-5, abs=1e-6)), (
                    name
                )
    exports = [folder / 'export' / 'model.safetensors' for folder in (alone, both)]
    before = BASE if family == 'qwen2_5_vl' else alone / 'init'
    assert_same_change(*exports, before / 'model.safetensors')
    for name in ('results.md', 'report/index.html', 'export/tokenizer.json'):
        assert (both / name).is_file(), name
    if family == 'qwen2_5_vl':
        assert_restored(both)


def assert_restored(workdir: Path) -> None:
    """Both processes read the checkpoint that both have written: the export comes out the same again."""
    export = workdir / 'export' / 'model.safetensors'
    before = load_file(export)
    export.unlink()
    for done in launch_processes('qwen2_5_vl', workdir, 2):
        assert done.returncode == 0, done.stdout
    after = load_file(export)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def assert_same_change(one: Path, two: Path, before: Path, close: float = 1e-5) -> None:
    """Every weight's change within `close` of its largest, plus the rounding of the weight itself."""
    one, two, before = (load_file(path) for path in (one, two, before))
    moved = 0
    for name, start in before.items():
        change = np.abs(one[name] - start).max()
        moved += change > 0
        rounding = np.finfo(np.float32).eps * np.abs(start).max()
        assert np.abs(one[name] - two[name]).max() <= close * change + rounding, name
    assert moved > 10
