"""Reads the committed results of an experiment: curves over steps, final figures, and paired comparisons with their uncertainty.

Two kinds of doubt are kept apart. Which questions were asked: pages are resampled, as in an evaluation, all seeds' questions together. Which seed
was drawn: Student's interval over the seeds' own differences, which is the one that says whether a training recipe is better. A difference
counts as shown where the larger p of the two, adjusted after Holm over the tasks that are compared, is below 0.05. Intervals are of 95 %, each for itself.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from experiments.arms import HERE, Experiment, home, load_experiment
from experiments.collect import ANSWERS, METRICS, RUN, is_kept, read_episodes
from input_pipeline.schema import Task
from input_pipeline.synthetic.files import draw_named
from input_pipeline.synthetic.pages import DrawSettings
from rarl_jax.conversation.episodes import RolloutRecord
from rarl_jax.evaluation.records import Record, from_json
from rarl_jax.evaluation.results import evaluation_name
from rarl_jax.evaluation.statistics import Interval, Paired, holm, over_seeds, pair
from rarl_jax.evaluation.tables import SIGNIFICANT
from rarl_jax.runtime import files

TASK_NAMES: dict[Task, str] = {
    'action_recognition': 'action',
    'depth_comparison': 'depth',
    'panel_understanding': 'panel',
    'dialogue_reordering': 'dialogue order',
    'panel_reordering': 'panel order',
    'character_counting': 'counting',
    'character_identification': 'identification',
}
SMALL_TASKS: tuple[Task, ...] = ('action_recognition', 'depth_comparison')  # the quickstart's
Value = Callable[[Record], float]


@dataclass(frozen=True)
class RunResult:
    """One arm with one seed, as collect.py has kept it."""

    arm: str
    seed: int
    about: Mapping[str, Any]  # run.json
    metrics: pd.DataFrame  # metrics.csv
    results: Mapping[str, Any]  # results.json of each stage
    answers: Mapping[str, tuple[Record, ...]]  # by 'STAGE:EVALUATION', as 'rarl:zoom'
    episodes: tuple[RolloutRecord, ...]  # of the first seed


@dataclass(frozen=True)
class Difference:
    """What the second of two answers adds to the first, on one task."""

    task: Task
    first: float  # mean over seeds
    second: float
    by_seed: tuple[float, ...]  # mean paired difference of each seed
    seeds: Interval  # of their mean, over seeds
    pages: Paired  # all seeds' questions together, over pages
    p: float  # the larger of both kinds of doubt, after Holm over the tasks

    @property
    def is_shown(self) -> bool:
        """Whether both kinds of doubt are small."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Results:
    """An experiment with all that was kept of it."""

    experiment: Experiment
    runs: tuple[RunResult, ...]

    def of(self, arm: str) -> list[RunResult]:
        """The runs of an arm, by seed. KeyError where there is none."""
        if not (found := [run for run in self.runs if run.arm == arm]):
            raise KeyError(f'There are no results of arm {arm!r}: run `python -m experiments.run`.')
        return found

    def only(self, *arms: str) -> Results:
        """These arms alone."""
        kept = {name: arm for name, arm in self.experiment.arms.items() if name in arms}
        runs = tuple(run for run in self.runs if run.arm in kept)
        return Results(replace(self.experiment, arms=kept), runs)

    def complete(self) -> Results:
        """Only the seeds that every arm has."""
        seeds = self.seeds(*self.experiment.arms)
        return replace(self, runs=tuple(run for run in self.runs if run.seed in seeds))

    def seeds(self, *arms: str) -> list[int]:
        """The seeds that all of these arms have."""
        return sorted(set.intersection(*({run.seed for run in self.of(arm)} for arm in arms)))

    def label(self, arm: str) -> str:
        return self.experiment.arms[arm].label

    @property
    def commits(self) -> str:
        """The commits that made the runs, for a figure's foot."""
        return ', '.join(sorted({run.about['commit'] for run in self.runs}))

    def curve(self, arm: str, metric: str, smooth: int = 5) -> pd.DataFrame:
        """A metric of the training steps, a column a seed, averaged over the last `smooth` steps."""
        columns = {}
        for run in self.of(arm):
            rows = run.metrics.dropna(subset=[metric]).set_index('step')[metric]
            columns[run.seed] = rows.rolling(smooth, min_periods=1).mean()
        return pd.DataFrame(columns)

    def means(self, arm: str, evaluation: str, value: Value | None = None) -> pd.DataFrame:
        """The mean of every task (rows) for every seed (columns)."""
        return pd.DataFrame({run.seed: _means(run.answers[evaluation], value or score) for run in self.of(arm)})

    def compare(
        self,
        first: tuple[str, str],
        second: tuple[str, str],
        value: Value | None = None,
        tasks: Sequence[Task] | None = None,
    ) -> list[Difference]:
        """Paired comparison of two (arm, evaluation), task by task in their order, over the seeds that both have.

        Args:
            value: of an answer; its score if None.
            tasks: those that are compared; all, by name, if None.

        Raises ValueError where the two were asked other questions about these tasks, KeyError for a task that neither was asked.
        """
        value = value or score
        runs = {arm: {run.seed: run for run in self.of(arm)} for arm in (first[0], second[0])}
        pairs: dict[Task, dict[int, list[tuple[float, float, str]]]] = {}
        for seed in self.seeds(first[0], second[0]):
            ours, theirs = (
                {
                    (record.question_id, record.doc_hash): record
                    for record in runs[arm][seed].answers[evaluation]
                    if tasks is None or record.task in tasks
                }
                for arm, evaluation in (first, second)
            )
            if other := ours.keys() ^ theirs.keys():
                name = min(other)[0]
                raise ValueError(
                    f'{name!r} is no question of both {first} and {second}: ask both the same, of one data set.'
                )
            for key, record in ours.items():
                row = (value(record), value(theirs[key]), record.page_id)
                pairs.setdefault(record.task, {}).setdefault(seed, []).append(row)
        return _differences({task: pairs[task] for task in tasks or sorted(pairs)})


