"""Files of one JSON object a line, appended to by a process that may be killed at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

# Half of a surrogate pair, which a model can write as JSON, has no UTF-8: it is written as \\udXXX, which JSON reads back as the same half.
LONE = 'backslashreplace'


def repair(path: Path) -> int:
    """Cuts off a last line that has no line end, which is what a killed writer leaves; returns the bytes cut (0 = the file was whole or is not there)."""
    if not path.exists():
        return 0
    with path.open('rb+') as file:
        content = file.read()
        whole = content.rfind(b'\n') + 1
        file.truncate(whole)
    return len(content) - whole


def read(path: Path) -> list[dict[str, Any]]:
    """Every object of a file whose lines all end; a torn last line is left out.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a line is no JSON object, with its number.
    """
    if not path.exists():
        raise FileNotFoundError(
            f'{path} was not found: it is written by the stage whose results are read here, so run that stage first.'
        )
    lines = path.read_bytes().split(b'\n')[:-1]
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:  # also a line that is not UTF-8
        raise ValueError(
            f'{path}, line {number} is not JSON ({error}): delete that line, and what it held is made again.'
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f'{path}, line {number} holds a {type(value).__name__}, not an object: delete that line, and what it held is made again.'
        )
    return value


def dump(row: dict[str, Any]) -> str:
    """One object as one line. NaN and infinity are refused: other readers of JSON do not know them."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n'


class Appender:
    """An open file that every `append` leaves whole on disk."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        self._file = path.open('a', encoding='utf-8', errors=LONE)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the rows in one go and hands them to the operating system."""
        self._file.write(''.join(map(dump, rows)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_whole(path: Path, text: str) -> None:
    """Replaces a file at once: a reader sees the old text or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.partial')
    temporary.write_text(text, encoding='utf-8', errors=LONE)
    temporary.replace(path)
