"""What every stage that trains does beside its own update: begin where the run stands, write, save, and leave when asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float

from rarl_jax.learner.invariants import not_finite
from rarl_jax.learner.kept import Update, UpdateRecord
from rarl_jax.learner.optim import all_finite
from rarl_jax.learner.update import Learner
from rarl_jax.models.params import Params
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.runtime.progress import Progress
from rarl_jax.runtime.sharding import everywhere
from rarl_jax.runtime.watchdog import Watchdog
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import TrainingSettings
from rarl_jax.stages.skips import Skip, as_text, keep, tell, unusable
from rarl_jax.stages.symptoms import new_symptoms

_all_finite = jax.jit(all_finite)


class Training:
    """One training stage of a run, from wherever it stands.

    training = Training(run, name, stage)
    learner = training.begin(optimizer, batches)
    while learner.step < stage.steps:
        learner, metrics = update(learner, next(learner.batches))
        training.after_step(learner, metrics)
    """

    def __init__(self, run: Run, name: str, stage: TrainingSettings):
        self._run, self._name, self._stage = run, name, stage
        self.notes: dict[str, Any] = {}  # what the stage remembers beside the learner; JSON, part of a checkpoint
        self._skip: Skip | None = None  # of this step
        self._began = False  # its first step
        file = run.workdir / (f'hang-{jax.process_index()}.log' if jax.process_index() else 'hang.log')
        self._watchdog = Watchdog(run.settings.hang_factor, file, run.say)
        if stage.from_start:  # a checkpoint in mid-stage takes its place in `begin`
            run.params = run.initial_trainable()

    def begin(
        self, optimizer: optax.GradientTransformation, batches: Iterator[Any], extra: Params | None = None
    ) -> Learner:
        """The learner at the start of the stage, or where the newest checkpoint left it; `extra` are params that the stage needs for itself."""
        run = self._run
        learner = Learner.start(run.params | everywhere(extra or {}, run.mesh), optimizer, batches)
        if run.saved is not None and run.saved['stage'] == self._name:
            arrays = run.checkpoints.restore({'params': learner.params, 'opt_state': learner.opt_state})
            learner = dataclasses.replace(learner, **arrays, step=run.saved['step'])
            batches.set_state(run.saved['data'])
            self.notes = run.saved['notes']
        run.saved = None
        run.metrics.forget_after(run.global_step(self._name, learner.step))
        return learner

    @contextmanager
    def progress(self, done: int) -> Iterator[Progress]:
        """A bar over the stage's steps, which are watched meanwhile."""
        with self._watchdog, self._run.progress(self._name, self._stage.steps, done) as bar:
            yield bar

    def clock(self) -> Clock:
        """The clock of a step that begins now."""
        if self._began:
            self._watchdog.lap('telling and saving')
        self._began = True
        return Clock(self._watchdog.lap)

    def keep(
        self, step: int, update: Update, metrics: Mapping[str, float], logprobs: Sequence[Float[np.ndarray, 'n']]
    ) -> None:
        """Keeps an update of `step` that was skipped; `after_step` tells of it.

        The step must end with it: its checkpoint then holds the policy that the update met.

        Args:
            logprobs: that the policy gives each episode's chosen tokens.
        """
        run, name = self._run, self._name
        record = UpdateRecord(name, step, run.global_step(name, step), as_text(metrics))
        run.checkpoints.keep(skipped=record.global_step)
        blamed = processes.joined(not_finite(update.episodes, update.advantages, logprobs))
        self._skip = keep(run.workdir / 'skipped', update, record, blamed)

    def note_score(self, learner: Learner, score: float) -> bool:
        """Remembers the best score of the stage; whether this is it. Its checkpoint stays beside the newest ones until a better one is written."""
        if 'best' in self.notes and score <= self.notes['best'][0]:
            return False
        self.notes['best'] = [score, learner.step]
        self._run.checkpoints.keep(best=self._run.global_step(self._name, learner.step))
        return True

    def after_step(
        self,
        learner: Learner,
        metrics: dict[str, float],
        *,
        ends: bool = False,
        saves: bool = False,
        takes_best: bool = False,
    ) -> None:
        """Writes a step's metrics, saves when it is time, and leaves if the user has asked for it.

        A step with a number that is not finite counts as skipped, and is written without it.

        Args:
            ends: the stage is done, though not all its steps are.
            saves: it is time to save.
            takes_best: where the stage is done, the run goes on with the policy of the best score; the checkpoint of this step holds the last.
        Raises:
            ValueError: too many steps in a row were skipped.
        """
        run, step = self._run, self._run.global_step(self._name, learner.step)
        run.params = {name: learner.params[name] for name in run.params}
        _, best = self.notes.get('best', [0.0, learner.step])
        finished, signal = ends or learner.step == self._stage.steps, run.signal()
        handed_on = run.global_step(self._name, best) if finished and takes_best and best != learner.step else None
        wrong = unusable(metrics)
        skipped = bool(wrong) or metrics['optimizer/skipped'] > 0
        self.notes['skipped'] = self.notes.get('skipped', 0) + 1 if skipped else 0  # in a row
        run.check_workdir()
        told = {name: value for name, value in metrics.items() if name not in wrong}
        run.metrics.write(step, self._name, told | {'compiles': run.compiles.take()})
        run.done += finished
        if finished:
            run.taken[self._name] = learner.step
        if finished or signal or saves or skipped or learner.step % self._stage.save_every == 0:
            self._save(learner, step, finished, handed_on)
        if skipped:
            self._tell_skipped(learner.step, wrong)
        if handed_on is not None:
            run.params = run.checkpoints.restore({'params': run.params}, handed_on)['params']
        for symptom in new_symptoms(run.metrics.rows(self._name)).values():
            run.say(f'warning: step {learner.step} of stage {self._name}: {symptom}')
        if signal and not finished:
            run.leave(signal)

    def _tell_skipped(self, step: int, wrong: Sequence[str]) -> None:
        in_a_row, most = self.notes['skipped'], self._stage.most_skipped
        message = tell(self._name, step, wrong, self._skip, in_a_row, most)
        self._skip = None
        if in_a_row > most:
            self._run.checkpoints.wait()
            raise ValueError(message)
        self._run.say(f'warning: {message}')

    def _save(self, learner: Learner, step: int, finished: bool, handed_on: int | None) -> None:
        """A checkpoint from which every further step comes out the same; ValueError instead of one that holds NaN or infinity.

        `handed_on`: the step of the checkpoint whose policy the run goes on with; None = this one's.
        """
        arrays = {'params': learner.params, 'opt_state': learner.opt_state}
        if not _all_finite(arrays):
            raise ValueError(
                f'The policy holds NaN or infinity after step {learner.step} of stage {self._name}: it is not saved, and the run stops; '
                'the checkpoint before is good. Lower the learning rate, or the norm that gradients are clipped to.'
            )
        description = {
            'stage': self._name,
            'step': learner.step,
            'finished': finished,
            'done': self._run.done,
            'data': learner.batches.get_state(),
            'notes': self.notes,
            'taken': self._run.taken,
            'policy': handed_on,
            'kept': self._run.checkpoints.kept,
            'seed': self._run.settings.seed,
        }
        self._run.checkpoints.save(step, arrays, description)
