"""Several processes, one run: how they find each other, and the few things that they tell each other beside the arrays of a jitted program.

Every function here must be called by all processes, in the same order. With one process they cost nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int

from rarl_jax.runtime.messages import describe

T = TypeVar('T')
AUTOMATIC = 'auto'  # a coordinator that Slurm, Open MPI or Kubernetes names


def join(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several. To be called before JAX has looked for its devices.

    Args:
        coordinator: HOST:PORT of process 0; 'auto' = the cluster's environment knows it, and the two numbers.
    Raises:
        ValueError: 'auto' outside a cluster that JAX knows, or numbers that do not fit each other.
    """
    if coordinator == AUTOMATIC:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f'--coordinator=auto found no Slurm, Open MPI or Kubernetes ({error}): '
                'give --coordinator=HOST:PORT --processes=N --process=I.'
            ) from error
        return
    if not 0 <= process < processes:
        raise ValueError(f'--process is {process}, expected 0 to --processes - 1 = {processes - 1}.')
    jax.distributed.initialize(coordinator, processes, process)


def is_first() -> bool:
    """Whether this process is the one that writes and talks."""
    return jax.process_index() == 0


def first_before_others(make: Callable[[], T]) -> T:
    """`make()`, by the first process before the others: what it leaves on the shared disk, they find there.

    What it raises there ends the others too, with the same words.
    """
    if jax.process_count() == 1:
        return make()
    made, problem = None, None
    if is_first():
        try:
            made = make()
        except Exception as error:  # whatever it is, the others must not wait for it
            problem = error
    if (told := gather(problem and describe(problem))[0]) is not None:
        raise problem or ValueError(told)
    return made if is_first() else make()


def largest(numbers: Int[np.ndarray, '...']) -> Int[np.ndarray, '...']:
    """Each number's largest value over the processes."""
    return numbers if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(numbers)).max(axis=0)


def gather(value: Any) -> list[Any]:
    """Every process's `value`, which JSON can hold, in the order of the processes."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(data))))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def joined(items: Sequence[Any]) -> list[Any]:
    """All processes' items in one list."""
    return [item for part in gather(list(items)) for item in part]


def total(number: float) -> float:
    """The sum of the processes' numbers."""
    return sum(gather(number))


def spawn(rng: np.random.Generator, count: int) -> list[np.random.Generator]:
    """A generator for each of this process's `count` items of a batch, from one that all processes have alike.

    What it draws depends on the item's place in the batch of all processes alone: they take turns.
    """
    seed = int(rng.integers(1 << 32))
    places = range(jax.process_index(), count * jax.process_count(), jax.process_count())
    return [np.random.default_rng([seed, place]) for place in places]


def share(count: int, name: str) -> int:
    """How many of `count` things fall to each process. ValueError, with the setting's `name`, if they do not divide evenly."""
    if count % jax.process_count():
        raise ValueError(f'{name} is {count}, expected a multiple of the {jax.process_count()} processes.')
    return count // jax.process_count()
