"""Other arrangements of devices make of the recipe what one device makes: the same tokens, and the same weights but for rounding.

    python -m tests.meshes [--folder=DIR]

runs configs/rarl.py on a narrow 7B (narrow_7b.py), all weights and an adapter, on one device, on eight, and as two processes of four; a quarter of
an hour on two cores. The tests do a part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.commands import QUICK, ROOT, launch_together

ARRANGEMENTS = ((8, 1), (4, 2))  # devices of a process, processes
TIMES = ('time/', 'throughput/', 'compiles', 'sampler/')  # metrics of how, not of what
COUNTED = ('reward/', 'zoom/', 'length/', 'group/', 'judge/', 'eval/')  # those that tokens alone decide
CONFIG = ROOT / 'tests' / 'narrow_7b.py'


def run(workdir: Path, variant: str, *arguments: str, devices: int = 1, processes: int = 1) -> Path:
    """The recipe on that many virtual devices of each process; AssertionError with a process's output where it fails."""
    flags = f'{QUICK["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}'
    compiled = QUICK | {'XLA_FLAGS': flags, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}  # as the tests' programs are
    command = [f'--config={CONFIG}:{variant}', f'--config.mesh.fsdp={devices * processes}', *arguments]
    for done in launch_together(workdir, command, processes, os.environ | compiled):
        assert done.returncode == 0, done.stdout
    return workdir


def run_like(alone: Path, workdir: Path, variant: str, devices: int, processes: int) -> Path:
    """The same from the data and the policy that another run has made."""
    same = (f'--config.data.dir={alone}/data/built', f'--config.model.path={alone}/init')
    return run(workdir, variant, *same, devices=devices, processes=processes)


def assert_same(one: Path, other: Path) -> None:
    """Two runs from one policy: equal tokens and what follows from them, all other numbers within 1e-4, as every weight's change."""
    assert lines(one) and len(lines(one)) == len(lines(other))
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {'stage', 'step'}:
            if not name.startswith(TIMES):
                close = 1e-9 if name.startswith(COUNTED) else 1e-4  # 1e-9: the order of a mean
                told = (mine['stage'], name, mine[name], theirs[name])
                assert np.isclose(theirs[name], mine[name], rtol=close, atol=close / 10), told
    mine, theirs = said(one), said(other)
    assert all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys()) and mine.keys() & theirs.keys()
    answers = [sorted((run / 'eval' / 'rarl' / 'samples.jsonl').read_text().splitlines()) for run in (one, other)]
    assert answers[0] == answers[1]
    exports = [run / 'export' / 'model.safetensors' for run in (one, other)]
    assert_same_change(*exports, one / 'init' / 'model.safetensors', close=1e-4)


def lines(workdir: Path) -> list[dict[str, Any]]:
    """A run's metrics, a step each."""
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def said(workdir: Path) -> dict[tuple, list[str]]:
    """What the policy wrote while it learned, of the episodes that are kept: those of the first process's first questions."""
    rows = [
        json.loads(line) for path in (workdir / 'rollouts').glob('*.jsonl') for line in path.read_text().splitlines()
    ]
    return {(row['stage'], row['question_id'], row['sample']): row['turn_texts'] for row in rows}


def assert_same_change(one: Path, two: Path, before: Path, close: float = 1e-5) -> None:
    """Every weight's change within `close` of its largest, plus the rounding of the weight itself and 1e-7 of what any weight has changed.

    Where a gradient is nearly nothing, as that of attention in a policy of random weights, it is what rounding leaves of larger numbers.
    """
    one, two, before = (load_file(path) for path in (one, two, before))
    changes = {name: np.abs(one[name] - start).max() for name, start in before.items()}
    assert np.count_nonzero([*changes.values()]) > 10
    for name, start in before.items():
        rounding = np.finfo(np.float32).eps * np.abs(start).max() + 1e-7 * max(changes.values())
        assert np.abs(one[name] - two[name]).max() <= close * changes[name] + rounding, name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--folder', type=Path, default=None)
    folder, begun = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix='meshes-')), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for variant in ('full', 'lora'):
        alone = run(folder / f'{variant} alone', variant)
        for devices, processes in ARRANGEMENTS:
            name = f'{variant} on {processes} x {devices}'
            assert_same(alone, run_like(alone, folder / name, variant, devices, processes))
            print(f'{time.monotonic() - begun:6.0f} s  {name} devices: as on one', flush=True)


if __name__ == '__main__':
    main()
