"""A folder that belongs to one process as long as it lives, on whatever host."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

from rarl_jax.runtime.files import load_json, naming

NAME = '.lock'


class FolderLock(AbstractContextManager):
    """Holds FOLDER/.lock, which names this process's host and number, until it is closed or the process ends, however it ends.

    The folder is made if needed; with `beside` it need not be there, and the file lies beside it. ValueError, with host and process, if another
    process holds it.
    """

    def __init__(self, folder: Path, beside: bool = False):
        self._folder, self._beside = folder, beside
        self._path = folder.with_name(f'.{folder.name}{NAME}') if beside else folder / NAME
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._take()
        while not self._is_there():  # its holder has removed it in this moment
            os.close(self._file)
            self._take()
        with naming(self._path):
            os.ftruncate(self._file, 0)
            os.write(self._file, json.dumps(_here()).encode())

    def check(self) -> None:
        """FileNotFoundError if the folder was removed or moved away meanwhile: what is written there would be lost, or another run's."""
        if not self._is_there():
            raise FileNotFoundError(
                f'{self._folder} was removed or moved away while it was written to: what was there cannot go on; remove what is left of it and run again.'
            )

    def close(self) -> None:
        if self._beside:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _take(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                os.close(self._file)
                raise ValueError(
                    f'{self._folder} is in use by {_holder(self._path)}: wait for it or stop it, or give another folder.'
                ) from error
            warnings.warn(
                f'{self._folder} cannot be locked ({error.strerror}): start no second run there.', stacklevel=3
            )

    def _is_there(self) -> bool:
        """Whether the file that is held is still the one of that name."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if isinstance(error, Exception):
                self.check()  # a folder that vanished is the reason of whatever else failed
        finally:
            self.close()


def holds(folder: Path) -> bool:
    """Whether this process has taken the folder."""
    try:
        return load_json(folder / NAME) == _here()
    except (OSError, ValueError):
        return False


def _here() -> dict[str, str | int]:
    return {'host': socket.gethostname(), 'process': os.getpid()}


def _holder(path: Path) -> str:
    try:
        told = load_json(path)
        return f'process {told["process"]} on {told["host"]}'
    except (OSError, ValueError, KeyError):  # it has the lock and is about to write its name
        return 'another process'
