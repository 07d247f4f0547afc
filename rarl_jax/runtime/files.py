"""Files that are whole or not there, files of one JSON object a line that a process may be killed over, and JSON as others have left it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar('T')
# Half of a surrogate pair, which a model can write as JSON, has no UTF-8: it is written as \\udXXX, which JSON reads back as the same half.
LONE = 'backslashreplace'
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)

# ---------------------------------------------------------------- writing


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What a full or failing disk raises in the block names `path`: a write says only that there is no space."""
    try:
        yield
    except ValueError:
        raise  # it is told already
    except Exception as error:  # libraries in C++ and Rust raise kinds of their own, with the system's words
        code = getattr(error, 'errno', None) or next((code for code in DISK if os.strerror(code) in str(error)), None)
        if code in DISK and getattr(error, 'filename', None) is None:
            raise OSError(code, os.strerror(code), str(path)) from error
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends: a reader sees the old file or the new, never half of one.

    The folder is made if needed; after an error nothing is left of the new file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.partial')
    try:
        with naming(path):
            yield temporary
            with temporary.open('rb') as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Replaces a text file at once, as UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8', errors=LONE)


def write_json(path: Path, value: Any) -> None:
    """Replaces a JSON file at once. NaN and infinity are refused: other readers of JSON do not know them."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + '\n')


# ---------------------------------------------------------------- reading


def load_json(path: Path, kind: type[T] = dict, fix: str = 'it is cut off or damaged; make or fetch it again') -> T:
    """The content of a JSON file in any of Unicode's encodings, with or without a byte order mark.

    Raises:
      OSError: the file cannot be opened, by its name.
      ValueError: it is not JSON, or holds no `kind`; `fix` says what the user can do.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        reason = 'nested too deep' if isinstance(error, RecursionError) else error
        raise ValueError(f'{path} is not JSON ({reason}): {fix}.') from error
    if not isinstance(value, kind):
        raise ValueError(f'{path} holds a {type(value).__name__}, expected a {kind.__name__}: {fix}.')
    return value


# ---------------------------------------------------------------- one object a line


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
    except (ValueError, RecursionError) as error:  # also a line that is not UTF-8
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


class Appender(AbstractContextManager):
    """An open file that every `append` leaves whole on disk."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        self._path, self._file = path, path.open('a', encoding='utf-8', errors=LONE)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes the rows in one go and hands them to the operating system."""
        with naming(self._path):
            self._file.write(''.join(map(dump, rows)))
            self._file.flush()

    def close(self) -> None:
        with naming(self._path):
            self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()
