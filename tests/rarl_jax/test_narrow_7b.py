"""The recipe end to end on what 7B is but for its size: two processes of four devices, or eight devices, make of it what one makes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands import QUICK, ROOT
from tests.rarl_jax.test_two_processes import assert_same_change, launch_together, lines

pytestmark = pytest.mark.slow
CONFIG = f'--config={ROOT}/tests/rarl_jax/narrow_7b.py'


def run(workdir: Path, variant: str, *arguments: str, devices: int = 1, processes: int = 1) -> Path:
    flags = f'{QUICK["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
    command = [f'{CONFIG}:{variant}', f'--config.mesh.fsdp={devices * processes}', *arguments]
    for done in launch_together(workdir, command, processes, os.environ | QUICK | {'XLA_FLAGS': flags}):
        assert done.returncode == 0, done.stdout
    return workdir


@pytest.mark.parametrize(('variant', 'devices', 'processes'), [('full', 4, 2), ('lora', 8, 1)])
def test_many_devices_make_what_one_makes(variant, devices, processes, tmp_path):
    alone = run(tmp_path / 'alone', variant)
    same = (f'--config.data.dir={alone}/data/built', f'--config.model.path={alone}/init')
    many = run(tmp_path / 'many', variant, *same, devices=devices, processes=processes)
    stages = ['eyes'] * (variant == 'full') + ['taught', 'warm_start', 'recognition', 'rarl']
    assert [row['stage'] for row in lines(many)] == stages
    for one, other in zip(lines(alone), lines(many), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {'stage'}:
            if not name.startswith(('time/', 'throughput/', 'compiles', 'sampler/')):
                assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), (one['stage'], name)
    exports = [folder / 'export' / 'model.safetensors' for folder in (alone, many)]
    assert_same_change(*exports, alone / 'init' / 'model.safetensors', close=1e-4)  # after four updates
