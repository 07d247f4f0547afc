"""Settings that are numbers stay inside their ranges: said before anything is made."""

from __future__ import annotations

import math
from typing import Any


def check_ranges(settings: Any, ranges: dict[str, tuple[float, float]], rising: tuple[str, ...] = ()) -> None:
    """Raises ValueError for a field, or an item of one, outside its (least, most), or a field of `rising` whose items fall."""
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        items = value if isinstance(value, tuple | list) else (value,)
        if not all(least <= item <= most for item in items):  # NaN is in no range
            expected = f'{least:g} or more' if most == math.inf else f'{least:g} to {most:g}'
            raise ValueError(f'{name} is {value}, expected {expected}.')
    for name in rising:
        value = getattr(settings, name)
        if list(value) != sorted(value):
            raise ValueError(f'{name} is {value}, expected the least first.')
