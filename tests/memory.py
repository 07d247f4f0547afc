"""Does a run grow? Watches one of many small steps from outside: memory, threads, open files and disk after every step.

    python -m tests.memory [--steps=300] [--folder=DIR] [--config.KEY=VALUE ...]

Prints the curve and ends with status 1 if memory grows by more than 2 % after the first 50 steps, or threads or files do. Shapes are few, as
buckets have one size each: a compiled program takes some 10 MB for good, and a run whose shapes keep changing grows by those.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ROOT

SETTLED = 50  # steps after which nothing may grow
GROWTH = 1.02  # of memory, from the steps after SETTLED to the last
RUN = (
    '--config=configs/quickstart.py:smoke',
    '--config.model.path=experiments/quickstart_base',
    "--config.stages=('main',)",
    '--config.compare=()',
    '--config.stage.main.questions=4',
    '--config.stage.main.group_size=4',
    '--config.stage.main.show_every=1000000',
)


@dataclass(frozen=True)
class Usage:
    """What a process has after a step."""

    step: int
    memory: int  # resident, MB
    threads: int
    files: int
    disk: int  # of the workdir, MB


def watch(workdir: Path, arguments: list[str]) -> list[Usage]:
    """Runs it to its end; usage whenever steps were told."""
    command = [sys.executable, '-m', 'rarl_jax.main', *arguments, f'--workdir={workdir}']
    found: list[Usage] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as run:
        while run.poll() is None:
            time.sleep(0.2)
            step = steps_told(workdir)
            if step > (found[-1].step if found else 0):
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    found.append(usage(run.pid, workdir, step))
                    if step % 10 < 2 or step < 10:
                        print(found[-1], flush=True)
    if run.returncode:
        sys.exit(run.returncode)
    return found


def steps_told(workdir: Path) -> int:
    with contextlib.suppress(OSError):
        return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
    return 0


def usage(pid: int, workdir: Path, step: int) -> Usage:
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    disk = 0
    for path in workdir.rglob('*'):
        with contextlib.suppress(OSError):
            disk += path.stat().st_size
    memory, threads = int(status['VmRSS'].split()[0]) >> 10, int(status['Threads'])
    return Usage(step, memory, threads, len(os.listdir(f'/proc/{pid}/fd')), disk >> 20)  # noqa: PTH208


def verdict(found: list[Usage]) -> list[str]:
    """What has grown: the least of ten steps' usage before the end against that after SETTLED steps, so that a checkpoint under way counts for nothing."""
    settled = [each for each in found if SETTLED <= each.step < SETTLED + 10]
    last = found[-10:]
    grown = []
    for name, most in (('memory', GROWTH), ('threads', 1.0), ('files', 1.0), ('disk', 1.0)):
        before, after = (min(getattr(each, name) for each in part) for part in (settled, last))
        print(f'{name}: {before} after {SETTLED} steps, {after} at the end ({100 * (after / before - 1):+.1f} %)')
        grown += [name] if after > most * before + (1 if name == 'disk' else 0) else []
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--folder', type=Path, default=None)
    given, others = parser.parse_known_args()
    workdir = given.folder or Path(tempfile.mkdtemp(prefix='memory-'))
    grown = verdict(watch(workdir, [*RUN, f'--config.stage.main.steps={given.steps}', *others]))
    sys.exit(f'grown: {", ".join(grown)}' if grown else 0)


if __name__ == '__main__':
    main()
