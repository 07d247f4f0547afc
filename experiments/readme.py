"""Puts the measured figures into the READMEs, so that none is typed by hand.

    python -m experiments.readme [--check]

Between `<!-- figures: NAME -->` and `<!-- end -->` stands what the committed result files say; --check changes nothing and fails where a README is older.

    quickstart           experiments/quickstart_results/results.md, as the run wrote it
    quickstart_qwen3_vl  the measured rows of experiments/quickstart_results_qwen3_vl/results.md
    progress             how the boxes of that run became better, from its metrics.jsonl
    repeats              how far runs of the quickstart's recipe lie apart: three seeds in warm_start, and again as the teachers of distilled
    base                 experiments/quickstart_base/evaluation/results.md, as the run wrote it
    base_qwen3_vl        the same of experiments/quickstart_base_qwen3_vl
    wider_knows, wider   experiments/wider_base/evaluation/knows.md and base.md, as its two runs wrote them
    benchmarks           experiments/benchmarks/results/*.json
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

import pandas as pd

from experiments.results import TASK_NAMES, load

HERE = Path(__file__).parent
READMES = (
    HERE.parent / 'README.md',
    HERE / 'quickstart_base' / 'README.md',
    HERE / 'quickstart_base_qwen3_vl' / 'README.md',
    HERE / 'wider_base' / 'README.md',
)
BLOCK = re.compile(r'(<!-- figures: (\w+) -->\n).*?(<!-- end -->)', re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='fail where README is older than the result files')
    check = parser.parse_args().check
    for path in READMES:
        text = path.read_text(encoding='utf-8')
        fresh = filled(text)
        if check and fresh != text:
            sys.exit(f'{path} is older than the result files: run python -m experiments.readme')
        path.write_text(fresh, encoding='utf-8')


def filled(text: str) -> str:
    """The text with every block of figures made anew. KeyError for a block of another name."""
    makers = {
        'quickstart': partial(table, HERE / 'quickstart_results' / 'results.md'),
        'quickstart_qwen3_vl': partial(measured, HERE / 'quickstart_results_qwen3_vl' / 'results.md'),
        'progress': progress,
        'repeats': repeats,
        'base': partial(table, HERE / 'quickstart_base' / 'evaluation' / 'results.md'),
        'base_qwen3_vl': partial(table, HERE / 'quickstart_base_qwen3_vl' / 'evaluation' / 'results.md'),
        'wider_knows': partial(table, HERE / 'wider_base' / 'evaluation' / 'knows.md'),
        'wider': partial(table, HERE / 'wider_base' / 'evaluation' / 'base.md'),
        'benchmarks': benchmarks,
    }
    return BLOCK.sub(lambda block: f'{block[1]}{makers[block[2]]()}\n{block[3]}', text)


def table(path: Path) -> str:
    """The table that a run has written of its evaluations."""
    return path.read_text(encoding='utf-8').strip()


def progress() -> str:
    """Sampled IoU of the first zoom: at the first step, at the end of the warm start, and over the last five steps."""
    rows = pd.read_json(HERE / 'quickstart_results' / 'metrics.jsonl', lines=True)
    iou = {stage: rows[rows.stage == stage]['zoom/iou_first'].dropna() for stage in ('warm_start', 'main')}
    last = iou['main'].iloc[-5:]
    return (
        f'Its boxes had not stopped improving when the run ended: sampled IoU of the first zoom {iou["warm_start"].iloc[0]:.2f} at the first step, '
        f'{iou["warm_start"].iloc[-1]:.2f} after the warm start, {last.min():.2f} to {last.max():.2f} in the last five.'
    )


def repeats() -> str:
    """The ends of the experiments' runs of the quickstart's recipe, by task."""
    ends = pd.concat(
        [load('warm_start').means('warm_start', 'rarl:zoom'), load('distilled').means('distilled', 'rarl:zoom')], axis=1
    )
    parts = [
        f'between {100 * low:.1f} and {100 * high:.1f} % at {TASK_NAMES[task]}'
        for task, low, high in zip(ends.index, ends.min(axis=1), ends.max(axis=1), strict=True)
    ]
    return (
        f'The brackets know nothing of other runs: {ends.shape[1]} others of this recipe (three seeds, each twice) lie {" and ".join(parts)}\n'
        '([stability](experiments/stability/notebook.ipynb)). Compare recipes by the notebooks, not by this table.'
    )


def measured(path: Path) -> str:
    """Its rows without the paper's, and without the words below."""
    rows = [line for line in table(path).splitlines() if line.startswith('|')]
    return '\n'.join(row for row in rows if not row.startswith('| paper'))


def benchmarks() -> str:
    """A row a case of every benchmark that has been run."""
    rows = ['| benchmark | case | ours | peer | unit | ratio | goal |', '|---|---|---:|---:|---|---:|---:|']
    machines = set()
    for path in sorted((HERE / 'benchmarks' / 'results').glob('*.json')):
        result = json.loads(path.read_text(encoding='utf-8'))
        machines.add(result['machine'])
        for case in result['cases']:
            numbers = [_number(case[key]) for key in ('ours', 'peer')]
            ratios = [_number(case[key]) for key in ('ratio', 'goal')]
            rows.append(f'| {result["name"]} | {" | ".join([case["case"], *numbers, case["unit"], *ratios])} |')
    return '\n'.join(rows) + f'\n\nMedians; the peer ran in the same run. {"; ".join(sorted(machines))}.'


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.3g}' if value < 1000 else f'{value:,.0f}'


if __name__ == '__main__':
    main()
