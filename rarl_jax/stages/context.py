"""What the stages of a run share: the policy as it stands, its data, and the places where results and checkpoints go."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Key
from rich.console import Console

from rarl_jax.conversation.dialogue import Host
from rarl_jax.learner.update import Learner
from rarl_jax.models.interface import Qwen2_5_VL
from rarl_jax.models.lora import Adapted, join
from rarl_jax.models.params import Params
from rarl_jax.policy import load_policy, start_adapter
from rarl_jax.runtime import processes
from rarl_jax.runtime.checkpoints import Checkpoints
from rarl_jax.runtime.lock import FolderLock
from rarl_jax.runtime.metrics import CompileCounter, MetricsWriter
from rarl_jax.runtime.progress import Progress
from rarl_jax.runtime.sharding import everywhere
from rarl_jax.runtime.signals import Stopped
from rarl_jax.stages.registry import TrainingSettings

if TYPE_CHECKING:
    from rarl_jax.settings import RunSettings


@jax.jit
def all_finite(arrays: Any) -> Bool[Array, '']:
    """Whether no array of a pytree holds NaN or infinity."""
    numbers = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in numbers]).all()


@dataclass
class Run:
    """What the stages share. Only `params`, `done` and `saved` change while it runs."""

    settings: RunSettings
    workdir: Path
    lock: FolderLock | None  # of the workdir, in the first process
    data_dir: Path  # a built data set
    model_dir: Path  # the Hugging Face folder that the run started from
    mesh: Mesh  # the devices, as config.mesh arranges them
    model: Qwen2_5_VL
    host: Host  # the words and sizes of a conversation
    params: Params  # what is trained, as it stands: the policy's weights, or an adapter of them
    adapted: Adapted | None  # the weights under the adapter; None = there is no adapter
    metrics: MetricsWriter
    checkpoints: Checkpoints
    compiles: CompileCounter
    console: Console
    signals: list[str] = field(default_factory=list)  # names of the signals that asked the run to stop
    done: int = 0  # training stages finished
    saved: dict[str, Any] | None = None  # description of a checkpoint in mid-stage, until that stage has begun again

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

    def key(self, name: str, step: int) -> Key[Array, '']:
        """The random key of one step of one stage."""
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(self.settings.seed), zlib.crc32(name.encode())), step
        )

    def data_seed(self, name: str) -> int:
        """Seeds what a stage draws while its batches are prepared."""
        return zlib.crc32(f'{self.settings.seed} {name}'.encode())

    def global_step(self, name: str, step: int = 0) -> int:
        """Updates of the policy up to `step` of a stage, over all stages; an evaluation counts those before it."""
        before = self.settings.stages[: self.settings.stages.index(name)]
        return step + sum(self.settings.stage[other].steps for other in before if other in self.training)

    def policy_name(self, name: str) -> str:
        """Which policy stands when a stage begins: the folder it came from, as the config names it, and the updates since.

        One that was made in the workdir is called by its folder's name, so that a workdir may be moved. A stage that starts from that folder
        again (`from_start`) leaves out what was trained before it.
        """
        before = self.settings.stages[: self.settings.stages.index(name)]
        fresh = [n for n in before if n in self.training and self.settings.stage[n].from_start]
        updates = self.global_step(name) - (self.global_step(fresh[-1]) if fresh else 0)
        return f'{self.settings.model.path or self.model_dir.name}+{updates}'

    def initial_params(self) -> Params:
        """The weights that the run began with."""
        if self.adapted is not None:
            return self.adapted.base
        return load_policy(self.model_dir, self.model, self.mesh, self.settings.mesh.rules)

    def first_params(self) -> Params:
        """What is trained, as it was when the run began: the weights, or an adapter that changes nothing yet."""
        if self.adapted is None:
            return self.initial_params()
        key, rules = jax.random.key(self.settings.seed), self.settings.mesh.rules
        return start_adapter(key, self.model.config, self.adapted.lora, self.mesh, rules)

    def weights(self, params: Params) -> Params:
        """The policy's weights where `params` are what is trained."""
        return params if self.adapted is None else join(self.adapted.base, params, self.adapted.lora)

    # ---- what training stages call

    def start_over_if(self, from_start: bool) -> None:
        """The stage begins with the policy that the run began with; a checkpoint in mid-stage takes its place in `begin`."""
        if from_start:
            self.params = self.first_params()

    def begin(
        self, name: str, optimizer: optax.GradientTransformation, batches: Iterator[Any], extra: Params | None = None
    ) -> Learner:
        """The learner at the start of a stage, or where the newest checkpoint left it; `extra` are params that the stage needs for itself."""
        learner = Learner.start(self.params | everywhere(extra or {}, self.mesh), optimizer, batches)
        if self.saved is not None and self.saved['stage'] == name:
            arrays = self.checkpoints.restore({'params': learner.params, 'opt_state': learner.opt_state})
            learner = dataclasses.replace(learner, **arrays, step=self.saved['step'])
            batches.set_state(self.saved['data'])
        self.saved = None
        self.metrics.forget_after(self.global_step(name, learner.step))
        return learner

    def after_step(self, name: str, learner: Learner, metrics: dict[str, float], stage: TrainingSettings) -> None:
        """Writes a step's metrics, saves when it is time, and leaves if the user has asked for it."""
        self.params = {name: learner.params[name] for name in self.params}
        finished, signal = learner.step == stage.steps, self.signal()
        self.check_workdir()
        self.metrics.write(self.global_step(name, learner.step), name, metrics | {'compiles': self.compiles.take()})
        if finished:
            self.done += 1
        if finished or signal or learner.step % stage.save_every == 0:
            self.save(name, learner, finished)
        if signal and not finished:
            self.leave(signal)

    def save(self, name: str, learner: Learner, finished: bool) -> None:
        """A checkpoint from which every further step comes out the same; ValueError instead of one that holds NaN or infinity."""
        arrays = {'params': learner.params, 'opt_state': learner.opt_state}
        if not all_finite(arrays):
            raise ValueError(
                f'The policy holds NaN or infinity after step {learner.step} of stage {name}: it is not saved, and the run stops; '
                'its last checkpoint is good. Lower the learning rate or the gradient norm that it is clipped to.'
            )
        description = {
            'stage': name,
            'step': learner.step,
            'finished': finished,
            'done': self.done,
            'data': learner.batches.get_state(),
            'seed': self.settings.seed,
        }
        self.checkpoints.save(self.global_step(name, learner.step), arrays, description)

    def signal(self) -> str | None:
        """The signal that has asked this process, or any other, to stop; all processes ask at the same place."""
        return next(iter(processes.joined(self.signals)), None)

    def check_workdir(self) -> None:
        """Stops the run if its workdir was removed: OSError."""
        if self.lock is not None:
            self.lock.check()

    def leave_if_asked(self) -> None:
        self.check_workdir()
        if signal := self.signal():
            self.leave(signal)

    def leave(self, signal: str) -> None:
        self.checkpoints.wait()
        raise Stopped(f'Stopped by {signal}; everything is saved. Run the same command again to go on.', signal)

    def progress(self, name: str, total: int, done: int = 0) -> Progress:
        return Progress(self.console, name, total, done)
