"""What a run costs is recorded from the preflight of its config."""

import json
import subprocess
import sys

import pytest

from experiments.arms import HERE


@pytest.mark.slow
def test_the_cost_of_a_config_is_recorded():
    """In a process of its own, as it sets how many devices there are."""
    command = [sys.executable, '-m', 'experiments.stability.record', 'configs/quickstart.py:smoke']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost['devices'] == 1 and cost['parameters'] > 1e6
    assert cost['needs']['update_flops'] > cost['needs']['decode_flops'] > 0 and max(cost['phases'].values()) > 0


def test_the_committed_costs_are_of_a_commit():
    known = json.loads((HERE / 'stability' / 'results' / 'cost.json').read_text())
    assert '-dirty' not in known['commit'] and len(known['configs']) == 3
