"""Launch a run: `python -m rarl_jax.main --config=configs/NAME.py[:variant] [--workdir=DIR] [--config.key=value ...]`.

The same command on the same workdir goes on where the run stopped. Ctrl-C and SIGTERM save first.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from rarl_jax.runtime import signals
from rarl_jax.runtime.lock import holds
from rarl_jax.runtime.messages import describe, shown

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'


def describe_configs() -> str:
    """One line a config file: its path and the first line of its docstring."""
    lines = []
    for path in sorted(CONFIGS.glob('[!_]*.py')):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
        lines.append(f'  configs/{path.name}: {docstring.partition(chr(10))[0]}')
    return '\n'.join(lines)


def check_config_path(argv: list[str]) -> None:
    """Refuse a --config that is no file, naming the nearest one that is."""
    given = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
    given += [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == '--config']
    for value in given:
        path = value.rpartition('.py')[0] + '.py' if '.py' in value else value
        if not Path(path).is_file():
            near = difflib.get_close_matches(Path(path).name, [p.name for p in CONFIGS.glob('*.py')], 1, 0.0)
            folder = 'configs' if Path('configs', near[0]).is_file() else CONFIGS
            raise FileNotFoundError(f'No config file {path} in {Path.cwd()}: did you mean --config={folder}/{near[0]}?')


_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
_PREFLIGHT = flags.DEFINE_bool(
    'preflight', False, 'Compile for the mesh without weights or GPUs, and tell whether it fits.'
)
_DEVICE_GB = flags.DEFINE_float('device_gb', 80.0, "Preflight: a device's memory, 10^9 bytes.")
_COORDINATOR = flags.DEFINE_string(
    'coordinator', '', 'Several processes: HOST:PORT of the first, or auto on a cluster.'
)
_PROCESSES = flags.DEFINE_integer('processes', 1, 'How many processes the run has; known with --coordinator=auto.')
_PROCESS = flags.DEFINE_integer('process', 0, 'Which of them this one is, from 0; known with --coordinator=auto.')
_REPLAY = flags.DEFINE_string(
    'replay', '', 'An update that the run has skipped and kept, to be repeated: WORKDIR/skipped/FILE.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', '', 'Where the run writes; runs/NAME or runs/NAME_VARIANT of the config if left out.'
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f'Unknown arguments {argv[1:]}: every setting is written --config.key=value.')
    # The libraries tell their every step, and log what they raise; that is told below.
    logging.set_verbosity(logging.FATAL)
    from rarl_jax import preflight, run
    from rarl_jax.runtime import processes

    signals.handle(signals.interrupt)
    if _PREFLIGHT.value:
        sys.exit(not preflight.preflight(_CONFIG.value, _DEVICE_GB.value, _PROCESSES.value))
    if _COORDINATOR.value:
        processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        signals.handle(signals.interrupt)  # JAX has taken SIGTERM for itself
    run.run(_CONFIG.value, workdir(), Path(_REPLAY.value) if _REPLAY.value else None)


def workdir() -> Path:
    """Where the run writes: as the command line has it, or a folder named as the config and its variant."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).rpartition('.py')
    name = Path(path).name + variant.replace(':', '_')
    return Path(_WORKDIR.value or f'runs/{name}').resolve()


def parse(argv: list[str]) -> list[str]:
    """Reads the flags; ValueError in one sentence for what no config has or refuses."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(lines[-1].removeprefix('ValueError: ')) from error
    except AttributeError as error:
        raise ValueError(f'The config has no such setting: {str(error.args[0]).replace(chr(10), " ")}') from error


def cli() -> None:
    """Run `main`; what ends it is told in one sentence, with the traceback in a file. Exit status 130 or 143 after a signal, else 1."""
    signals.handle(signals.exit_at_once)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='backslashreplace')  # an ASCII terminal must not end a run
    warnings.formatwarning = lambda message, *_: f'warning: {shown(str(message))}\n'
    strays: list[str] = []  # what threads of C++ libraries would print, by the hundred, when a disk is full
    sys.unraisablehook = lambda stray: strays.append(''.join(traceback.format_exception(stray.exc_value)))
    try:
        sys.modules['__main__'].__doc__ = f'{__doc__}\nConfigs:\n{describe_configs()}\n'
        check_config_path(sys.argv[1:])
        flags.mark_flag_as_required('config')
        app.run(main, flags_parser=parse)
    except signals.Stopped as stopped:
        print(stopped)
        end(stopped.status, str(stopped))
    except Exception as error:  # the outermost place: nothing may end in a traceback on the terminal
        log = write_log('\n'.join([traceback.format_exc(), *strays[:3]]))
        print(f'error: {describe(error)}\n{log}', file=sys.stderr)
        end(1, describe(error))


def end(status: int, words: str) -> NoReturn:
    """Leaves with this status; the run's other processes, which would wait for this one, are told why."""
    if flags.FLAGS.is_parsed() and _COORDINATOR.value:
        from rarl_jax.runtime import processes

        processes.leave(status, words)
    sys.exit(status)


def write_log(text: str) -> str:
    """Keeps a traceback in the workdir, or in a temporary folder where the run has none; says where."""
    name, folders = 'error.log', []
    with contextlib.suppress(Exception):  # there may be no workdir yet, or none that can be named
        name = f'error-{_PROCESS.value}.log' if _PROCESS.value else name
        folders = [workdir()] if holds(workdir()) else []
    for folder in (*folders, None):
        try:
            log = (folder or Path(tempfile.mkdtemp(prefix='rarl_jax-'))) / name
            log.write_text(text, encoding='utf-8', errors='backslashreplace')
        except OSError:
            continue
        return f'(the traceback is in {shown(str(log))})'
    return '(the traceback could not be written anywhere)'


if __name__ == '__main__':
    cli()
