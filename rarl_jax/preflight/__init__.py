"""Does a run fit its devices? The programs of its largest update and of its decoding, compiled for the configured mesh without weights or GPUs.

Every array is abstract: a shape, a dtype and a sharding. The mesh's devices are virtual ones of the CPU.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from rarl_jax.models.interface import PRESETS, Config, read_config
from rarl_jax.policy import build_model
from rarl_jax.preflight.measure import measure
from rarl_jax.preflight.report import table_of, verdict
from rarl_jax.preflight.shapes import largest_of
from rarl_jax.runtime.sharding import batch_parts, make_mesh
from rarl_jax.settings import ModelSettings, RunSettings, settings_from


def preflight(config: ConfigDict, device_gb: float, processes: int) -> bool:
    """Prints the table and the verdict; whether everything fits. To be called before JAX has looked for its devices.

    Args:
        device_gb: memory of a device, 10^9 bytes.
        processes: that the run will have; each decodes its own share.
    Raises:
        ValueError: the config has no stage whose update could be compiled.
    """
    settings, start, console = settings_from(config.to_dict()), time.monotonic(), Console(markup=False)
    if not isinstance(settings, RunSettings):
        raise ValueError('--preflight: this config builds a data set and trains nothing; give the config of a run.')
    axes = replace(settings.mesh, data=settings.mesh.data or 1)  # of devices that are not there, as few as will do
    largest = largest_of(settings, processes, axes.data * axes.fsdp)
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_num_cpu_devices', axes.data * axes.fsdp * axes.tensor)
    # cudnn's attention is a GPU's; that of 'xla' holds at most a block of scores, as it holds none.
    mesh = make_mesh(axes)
    model = build_model(replace(settings.model, attention='xla'), architecture(settings.model), mesh)
    console.print(
        f'Compiling an update of stage {largest.stage!r} and its decoding for the mesh data={axes.data} x fsdp={axes.fsdp} x tensor={axes.tensor} ...'
    )
    needs = measure(settings, model, largest, processes, mesh)
    console.print(table_of(needs, largest, model, axes))
    told, fits = verdict(needs, largest, device_gb, batch_parts(mesh))
    console.print(told, soft_wrap=True)
    console.print(f'({time.monotonic() - start:.0f} s)')
    return fits


def architecture(model: ModelSettings) -> Config:
    """That of the folder, or the published one where none is named."""
    if model.path:
        return read_config(Path(model.path))
    if model.published not in PRESETS:
        raise ValueError(f'config.model.published is {model.published!r}, expected one of {", ".join(PRESETS)}.')
    return PRESETS[model.published]
