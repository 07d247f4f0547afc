"""Commands as a user types them, and code that needs a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What runs for a moment is compiled in a third of the time without fusions of XLA's new kind and without most passes of LLVM.
QUICK = {
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
}
FULL = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '0'}  # compiled as a user's programs are


def launch(*arguments: str, compiled: dict[str, str] = QUICK, **environment: str) -> subprocess.CompletedProcess:
    """Types `python -m rarl_jax.main` with these arguments."""
    return _run(['-m', 'rarl_jax.main', *arguments], compiled | environment)


def run_code(code: str, *arguments: str) -> None:
    """Runs Python code in a process of its own, which can have other devices than this one. AssertionError shows what it said if it fails."""
    done = _run(['-c', code, *arguments], QUICK)
    assert done.returncode == 0, done.stderr


def _run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