def load(name: str) -> Results:
    """All results of experiments/NAME, arms in their order. ValueError where results are of another arm than experiment.py describes."""
    experiment = load_experiment(name)
    runs = []
    for arm_name, arm in experiment.arms.items():
        own, run_name = home(name, arm_name, arm)
        folders = [HERE / own / 'results' / f'{run_name}-{seed}' for seed in experiment.seeds]
        for folder in (folder for folder in folders if (folder / RUN).exists()):
            if not is_kept(folder, {'config': arm.config, 'changes': {**arm.changes, **arm.sizes}}):
                raise ValueError(f'{folder} was made by another arm of that name: delete it and run it again.')
            runs.append(replace(read_run(folder), arm=arm_name))
    return Results(experiment, tuple(runs))


def read_run(folder: Path) -> RunResult:
    """What collect.py has kept of one run."""
    about = files.load_json(folder / RUN)
    answers: dict[str, list[Record]] = {}
    for line in lzma.decompress((folder / ANSWERS).read_bytes()).decode().splitlines():
        row = json.loads(line)
        record = from_json(row)
        answers.setdefault(f'{row["stage"]}:{evaluation_name(record)}', []).append(record)
    return RunResult(
        arm=folder.name.rpartition('-')[0],
        seed=about['seed'],
        about=about,
        metrics=pd.read_csv(folder / METRICS),
        results=files.load_json(folder / 'results.json'),
        answers={name: tuple(records) for name, records in answers.items()},
        episodes=tuple(read_episodes(folder)),
    )


# ---------------------------------------------------------------- values of an answer


def score(record: Record) -> float:
    """The grade."""
    return record.score


def first_iou(record: Record) -> float:
    """IoU of the first successful zoom; 0 where there is none."""
    ious = [[zoom.iou for zoom in attempt.zooms if zoom.iou is not None] for attempt in record.attempts]
    return float(np.mean([each[0] if each else 0.0 for each in ious]))


def zoomed(record: Record) -> bool:
    """Whether any zoom succeeded."""
    return any(zoom.status == 'ok' for attempt in record.attempts for zoom in attempt.zooms)


# ---------------------------------------------------------------- comparisons


def _means(records: Iterable[Record], value: Value) -> dict[Task, float]:
    values: dict[Task, list[float]] = {}
    for record in records:
        values.setdefault(record.task, []).append(value(record))
    return {task: float(np.mean(each)) for task, each in sorted(values.items())}


def _differences(pairs: Mapping[Task, Mapping[int, Sequence[tuple[float, float, str]]]]) -> list[Difference]:
    found = []
    for task, by_seed in pairs.items():
        rows = [row for each in by_seed.values() for row in each]
        first, second, pages = zip(*rows, strict=True)
        each = tuple(float(np.mean([b - a for a, b, _ in seed])) for seed in by_seed.values())
        interval, p = over_seeds(each)
        paired = pair(first, second, pages)
        p = max(p, paired.p_bootstrap)
        found.append(Difference(task, np.mean(first), np.mean(second), each, interval, paired, p))
    adjusted = holm([each.p for each in found])
    return [replace(each, p=p) for each, p in zip(found, adjusted, strict=True)]


# ---------------------------------------------------------------- pages


def page_of(page_id: str) -> Image.Image:
    """A page of the shared data set, drawn anew: its name tells all."""
    return draw_named(page_id, 0, DrawSettings()).image
