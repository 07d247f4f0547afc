"""kill -9 at moments of every phase of a run, again while it resumes: it ends as though nobody had killed it, and leaves nothing behind.

    python -m tests.campaign --kills=40 [--seed=0] [--folder=DIR]

goes through a run of all weights, one of an adapter and one of two processes, 40 kills in all: well over half an hour on two cores. The tests use
the same functions for a short one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rarl_jax.runtime.checkpoints import Checkpoints
from tests.commands import QUICK, start_processes

LOOK = 0.002  # seconds between two looks at a run
SILENT = 900  # seconds of looking in which a launch may tell nothing: a busy machine makes it slow, not silent
GONE = 20  # seconds of looking in which the workers of a killed run end
TIMES = ('time/', 'throughput/', 'compiles')  # metrics that differ from run to run


@dataclass(frozen=True)
class Case:
    """A run that is killed: its command, and how many processes it has."""

    name: str
    arguments: tuple[str, ...]
    processes: int = 1


# Each saves after every step, so that it is killed and resumed in the midst of a stage, with several updates a step.
MAIN = ('--config.stage.main.save_every=1', '--config.stage.main.mini_batches=2', '--config.stage.main.epochs=2')
QUICKSTART = Case('quickstart', ('--config=configs/quickstart.py:smoke', *MAIN))
ADAPTED = ('warm_start', 'recognition')
LORA = Case(
    'lora',
    (
        '--config=configs/rarl.py:lora_smoke',
        f'--config.stages={("base", *ADAPTED, "rarl")}',
        *(f'--config.stage.{name}.optimizer.learning_rate=0.01' for name in ADAPTED),
        *(f'--config.stage.{name}.steps=2' for name in ADAPTED),
        *(f'--config.stage.{name}.save_every=1' for name in ADAPTED),
    ),
)
# A question of each mini-batch for each process.
SHARED = ('--config.stage.main.questions=4', '--config.mesh.cpu_devices=1')
TWO = Case('two processes', (*QUICKSTART.arguments, *SHARED), processes=2)


@dataclass(frozen=True)
class Moment:
    """When a launch is killed: at a random time after something has come to be in the workdir; None = after the launch."""

    name: str
    has_come: Callable[[Path], bool] | None
    delay: float  # most seconds after it


def answers(stage: str) -> Callable[[Path], bool]:
    """Whether an evaluation has begun to write its answers."""
    return lambda workdir: has_content(workdir / 'eval' / stage / 'samples.jsonl')


def has_content(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size > 0
    return False


def finds(folder: str, pattern: str) -> Callable[[Path], bool]:
    """Whether a file of such a name lies in a folder of the workdir."""
    return lambda workdir: (workdir / folder).is_dir() and any((workdir / folder).glob(pattern))


def steps(least: int) -> Callable[[Path], bool]:
    """Whether so many updates are told."""

    def told(workdir: Path) -> bool:
        with contextlib.suppress(OSError):
            text = (workdir / 'metrics.jsonl').read_bytes()
            return sum(b'"optimizer/skipped"' in line for line in text.splitlines()) >= least
        return False

    return told


# In the order of a run: each is reached by the launch that follows the kill before.
MOMENTS = (
    Moment('drawing', finds('data/raw/images', '*'), 0.2),
    Moment('building', finds('data', 'built.incomplete'), 0.5),
    Moment('making the policy', finds('.', 'init.incomplete'), 0.1),
    Moment('evaluation', answers('base'), 0.2),
    Moment('rollout or update', steps(1), 1.0),
    Moment('saving', finds('checkpoints', '*tmp*'), 0.02),
    Moment('resuming', None, 8.0),
    Moment('a later update', steps(3), 0.1),
    Moment('the last evaluation', answers('rarl'), 0.2),
    Moment('export', finds('export', '*'), 0.02),
)


def campaign(case: Case, reference: Path, workdir: Path, moments: Sequence[Moment], rng: random.Random) -> list[str]:
    """Kills a run at these moments, lets it end, and asserts that it is the reference's; what was done, a line a kill."""
    temporary = workdir.with_name(f'{workdir.name}-tmp')
    temporary.mkdir()
    done = [killed(case, workdir, temporary, moment, rng) for moment in moments]
    finish(case, workdir, temporary)
    assert_same(workdir, reference)
    temporary.rmdir()  # OSError where a killed run has left a temporary file
    return done


def killed(case: Case, workdir: Path, temporary: Path, moment: Moment, rng: random.Random) -> str:
    """Launches the run and kills it at the moment, or lets it end where that never comes."""
    delay = rng.uniform(0, moment.delay)
    run = start(case, workdir, temporary)
    try:
        if moment.has_come is not None:
            watch(run, temporary, 0, lambda: moment.has_come(workdir))
        time.sleep(delay)
        ended = run[0].poll()
        assert ended in (None, 0), log_of(temporary, 0)
        for each in rng.sample(run, len(run)):  # one dies first, the others follow or wait for it
            each.kill()
            time.sleep(rng.uniform(0, 0.2))
    finally:
        stop(run)
    told = 'ended before it' if ended == 0 else f'killed {delay:.2f} s after it'
    return f'{case.name}: {moment.name}, {told}'


