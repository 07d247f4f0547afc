"""Results side by side.

    python -m rarl_jax.evaluation DIR/eval/before DIR/eval/after [--markdown]
    python -m rarl_jax.evaluation DIR/eval/after:zoom DIR/eval/after:blank_crop

A folder alone stands for all its evaluations; ':NAME' picks one. The first is what the others are compared with.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import rich.console

from rarl_jax.evaluation.tables import Result, load, side_by_side, to_markdown, to_rich
from rarl_jax.runtime.messages import describe


def load_all(arguments: list[str]) -> list[Result]:
    """The results that the arguments name; those that would be called alike get their run's folder before their name."""
    found = [(folder, result) for folder, name in map(_parse, arguments) for result in load(folder, name)]
    times = Counter(result.name for _, result in found)
    return [
        dataclasses.replace(result, name=f'{folder.parent.parent}: {result.name}') if times[result.name] > 1 else result
        for folder, result in found
    ]


def _parse(argument: str) -> tuple[Path, str | None]:
    """DIR/eval/STAGE and the evaluation's name, if one is given."""
    folder, _, name = argument.rpartition(':')
    if not folder or Path(argument).exists():
        return Path(argument), None
    return Path(folder), name


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m rarl_jax.evaluation', description='Puts the results of evaluations side by side.'
    )
    parser.add_argument('results', nargs='+', help='DIR/eval/STAGE, or DIR/eval/STAGE:NAME for one evaluation of it')
    parser.add_argument('--markdown', action='store_true', help='print a Markdown table')
    options = parser.parse_args(arguments)
    try:
        table = side_by_side(load_all(options.results))
    except (OSError, ValueError) as error:
        print(describe(error), file=sys.stderr)
        return 1
    if options.markdown:
        print(to_markdown(table), end='')
    else:
        rich.console.Console().print(to_rich(table))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
