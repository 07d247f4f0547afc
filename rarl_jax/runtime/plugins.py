"""Parts of a user's own, named in a config by import path: stage kinds, policies made from nothing."""

from __future__ import annotations

from importlib import import_module
from typing import TypeVar

T = TypeVar('T')


def load_plugin(path: object, name: str, kind: type[T], what: str) -> T:
    """`name` of the module at `path`. ValueError, saying `what` it is, where there is no such module or it offers no such `kind`."""
    try:
        found = getattr(import_module(path), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'{what} is {path!r}, expected the import path of a module with {name} ({error}).') from error
    if not isinstance(found, kind):
        raise ValueError(
            f'{what}: {path}.{name} is a {type(found).__name__}, expected {kind.__module__}.{kind.__name__}.'
        )
    return found
