"""Operations of a traced program, read off its matrix products: platforms count them differently, and a compiler's count takes a loop for one turn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(program: ClosedJaxpr | Jaxpr, turns: int = 1) -> int:
    """Multiplications and additions of all matrix products, over all devices. A `while` loop is taken to go round `turns` times."""
    total = 0
    for step in program.eqns:
        name = step.primitive.name
        if name == 'dot_general':
            total += _product(step)
        times = {'scan': step.params.get('length', 1), 'while': turns}.get(name, 1)
        total += times * sum(count_flops(inner, turns) for inner in _inside(step.params.values()))
    return total


def _product(step: JaxprEqn) -> int:
    """2 x every number of the result x the length of the contracted axes."""
    contracted = step.params['dimension_numbers'][0][0]
    left, out = step.invars[0].aval, step.outvars[0].aval
    return 2 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)


def _inside(values: Any) -> Iterator[ClosedJaxpr | Jaxpr]:
    """The programs among the parameters of a step."""
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inside(value)
