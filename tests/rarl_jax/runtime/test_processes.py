"""Two processes of a run, and what becomes of the one when the other ends before its time: by itself it would wait for minutes, or for ever."""

from __future__ import annotations

import os

import pytest

from tests.commands import start_processes

LIMIT = 120  # seconds
# The command of a run, which does no more than these lines.
PROGRAM = """
import time
from rarl_jax import main, run
from rarl_jax.runtime import processes

def lines(config, workdir, replay):
    first = processes.is_first()
    {}

run.run = lines
main.cli()
"""
FAILED, GONE = 'error: no room\n', 'error: process {} of the run has ended: no room\n'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('lines', 'told'),
    [
        pytest.param(
            "if not first: raise ValueError('no room')\n    processes.gather('ready')",
            (GONE.format(1), FAILED),
            id='the first waits for the other',
        ),
        pytest.param(
            "if first: time.sleep(3); raise ValueError('no room')", (FAILED, GONE.format(0)), id='the other is done'
        ),
        pytest.param("time.sleep(2 * first); raise ValueError('no room')", (FAILED, FAILED), id='both fail'),
    ],
)
def test_one_ends_and_so_does_the_other(lines, told, tmp_path):
    logs = [tmp_path / f'log-{number}' for number in range(2)]
    program = ('-c', PROGRAM.format(lines))
    run = start_processes(tmp_path / 'run', ['--config=configs/quickstart.py:smoke'], logs, os.environ, program)
    try:
        assert [each.wait(LIMIT) for each in run] == [1, 1]
    finally:
        for each in run:
            each.kill()
    for log, words in zip(logs, told, strict=True):
        assert words in log.read_text()
        assert 'Fatal' not in log.read_text()
