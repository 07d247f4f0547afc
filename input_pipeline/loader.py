"""Batches of questions with their pages, through Grain: sharded by process, shuffled, repeated, filtered, with a position that can be saved.

batches = iter(load('data/comics', LoaderSettings(batch_size=8, split='train', tasks=('action_recognition',))))
batch = next(batches)              # list of 8 Samples
state = batches.get_state()        # a dict of numbers; batches.set_state(state) goes on after this batch
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TypeVar
from zlib import crc32

import grain
import numpy as np
from jaxtyping import Int
from PIL import Image

from input_pipeline.dataset import open_records, read_question_table
from input_pipeline.pictures import decode, side_by_side
from input_pipeline.schema import TASKS, Question, Split, Task

Item, Prepared = TypeVar('Item'), TypeVar('Prepared')


def named_twice(tasks: Sequence[Task]) -> Task | None:
    """The first task that is there more than once; None where all are there once."""
    return next((task for task in tasks if tasks.count(task) > 1), None)


@dataclass(frozen=True)
class LoaderSettings:
    """Which questions, in what order, how many at a time."""

    batch_size: int = 8  # questions a batch on each process
    split: Split = 'train'
    tasks: tuple[Task, ...] = TASKS  # only these tasks
    ids: frozenset[str] | None = None  # of these, only the questions of these ids; None = all
    # (tasks, weight) each: every batch of `load` holds of these tasks' questions in proportion to the weight; () = every question as often as the others.
    mixture: tuple[tuple[tuple[Task, ...], float], ...] = ()
    held_out: float = 0.0  # share of the split's pages, drawn by their ids alone, that is left out
    only_held_out: bool = False  # exactly those pages instead
    per_task: int | None = None  # at most so many questions of each task, drawn by the seed; None = all
    shuffle: bool = True  # a new order in each epoch
    seed: int = 0
    epochs: int | None = None  # None = without end
    drop_remainder: bool = False  # leave out a last batch that is not full
    threads: int = 2  # pages decoded at once
    prefetch: int = 8  # samples decoded ahead
    cache_bytes: int = 256 << 20  # decoded pages kept in memory; a page is asked about many times

    def __post_init__(self):
        if twice := named_twice(self.tasks):
            raise ValueError(
                f'tasks names {twice} more than once, and each of its questions would be asked so often: name it once.'
            )


@dataclass(frozen=True)
class Sample:
    """A question and the page that it is about."""

    question: Question
    # RGB, the original page, or two of them side by side; shared between samples: copy before drawing on it.
    image: Image.Image


@dataclass(frozen=True)
class PageSample:
    """A page, or a pair of pages, and all questions about it that pass the filters."""

    questions: tuple[Question, ...]
    image: Image.Image  # RGB, the original page; shared: copy before drawing on it


class PageStore:
    """The pages of one split by record number, the last used ones decoded."""

    def __init__(self, folder: str | Path, split: Split, cache_bytes: int):
        self._records = open_records(folder, 'pages', split)
        self._cache: OrderedDict[int, Image.Image] = OrderedDict()
        self._free_bytes = cache_bytes
        self._lock = Lock()

    def __getitem__(self, index: int) -> Image.Image:
        with self._lock:
            if index in self._cache:
                self._cache.move_to_end(index)
                return self._cache[index]
        record = self._records[index]
        size = (int(record['width']), int(record['height']))
        image = decode(record['image'], size, size[0] * size[1], name=f'page {record["id"].decode()}')
        with self._lock:
            if index not in self._cache:
                self._cache[index] = image
                self._free_bytes -= _bytes(image)
            while self._free_bytes < 0 and self._cache:
                self._free_bytes += _bytes(self._cache.popitem(last=False)[1])
        return image


class SampleSource(grain.sources.RandomAccessDataSource):
    """The questions of one split that pass the filters, with their pages."""

    def __init__(self, folder: str | Path, settings: LoaderSettings):
        self._questions = _table(str(Path(folder).resolve()), settings.split)
        self._pages = PageStore(folder, settings.split, settings.cache_bytes)
        self._chosen = _choose(self._questions, settings)
        if not len(self._chosen):
            raise ValueError(
                f'{folder} has no question in split {settings.split!r} of tasks {settings.tasks}: '
                'widen the filters or see report.json in that folder.'
            )

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Sample:
        page, question = self.question(index)
        return Sample(question, self.page(page))

    def question(self, index: int) -> tuple[tuple[int, ...], Question]:
        """A question without what it shows, and the record numbers of that."""
        return self._questions[int(self._chosen[index])]

    def page(self, places: tuple[int, ...]) -> Image.Image:
        """The pages of these record numbers, decoded, as the one picture that is shown of them."""
        return side_by_side([self._pages[place] for place in places])


class PageSource(grain.sources.RandomAccessDataSource):
    """The pages of one split that have questions which pass the filters."""

    def __init__(self, folder: str | Path, settings: LoaderSettings):
        samples = SampleSource(folder, settings)
        self._samples, by_page = samples, {}
        for i in range(len(samples)):
            index, question = samples.question(i)
            by_page.setdefault(index, []).append(question)
        self._pages = [(index, tuple(questions)) for index, questions in sorted(by_page.items())]

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: int) -> PageSample:
        page, questions = self._pages[index]
        return PageSample(questions, self._samples.page(page))


def load_pages(
    folder: str | Path, settings: LoaderSettings, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset[list[PageSample]]:
    """As `load`, but page by page: batches of `settings.batch_size` pages with all their questions."""
    return _batches(_stream(PageSource(folder, settings), settings, process_index, process_count), settings)


def load(
    folder: str | Path, settings: LoaderSettings, process_index: int = 0, process_count: int = 1
) -> grain.IterDataset[list[Sample]]:
    """Batches of the questions that fall to this process; `iter()` of it has get_state and set_state.

    Every process must be given the same settings: all shuffle alike and each takes every `process_count`-th question of that order.
    """
    if not settings.mixture:
        return _batches(_stream(SampleSource(folder, settings), settings, process_index, process_count), settings)
    parts = [SampleSource(folder, replace(settings, tasks=tasks)) for tasks, _ in settings.mixture]
    streams = [_stream(part, settings, process_index, process_count) for part in parts]
    return _batches(grain.MapDataset.mix(streams, [weight for _, weight in settings.mixture]), settings)


def prepare_ahead(
    batches: grain.IterDataset[list[Item]], prepare: Callable[[list[Item], np.random.Generator], Prepared], seed: int
) -> grain.IterDataset[Prepared]:
    """What `prepare` makes of each batch, made in a thread of its own while the device works on those before.

    The generator that `prepare` is given depends on the seed and the batch's number alone; a saved position is that of the last batch handed out.
    """
    return grain.experimental.ThreadPrefetchIterDataset(batches.random_map(prepare, seed=seed), prefetch_buffer_size=2)


def _stream(source, settings: LoaderSettings, process_index: int, process_count: int) -> grain.MapDataset:
    """What falls to a process, in order, epoch after epoch."""
    if len(source) < process_count:
        raise ValueError(f'{len(source)} items of tasks {settings.tasks} do not suffice for {process_count} processes.')
    dataset = grain.MapDataset.source(source).seed(settings.seed)
    if settings.shuffle:
        dataset = dataset.shuffle()
    # Cut first, repeat then: each process has whole epochs of its own share, and a share is as long in every epoch.
    dataset = dataset[process_index::process_count] if process_count > 1 else dataset
    return dataset.repeat(settings.epochs)


def _batches(dataset: grain.MapDataset, settings: LoaderSettings) -> grain.IterDataset:
    options = grain.ReadOptions(
        num_threads=settings.threads, prefetch_buffer_size=max(settings.prefetch, settings.threads)
    )
    return dataset.to_iter_dataset(options).batch(
        settings.batch_size, drop_remainder=settings.drop_remainder, batch_fn=list
    )


def read_questions(folder: str | Path, split: Split) -> list[Question]:
    """All questions of a split without their pages."""
    return [question for _, question in _table(str(Path(folder).resolve()), split)]


def _choose(questions: list[tuple[tuple[int, ...], Question]], settings: LoaderSettings) -> Int[np.ndarray, 'n']:
    """Record numbers of the questions that pass the filters, in the order of the records."""
    tasks = np.array([question.task for _, question in questions])
    if settings.held_out:
        pages = [[question.page_id, question.second_page_id or question.page_id] for _, question in questions]
        out = np.array([[is_held_out(page, settings.held_out) for page in both] for both in pages]).reshape(-1, 2)
        # A pair of which one page is held out is neither learnt from nor measured on.
        tasks = np.where((out == settings.only_held_out).all(axis=1), tasks, '')
    if settings.ids is not None:
        tasks = np.where([question.id in settings.ids for _, question in questions], tasks, '')
    chosen = [np.zeros(0, np.int64)]
    for task in settings.tasks:
        fitting = np.flatnonzero(tasks == task)
        if settings.per_task is not None:
            # Drawn for each task by itself: asking for fewer tasks leaves the others' questions as they were.
            rng = np.random.default_rng([settings.seed, crc32(task.encode())])
            fitting = rng.permutation(fitting)[: settings.per_task]
        chosen.append(fitting)
    return np.sort(np.concatenate(chosen))


def is_held_out(page_id: str, share: float) -> bool:
    """Whether a page is of the `share` that no stage learns from: its id alone decides, so that every stage and every seed leaves out the same."""
    return crc32(page_id.encode()) < share * 2**32


@functools.lru_cache(maxsize=6)
def _table(folder: str, split: Split) -> list[tuple[tuple[int, ...], Question]]:
    """Kept, because a run opens the same data set for stage after stage."""
    return read_question_table(folder, split)


def _bytes(image: Image.Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes
