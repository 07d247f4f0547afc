"""Parts of a user's own, named in a config by import path: stage kinds, policies made from nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

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


@dataclass(frozen=True)
class PolicyKind:
    """How a policy is made from nothing: what the module that config.model.fresh.kind names offers as POLICY."""

    settings: type  # a frozen dataclass with the field `kind`
    # (folder, settings, Questions of the training split, PixelLimits of a page, seed): writes a Hugging Face folder.
    make: Callable[[Path, Any, Sequence[Any], Any, int], object]


def load_policy_kind(kind: str) -> PolicyKind:
    """The PolicyKind of a module's import path; ValueError where there is none."""
    return load_plugin(kind, 'POLICY', PolicyKind, 'config.model.fresh.kind')
