"""Runs an experiment: every arm with every seed, one after the other, and keeps the results.

    python -m experiments.run NAME [--small] [--seeds N] [--arms ARM ...] [--runs DIR] [--scale=7b]

What is finished is not run again; the same command goes on where it stopped, in the middle of an arm too. Runs lie under DIR/NAME (runs/experiments
if left out), results under experiments/NAME/results; an arm that another experiment shares lies under that one's name. --small runs each arm for a
moment on a policy of random weights, results included, all under DIR/NAME-small. --scale=7b runs nothing: it prints the lines that launch the arms at
7B, on configs/rarl.py or what else the arm names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.arms import HERE, Arm, arguments_of, home, known, launch_lines, load_experiment, settings_of
from experiments.collect import collect, is_kept
from rarl_jax.run import prepare_data
from rarl_jax.runtime.launches import LAUNCHES
from rarl_jax.runtime.progress import Progress
from rarl_jax.settings import RunSettings
from rarl_jax.stages.registry import TrainingSettings

ROOT = HERE.parent
EVERY = 2.0  # seconds between two looks at what a run has written


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    name: str  # ARM-SEED, of its folders
    arm: Arm
    seed: int
    settings: RunSettings
    workdir: Path
    results: Path
    arguments: tuple[str, ...]  # of rarl_jax.main
    begins: Path | None  # another job's export, which it starts from
    keeps_episodes: bool

    @property
    def about(self) -> dict[str, Any]:
        """What run.json says of it: results made of another arm are not its own."""
        changes = {**self.arm.changes, **self.arm.sizes}
        return {'run': self.name, 'seed': self.seed, 'config': self.arm.config, 'changes': changes}

    @property
    def lines(self) -> int:
        """Lines of metrics.jsonl when it is finished: one an update, one an evaluation."""
        stages = [self.settings.stage[name] for name in self.settings.stages]
        return sum(stage.steps if isinstance(stage, TrainingSettings) else 1 for stage in stages)

    @property
    def done(self) -> int:
        """Lines written so far."""
        path = self.workdir / 'metrics.jsonl'
        return path.read_bytes().count(b'\n') if path.exists() else 0

    @property
    def export(self) -> Path:
        return self.workdir / 'export'

    @property
    def kept(self) -> bool:
        """Whether its results are there."""
        return is_kept(self.results, self.about)

    @property
    def finished(self) -> bool:
        path = self.workdir / LAUNCHES
        return path.exists() and '"finished"' in path.read_text(encoding='utf-8')


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('name', choices=known(), metavar='NAME', help=', '.join(known()))
    parser.add_argument('--small', action='store_true', help='each arm for a moment')
    parser.add_argument('--seeds', type=int, metavar='N', help='the first N seeds alone')
    parser.add_argument('--arms', nargs='+', metavar='ARM', help='these arms alone')
    parser.add_argument(
        '--runs', type=Path, default=ROOT / 'runs' / 'experiments', metavar='DIR', help='where runs lie'
    )
    parser.add_argument('--scale', choices=['7b'], help='print the launch lines of the arms at 7B')
    given = parser.parse_args(arguments)
    experiment = load_experiment(given.name)
    if unknown := set(given.arms or ()) - set(experiment.arms):
        parser.error(f'{given.name} has no arm {sorted(unknown)[0]}: choose from {", ".join(experiment.arms)}.')
    if given.scale:
        print('\n'.join(launch_lines(given.name, experiment)))
        return 0
    seeds = experiment.seeds[: given.seeds]
    arms = {name: arm for name, arm in experiment.arms.items() if given.arms is None or name in given.arms}
    console = Console(markup=False)
    runs = given.runs.resolve()
    for name, arm in arms.items():
        if arm.begins_with and arm.begins_with not in arms:
            parser.error(f'{name} begins with {arm.begins_with}: name it too.')
    data = {name: shared_data(arm, runs, given.small, console) for name, arm in arms.items()}
    jobs: dict[tuple[int, str], Job] = {}
    for seed in seeds:
        for name, arm in arms.items():
            own, run = home(given.name, name, arm)
            folder = runs / (f'{own}-small' if given.small else own)
            kept = (folder if given.small else HERE / own) / 'results'
            begins = jobs[seed, arm.begins_with].export if arm.begins_with else None
            places = folder / f'{run}-{seed}', kept / f'{run}-{seed}', data[name], begins
            jobs[seed, name] = make_job(arm, seed, *places, given.small, keeps_episodes=seed == seeds[0])
    return run_all(given.name, list(jobs.values()), console)


def make_job(
    arm: Arm, seed: int, workdir: Path, kept: Path, data: Path, begins: Path | None, small: bool, keeps_episodes: bool
) -> Job:
    """One arm with one seed, on a data set that is there; `begins` is the policy that it starts from, where its config does not say."""
    changes: dict[str, Any] = {'data.dir': str(data)} | ({'model.path': str(begins)} if begins else {})
    settings, arguments = settings_of(arm, seed, changes, small), tuple(arguments_of(arm, seed, changes, small))
    return Job(workdir.name, arm, seed, settings, workdir, kept, arguments, begins, keeps_episodes)


def shared_data(arm: Arm, runs: Path, small: bool, console: Console) -> Path:
    """The data set of an arm: all arms and seeds that draw the same pages and ask the same questions share one."""
    data = settings_of(arm, 0, small=small).data
    if data.dir:
        return Path(data.dir)
    key = hashlib.sha256(json.dumps(asdict(data), sort_keys=True).encode()).hexdigest()[:10]
    return prepare_data(data, runs / f'pages-{key}', 0, console)


def run_all(name: str, jobs: Sequence[Job], console: Console) -> int:
    """Runs what has no results yet; the exit status of the run that failed or was stopped, else 0."""
    left = missing(jobs)
    total = sum(job.lines for job in jobs)
    with Progress(console, name, total, total - sum(job.lines - job.done for job in left)) as bar:
        for job in left:
            console.print(f'{job.name}: {job.settings.stages}', highlight=False)
            if not job.finished and (status := run_one(job, bar)):
                console.print(f'{job.name} ended with status {status}: see {log_of(job)}.', soft_wrap=True)
                return status
            if not job.kept:
                collect(job.workdir, job.results, job.about, job.keeps_episodes)
    folders = dict.fromkeys(str(job.results.parent) for job in jobs)
    console.print(f'{len(jobs)} runs, results in {", ".join(folders)}', soft_wrap=True)
    return 0


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Jobs without results, and those whose policy one of them starts from and which has gone, as committed results have none."""
    left, begun = [], set()
    for job in reversed(jobs):
        if not job.kept or (job.export in begun and not job.finished):
            left.append(job)
            begun.add(job.begins)
    return left[::-1]


def run_one(job: Job, bar: Progress) -> int:
    """One run in a process of its own; its exit status. It hears Ctrl-C as we do, and SIGTERM from us: then it saves, and we wait."""
    log_of(job).parent.mkdir(parents=True, exist_ok=True)
    shown = job.done
    with log_of(job).open('a', encoding='utf-8') as log:
        command = [sys.executable, '-m', 'rarl_jax.main', *job.arguments, f'--workdir={job.workdir}']
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        interrupts = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            while process.poll() is None:
                time.sleep(EVERY)
                bar.advance(job.done - shown)
                shown = job.done
        finally:
            signal.signal(signal.SIGTERM, before)
            signal.signal(signal.SIGINT, interrupts)
    return process.returncode


def log_of(job: Job) -> Path:
    """What a run prints; not in its workdir, which must be its own."""
    return job.workdir.with_name(f'{job.workdir.name}.log')


if __name__ == '__main__':
    sys.exit(main())
