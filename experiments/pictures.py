"""Draws README's pictures from the committed results, so that none shows what was not run.

    python -m experiments.pictures [--check]

Writes experiments/pictures/NAME.png; --check changes nothing and fails where a picture is older than the results.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from experiments import charts, plots, results
from experiments.arms import HERE
from experiments.notebooks import alike, few_colours
from experiments.tables import Row
from rarl_jax.evaluation.records import Record
from rarl_jax.runtime.files import replacing

FOLDER = HERE / 'pictures'
SHOWN = 5  # questions in the picture of boxes
PARTS = {
    'reward/accuracy': 'accuracy',
    'reward/format': 'form',
    'reward/tool_count': 'tool count',
    'reward/tool_iou': 'tool IoU',
}
# The rows of the main table; grey where the right crops are given.
METHODS = (
    Row('zero-shot, the page alone', 'zero_shot', 'base:direct', plots.BLUE),
    Row('zero-shot, with the tool', 'zero_shot', 'base:zoom', plots.BLUE),
    Row('SFT-S', 'sft_s', 'tuned:direct', plots.BLUE),
    Row('SFT-R', 'sft_r', 'tuned:zoom', plots.BLUE),
    Row('RL without tool', 'plain_rl', 'plain_rl:direct', plots.BLUE),
    Row('RL on top of SFT-R', 'rl_after_sft_r', 'rarl:zoom', plots.BLUE),
    Row('RARL', 'rarl', 'rarl:zoom', plots.RED),
    Row('zero-shot, right crops', 'zero_shot', 'base:oracle_zoom', plots.GREY),
    Row('SFT-R, right crops', 'sft_r', 'tuned:oracle_zoom', plots.GREY),
    Row('RARL, right crops', 'rarl', 'rarl:oracle_zoom', plots.GREY),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--check', action='store_true', help='fail where a picture is older than the results')
    check = parser.parse_args().check
    for name in PICTURES:
        if not check:
            with replacing(FOLDER / f'{name}.png') as path:
                path.write_bytes(draw(name))
        elif not is_fresh(name):
            sys.exit(f'{FOLDER / name}.png is older than the results: run python -m experiments.pictures')
    return 0


def draw(name: str) -> bytes:
    """A picture as a PNG file."""
    mpl.use('agg')
    file = io.BytesIO()
    PICTURES[name]().savefig(file, format='png', bbox_inches='tight')
    return few_colours(Image.open(file))


def is_fresh(name: str) -> bool:
    """Whether the committed picture looks as the results have it."""
    committed, fresh = ((FOLDER / f'{name}.png').read_bytes(), draw(name))
    return alike(*(np.asarray(Image.open(io.BytesIO(each)).convert('L'), np.float32) for each in (committed, fresh)))


# ---------------------------------------------------------------- the pictures


def boxes() -> Figure:
    """Where the policy looks before and after, for questions drawn at random of those about actions."""
    found = results.load('warm_start')
    before, after = (
        {r.question_id: r for r in found.of(arm)[0].answers[name]}
        for arm, name in (('base', 'base:zoom'), ('warm_start', 'rarl:zoom'))
    )
    asked = sorted(name for name, record in after.items() if record.task == 'action_recognition' and name in before)
    chosen = np.random.default_rng(0).choice(len(asked), SHOWN, replace=False)
    figure, axes = plots.panels(SHOWN, width=11, height=3.6)
    for axis, place in zip(axes, chosen, strict=True):
        first, last = before[asked[place]], after[asked[place]]
        looks = [(_look(first), 'before', plots.RED), (_look(last), 'after', plots.BLUE)]
        told = f'{last.prompt}\n{_said(first)} → {_said(last)}'
        plots.show_page(axis, results.page_of(last.page_id), [look for look in looks if look[0]], told)
        axis.title.set_fontsize(8.5)
    plots.foot(figure, found.commits)
    return figure


def _look(record: Record) -> tuple[float, ...] | None:
    return next((zoom.box for zoom in record.attempts[0].zooms if zoom.status == 'ok'), None)


def _said(record: Record) -> str:
    """The answer, marked as right or wrong."""
    return f'{record.attempts[0].prediction} {"✓" if record.score == 1 else "✗"}'


def reward_parts() -> Figure:
    """The parts of the reward over the updates, the seeds' range as a band; the warm start ends at the dotted line."""
    found = results.load('warm_start')
    figure, [axis] = plots.panels(1, width=7.5, height=3)
    plots.curves(axis, {words: found.curve('warm_start', part) for part, words in PARTS.items()}, 'parts of the reward')
    plots.end_warm_start(axis, 5)
    plots.foot(figure, found.commits)
    return figure


def main_table() -> Figure:
    """What each way of training brings, both tasks: mean and Student's interval over seeds; grey where the right crops are given."""
    return charts.scores(results.load('main_table'), METHODS)


PICTURES: dict[str, Callable[[], Figure]] = {'boxes': boxes, 'reward_parts': reward_parts, 'main_table': main_table}


if __name__ == '__main__':
    sys.exit(main())
