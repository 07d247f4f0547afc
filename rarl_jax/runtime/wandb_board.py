"""Metrics on Weights & Biases, beside TensorBoard: optional, and so is the package."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rarl_jax.runtime.files import load_json, write_json


@dataclass(frozen=True)
class WandbSettings:
    """Where curves are shown."""

    project: str = ''  # '' = Weights & Biases is not used
    entity: str = ''  # a team; '' = the user's own
    mode: Literal['online', 'offline'] = 'online'  # offline: kept in DIR/wandb, for `wandb sync`


def wandb_problem(settings: WandbSettings) -> str | None:
    """Why the settings cannot be met, and what to do; None where they can."""
    if not settings.project or find_spec('wandb') is not None:
        return None
    return f'config.wandb.project is {settings.project!r}, but wandb is not installed: python -m pip install wandb, or leave it empty.'


class WandbBoard:
    """The run of a workdir there; a resumed run goes on with it."""

    def __init__(self, settings: WandbSettings, workdir: Path):
        import wandb  # here: it is optional, and takes seconds

        known = workdir / 'wandb.json'
        if not known.is_file():
            write_json(known, {'id': secrets.token_hex(4)})
        self._run = wandb.init(
            project=settings.project,
            entity=settings.entity or None,
            mode=settings.mode,
            dir=str(workdir),
            id=load_json(known)['id'],
            name=workdir.name,
            resume='allow',
            config=load_json(workdir / 'config.json'),
            settings=wandb.Settings(silent=True, console='off'),
        )
        # Steps of the run, which one that goes on may tell again; W&B's own count would refuse them.
        self._run.define_metric('*', step_metric='step')

    def write(self, line: Mapping[str, float | int | str]) -> None:
        """One step's metrics, its `step` and `stage` among them."""
        self._run.log(dict(line))

    def close(self) -> None:
        """Returns when everything is written or sent."""
        import wandb

        self._run.finish()
        wandb.teardown()  # waits for its service, which else writes on behind our back
