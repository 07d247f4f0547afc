"""What the stages of a run share: the policy as it stands, its data, and the places where results and checkpoints go."""

from __future__ import annotations

import functools
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key
from rich.console import Console

from input_pipeline.loader import LoaderSettings
from input_pipeline.schema import Task
from rarl_jax.conversation.dialogue import Host
from rarl_jax.models.interface import Model
from rarl_jax.models.lora import Adapted, join
from rarl_jax.models.params import Params
from rarl_jax.policy import load_policy, start_adapter
from rarl_jax.runtime import processes
from rarl_jax.runtime.checkpoints import Checkpoints
from rarl_jax.runtime.lock import FolderLock
from rarl_jax.runtime.metrics import CompileCounter, MetricsWriter
from rarl_jax.runtime.progress import Progress
from rarl_jax.runtime.signals import Stopped
from rarl_jax.stages.registry import TrainingSettings

if TYPE_CHECKING:
    from rarl_jax.settings import RunSettings


@dataclass
class Run:
    """What the stages share. Only `params`, `done`, `taken` and `saved` change while it runs."""

    settings: RunSettings
    workdir: Path
    lock: FolderLock | None  # of the workdir, in the first process
    data_dir: Path  # a built data set

    # The Hugging Face folder that the run started from.
    model_dir: Path
    model: Model
    host: Host  # the words and sizes of a conversation
    mesh: Mesh  # the devices, as config.mesh arranges them
    params: Params  # what is trained, as it stands: the policy's weights, or an adapter of them
    adapted: Adapted | None  # the weights under the adapter; None = there is no adapter

    metrics: MetricsWriter
    checkpoints: Checkpoints
    compiles: CompileCounter
    console: Console
    signals: list[str] = field(default_factory=list)  # names of the signals that asked the run to stop
    done: int = 0  # training stages finished
    taken: dict[str, int] = field(default_factory=dict)  # the steps that each of them took; one may end early
    # The description of a checkpoint in mid-stage, until that stage has begun again.
    saved: dict[str, Any] | None = None

    @property
    def training(self) -> list[str]:
        """Names of the stages that change the policy, in order."""
        return [name for name in self.settings.stages if isinstance(self.settings.stage[name], TrainingSettings)]

    @property
    def processes(self) -> tuple[int, int]:
        return jax.process_index(), jax.process_count()

    def is_due(self, name: str) -> bool:
        """Whether a training stage has yet to be done, or the policy stands where an evaluation wants it: a resumed run is past those of earlier stages."""
        if name in self.training:
            return self.training.index(name) >= self.done
        before = self.settings.stages[: self.settings.stages.index(name)]
        return self.saved is None and self.done == sum(stage in self.training for stage in before)

    def loading(self, count: int, tasks: tuple[Task, ...]) -> LoaderSettings:
        """How a training stage draws `count` questions or pages a step on each process."""
        return LoaderSettings(
            batch_size=count,
            tasks=tasks,
            held_out=self.settings.data.held_out,
            seed=self.settings.seed,
            drop_remainder=True,
        )

    def key(self, name: str, step: int) -> Key[Array, '']:
        """The random key of one step of one stage."""
        return _key(self.settings.seed, np.uint32(zlib.crc32(name.encode())), step)

    def data_seed(self, name: str) -> int:
        """Seeds what a stage draws while its batches are prepared."""
        return zlib.crc32(f'{self.settings.seed} {name}'.encode())

    def global_step(self, name: str, step: int = 0) -> int:
        """Updates of the policy up to `step` of a stage, over all stages; an evaluation counts those before it."""
        before = self.settings.stages[: self.settings.stages.index(name)]
        trained = (other for other in before if other in self.training)
        return step + sum(self.taken.get(other, self.settings.stage[other].steps) for other in trained)

    def policy_name(self, name: str) -> str:
        """Which policy stands when a stage begins: the folder it came from, as the config names it, and the updates since.

        One that was made in the workdir is called by its folder's name, so that a workdir may be moved. A stage that starts from that folder
        again (`from_start`) leaves out what was trained before it.
        """
        before = self.settings.stages[: self.settings.stages.index(name)]
        fresh = [n for n in before if n in self.training and self.settings.stage[n].from_start]
        updates = self.global_step(name) - (self.global_step(fresh[-1]) if fresh else 0)
        return f'{self.settings.model.path or self.model_dir.name}+{updates}'

    def base_weights(self) -> Params:
        """The weights that the run began with."""
        if self.adapted is not None:
            return self.adapted.base
        return load_policy(self.model_dir, self.model, self.mesh, self.settings.mesh.rules)

    def initial_trainable(self) -> Params:
        """What is trained, as it was when the run began: the weights, or an adapter that changes nothing yet."""
        if self.adapted is None:
            return self.base_weights()
        key, rules = jax.random.key(self.settings.seed), self.settings.mesh.rules
        return start_adapter(key, self.model.config, self.adapted.lora, self.mesh, rules)

    def weights(self, params: Params) -> Params:
        """The policy's weights where `params` are what is trained."""
        return params if self.adapted is None else join(self.adapted.base, params, self.adapted.lora)

    def signal(self) -> str | None:
        """The signal that has asked this process, or any other, to stop; all processes ask at the same place."""
        return next(iter(processes.joined(self.signals)), None)

    def check_workdir(self) -> None:
        """Stops the run if its workdir was removed: OSError."""
        if self.lock is not None:
            self.lock.check()

    def leave_if_asked(self) -> None:
        """Ends the run if a signal has asked for it; to be called where everything is saved."""
        self.check_workdir()
        if signal := self.signal():
            self.leave(signal)

    def leave(self, signal: str) -> None:
        self.checkpoints.wait()
        raise Stopped(f'Stopped by {signal}; everything is saved. Run the same command again to go on.', signal)

    def say(self, text: str) -> None:
        """Tells the user a line, above a bar that may be shown; the first process alone talks."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def progress(self, name: str, total: int, done: int = 0) -> Progress:
        return Progress(self.console, name, total, done)


@partial(jax.jit, static_argnums=0)
def _key(seed: int, *numbers: int) -> Key[Array, '']:
    """A key of several numbers, by one program."""
    return functools.reduce(jax.random.fold_in, numbers, jax.random.key(seed))
