"""What an update and a decoded token cost, by preflight: the operations of the quickstart and of the 7B recipes.

    python -m experiments.stability.record

Writes experiments/stability/results/cost.json: some minutes on two cores, as each config is compiled for its own mesh in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import jax

from experiments.arms import HERE, Arm, settings_of
from rarl_jax.evaluation.results import source_commit
from rarl_jax.models.params import count_params
from rarl_jax.policy import build_model
from rarl_jax.preflight import architecture
from rarl_jax.preflight.measure import measure
from rarl_jax.preflight.shapes import largest_of
from rarl_jax.runtime.files import write_json
from rarl_jax.runtime.sharding import make_mesh

CONFIGS = ('configs/quickstart.py', 'configs/rarl.py', 'configs/rarl.py:lora')


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(cost(sys.argv[1])))
        return
    costs = {}
    for config in CONFIGS:
        command = [sys.executable, '-m', 'experiments.stability.record', config]
        costs[config] = json.loads(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        )
        print(config, costs[config])
    write_json(HERE / 'stability' / 'results' / 'cost.json', {'commit': source_commit(), 'configs': costs})


def cost(config: str) -> dict:
    """Parameters, sizes of the largest update, bytes on the fullest device and operations, as the preflight of this config has them."""
    settings = settings_of(Arm(config, config), seed=0)
    axes = replace(settings.mesh, data=settings.mesh.data or 1)
    largest = largest_of(settings, 1, axes.data * axes.fsdp)
    jax.config.update('jax_num_cpu_devices', axes.data * axes.fsdp * axes.tensor)
    mesh = make_mesh(axes)
    model = build_model(replace(settings.model, attention='xla'), architecture(settings.model), mesh)
    needs = measure(settings, model, largest, 1, mesh)
    return {
        'parameters': count_params(model),
        'devices': mesh.size,
        'largest': asdict(largest),
        'needs': asdict(needs),
        'phases': needs.phases,
    }


if __name__ == '__main__':
    main()
