"""`--replay=FILE`: one update that a run has skipped, once more, from the checkpoint of its step; nothing is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from rarl_jax.learner.batches import Batch
from rarl_jax.learner.invariants import not_finite
from rarl_jax.learner.kept import Update, UpdateRecord, read_update
from rarl_jax.learner.optim import path_name
from rarl_jax.learner.update import Learner, Updater, chosen_logprobs
from rarl_jax.runtime import processes
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import load_kind
from rarl_jax.stages.skips import as_text, file_of_process


@dataclass(frozen=True)
class Repeated:
    """What an update did this time."""

    metrics: dict[str, float]
    gradients: list[str]  # names of the params whose gradient is not finite
    questions: list[str]  # ids of those whose advantage or log-probs are not finite


def repeat(run: Run, file: Path) -> bool:
    """Tells what the update of `file` does, beside what it did in the run; whether the two are equal.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no update, or that of a stage which this run has not or which cannot repeat one; the checkpoint of its step is gone.
    """
    update, record = read_update(file_of_process(file))
    stage = run.settings.stage.get(record.stage)
    kind = None if stage is None else load_kind(stage.kind)
    if kind is None or kind.repeat is None:
        raise ValueError(
            f'{file} is of stage {record.stage}, and this config has no such stage that repeats an update: give the config of its run.'
        )
    repeated = kind.repeat(run, stage, update, record.global_step)
    now = as_text(repeated.metrics)
    run.console.print(to_text(record, now, repeated))
    return now == record.metrics


def restore_learner(run: Run, optimizer: optax.GradientTransformation, step: int) -> Learner:
    """The learner of the checkpoint of a step of the run."""
    learner = Learner.start(run.params, optimizer, None)
    arrays = run.checkpoints.restore({'params': learner.params, 'opt_state': learner.opt_state}, step)
    return dataclasses.replace(learner, **arrays)


def repeat_update(
    updater: Updater, learner: Learner, batches: Callable[[], Iterable[Batch]], update: Update
) -> Repeated:
    """The update, in its parts; `batches()` are those of its episodes."""
    own = chosen_logprobs(updater, learner.params, batches(), update.episodes)
    blamed = processes.joined(not_finite(update.episodes, update.advantages, own))
    gradient, metrics = updater.gradient(learner.params, batches(), update.tokens, update.sequences)
    bad = jax.jit(lambda tree: jax.tree.map(lambda x: ~jnp.isfinite(x).all(), tree))(gradient)
    named = [path_name(path) for path, wrong in jax.tree_util.tree_leaves_with_path(jax.device_get(bad)) if wrong]
    _, _, numbers = updater.apply(learner.params, learner.opt_state, gradient, metrics['loss'])
    metrics = {name: float(value) for name, value in jax.device_get(metrics | numbers).items()}
    return Repeated(metrics, named, blamed)


def to_text(record: UpdateRecord, now: dict[str, str], repeated: Repeated) -> str:
    """Both tellings of an update, metric by metric, and what was not finite."""
    lines = [f'Step {record.step} of stage {record.stage}, its update once more:']
    for name in sorted(now.keys() | record.metrics.keys()):
        then, told = record.metrics.get(name, 'untold'), now.get(name, 'untold')
        lines.append(f'  {name}: {told}{"" if then == told else f" (in the run {then})"}')
    lines.append('As in the run.' if now == record.metrics else 'NOT as in the run: another machine, or other code?')
    for what, names in (('Gradients', repeated.gradients), ('Questions', repeated.questions)):
        if names:
            lines.append(f'{what} that are not finite: {", ".join(names)}')
    return '\n'.join(lines)
