"""Makes a run's report again, finished or still going.

    python -m rarl_jax.report DIR [DIR ...]

The page is written to the first DIR/report/index.html; curves of further runs are drawn over the first one's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rarl_jax.report.build import build_report
from rarl_jax.runtime.messages import describe


def main(arguments: list[str] | None = None) -> int:
    """Builds the page and prints its path; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog='python -m rarl_jax.report', description='Makes the HTML report of one or more runs.'
    )
    parser.add_argument('workdir', nargs='+', type=Path, help='the --workdir of a run')
    options = parser.parse_args(arguments)
    try:
        print(build_report(options.workdir))
    except (OSError, ValueError) as error:
        print(describe(error), file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
