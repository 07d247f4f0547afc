"""Makes DIR/report/index.html from one or more runs: what to show, in which order. The template says how it looks.

The page has no script at all and forbids any by its content security policy; text of a model is only ever text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from rarl_jax.evaluation.tables import Result, Table, side_by_side
from rarl_jax.report import charts, episodes
from rarl_jax.report.workdir import RunData, read_run
from rarl_jax.runtime import files as jsonl

TEMPLATES = Path(__file__).parent / 'templates'
FAMILIES = (
    'reward',
    'zoom',
    'group',
    'policy',
    'loss',
    'length',
    'optimizer',
    'eval',
    'time',
    'throughput',
)  # order of the curves
LEAST_CHARTS = 3  # of a family that gets a heading of its own
MOST_FACTS = 12


def build_report(folders: Sequence[Path]) -> Path:
    """Writes FOLDERS[0]/report/index.html, at once, and returns its path. Curves of all the runs share their axes; the first run gives the stage marks.

    Raises FileNotFoundError where a folder is no run.
    """
    folders = [Path(folder).resolve() for folder in folders]
    runs = [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    report = folders[0] / 'report'
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {'short': charts.short}
    page = environment.get_template('report.html').render(
        runs=runs,
        style=(TEMPLATES / 'style.css').read_text(encoding='utf-8'),
        notes=[note for run in runs for note in run.notes],
        facts=[facts(run.config) for run in runs],
        settings=[flatten(run.config) for run in runs],
        tiles=tiles(runs[0].evaluations),
        comparisons=comparisons(runs),
        families=families(runs),
        groups=episodes.views(runs, report),
        largest_group=max((len(group.episodes) for run in runs for group in run.groups), default=0),
        chart=charts,
    )
    path = report / 'index.html'
    jsonl.write_whole(path, page)
    return path


def labels(folders: Sequence[Path]) -> list[str]:
    """A name for each folder: its last part, and as many parts before it as tell equal ones apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ['/'.join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f'{folders[0]} is named twice: name every run once.')


# ---------------------------------------------------------------- configuration


def flatten(config: Mapping[str, Any], prefix: str = '') -> list[tuple[str, str]]:
    """Every setting with its dotted name."""
    rows = []
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f'{prefix}{name}.')
        else:
            rows.append((prefix + name, ', '.join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stands at the head of the page: the settings of the outermost level, then the model's."""
    outer = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    model = config.get('model')
    rows = flatten(outer) + (flatten(model, 'model.') if isinstance(model, Mapping) else [])
    return [(name, value) for name, value in rows if value not in ('', 'None')][:MOST_FACTS]


# ---------------------------------------------------------------- evaluations


@dataclasses.dataclass(frozen=True)
class Tile:
    """One task's headline."""

    task: str
    now: float  # accuracy of the last result
    change: float | None  # to the first one; None where there is only one
    iou_before: float | None
    iou_now: float | None
    stages: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A table of results and the picture of its intervals."""

    title: str
    table: Table
    names: tuple[str, ...]
    dots: tuple[tuple[str, list[charts.Dot]], ...]  # a task and its row of dots


def tiles(results: Sequence[Result]) -> list[Tile]:
    """The tasks of the last evaluation in the policy's own mode, with what has changed since the first."""
    own = [result for result in results if result.evaluation == 'zoom'] or [
        r for r in results if r.evaluation == results[0].evaluation
    ]
    if not own:
        return []
    first, last = own[0], own[-1]
    found = []
    for task, now in last.summary['tasks'].items():
        before = first.summary['tasks'].get(task) if last is not first else None
        if now['accuracy'] is None:
            continue
        known = before is not None and before['accuracy'] is not None
        change = now['accuracy'] - before['accuracy'] if known else None
        stages = f'{first.stage} → {last.stage}' if known else last.stage
        found.append(
            Tile(
                task,
                now['accuracy'],
                change,
                before['zoom_iou_first'] if known else None,
                now['zoom_iou_first'],
                stages,
            )
        )
    return found


def comparisons(runs: Sequence[RunData]) -> list[Comparison]:
    """Each evaluation over the stages of a run; the last stage's evaluations beside each other; the last results of several runs."""
    found = []
    for run in runs:
        prefix = f'{run.label}: ' if len(runs) > 1 else ''
        for name in dict.fromkeys(result.evaluation for result in run.evaluations):
            own = [result for result in run.evaluations if result.evaluation == name]
            if len(own) > 1:
                found.append(_comparison(f'{prefix}{name}, over the stages', own, run))
        last = [result for result in run.evaluations if result.stage == run.evaluations[-1].stage]
        if len(last) > 1:
            found.append(
                _comparison(
                    f'{prefix}{last[0].stage}, its modes', sorted(last, key=lambda r: r.evaluation != 'zoom'), run
                )
            )
        if len(run.evaluations) == 1:
            found.append(_comparison(f'{prefix}{last[0].name}', last, run))
    ends = [(run, [result for result in run.evaluations if result.evaluation == 'zoom'][-1:]) for run in runs]
    across = [
        dataclasses.replace(result, name=f'{run.label}: {result.stage}') for run, results in ends for result in results
    ]
    if len(across) > 1:
        found.insert(0, _comparison('The runs, zoom', across, runs[0]))
    return [each for each in found if each is not None]


def _comparison(title: str, results: Sequence[Result], run: RunData) -> Comparison | None:
    try:
        table = side_by_side(results)
    except ValueError as error:
        run.notes.append(f'{title}: {error}')
        return None
    tasks = [section.task for section in table.sections]
    dots = tuple((task, charts.dots([result.summary['tasks'].get(task) for result in results])) for task in tasks)
    return Comparison(title, table, tuple(result.name for result in results), dots)


# ---------------------------------------------------------------- curves


@dataclasses.dataclass(frozen=True)
class Family:
    """Curves of metrics whose names begin alike."""

    name: str
    overall: tuple[charts.Chart, ...]
    per_task: tuple[charts.Chart, ...]  # folded away at first


def families(runs: Sequence[RunData]) -> list[Family]:
    """Every metric of every run, by the first part of its name; a name of three parts is one task's."""
    names = sorted({name for run in runs for name in run.metrics})
    drawn: dict[str, list[charts.Chart]] = {}
    for name in names:
        series = {i: run.metrics[name] for i, run in enumerate(runs) if name in run.metrics}
        drawn.setdefault(name.partition('/')[0], []).append(charts.draw(name, series, runs[0].stages))
    few = [name for name, own in drawn.items() if len(own) < LEAST_CHARTS]
    if len(few) > 1:
        drawn['other'] = [each for name in few for each in drawn.pop(name)]
    known = {name: i for i, name in enumerate(FAMILIES)}
    order = sorted(drawn, key=lambda name: (known.get(name, len(known)), name))
    return [Family(name, *_parted(drawn[name])) for name in order]


def _parted(drawn: Sequence[charts.Chart]) -> tuple[tuple[charts.Chart, ...], tuple[charts.Chart, ...]]:
    return tuple(each for each in drawn if each.title.count('/') < 2), tuple(
        each for each in drawn if each.title.count('/') >= 2
    )
