"""Commands as a user types them, and checks that need eight devices."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 900  # seconds; gloo swallows SIGTERM, so what is late is killed
# What runs for a moment: without fusions of XLA's new kind, which take half the time of a compilation, and, as tests/conftest.py has it, unoptimised.
QUICK = {
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters'
}
FULL = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}  # compiled as a user's programs are

ON_EIGHT = """
import importlib, sys, jax
jax.config.update('jax_num_cpu_devices', 8)
importlib.import_module(sys.argv[1]).check_on_eight_devices(*sys.argv[2:])
"""


def launch(
    *arguments: str, compiled: dict[str, str] = QUICK, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess:
    """Types `python -m rarl_jax.main` with these arguments."""
    return _run(['-m', 'rarl_jax.main', *arguments], compiled | environment, cwd)


def start_processes(
    workdir: Path,
    arguments: Sequence[str],
    logs: Sequence[Path],
    environment: Mapping[str, str],
    program: Sequence[str] = ('-m', 'rarl_jax.main'),
) -> list[subprocess.Popen]:
    """Types the command of a run once for each of its processes, which write to `logs`; each leads a session of its own."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    command = [sys.executable, *program, *arguments, f'--workdir={workdir}']
    several = [f'--coordinator=localhost:{port}', f'--processes={len(logs)}']
    return [
        subprocess.Popen(
            command + ([*several, f'--process={number}'] if len(logs) > 1 else []),
            cwd=ROOT,
            env=environment,
            stdout=log.open('w'),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        for number, log in enumerate(logs)
    ]


def launch_together(
    workdir: Path, arguments: Sequence[str], count: int, environment: Mapping[str, str]
) -> list[subprocess.CompletedProcess]:
    """Types a command once for each of `count` processes of a run, and waits for all."""
    logs = [workdir.with_name(f'{workdir.name}-{number}.log') for number in range(count)]  # a full pipe would stop them
    started = start_processes(workdir, arguments, logs, environment)
    try:
        return [
            subprocess.CompletedProcess(each.args, each.wait(LIMIT), log.read_text())
            for each, log in zip(started, logs, strict=True)
        ]
    finally:
        for each in started:
            if each.poll() is None:
                os.killpg(each.pid, signal.SIGKILL)


def on_eight_devices(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Calls the module's `check_on_eight_devices` in a process of its own, which has eight virtual devices."""
    return _run(['-c', ON_EIGHT, module, *arguments], QUICK)


def _run(arguments: list[str], environment: dict[str, str], cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
