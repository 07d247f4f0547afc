"""What an experiment is: a question and the arms that answer it, each of them a config with some settings changed.

experiments/NAME/experiment.py    ends with `EXPERIMENT = Experiment(...)`
experiments/NAME/results/         what is kept of each arm and seed, see collect.py
experiments/NAME/notebook.py      the answer as text, and executed as notebook.ipynb, see notebooks.py
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rarl_jax.settings import RunSettings, settings_from

HERE = Path(__file__).resolve().parent
FULL_CONFIG = 'configs/rarl.py'  # what most arms are at 7B
Changes = Mapping[str, Any]  # setting, dotted and without `config.` -> value


@dataclass(frozen=True)
class Arm:
    """One way to train or to measure."""

    label: str  # how figures and tables call it
    config: str = 'configs/quickstart.py'  # a config file with its variant, if any
    changes: Changes = field(default_factory=dict)  # what makes the arm what it is
    # How long it trains and how much it is asked: left out by --small, which runs the smoke variant of the config's variant.
    sizes: Changes = field(default_factory=dict)
    full: Changes | None = None  # the same arm at 7B, as changes of full_config; None = it has no counterpart there
    full_config: str = FULL_CONFIG
    begins_with: str = ''  # the arm whose export it starts from, seed by seed; '' = what its config names
    # The experiment and its arm whose runs and results these are too; None = it has its own.
    runs_as: tuple[str, str] | None = None


@dataclass(frozen=True)
class Experiment:
    """A question, and the arms that answer it."""

    question: str
    arms: Mapping[str, Arm]  # by the name of their folders, in the order in which they run
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        for number, (name, arm) in enumerate(self.arms.items()):
            if arm.begins_with and arm.begins_with not in list(self.arms)[:number]:
                raise ValueError(
                    f'Arm {name} begins with {arm.begins_with!r}, which is no arm before it: name one of {list(self.arms)[:number]}.'
                )


def load_experiment(name: str) -> Experiment:
    """The experiment of a folder; ValueError where there is none of that name."""
    if name not in known():
        raise ValueError(f'There is no experiment {name!r}: choose from {", ".join(known())}.')
    return import_module(f'experiments.{name}.experiment').EXPERIMENT


def shared(experiment: str, name: str, label: str, full: Changes | None = None) -> Arm:
    """An arm of another experiment, which is not run again here; at 7B it is another one where `full` says so."""
    arm = load_experiment(experiment).arms[name]
    return replace(arm, label=label, full=full, runs_as=arm.runs_as or (experiment, name))


def known() -> list[str]:
    """The names of all experiments."""
    return sorted(path.parent.name for path in HERE.glob('*/experiment.py'))


def home(experiment: str, name: str, arm: Arm) -> tuple[str, str]:
    """The experiment and the arm under whose names the runs and results of `arm` lie."""
    return arm.runs_as or (experiment, name)


# ---------------------------------------------------------------- an arm's config


def config_of(arm: Arm, seed: int, changes: Changes | None = None, small: bool = False) -> ConfigDict:
    """The config of one run. KeyError or TypeError where it has no such setting, or one of another type.

    Args:
        changes: beside the arm's own: where its data and policy lie.
        small: the smoke variant of the config's variant, without the arm's sizes.
    """
    path, _, variant = _config(arm, small).partition(':')
    config = import_module(path.removesuffix('.py').replace('/', '.')).get_config(variant)
    config.update_from_flattened_dict({**_changed(arm, small), **(changes or {}), 'seed': seed})
    return config


def settings_of(arm: Arm, seed: int, changes: Changes | None = None, small: bool = False) -> RunSettings:
    """The same as settings; ValueError where the config refuses them."""
    return settings_from(config_of(arm, seed, changes, small).to_dict())


def arguments_of(arm: Arm, seed: int, changes: Changes, small: bool = False) -> list[str]:
    """What `python -m rarl_jax.main` is told for one run, but for its workdir."""
    return [f'--config={_config(arm, small)}', *_flags({**_changed(arm, small), **changes, 'seed': seed})]


def launch_lines(name: str, experiment: Experiment) -> Iterator[str]:
    """A shell line for every arm and seed at 7B; MODEL and DATA are the user's, and arms without a counterpart are told in a comment."""
    for seed in experiment.seeds:
        for arm_name, arm in experiment.arms.items():
            if arm.full is None:
                other = f'as {arm.runs_as[1]} of {arm.runs_as[0]}' if arm.runs_as else 'no counterpart'
                yield f'# {arm_name}-{seed}: {other} at 7B'
                continue
            start = f'runs/{name}/{arm.begins_with}-{seed}/export' if arm.begins_with else '$MODEL'
            where = [
                f'--config.model.path={start}',
                '--config.data.dir=$DATA',
                f'--workdir=runs/{name}/{arm_name}-{seed}',
            ]
            flags = [shlex.quote(flag) for flag in _flags({**arm.full, 'seed': seed})]
            yield ' '.join([f'python -m rarl_jax.main --config={arm.full_config}', *where, *flags])


def _config(arm: Arm, small: bool) -> str:
    path, _, variant = arm.config.partition(':')
    return f'{path}:{variant}_smoke'.replace(':_', ':') if small else arm.config


def _changed(arm: Arm, small: bool) -> dict[str, Any]:
    return dict(arm.changes) if small else {**arm.changes, **arm.sizes}


def _flags(changes: Changes) -> list[str]:
    return [f'--config.{name}={value}' for name, value in changes.items()]
