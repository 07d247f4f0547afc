"""Episodes as the template draws them: boxes on the page, crops, the conversation cut into pieces, rewards as bars."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote

from input_pipeline.schema import Box
from rarl_jax.conversation.episodes import RolloutRecord, ZoomRecord
from rarl_jax.report.workdir import RolloutGroup, RunData

LABEL_SHARE = 0.026  # height of a label's letters, as a share of the page's longer side
STATUS_WORDS = {
    'ok': 'shown',
    'duplicate': 'seen before',
    'bad_json': 'broken JSON',
    'bad_arguments': 'wrong arguments',
    'bad_box': 'unusable box',
    'unknown_tool': 'unknown tool',
    'several_calls': 'several calls',
    'no_budget': 'no zoom left',
}
_PIECES = re.compile(r'(</?(?:think|tool_call|answer)>)')


@dataclass(frozen=True)
class Rectangle:
    """A box on the page, in px of the original."""

    kind: str  # 'true', 'ok' or 'failed'
    x: float
    y: float
    width: float
    height: float
    label: str
    label_y: float  # baseline of the label's letters


@dataclass(frozen=True)
class Piece:
    """A stretch of a turn."""

    kind: str  # 'tag', 'think', 'tool_call', 'answer' or 'plain'
    text: str


@dataclass(frozen=True)
class Crop:
    """One zoom as a card."""

    number: int
    zoom: ZoomRecord
    image: str | None  # address; None where nothing was cut or the file is gone
    words: str  # what became of it
    requested: str


@dataclass(frozen=True)
class TurnView:
    """A turn of the policy and what followed."""

    number: int
    pieces: tuple[Piece, ...]
    observation: str | None
    crops: tuple[Crop, ...]


@dataclass(frozen=True)
class EpisodeView:
    """One episode."""

    record: RolloutRecord
    right: str  # 'right', 'partly', 'wrong', or 'unknown' where no judge came to a verdict: the colour of its tab
    rectangles: tuple[Rectangle, ...]
    turns: tuple[TurnView, ...]
    longest: float  # largest part of the reward: what fills a bar
    best_iou: float | None


@dataclass(frozen=True)
class GroupView:
    """The episodes of one question."""

    anchor: str  # id of the element, the same whenever the report is made again
    stage: str
    step: int
    question: RolloutRecord  # any of the episodes: what is asked is the same in all
    page: str | None  # address of the page's picture; None where the file is gone
    letters: float  # size of the labels' letters, px of the original
    episodes: tuple[EpisodeView, ...]


def views(runs: Sequence[RunData], report: Path) -> list[GroupView]:
    """What the template needs of the groups of all runs; addresses are relative to the report's folder.

    An anchor also names the group's tabs, so that no two may be alike, whatever stages and questions are called.
    """
    anchors: dict[str, int] = {}
    found = []
    for number, run in enumerate(runs, 1):
        for group in run.groups:
            name = re.sub(r'[^A-Za-z0-9_-]+', '-', group.stage)
            anchor = f'{name}-{group.step}-{group.episodes[0].group}' + (f'-run{number}' if number > 1 else '')
            anchors[anchor] = anchors.get(anchor, 0) + 1
            found.append(_group(group, report, anchor if anchors[anchor] == 1 else f'{anchor}-again{anchors[anchor]}'))
    return found


def _group(group: RolloutGroup, report: Path, anchor: str) -> GroupView:
    first = group.episodes[0]
    letters = LABEL_SHARE * max(first.page_size)
    return GroupView(
        anchor=anchor,
        stage=group.stage,
        step=group.step,
        question=first,
        page=_address(group.folder / first.page_image, report),
        letters=letters,
        episodes=tuple(_episode(episode, group.folder, report, letters) for episode in group.episodes),
    )


def _episode(record: RolloutRecord, folder: Path, report: Path, letters: float) -> EpisodeView:
    crops = [_crop(number, zoom, folder, report) for number, zoom in enumerate(record.zooms, 1)]
    turns = [
        TurnView(i + 1, tuple(pieces(text)), observation, tuple(crop for crop in crops if crop.zoom.turn == i))
        for i, (text, observation) in enumerate(zip_longest(record.turn_texts, record.observations))
        if text is not None
    ]
    return EpisodeView(
        record=record,
        right=_rightness(record.grade),
        rectangles=tuple(_rectangles(record, letters)),
        turns=tuple(turns),
        longest=max([1.0, *map(abs, record.parts.values())]),
        best_iou=max((zoom.iou for zoom in record.zooms if zoom.iou is not None), default=None),
    )


def _rightness(grade: float | None) -> str:
    if grade is None:
        return 'unknown'
    return 'right' if grade >= 1 else 'partly' if grade > 0 else 'wrong'


def pieces(text: str) -> list[Piece]:
    """A turn cut at its tags, so that thought, call and answer can be told apart; joined they are the text again."""
    found, inside = [], 'plain'
    for part in _PIECES.split(text):
        if not part:
            continue
        if _PIECES.fullmatch(part):
            inside = 'plain' if part.startswith('</') else part.strip('<>')
            found.append(Piece('tag', part))
        else:
            found.append(Piece(inside, part))
    return found


def _crop(number: int, zoom: ZoomRecord, folder: Path, report: Path) -> Crop:
    address = _address(folder / zoom.image, report) if zoom.image is not None else None
    requested = '' if zoom.requested is None else f'[{", ".join(f"{x:g}" for x in zoom.requested)}] {zoom.frame}'
    return Crop(number, zoom, address, STATUS_WORDS.get(zoom.status, zoom.status), requested)


def _rectangles(record: RolloutRecord, letters: float) -> list[Rectangle]:
    found = [_rectangle('true', box, '', letters) for box in record.regions]
    for number, zoom in enumerate(record.zooms, 1):
        if zoom.box is None:
            continue
        label = f'{number}' if zoom.iou is None else f'{number}: {zoom.iou:.2f}'
        found.append(_rectangle('ok' if zoom.status == 'ok' else 'failed', zoom.box, label, letters))
    return found


def _rectangle(kind: str, box: Box, label: str, letters: float) -> Rectangle:
    x1, y1, x2, y2 = box
    above = y1 - 0.35 * letters
    return Rectangle(kind, x1, y1, x2 - x1, y2 - y1, label, above if above > letters else y1 + 1.1 * letters)


def _address(path: Path, report: Path) -> str | None:
    """A file as a relative address on the page; None where it is not there."""
    return quote(Path(os.path.relpath(path, report)).as_posix()) if path.is_file() else None
