"""From a folder of comics to a data set: read, split by page, ask, balance, write, report, export.

The data set is made beside its final place and moved there when it is whole, so that a folder with a report is a complete one.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from input_pipeline import dataset, exports, report, report_page
from input_pipeline.balance import BalanceSettings, balance
from input_pipeline.exports import Format
from input_pipeline.ranges import check_ranges
from input_pipeline.schema import Page, Question
from input_pipeline.sources.reading import read_json
from input_pipeline.tasks import Skip, TaskSettings, Vocabulary, collect_vocabulary, make_questions

REPORT = 'report.json'


@dataclass(frozen=True)
class BuildSettings:
    """What is built, from what, and where to."""

    raw: str  # folder of the source's files
    out: str  # folder of the data set; must not hold another one
    # module with ReadSettings and read(folder, settings, progress) -> (pages, ReadReport)
    reader: str = 'input_pipeline.sources.ai4va'
    read: Mapping[str, Any] = field(default_factory=dict)  # fields of the reader's ReadSettings
    tasks: TaskSettings = field(default_factory=TaskSettings)
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)  # of train, validation and test, of the pages of each series
    keep_source_split: bool = True  # use the source's own splits where it has them
    seed: int = 0  # of splits, questions and balancing
    balance: BalanceSettings = field(default_factory=BalanceSettings)
    examples: int = 6  # pictures of each task in the report
    exports: tuple[Format, ...] = ()  # other formats, written to OUT/exports/

    def __post_init__(self):
        check_ranges(self, {'shares': (0, 1), 'seed': (0, math.inf), 'examples': (0, math.inf)})


def build(settings: BuildSettings) -> dict[str, Any]:
    """Builds the data set and returns its report (also OUT/report.json and OUT/report/index.html).

    A data set that these same settings built is left as it is and its report is returned. Raises ValueError or FileNotFoundError with one
    sentence where the source cannot be read, nothing can be asked about it, or OUT holds something else.
    """
    for key, value in (('raw', settings.raw), ('out', settings.out)):
        if not value:
            raise ValueError(f'{key} is empty: give a folder, as in --config.data.{key}=DIR.')
    out = Path(settings.out).resolve()
    described = json.loads(json.dumps(asdict(settings)))
    if (done := _find_finished(out, described)) is not None:
        return done
    reader, read_settings = load_reader(settings.reader, settings.read)
    exports.check(settings.exports)
    with _progress() as bar:
        pages, read_report = reader.read(settings.raw, read_settings, bar('reading pages'))
        if not pages:
            raise ValueError(
                f"{settings.raw} gave no page: {read_report.dropped or 'it lists none'}; correct the folder or the reader's settings."
            )
        pages = dataset.split_pages(pages, settings.shares, settings.seed, settings.keep_source_split)
        questions, skipped = ask(pages, settings.tasks, settings.seed, collect_vocabulary(pages), bar('asking'))
        questions, taken = balance(questions, settings.balance, settings.seed)
        asked_about = {question.page_id for question in questions}
        pages = [page for page in pages if page.id in asked_about]
        made = out.with_name(out.name + '.incomplete')
        shutil.rmtree(made, ignore_errors=True)
        done, written = itertools.count(1), bar('writing')
        dataset.write(made, pages, questions, lambda _: written(next(done), len(pages) + len(questions)))
        summary = report.summarise(read_report, pages, questions, skipped, taken, settings.tasks.model_pixels)
        summary['settings'] = described
        report_page.write_page(made / 'report', summary, pages, questions, settings.examples)
        exports.export(made / 'exports', out / 'exports', pages, questions, settings.exports, bar('exporting'))
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (made / REPORT).write_text(text, encoding='utf-8')
    if out.is_dir():
        out.rmdir()  # empty, as `_find_finished` has seen
    made.rename(out)
    return json.loads(text)


def load_reader(name: str, values: Mapping[str, Any]) -> tuple[ModuleType, Any]:
    """A reader's module and its settings. ValueError for a module that is no reader or a setting that it does not have."""
    try:
        reader = importlib.import_module(name)
        kind, _ = reader.ReadSettings, reader.read
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f'{name!r} is no reader ({error}): expected a module with ReadSettings and read, such as input_pipeline.sources.ai4va.'
        ) from None
    known = [f.name for f in fields(kind)]
    if unknown := [key for key in values if key not in known]:
        raise ValueError(f'reader {name} has no setting {unknown[0]!r}: it has {", ".join(known)}.')
    return reader, kind(**values)


def ask(
    pages: list[Page], settings: TaskSettings, seed: int, vocabulary: Vocabulary, progress: Callable[[int, int], None]
) -> tuple[list[Question], list[Skip]]:
    """The questions about all pages, and those that could not be made. ValueError if there is none at all."""
    questions: list[Question] = []
    skipped: list[Skip] = []
    for done, page in enumerate(pages, start=1):
        for made in make_questions(page, seed, settings, vocabulary):
            (skipped if isinstance(made, Skip) else questions).append(made)
        progress(done, len(pages))
    if not questions:
        reasons = sorted({f'{skip.task}: {skip.reason}' for skip in skipped})
        raise ValueError(
            f'no question can be asked about these {len(pages)} pages ({"; ".join(reasons)}): add a sidecar or choose other tasks.'
        )
    return questions, skipped


def _find_finished(out: Path, described: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report of a data set that the same settings built; None if `out` is free."""
    summary = read_json(out / REPORT) if (out / REPORT).is_file() else {}
    if isinstance(before := summary.get('settings'), dict):
        if before == described:
            return summary
        differs = sorted(key for key in described if described[key] != before.get(key))
        raise ValueError(
            f'{out} holds a data set built with other settings ({", ".join(differs)} differ): choose another folder or remove that one.'
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f'{out} is not empty and holds no data set: choose another folder for the data set.')
    return None


@contextmanager
def _progress() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Progress bars on the terminal: `bar(title)` gives a function that is told (done, total)."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn('{task.description:>14}'), *columns) as progress:

        def bar(title: str) -> Callable[[int, int], None]:
            task = progress.add_task(title, total=None, visible=False)
            return lambda done, total: progress.update(task, completed=done, total=total, visible=True)

        yield bar
