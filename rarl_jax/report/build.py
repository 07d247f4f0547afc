"""Makes DIR/report/index.html from one or more runs: what to show, in which order. The template says how it looks.

The page has no script at all and forbids any by its content security policy; text of a model is only ever text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from rarl_jax.evaluation.tables import Result, Table, notes, side_by_side
from rarl_jax.report import charts, episodes
from rarl_jax.report.workdir import RunData, read_run
from rarl_jax.runtime import files
from rarl_jax.runtime.messages import shown

TEMPLATES = Path(__file__).parent / 'templates'
# Order of the curves.
FAMILIES = ('reward', 'zoom', 'group', 'policy', 'loss', 'length', 'optimizer', 'eval', 'time', 'throughput')
LEAST_CHARTS = 3  # of a family that gets a heading of its own


def build_report(folders: Sequence[Path]) -> Path:
    """Writes FOLDERS[0]/report/index.html, at once, and returns its path. Curves of all the runs share their axes; the first run gives the stage marks.

    Raises FileNotFoundError where a folder is no run.
    """
    folders = [Path(folder).resolve() for folder in folders]
    runs = [read_run(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    report, compared = folders[0] / 'report', comparisons(runs)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            shown(value) if type(value) is str else value
        ),  # Markup is a subclass: it is shown already
    )
    environment.filters |= {'short': charts.short}
    page = environment.get_template('report.html').render(
        runs=runs,
        style=(TEMPLATES / 'style.css').read_text(encoding='utf-8'),
        notes=[note for run in runs for note in run.notes],
        facts=[facts(run) for run in runs],
        settings=[flatten(run.config) for run in runs],
        tiles=tiles(runs[0].evaluations),
        comparisons=compared,
        reading=reading(runs, compared),
        families=families(runs),
        groups=episodes.views(runs, report),
        largest_group=max((len(group.episodes) for run in runs for group in run.groups), default=0),
        chart=charts,
    )
    path = report / 'index.html'
    files.write_whole(path, page)
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


def facts(run: RunData) -> list[tuple[str, str]]:
    """What stands at the head of the page: when, where, of which program, with what."""
    began = [launch for launch in run.launches if launch['event'] == 'began']
    first, last = (began[0], began[-1]) if began else ({}, {})
    model, data = run.config.get('model') or {}, run.data
    fresh = (model.get('fresh') or {}).get('kind')
    counted = {name: data[name].get('total', 0) for name in ('pages', 'questions') if isinstance(data.get(name), dict)}
    rows = {
        'began': first.get('time', '').replace('T', ' ').replace('+00:00', ' UTC'),
        'duration': duration(run.launches),
        'machine': ', '.join(last[name] for name in ('host', 'devices') if name in last),
        'commit': last.get('commit', ''),
        'model': model.get('path') or (f'made by {fresh}' if fresh else ''),
        'data': ', '.join(f'{count:,} {name}' for name, count in counted.items()),
        'asked': ', '.join(f'{stage} {n:,}' for stage, n in asked(run).items()),
        'stages': ' → '.join(run.config.get('stages') or [stage.name for stage in run.stages]),
        'seed': str(run.config.get('seed', '')),
    }
    return [(name, value) for name, value in rows.items() if value]


def duration(launches: Sequence[Mapping[str, Any]]) -> str:
    """How long the launches took that finished, and how many did not."""
    seconds, unfinished, began = 0.0, 0, None
    for launch in launches:
        time = datetime.fromisoformat(launch['time'])
        if launch['event'] == 'began':
            unfinished, began = unfinished + 1, time
        elif began is not None:
            unfinished, seconds, began = unfinished - 1, seconds + (time - began).total_seconds(), None
    minutes = round(seconds / 60)
    took = (
        f'{seconds:.0f} s'
        if seconds < 120
        else f'{minutes} min'
        if minutes < 120
        else f'{minutes // 60} h {minutes % 60} min'
    )
    parts = [took] * (unfinished < len(launches)) + [f'{unfinished} launches that did not finish'] * (unfinished > 0)
    return ', and '.join(parts)


def asked(run: RunData) -> dict[str, int]:
    """Questions that each evaluation asked in its first mode."""
    found: dict[str, int] = {}
    for result in run.evaluations:
        found.setdefault(result.stage, sum(task['n'] for task in result.summary['tasks'].values()))
    return found


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
    found, modes = [], [result.evaluation for result in results]
    alike = [result for result in results if result.evaluation == ('zoom' if 'zoom' in modes else modes[0])]
    for task, now in alike[-1].summary['tasks'].items() if alike else ():
        before = alike[0].summary['tasks'].get(task) if len(alike) > 1 else None
        if now['accuracy'] is None:
            continue
        known = before is not None and before['accuracy'] is not None
        found.append(
            Tile(
                task=task,
                now=now['accuracy'],
                change=now['accuracy'] - before['accuracy'] if known else None,
                iou_before=before['zoom_iou_first'] if known else None,
                iou_now=now['zoom_iou_first'],
                stages=f'{alike[0].stage} → {alike[-1].stage}' if known else alike[-1].stage,
            )
        )
    return found


def comparisons(runs: Sequence[RunData]) -> list[Comparison]:
    """The last results of several runs; each evaluation over the stages of a run; the last stage's evaluations beside each other.

    The paper's numbers stand in the first one, unless its pages were drawn by the run itself or its mode is not one of the paper's.
    """
    planned: list[tuple[str, list[Result], RunData]] = []
    ends = [(run, [result for result in run.evaluations if result.evaluation == 'zoom'][-1:]) for run in runs]
    across = [
        dataclasses.replace(result, name=f'{run.label}: {result.stage}') for run, results in ends for result in results
    ]
    if len(across) > 1:
        planned.append(('The runs, zoom', across, runs[0]))
    for run in runs:
        prefix = f'{run.label}: ' if len(runs) > 1 else ''
        names = dict.fromkeys(result.evaluation for result in run.evaluations)
        for name in sorted(names, key=lambda name: name != 'zoom'):
            alike = [result for result in run.evaluations if result.evaluation == name]
            if len(alike) > 1:
                planned.append((f'{prefix}{name}, over the stages', alike, run))
        last = [result for result in run.evaluations if result.stage == run.evaluations[-1].stage]
        if len(last) > 1:
            modes = sorted(last, key=lambda result: result.evaluation != 'zoom')
            planned.append((f'{prefix}{last[0].stage}, its modes', modes, run))
        if len(run.evaluations) == 1:
            planned.append((f'{prefix}{last[0].name}', last, run))
    found = [
        _comparison(title, results, run, paper=i == 0 and _like_paper(results[0], run))
        for i, (title, results, run) in enumerate(planned)
    ]
    return [each for each in found if each is not None]


def _like_paper(result: Result, run: RunData) -> bool:
    data = run.config.get('data', {})
    drawn = data.get('draw') and not data.get('dir') and not data.get('raw')
    return not drawn and result.evaluation in ('direct', 'zoom', 'oracle_zoom')


def reading(runs: Sequence[RunData], compared: Sequence[Comparison]) -> tuple[str, ...]:
    """How to read the tables, once for all of them."""
    paper = any('paper: ' in row[0] for each in compared for section in each.table.sections for row in section.rows)
    results = [result for run in runs for result in run.evaluations]
    return notes(results, "a table's first row", paper) if compared else ()


def _comparison(title: str, results: Sequence[Result], run: RunData, paper: bool) -> Comparison | None:
    try:
        table = side_by_side(results, paper)
    except ValueError as error:
        run.notes.append(f'{title}: {error}')
        return None
    tasks = [section.task for section in table.sections]
    dots = tuple((task, charts.dots([result.summary['tasks'].get(task) for result in results])) for task in tasks)
    return Comparison(title, table, tuple(shown(result.name) for result in results), dots)


# ---------------------------------------------------------------- curves


@dataclasses.dataclass(frozen=True)
class Family:
    """Curves of metrics whose names begin alike."""

    name: str
    overall: tuple[charts.Chart, ...]
    # Folded away at first.
    per_task: tuple[charts.Chart, ...]
    # Metrics that have had one value only, each with it.
    constants: tuple[tuple[str, str], ...]


def families(runs: Sequence[RunData]) -> list[Family]:
    """Every metric of every run, by the first part of its name; a name of three parts is one task's."""
    grouped: dict[str, list[str]] = {}
    for name in sorted({name for run in runs for name in run.metrics}):
        grouped.setdefault(name.partition('/')[0], []).append(name)
    few = [family for family, names in grouped.items() if len(names) < LEAST_CHARTS]
    if len(few) > 1:
        grouped['other'] = [name for family in few for name in grouped.pop(family)]
    known = {name: i for i, name in enumerate(FAMILIES)}
    order = sorted(grouped, key=lambda name: (known.get(name, len(known)), name))
    return [_family(name, grouped[name], runs) for name in order]


def _family(family: str, names: Sequence[str], runs: Sequence[RunData]) -> Family:
    drawn, constants = [], []
    for name in names:
        series = {i: run.metrics[name] for i, run in enumerate(runs) if name in run.metrics}
        if (value := charts.constant(series)) is not None:
            constants.append((name, charts.short(value)))
        else:
            drawn.append(charts.draw(name, series, runs[0].stages))
    overall = tuple(chart for chart in drawn if chart.title.count('/') < 2)
    return Family(family, overall, tuple(chart for chart in drawn if chart not in overall), tuple(constants))
