"""Checkpoints that are whole or not there: Orbax's manager, with checksums.

    DIR/00000120/arrays/                     written by Orbax in the background; the folder gets its name when all of it is there
    DIR/00000120/arrays/description.json     what the caller says of it (stage, step, position in the data), and every array's shape and dtype
    DIR/00000120/arrays/manifest.json        size and CRC-32 of every other file there

A checkpoint that differs from its manifest is damaged: it is passed over, with a warning, for the newest good one. Orbax removes old ones, each after
a new one is whole; those that the caller has named stay beside the newest.
"""

from __future__ import annotations

import json
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    LatestN,
    PolicyCheckpointInfo,
    PreservationPolicy,
)

from rarl_jax.runtime import processes
from rarl_jax.runtime.files import load_json, write_json, write_whole
from rarl_jax.runtime.messages import describe

Arrays = Any  # a pytree of jax.Array, or of jax.ShapeDtypeStruct with shardings
ITEM, DESCRIPTION, MANIFEST = 'arrays', 'description.json', 'manifest.json'
READERS = 8  # threads that compute checksums: zlib does so without the GIL
SHARED = 1 << 23  # bytes of an array that replicas share in writing: cutting it takes a program for each shape


class Checkpoints:
    """The checkpoints of one run, the newest `keep` of them and those in `kept`. `folder` need not exist. All processes must call every method."""

    def __init__(self, folder: Path, keep: int):
        if keep < 1:
            raise ValueError(f'keep_checkpoints is {keep}, expected at least 1: a run needs one to go on from.')
        self._folder, self._handler, self._named = Path(folder).absolute(), _Described(), _Named()
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for args in (ocp.args.PyTreeSave, ocp.args.PyTreeRestore):
            registry.add(ITEM, args, self._handler)
        self._manager = ocp.CheckpointManager(
            self._folder,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy([LatestN(keep), self._named]),
                step_format_fixed_length=8,
                cleanup_tmp_directories=True,
            ),
        )
        self._writing: int | None = None  # the step that is being written in the background
        self._latest: int | None = None  # the step that `latest` has found
        self._damaged: list[int] = []  # steps that it has passed over

    @property
    def kept(self) -> dict[str, int]:
        """The steps whose checkpoints stay, however many come after them, by name."""
        return dict(self._named.steps)

    def keep(self, **steps: int) -> None:
        """Names steps whose checkpoints stay, each in the place of the one that had its name."""
        self._named.steps |= steps

    def save(self, step: int, arrays: Arrays, description: dict[str, Any]) -> None:
        """Copies the arrays and returns; they are written in the background and may be donated at once.

        `description` must be JSON. Waits for the checkpoint before; ValueError if that one could not be written.
        """
        self.wait()
        while self._damaged:
            self._manager.delete(self._damaged.pop())
        named = _named(arrays)
        table = {name: [list(x.shape), str(x.dtype)] for name, x in named.items()}
        self._handler.description = json.dumps({'description': description, 'arrays': table}, default=_plain)
        self._writing = step
        self._manager.save(step, args=ocp.args.Composite(**{ITEM: ocp.args.PyTreeSave(named)}), force=True)

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever Orbax and its threads raise
            place, code = self._folder / f'{self._writing:08d}', re.search(r"os_error_code='(\d+)'", str(error))
            reason = os.strerror(int(code[1])) if code else describe(error)  # TensorStore's own words fill a screen
            raise ValueError(
                f'The checkpoint {place} could not be written ({reason}); those before it are whole: make room on the disk and run again.'
            ) from error

    def latest(self) -> dict[str, Any] | None:
        """The description of the newest good checkpoint, which `restore` will read; None if there is none."""
        self.wait()
        self._damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            place = self._place(step)
            problem = next(filter(None, processes.gather(_problem(place))), None)
            if problem is None:
                self._latest = step
                return load_json(place / DESCRIPTION)['description']
            warnings.warn(f'The checkpoint {place.parent} is passed over: {problem}.', stacklevel=2)
            self._damaged.append(step)
        return None

    def restore(self, like: Arrays, step: int | None = None) -> Arrays:
        """Arrays of the checkpoint that `latest` found, or of a step's, with the structure, shapes, dtypes and shardings of `like`.

        `like` may leave out parts of what was saved, at the top. ValueError names arrays that the checkpoint lacks or has in another shape, and a
        step whose checkpoint is damaged or gone.
        """
        if step is None and self._latest is None:
            raise FileNotFoundError(f'{self._folder} holds no whole checkpoint to restore: call latest() first.')
        if step is not None:
            self.wait()
            if problem := next(filter(None, processes.gather(_problem(self._place(step)))), None):
                gone = '' if self._place(step).is_dir() else f': a run keeps its newest {self._manager.all_steps()}'
                raise ValueError(f'The checkpoint {self._place(step).parent} is needed, but {problem}{gone}.')
        step = self._latest if step is None else step
        place, wanted = self._place(step), _named(like)
        _check(place.parent, load_json(place / DESCRIPTION)['arrays'], wanted)
        restore = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=restore, partial_restore=True)
        found = self._manager.restore(step, args=ocp.args.Composite(**{ITEM: args}))[ITEM]
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in wanted])

    def _place(self, step: int) -> Path:
        return self._folder / f'{step:08d}' / ITEM


@dataclass
class _Named(PreservationPolicy):
    """Preserves the checkpoints of some steps."""

    steps: dict[str, int] = field(default_factory=dict)  # by name

    def should_preserve(self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: Any) -> Sequence[bool]:
        return [each.step in self.steps.values() for each in checkpoints]


class _Described(ocp.PyTreeCheckpointHandler):
    """Orbax's handler of arrays; what it has written becomes a checkpoint together with its description and its manifest."""

    description: str  # as JSON

    def __init__(self):
        arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SHARED)
        super().__init__(type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)))

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        place = Path(directory)
        write_whole(place / DESCRIPTION, self.description)
        write_json(place / MANIFEST, _sums(_files(place)))


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
    """Why a checkpoint can't be used; None if it can. Every file is read by one of the processes, so that 90 GB are read once."""
    try:
        manifest = load_json(place / MANIFEST)
    except FileNotFoundError:
        return 'it was not finished' if place.is_dir() else 'it is not there'
    except (ValueError, OSError):
        return 'its manifest is damaged'
    files = _files(place)
    sums = _sums(dict(list(files.items())[jax.process_index() :: jax.process_count()]))
    damaged = sorted((manifest.keys() ^ files.keys()) | {name for name in sums if sums[name] != manifest.get(name)})
    return f'{damaged[0]} is damaged or missing' if damaged else None


def _files(place: Path) -> dict[str, Path]:
    """Every file of a checkpoint, by relative path, but its manifest and the empty one that Orbax adds at the very end."""
    last = (place / MANIFEST, place / 'commit_success.txt')
    files = sorted(path for path in place.rglob('*') if path.is_file() and path not in last)
    return {str(path.relative_to(place)): path for path in files}


def _sums(files: dict[str, Path]) -> dict[str, list[int]]:
    """[bytes, CRC-32] of each file."""
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(files, pool.map(_sum, files.values()), strict=True))


def _sum(path: Path) -> list[int]:
    size = crc = 0
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _plain(value: Any) -> Any:
    """A numpy number as Python's, which is what JSON knows."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f'A checkpoint description holds {value!r} of type {type(value).__name__}, expected JSON.')
