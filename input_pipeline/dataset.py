"""A data set on disk: a TFDS data set in ArrayRecord, written and read without TensorFlow.

    OUT/comics/pages/1.0.0/       one record a page, its image file as it is or as it is shown (`pictures.as_shown`); stored once, however many questions ask about it
    OUT/comics/questions/1.0.0/   one record a question, with the record number of its page in the same split

Both are ordinary TFDS folders: `tfds.builder_from_directory(OUT + '/comics/questions/1.0.0').as_data_source('train')`.
Splits are made of pages, never of questions: no page is seen in training and asked about in a test.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline.pictures import as_shown
from input_pipeline.schema import CATEGORY_OF, Page, Question, Split

NAME = 'comics'
VERSION = '1.0.0'
SPLITS: tuple[Split, ...] = get_args(Split)
SHARD_BYTES = 128 << 20  # of images; TFDS holds one shard in memory while it writes it
SHARD_QUESTIONS = 50_000

PAGE_FEATURES = {
    'id': tfds.features.Text(),
    'source': tfds.features.Text(),
    'series': tfds.features.Text(),
    'width': tfds.features.Scalar(np.int64),
    'height': tfds.features.Scalar(np.int64),
    'image': tfds.features.Image(shape=(None, None, 3)),
}
QUESTION_FEATURES = {
    'id': tfds.features.Text(),
    'page_id': tfds.features.Text(),
    'page_index': tfds.features.Scalar(np.int64),
    'second_page_id': tfds.features.Text(),
    'second_page_index': tfds.features.Scalar(np.int64),  # -1 = the question is about one page
    'task': tfds.features.Text(),
    'prompt': tfds.features.Text(),
    'choices': tfds.features.Sequence(tfds.features.Text()),
    'answer': tfds.features.Text(),
    'regions': tfds.features.Tensor(shape=(None, 4), dtype=np.float64),
    'zoom_needed': tfds.features.Scalar(np.bool_),
}


class LocalInfo(tfds.core.DatasetInfo):
    """The data set's description, without TFDS's search for it in its public bucket, which leaves an empty folder behind each time."""

    def initialize_from_bucket(self) -> None:
        """Does nothing: no data set of ours lies there."""


Shards = Mapping[Split, Sequence[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]  # makers of (number, record)


class Comics(tfds.core.ShardBasedBuilder):
    """Writes pages and questions; which of the two is the builder's config."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name='pages'), tfds.core.BuilderConfig(name='questions'))

    def __init__(self, out: str | Path, config: str, shards: Shards):
        self._shards = shards
        super().__init__(data_dir=str(out), config=config, file_format='array_record')

    def _info(self) -> tfds.core.DatasetInfo:
        features = PAGE_FEATURES if self.builder_config.name == 'pages' else QUESTION_FEATURES
        return LocalInfo(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return self._shards


def split_pages(
    pages: Sequence[Page], shares: tuple[float, float, float], seed: int, keep_source_split: bool
) -> list[Page]:
    """The pages with a split each: the source's own where it has one and that is wanted, else drawn per series.

    `shares` are those of train, validation and test; each series is cut in these shares, rounded by carrying the remainder on.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(
            f'split shares are {shares}: expected three shares of train, validation and test that add up to 1.'
        )
    rng = np.random.default_rng(seed)
    assigned = {page.id: page.split for page in pages if keep_source_split and page.split is not None}
    edges = np.cumsum(shares)
    unassigned: dict[str, list[str]] = {page.series: [] for page in pages}
    for page in pages:
        if page.id not in assigned:
            unassigned[page.series].append(page.id)
    for _, free in sorted(unassigned.items()):
        free.sort()
        offset = rng.random()  # so that a series of one page is not always put into train
        for position, i in enumerate(rng.permutation(len(free))):
            share = (position + offset) / len(free)
            assigned[free[i]] = SPLITS[min(int(np.searchsorted(edges, share, side='right')), 2)]
    return [replace(page, split=assigned[page.id]) for page in pages]


def write(
    out: str | Path,
    pages: Sequence[Page],
    questions: Sequence[Question],
    progress: Callable[[int], None] = lambda n: None,
) -> None:
    """Writes the data set; `progress` is called with 1 for each page and question written.

    Raises ValueError if page or question ids repeat, a question's page is missing, or there is nothing to write.
    """
    _check(pages, questions)
    tfds.disable_progress_bar()
    page_shards, question_shards, index = {}, {}, {}
    for split in SPLITS:
        shown = [page for page in pages if page.split == split]
        asked = [question for question in questions if question.split == split]
        index |= {page.id: i for i, page in enumerate(shown)}
        if shown:
            page_shards[split] = [partial(_page_records, shard, progress) for shard in _cut_by_size(shown)]
        if asked:
            shards = [asked[i : i + SHARD_QUESTIONS] for i in range(0, len(asked), SHARD_QUESTIONS)]
            question_shards[split] = [partial(_question_records, shard, index, progress) for shard in shards]
    # TFDS announces a download that does not take place, and makes a folder for it; inside of OUT it goes with what a killed build has left.
    Path(out).mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory(dir=out) as downloads:
        Comics(out, 'pages', page_shards).download_and_prepare(download_dir=downloads)
        Comics(out, 'questions', question_shards).download_and_prepare(download_dir=downloads)


class Records(Sequence[Mapping[str, Any]]):
    """Random access to the records of one split; images stay encoded bytes. A record that cannot be read is a ValueError with its number."""

    def __init__(self, path: Path, split: Split, source: Sequence[Mapping[str, Any]]):
        self._path, self._split, self._source = path, split, source

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        with _undamaged(self._path, f'record {index} of {self._split}'):
            record = self._source[index]
            if record['id'] is None:  # what TFDS makes of a record that is cut off
                raise ValueError('it is empty')
            return record


def open_records(folder: str | Path, kind: str, split: Split) -> Records:
    """The records of one split; kind is 'pages' or 'questions'.

    Raises FileNotFoundError where there is no data set, ValueError for a split that it does not have and for damaged files.
    """
    path = Path(folder) / NAME / kind / VERSION
    if not (path / 'dataset_info.json').is_file():
        raise FileNotFoundError(
            f'{folder} holds no data set ({path} is missing): build one with configs/build_ai4va_fg.py.'
        )
    with _undamaged(path, 'its description'):
        builder = tfds.builder_from_directory(path)
    if split not in builder.info.splits:
        raise ValueError(f'{folder} has no {kind} of split {split!r}: it has {sorted(builder.info.splits)}.')
    decoders = {'image': tfds.decode.SkipDecoding()} if kind == 'pages' else None
    with _undamaged(path, f'split {split}'):
        source = builder.as_data_source(split, decoders=decoders)
        len(source)  # opens its files
    return Records(path, split, source)


def read_question_table(folder: str | Path, split: Split) -> list[tuple[tuple[int, ...], Question]]:
    """Every question of a split with the record numbers of the page or pages that it shows, from left to right."""
    records = open_records(folder, 'questions', split)
    with _undamaged(Path(folder) / NAME / 'questions' / VERSION, f'a question of {split}'):
        return [(_shown(record), _to_question(record, split)) for record in records]


def _shown(record: Mapping[str, Any]) -> tuple[int, ...]:
    places = (int(record['page_index']), int(record.get('second_page_index', -1)))  # older data sets know no pairs
    return tuple(place for place in places if place >= 0)


@contextlib.contextmanager
def _undamaged(path: Path, what: str) -> Iterator[None]:
    """An error of the block becomes a sentence: TFDS, protobuf and ArrayRecord raise what they like where a file is damaged."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f'{path}: {what} cannot be read ({reason}): the data set is damaged; remove it and build it again.'
        ) from error


