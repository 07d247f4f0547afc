"""The safetensors files of a checkpoint folder: what is in them, reading one tensor, writing a set of files. No pickle anywhere.

Format: 8 bytes little-endian N, N bytes of JSON {name: {dtype, shape, data_offsets}}, then the tensors' bytes
(https://huggingface.co/docs/safetensors). An index file names the file of each tensor where there are several.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
DTYPES: dict[str, np.dtype] = {
    'F32': np.dtype(np.float32),
    'F16': np.dtype(np.float16),
    'BF16': jnp.dtype(jnp.bfloat16),
}
MAX_HEADER = 100_000_000  # bytes; what the format allows


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    file: Path
    dtype: str  # the format's name: 'F32', 'BF16', ...
    shape: tuple[int, ...]
    offset: int  # byte of the file at which its data starts
    size: int  # bytes


def inspect_folder(folder: Path) -> tuple[dict[str, Stored], list[str]]:
    """Reads the headers only. Returns every tensor by its name, and what is wrong with the files, one sentence each."""
    files, listed, problems = _files(folder)
    tensors: dict[str, Stored] = {}
    for file in files:
        found, wrong = inspect_file(file)
        problems += wrong
        for name, stored in found.items():
            if name in tensors:
                problems.append(f'{name}: in both {tensors[name].file.name} and {file.name}')
            elif listed.get(name, file.name) != file.name:
                problems.append(f'{name}: in {file.name}, but {INDEX} says {listed[name]}')
            tensors[name] = stored
    return tensors, problems


def _files(folder: Path) -> tuple[list[Path], dict[str, str], list[str]]:
    """The folder's files in order, the index (tensor -> file name), and what is wrong with them."""
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; give one that holds {SINGLE} or {INDEX}.')
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE], {}, []
        others = sorted(
            path.name for path in folder.iterdir() if path.suffix in ('.bin', '.pt', '.pth', '.safetensors')
        )
        raise FileNotFoundError(
            f'{folder}: found neither {SINGLE} nor {INDEX}'
            + (f' (only {", ".join(others)})' if others else '')
            + '; only safetensors '
            'are read, so fetch those files or save the model as safetensors.'
        )
    try:
        listed = json.loads((folder / INDEX).read_text())['weight_map']
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{folder / INDEX}: not a valid index ({error!r}); fetch the file again.') from error
    names = sorted(set(listed.values()))
    problems = [f'{name}: not a file name' for name in names if Path(name).name != name]
    inside = [folder / name for name in names if Path(name).name == name]
    problems += [f'{path.name}: no such file, but {INDEX} lists it' for path in inside if not path.is_file()]
    return [path for path in inside if path.is_file()], listed, problems


def inspect_file(file: Path) -> tuple[dict[str, Stored], list[str]]:
    """Reads one file's header. Returns its tensors by name, and what is wrong with it."""
    size = file.stat().st_size
    with file.open('rb') as stream:
        length = int.from_bytes(stream.read(8), 'little')
        if size < 8 or length > min(size - 8, MAX_HEADER):
            return {}, [f'{file.name}: truncated inside its header ({size} bytes)']
        try:
            header = json.loads(stream.read(length))
            header.pop('__metadata__', None)
            tensors = {name: _stored(file, entry, 8 + length) for name, entry in header.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            return {}, [f'{file.name}: its header is damaged ({error!r})']
    end = max((stored.offset + stored.size for stored in tensors.values()), default=8 + length)
    problems = (
        []
        if end == size
        else [f'{file.name}: {size} bytes, but its header describes {end}' + (' (truncated)' if size < end else '')]
    )
    return tensors, problems + [problem for name, stored in tensors.items() for problem in _size_problem(name, stored)]


def _stored(file: Path, entry: dict, data: int) -> Stored:
    first, last = entry['data_offsets']
    return Stored(file, entry['dtype'], tuple(int(n) for n in entry['shape']), data + first, last - first)


def _size_problem(name: str, stored: Stored) -> list[str]:
    if stored.dtype not in DTYPES:
        return [f'{name}: dtype {stored.dtype}, expected one of {", ".join(DTYPES)}']
    expected = math.prod(stored.shape) * DTYPES[stored.dtype].itemsize
    return (
        []
        if stored.size == expected
        else [f'{name}: {stored.size} bytes, but its shape {stored.shape} takes {expected}']
    )


def read_tensor(stored: Stored) -> np.ndarray:
    """The tensor's array. Only its own bytes are read, into memory of its own: nothing stays mapped."""
    flat = np.fromfile(stored.file, np.uint8, stored.size, offset=stored.offset)
    return flat.view(DTYPES[stored.dtype]).reshape(stored.shape)


def to_host(array: Array) -> np.ndarray:
    """The whole of an array that may lie on several processes' devices; then every process must call it."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


@dataclass(frozen=True)
class Outgoing:
    """One tensor to write."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    fetch: Callable[[], np.ndarray]  # brings its value to the host, when its turn comes

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(folder: Path, tensors: Sequence[Outgoing], max_shard_bytes: int, write: bool = True) -> None:
    """Writes tensors as one file, or as several of at most max_shard_bytes with an index; one tensor is on the host at a time.

    Each file gets its name only when it is complete. With write=False the values are fetched and dropped: what the other
    processes of a multi-host run do, since fetching is collective.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors' for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, write)
    if write and len(shards) > 1:
        index = {
            'metadata': {'total_size': sum(tensor.size for tensor in tensors)},
            'weight_map': {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')


def _shards(tensors: Sequence[Outgoing], max_bytes: int) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.size for other in shards[-1]) + tensor.size > max_bytes:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def write_file(path: Path, tensors: Sequence[Outgoing], write: bool = True) -> None:
    """Writes one safetensors file, which gets its name only when it is complete. With write=False see `write_folder`."""
    if not write:
        for tensor in tensors:
            tensor.fetch()
        return
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for tensor in tensors:
        header[tensor.name] = {
            'dtype': names[tensor.dtype],
            'shape': list(tensor.shape),
            'data_offsets': [offset, offset + tensor.size],
        }
        offset += tensor.size
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # readers map the data: keep it aligned
    partial = path.with_suffix('.partial')
    with partial.open('wb') as stream:
        stream.write(len(text).to_bytes(8, 'little') + text)
        for tensor in tensors:
            stream.write(np.ascontiguousarray(tensor.fetch()).reshape(-1).view(np.uint8).data)
    partial.replace(path)