def finish(case: Case, workdir: Path, temporary: Path) -> None:
    """Launches the run and waits for its end."""
    run = start(case, workdir, temporary)
    try:
        for number, each in enumerate(run):
            watch(run, temporary, number, lambda: False)
            assert each.returncode == 0, log_of(temporary, number)
    finally:
        stop(run)
    for log in temporary.glob('log-*'):
        log.unlink()


def start(case: Case, workdir: Path, temporary: Path) -> list[subprocess.Popen]:
    """Types the command once for each process, all of them leaders of a session of their own."""
    logs = [temporary / f'log-{number}' for number in range(case.processes)]
    return start_processes(workdir, case.arguments, logs, os.environ | QUICK | {'TMPDIR': str(temporary)})


def watch(run: Sequence[subprocess.Popen], temporary: Path, number: int, has_come: Callable[[], bool]) -> None:
    """Waits until something has come or one process of a run has ended; AssertionError with its log where it tells nothing for long."""
    log, size, looks = temporary / f'log-{number}', 0, 0
    while run[number].poll() is None and not has_come():
        time.sleep(LOOK)
        looks += 1
        if log.stat().st_size > size:
            size, looks = log.stat().st_size, 0
        assert looks < SILENT / LOOK, f'{log_of(temporary, number)}\nand nothing since'


def stop(run: Sequence[subprocess.Popen]) -> None:
    """Waits until nothing is left of the sessions of killed processes; AssertionError names what does not end by itself."""
    for each in run:
        if each.poll() is None:
            each.kill()
        each.wait()
    looks = 0
    while (left := [pid for each in run for pid in session(each.pid)]) and looks < GONE / 0.05:
        time.sleep(0.05)
        looks += 1
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f'workers {left} outlive their parent'


def session(leader: int) -> list[int]:
    """Processes alive in a session."""
    found = []
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            state, _, _, belongs = path.read_text().rpartition(')')[2].split()[:4]
            if int(belongs) == leader and state != 'Z':
                found.append(int(path.parent.name))
    return found


def log_of(temporary: Path, number: int) -> str:
    return (temporary / f'log-{number}').read_text()


# ---------------------------------------------------------------- what a run leaves


def assert_same(one: Path, two: Path) -> None:
    """Both workdirs hold the same: parameters, optimizer, metrics but times, evaluations, episodes, export, bit for bit; and no file is half made."""
    assert lines(one) == lines(two)
    (description, arrays), (other, others) = map(newest, (one, two))
    assert description == other
    assert arrays.keys() == others.keys()
    assert all(np.array_equal(arrays[name], others[name]) for name in arrays)
    for pattern in ('eval/*/samples.jsonl', 'rollouts/*.jsonl', 'rollouts/images/*', 'export/**/*'):
        files, expected = ({str(p.relative_to(d)): p for p in d.glob(pattern) if p.is_file()} for d in (one, two))
        assert files.keys() == expected.keys() and files
        for name, path in files.items():
            told, meant = (
                p.read_bytes().replace(str(d).encode(), b'') for p, d in ((path, one), (expected[name], two))
            )
            assert told == meant, name  # an adapter names the base that lies in its workdir
    names = [str(path.relative_to(one)) for path in one.rglob('*')]
    assert not [name for name in names if any(part in name for part in ('partial', 'incomplete', 'tmp', 'raw'))]


def lines(workdir: Path) -> list[dict[str, Any]]:
    """The metrics without what differs from run to run."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [{name: x for name, x in row.items() if not name.startswith(TIMES)} for row in rows]


def newest(workdir: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description of the newest checkpoint, and all its arrays."""
    checkpoints = Checkpoints(workdir / 'checkpoints', keep=2)
    description = checkpoints.latest()
    place = max((workdir / 'checkpoints').glob('[0-9]*')) / 'arrays' / 'description.json'
    table = json.loads(place.read_text())['arrays']
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=here) for name, (shape, dtype) in table.items()}
    return description, jax.device_get(checkpoints.restore(like))


# ---------------------------------------------------------------- the long one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--kills', type=int, default=40)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, default=None)
    given = parser.parse_args()
    rng, begun, kills = random.Random(given.seed), time.monotonic(), 0
    folder = given.folder or Path(tempfile.mkdtemp(prefix='campaign-'))
    rounds = 0
    while kills < given.kills:
        for case in (QUICKSTART, LORA, TWO):
            reference = folder / f'{case.name} reference'
            if not reference.exists():
                shutil.rmtree(folder / 'tmp', ignore_errors=True)
                (folder / 'tmp').mkdir(parents=True)
                finish(case, reference, folder / 'tmp')
            chosen = sorted(rng.sample(range(len(MOMENTS)), min(7, given.kills - kills)))
            workdir = folder / f'{case.name} {rounds}'
            for line in campaign(case, reference, workdir, [MOMENTS[i] for i in chosen], rng):
                print(f'{time.monotonic() - begun:6.0f} s  {line}', flush=True)
                kills += 'killed' in line
            print(
                f'{time.monotonic() - begun:6.0f} s  {case.name}: as the run that nobody killed, after {kills} kills',
                flush=True,
            )
            shutil.rmtree(workdir)
            if kills >= given.kills:
                break
        rounds += 1


if __name__ == '__main__':
    main()
