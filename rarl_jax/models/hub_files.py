"""The safetensors files of a checkpoint folder: what is in them, reading one tensor, writing a set of files. No pickle anywhere.

Reading is safetensors' own, which checks that a header's offsets tile the file (https://huggingface.co/docs/safetensors). Writing is
not: its writer wants all tensors of a file in memory at once, ours one. An index names the file of each tensor where there are several.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array
from safetensors import SafetensorError, safe_open

from rarl_jax.runtime.files import load_json, replacing, write_json

INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'
SHARD = 'model-{:05d}-of-{:05d}.safetensors'
DTYPES = {'F32': np.dtype(np.float32), 'F16': np.dtype(np.float16), 'BF16': jnp.dtype(jnp.bfloat16)}
MAX_LINES = 10  # of a list of problems

# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Stored:
    """One tensor in a file."""

    file: Path
    name: str  # in the file; a reader may know it by another
    dtype: str  # the format's word: 'F32', 'BF16', ...
    shape: tuple[int, ...]


def inspect_folder(folder: Path, rename: Callable[[str], str]) -> tuple[dict[str, Stored], list[str]]:
    """Reads the headers only. Returns every tensor by its name, in the order in which they lie in the files, and what is wrong, one sentence each.

    `rename` gives the name that a tensor goes by here: versions name them differently, and two of them may not be in one folder.
    """
    files, listed, problems = _files(folder)
    tensors: dict[str, Stored] = {}
    for file in files:
        found, wrong = inspect_file(file)
        problems += wrong
        for stored in found.values():
            name, other = stored.name, tensors.get(rename(stored.name))
            if other is not None:
                problems.append(f'{name}: in {file.name}, and as {other.name} in {other.file.name}; which is meant?')
            elif listed.get(name, file.name) != file.name:
                problems.append(f'{name}: in {file.name}, but {INDEX} says {listed[name]}')
            tensors[rename(name)] = stored
    return tensors, problems


def _files(folder: Path) -> tuple[list[Path], dict[str, str], list[str]]:
    """The folder's files in order, the index (tensor -> file name), and what is wrong with them."""
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder}: no such folder; give one that holds {SINGLE} or {INDEX}.')
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_file():
        if single.is_file():
            return [single], {}, []
        weights = ('.bin', '.pt', '.pth', '.safetensors')
        others = sorted(path.name for path in folder.iterdir() if path.suffix in weights)
        found = f' (only {shortened(others)})' if others else ''
        raise FileNotFoundError(
            f'{folder}: found neither {SINGLE} nor {INDEX}{found}; only safetensors are read, so fetch those files or '
            'save the model as safetensors.'
        )
    listed = load_json(index, fix='fetch the file again').get('weight_map')
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ValueError(f'{index}: not a valid index, it has no weight_map of file names; fetch the file again.')
    names = sorted(set(listed.values()))
    if single.is_file() and SINGLE not in names:
        raise ValueError(
            f'{folder}: holds {SINGLE} and {INDEX}, which lists other files: one of the two is left over from an earlier '
            'save, and programs differ in which they read; delete the older.'
        )
    inside = [folder / name for name in names if Path(name).name == name]
    problems = [f'{name}: not a file name' for name in names if Path(name).name != name]
    problems += [f'{path.name}: no such file, but {INDEX} lists it' for path in inside if not path.is_file()]
    return [path for path in inside if path.is_file()], listed, problems


def inspect_file(file: Path) -> tuple[dict[str, Stored], list[str]]:
    """Reads one file's header. Returns its tensors by name, and what is wrong with it."""
    try:
        with safe_open(file, 'numpy') as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
            tensors = {
                name: Stored(file, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
            }
    except SafetensorError as error:
        reason = str(error).removeprefix('Error while deserializing header: ')
        return {}, [f'{file.name}: truncated or damaged ({file.stat().st_size} bytes: {reason})']
    wrong = {name: stored.dtype for name, stored in tensors.items() if stored.dtype not in DTYPES}
    return tensors, [f'{name}: dtype {dtype}, expected one of {", ".join(DTYPES)}' for name, dtype in wrong.items()]


def read_tensor(stored: Stored) -> np.ndarray:
    """The tensor's array, in memory of its own: nothing stays mapped. ValueError where it holds a NaN or an infinity."""
    with safe_open(stored.file, 'numpy', backend='pread') as opened:
        array = opened.get_tensor(stored.name)
    # The sum takes no memory, and is finite unless a number is not or numbers are absurd.
    with np.errstate(all='ignore'):
        if not np.isfinite(array.sum(dtype=np.float32)) and not np.isfinite(array).all():
            raise ValueError(
                f'{stored.file}: {stored.name} holds numbers that are not finite: its training has diverged, or the file '
                'is damaged; take an earlier save or fetch it again.'
            )
    return array


def shortened(words: Iterable[str], separator: str = ', ') -> str:
    """A list for a message, of at most ten lines or words."""
    words = list(words)
    kept = words if len(words) <= MAX_LINES else [*words[: MAX_LINES - 1], f'... and {len(words) - MAX_LINES + 1} more']
    return separator.join(kept)


# ---------------------------------------------------------------- writing


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
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_folder(folder: Path, tensors: Sequence[Outgoing], max_shard_bytes: int, write: bool = True) -> None:
    """Writes tensors as one file, or as several of at most max_shard_bytes with an index; one tensor is on the host at a time.

    Each file gets its name only when it is complete, and what an earlier save left is removed: a folder in mid-save has no index and
    reads as the earlier single file or not at all. With write=False the values are fetched and dropped: what the other processes of a
    multi-host run do, since fetching is collective.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = [SHARD.format(n, len(shards)) for n in range(1, len(shards) + 1)] if len(shards) > 1 else [SINGLE]
    if write:
        (folder / INDEX).unlink(missing_ok=True)
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard, write)
    if not write:
        return
    for path in (folder / SINGLE, *folder.glob('model-?????-of-?????.safetensors')):
        if path.name not in names:
            path.unlink(missing_ok=True)
    if len(shards) > 1:
        listed = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.size for tensor in tensors)
        write_json(folder / INDEX, {'metadata': {'total_size': total}, 'weight_map': dict(sorted(listed.items()))})


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
    words = {dtype: word for word, dtype in DTYPES.items()}
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        header[tensor.name] = {
            'dtype': words[tensor.dtype],
            'shape': list(tensor.shape),
            'data_offsets': [start, end],
        }
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # readers map the data: keep it aligned
    with replacing(path) as partial, partial.open('wb') as stream:
        stream.write(len(text).to_bytes(8, 'little') + text)
        for tensor in tensors:
            stream.write(np.ascontiguousarray(tensor.fetch()).reshape(-1).view(np.uint8).data)
