"""What an experiment is: a question and the arms that answer it, each of them a config with some settings changed.

experiments/NAME/experiment.py    ends with `EXPERIMENT = Experiment(...)`
experiments/NAME/results/         what is kept of each arm and seed, see collect.py
experiments/NAME/notebook.py      the answer as text, and executed as notebook.ipynb, see notebooks.py
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rarl_jax.settings import RunSettings, settings_from

HERE = Path(__file__).resolve().parent
FULL_CONFIG = 'configs/rarl.py'  # what an arm is at 7B
Changes = Mapping[str, Any]  # setting, dotted and without `config.` -> value


@dataclass(frozen=True)
class Arm:
    """One way to train or to measure."""

    label: str  # how figures and tables call it
    config: str = 'configs/quickstart.py'  # a config file with its variant, if any
    changes: Changes = field(default_factory=dict)  # what makes the arm what it is
    # How long it trains and how much it is asked: left out by --small, which runs the config's variant `smoke`.
    sizes: Changes = field(default_factory=dict)
    full: Changes | None = None  # the same arm as changes of configs/rarl.py; None = it has no counterpart there
    begins_with: str = ''  # the arm whose export it starts from, seed by seed; '' = what its config names


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


def known() -> list[str]:
    """The names of all experiments."""
    return sorted(path.parent.name for path in HERE.glob('*/experiment.py'))


# ---------------------------------------------------------------- an arm's config


def config_of(arm: Arm, seed: int, changes: Changes | None = None, small: bool = False) -> ConfigDict:
    """The config of one run. KeyError or TypeError where it has no such setting, or one of another type.

    Args:
        changes: beside the arm's own: where its data and policy lie.
        small: the config's variant `smoke`, without the arm's sizes.
    """
    path, _, variant = arm.config.partition(':')
    config = import_module(path.removesuffix('.py').replace('/', '.')).get_config('smoke' if small else variant)
    config.update_from_flattened_dict({**_changed(arm, small), **(changes or {}), 'seed': seed})
    return config


def settings_of(arm: Arm, seed: int, changes: Changes | None = None, small: bool = False) -> RunSettings:
    """The same as settings; ValueError where the config refuses them."""
    return settings_from(config_of(arm, seed, changes, small).to_dict())


def arguments_of(arm: Arm, seed: int, changes: Changes, small: bool = False) -> list[str]:
    """What `python -m rarl_jax.main` is told for one run, but for its workdir."""
    path = f'{arm.config.partition(":")[0]}:smoke' if small else arm.config
    return [f'--config={path}', *_flags({**_changed(arm, small), **changes, 'seed': seed})]


def launch_lines(name: str, experiment: Experiment) -> Iterator[str]:
    """A shell line for every arm and seed at 7B; MODEL and DATA are the user's, and arms without a counterpart are told in a comment."""
    for seed in experiment.seeds:
        for arm_name, arm in experiment.arms.items():
            if arm.full is None:
                yield f'# {arm_name}: no counterpart in {FULL_CONFIG}'
                continue
            start = f'runs/{name}/{arm.begins_with}-{seed}/export' if arm.begins_with else '$MODEL'
            where = [
                f'--config.model.path={start}',
                '--config.data.dir=$DATA',
                f'--workdir=runs/{name}/{arm_name}-{seed}',
            ]
            flags = [shlex.quote(flag) for flag in _flags({**arm.full, 'seed': seed})]
            yield ' '.join([f'python -m rarl_jax.main --config={FULL_CONFIG}', *where, *flags])


def _changed(arm: Arm, small: bool) -> dict[str, Any]:
    return dict(arm.changes) if small else {**arm.changes, **arm.sizes}


def _flags(changes: Changes) -> list[str]:
    return [f'--config.{name}={value}' for name, value in changes.items()]
