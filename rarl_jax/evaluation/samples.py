"""samples.jsonl while it grows: every answer is on disk before the next is asked for, and a run that was killed asks only for the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from input_pipeline.schema import Question
from rarl_jax.evaluation.records import Decoding, Mode, Record, from_json, hash_question, to_json
from rarl_jax.runtime import files

SAMPLES, IDENTITY = 'samples.jsonl', 'identity.json'


class SampleFile(AbstractContextManager):
    """The answers of one evaluation folder.

    `identity` says what is evaluated (checkpoint, prompt hash, pixel limits, seed, ...). It is kept beside the samples, and a folder that was begun
    with another one is refused: its answers are not this policy's. Of several processes that are told all answers, one `writes`.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], writes: bool = True):
        _check_identity(folder, identity)
        self._folder = folder
        path = folder / SAMPLES
        self._appender = files.Appender(path) if writes else None
        self._records = {record.key: record for record in read_samples(folder)}

    @property
    def records(self) -> list[Record]:
        """Everything answered so far, before and since the start."""
        return list(self._records.values())

    def missing(self, questions: Sequence[Question], mode: Mode, decoding: Decoding) -> list[tuple[int, Question]]:
        """The questions that have no answer yet, each with its place in the list (the record's doc_id).

        Raises ValueError for an answer to what is another question now: the data set was made anew since.
        """
        rest = []
        for i, question in enumerate(questions):
            known = self._records.get((mode, decoding, question.id))
            if known is None:
                rest.append((i, question))
            elif known.doc_hash != hash_question(question):
                raise ValueError(
                    f'{self._folder} holds an answer to question {question.id!r}, but question {question.id!r} is another one now: '
                    'the data set has changed; evaluate into another folder, or delete this one.'
                )
        return rest

    def add(self, records: Iterable[Record]) -> None:
        """Keeps new answers; they are on disk when this returns."""
        records = list(records)
        if self._appender is not None:
            self._appender.append(map(to_json, records))
        self._records |= {record.key: record for record in records}

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    identity = json.loads(json.dumps(identity))  # tuples become lists, as they will be when read again
    path = folder / IDENTITY
    if not path.exists():
        files.write_json(path, identity)
        return
    begun = files.load_json(path, fix='delete it, and the same command writes it anew')
    changed = sorted(name for name in begun.keys() | identity.keys() if begun.get(name) != identity.get(name))
    if changed:
        name = changed[0]
        raise ValueError(
            f'{folder} holds answers made with {name} = {begun.get(name)!r}, and now it is {identity.get(name)!r}: '
            'evaluate into another folder, or delete this one.'
        )


def read_samples(folder: Path) -> list[Record]:
    """The records of an evaluation folder, in the order of their answering.

    Raises:
      FileNotFoundError: it has no samples.jsonl.
      ValueError: a line is not what this version writes.
    """
    path = folder / SAMPLES
    records = [_record(path, number, row) for number, row in enumerate(files.read(path), 1)]
    return list({record.key: record for record in records}.values())


def _record(path: Path, number: int, row: dict[str, Any]) -> Record:
    try:
        return from_json(row)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f'{path}, line {number} was not written by this version ({error!r}): delete that line, and it is asked again.'
        ) from error


def rewrite_samples(folder: Path, records: Iterable[Record]) -> None:
    """Replaces samples.jsonl at once, e.g. when a judge has graded what was answered."""
    files.write_whole(folder / SAMPLES, ''.join(files.dump(to_json(record)) for record in records))
