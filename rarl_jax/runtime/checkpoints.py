"""Checkpoints that are whole or not there.

    DIR/00000120/arrays/            written by Orbax, in the background
    DIR/00000120/description.json   what the caller says of it (stage, step, position in the data), and every array's shape and dtype
    DIR/00000120/manifest.json      written last: size and CRC-32 of every other file

A checkpoint without its manifest was not finished, one that differs from it is damaged: both are passed over, with a warning, for the newest good one.
A process may die at any moment: an old checkpoint goes only when a new one is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

Arrays = Any  # a pytree of jax.Array, or of jax.ShapeDtypeStruct with shardings


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them. `folder` need not exist."""

    def __init__(self, folder: Path, keep: int):
        if keep < 1:
            raise ValueError(f'keep_checkpoints is {keep}, expected at least 1: a run needs one to go on from.')
        self._folder, self._keep = Path(folder).absolute(), keep
        self._writing: Path | None = None  # what is being written in the background
        self._latest: Path | None = None  # what `latest` has found
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None  # of what is being written

    def save(self, step: int, arrays: Arrays, description: dict[str, Any]) -> None:
        """Copies the arrays and returns; they are written in the background and may be donated at once.

        `description` must be JSON. Waits for the checkpoint before; ValueError if that one could not be written.
        """
        self.wait()
        place, named = self._folder / f'{step:08d}', _named(arrays)
        table = {name: [list(x.shape), str(x.dtype)] for name, x in named.items()}
        if jax.process_index() == 0:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            _write_json(place / 'description.json', {'description': description, 'arrays': table})
        self._writing = place
        self._orbax.save(place / 'arrays', args=ocp.args.PyTreeSave(named))
        self._written = self._background.submit(self._finish, place)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        written, self._written = self._written, None
        try:
            if written is not None:
                written.result()
        except Exception as error:
            raise ValueError(
                f'The checkpoint {self._writing} could not be written ({error}); those before it are whole: make room on the disk and run again.'
            ) from error

    def latest(self) -> dict[str, Any] | None:
        """The description of the newest good checkpoint, which `restore` will read; None if there is none."""
        self.wait()
        for place in sorted(self._all(), reverse=True):
            problem = _problem(place)
            if problem is None:
                self._latest = place
                return json.loads((place / 'description.json').read_text())['description']
            warnings.warn(f'The checkpoint {place} is passed over: {problem}.', stacklevel=2)
        return None

    def restore(self, like: Arrays) -> Arrays:
        """Arrays of the checkpoint that `latest` found, with the structure, shapes, dtypes and shardings of `like`.

        `like` may leave out parts of what was saved, at the top. ValueError names arrays that the checkpoint lacks or has in another shape.
        """
        if self._latest is None:
            raise FileNotFoundError(f'{self._folder} holds no whole checkpoint to restore: call latest() first.')
        table = json.loads((self._latest / 'description.json').read_text())['arrays']
        wanted = _named(like)
        _check(self._latest, table, wanted)
        args = ocp.args.PyTreeRestore(
            wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        found = self._orbax.restore(self._latest / 'arrays', args=args)
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def _all(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [place for place in self._folder.iterdir() if place.is_dir() and place.name.isdigit()]

    def _finish(self, place: Path) -> None:
        """Runs in the background until all arrays are on disk; only the manifest makes a checkpoint of them."""
        self._orbax.wait_until_finished()
        if jax.process_index() == 0:
            _write_json(place / 'manifest.json', _sums(place))
            self._prune(place)

    def _prune(self, newest: Path) -> None:
        """Removes what is older than the newest `keep`, and what a run that was taken back to an earlier step had written beyond it."""
        whole = sorted(p for p in self._all() if p < newest and (p / 'manifest.json').is_file())
        kept = [*whole, newest][-self._keep :]
        for place in set(self._all()) - set(kept):
            (place / 'manifest.json').unlink(missing_ok=True)  # first: half of it must not look whole
            shutil.rmtree(place)


def _named(arrays: Arrays) -> dict[str, Any]:
    """{'params.text.norm': array, ...}: what is on disk does not depend on the classes that hold the arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path, simple=True, separator='.'): leaf for path, leaf in leaves}


def _check(place: Path, table: dict[str, list], wanted: dict[str, Any]) -> None:
    missing = [name for name in wanted if name not in table]
    if missing:
        raise ValueError(
            f'The checkpoint {place} lacks {len(missing)} arrays of this model, such as {missing[0]}: it is of another config.'
        )
    for name, x in wanted.items():
        shape, dtype = table[name]
        if (tuple(shape), dtype) != (tuple(x.shape), str(x.dtype)):
            raise ValueError(
                f'In the checkpoint {place} {name} is {dtype}{shape}, expected {x.dtype}{list(x.shape)}: it is of another config.'
            )


def _problem(place: Path) -> str | None:
    """Why a checkpoint can't be used; None if it can."""
    try:
        manifest = json.loads((place / 'manifest.json').read_text())
    except FileNotFoundError:
        return 'it was not finished'
    except ValueError:
        return 'its manifest is damaged'
    sums = _sums(place)
    damaged = sorted(name for name in manifest.keys() | sums.keys() if manifest.get(name) != sums.get(name))
    return f'{damaged[0]} is damaged or missing' if damaged else None


def _sums(place: Path) -> dict[str, list[int]]:
    """[bytes, CRC-32] of every file of a checkpoint but its manifest, by relative path."""
    files = sorted(path for path in place.rglob('*') if path.is_file() and path != place / 'manifest.json')
    return {str(path.relative_to(place)): [path.stat().st_size, _crc(path)] for path in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all, on disk when it returns."""
    temporary = path.with_suffix('.tmp')
    with temporary.open('w') as file:
        json.dump(value, file, allow_nan=False, default=_plain)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _plain(value: Any) -> Any:
    """A numpy number as Python's, which is what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f'A checkpoint description holds {value!r} of type {type(value).__name__}, expected JSON.')
