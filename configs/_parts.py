"""What the config files are put together from: settings with their defaults written out, so that every one can be set on the command line."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from ml_collections import ConfigDict


def to_config(settings: Any) -> ConfigDict:
    """A settings object with all its fields, defaults included, as a config."""
    return ConfigDict({name: _plain(value) for name, value in vars(settings).items()})


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return ConfigDict(asdict(value))
    if isinstance(value, dict):
        return ConfigDict({name: _plain(each) for name, each in value.items()})
    return value
