"""Several processes, one run: how they find each other, and the few things that they tell each other beside the arrays of a jitted program.

Every function here but `leave` must be called by all processes, in the same order. With one process they cost nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import distributed  # what processes write to each other has no other door; Orbax goes through it, too
from jax.experimental import multihost_utils
from jaxtyping import Int

from rarl_jax.runtime.messages import describe

T = TypeVar('T')
AUTOMATIC = 'auto'  # a coordinator that Slurm, Open MPI or Kubernetes names
ENDED = 'rarl_jax/ended'  # where a process that ends before its time says why
MEETING = 5.0  # seconds in which the others may end for the same reason, and tell it themselves
EVERY = 1.0  # seconds between two looks at what others say
DAY = 24 * 3600  # seconds; at the end of a run the others wait for the first, which judges, exports and reports


def join(coordinator: str, processes: int, process: int) -> None:
    """Makes this process one of several. To be called before JAX has looked for its devices.

    Args:
        coordinator: HOST:PORT of process 0; 'auto' = the cluster's environment knows it, and the two numbers.
    Raises:
        ValueError: 'auto' outside a cluster that JAX knows, or numbers that do not fit each other.
    """
    if coordinator == AUTOMATIC:
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=DAY)
        except ValueError as error:
            raise ValueError(
                f'--coordinator=auto found no Slurm, Open MPI or Kubernetes ({error}): '
                'give --coordinator=HOST:PORT --processes=N --process=I.'
            ) from error
    else:
        if not 0 <= process < processes:
            raise ValueError(f'--process is {process}, expected 0 to --processes - 1 = {processes - 1}.')
        jax.distributed.initialize(coordinator, processes, process, shutdown_timeout_seconds=DAY)
    threading.Thread(target=_end_with_others, daemon=True).start()


def leave(status: int, words: str) -> None:
    """Ends this process before its time and with it the others, which tell `words`; nothing happens where all are ending, or there is but one.

    Collectives would wait for a process that is gone, and it, as JAX ends, for them.
    """
    if not jax.distributed.is_initialized():
        return
    state = distributed.global_state
    try:
        state.client.wait_at_barrier(ENDED, int(1000 * MEETING))
    except jax.errors.JaxRuntimeError:  # not all have come
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            state.client.key_value_set(f'{ENDED}/{state.process_id}', json.dumps([status, words]))
        _exit(status)


def _end_with_others() -> None:
    """Ends this process, whatever it waits for, when another has ended before its time."""
    while (client := distributed.global_state.client) is not None:
        told = []
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # JAX itself ends a process whose coordinator is gone
            told = client.key_value_dir_get(ENDED)
        for name, value in told:
            number, (status, words) = name.rpartition('/')[2], json.loads(value)
            if number != str(distributed.global_state.process_id):
                print(f'error: process {number} of the run has ended: {words}', file=sys.stderr)
                _exit(status)
        time.sleep(EVERY)


def _exit(status: int) -> NoReturn:
    """Ends this process without JAX's farewell, which waits for all; the first as the last, since it holds what they tell each other."""
    if distributed.global_state.process_id == 0:
        time.sleep(3 * EVERY)
    sys.stdout.flush()
    os._exit(status)


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