def _to_question(record: Mapping[str, Any], split: Split) -> Question:
    task = record['task'].decode()
    return Question(
        id=record['id'].decode(),
        page_id=record['page_id'].decode(),
        task=task,
        category=CATEGORY_OF[task],
        prompt=record['prompt'].decode(),
        choices=tuple(choice.decode() for choice in record['choices']),
        answer=record['answer'].decode(),
        regions=tuple(tuple(float(v) for v in box) for box in record['regions']),
        zoom_needed=bool(record['zoom_needed']),
        split=split,
        second_page_id=record.get('second_page_id', b'').decode(),
    )


def _check(pages: Sequence[Page], questions: Sequence[Question]) -> None:
    if not pages or not questions:
        raise ValueError(
            f'nothing to write: {len(pages)} pages and {len(questions)} questions are left; the build report says what was dropped.'
        )
    split_of = {page.id: page.split for page in pages}
    if len(split_of) < len(pages):
        twice, _ = Counter(page.id for page in pages).most_common(1)[0]
        raise ValueError(f'page id {twice!r} occurs twice: the reader must give each page an id of its own.')
    if len({question.id for question in questions}) < len(questions):
        raise ValueError('a question id occurs twice: the questions were made twice from the same pages.')
    for question in questions:
        for page_id in filter(None, (question.page_id, question.second_page_id)):
            if split_of.get(page_id) != question.split:
                raise ValueError(
                    f'question {question.id} is in split {question.split}, but its page {page_id} is in {split_of.get(page_id)}.'
                )


def _cut_by_size(pages: Sequence[Page]) -> list[list[Page]]:
    """Runs of pages whose image files together stay under SHARD_BYTES."""
    shards: list[list[Page]] = [[]]
    filled = 0
    for page in pages:
        size = Path(page.image).stat().st_size
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(page)
        filled += size
    return shards


def _page_records(pages: Sequence[Page], progress: Callable[[int], None]) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, page in enumerate(pages):
        fields = {name: getattr(page, name) for name in ('id', 'source', 'series', 'width', 'height')}
        yield i, fields | {'image': as_shown(page.image, (page.width, page.height))[0]}
        progress(1)


def _question_records(
    questions: Sequence[Question], page_index: Mapping[str, int], progress: Callable[[int], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, question in enumerate(questions):
        fields = {
            name: getattr(question, name) for name in ('id', 'page_id', 'task', 'prompt', 'answer', 'zoom_needed')
        }
        regions = np.array(question.regions, np.float64).reshape(-1, 4)
        second = question.second_page_id
        fields |= {'page_index': page_index[question.page_id], 'second_page_id': second}
        fields |= {'second_page_index': page_index[second] if second else -1}
        yield i, fields | {'choices': list(question.choices), 'regions': regions}
        progress(1)
