"""Weights & Biases, offline: one run for a workdir, however often it is launched, and a sentence where the package is missing."""

import json
import struct

import pytest
from wandb.proto import wandb_internal_pb2

from rarl_jax.runtime.metrics import MetricsWriter
from rarl_jax.runtime.wandb_board import WandbBoard, WandbSettings, wandb_problem

OFFLINE = WandbSettings(project='comics', mode='offline')


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / 'config.json').write_text('{"seed": 7}')
    return tmp_path


BLOCK, HEADER = 1 << 15, 7  # of the file, which is a LevelDB log


def records(path):
    """The records of an offline file: CRC (4 bytes), length (2), 1 = whole, 2, 3, 4 = first, middle, last part; none crosses a block."""
    data, at, parts = path.read_bytes(), HEADER, b''
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack_from('<HB', data, at + 4)
        parts, at = parts + data[at + HEADER : at + HEADER + length], at + HEADER + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b''


def told(workdir):
    """(run id, history rows) of every offline file, oldest first."""
    found = []
    for path in sorted(workdir.glob('wandb/offline-run-*/*.wandb'), key=lambda p: p.stat().st_mtime_ns):
        kept = [*records(path)]
        rows = [{i.key or i.nested_key[0]: json.loads(i.value_json) for i in r.history.item} for r in kept]
        rows = [{key: value for key, value in row.items() if not key.startswith('_')} for row in rows if row]
        found.append(({r.run.run_id for r in kept if r.HasField('run')}, rows))
    return found


def test_what_metrics_hold_is_shown_and_a_resumed_run_is_the_same(workdir):
    for first in (1, 3):
        writer = MetricsWriter(workdir, WandbBoard(OFFLINE, workdir))
        for step in (first, first + 1):
            writer.write(step, 'main', {'reward/total': step / 2})
        writer.close()
    (one, early), (two, late) = told(workdir)
    assert one == two == {json.loads((workdir / 'wandb.json').read_text())['id']}
    assert early == [{'step': step, 'stage': 'main', 'reward/total': step / 2} for step in (1, 2)]
    assert [row['step'] for row in late] == [3, 4]


def test_a_package_that_is_missing_is_told(monkeypatch):
    assert wandb_problem(WandbSettings()) is None and wandb_problem(OFFLINE) is None
    monkeypatch.setattr('rarl_jax.runtime.wandb_board.find_spec', lambda name: None)
    assert wandb_problem(WandbSettings()) is None
    assert 'wandb is not installed: python -m pip install wandb' in wandb_problem(OFFLINE)
