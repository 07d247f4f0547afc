"""Every weight of a policy with its name in a checkpoint: the modules say its shape and axes, the family's table its name."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from flax.traverse_util import flatten_dict, unflatten_dict

from rarl_jax.models.interface import Config, build_model, names_of
from rarl_jax.models.params import Params, abstract_params, logical_axes

# A tower's prefix, before transformers 4.52 and since.
PREFIXES = (('model.', 'model.language_model.'), ('visual.', 'model.visual.'))
Transform = Literal['same', 'transposed', 'kernel']


@dataclass(frozen=True)
class Weight:
    """One array of the params."""

    # As kept here: a matrix is [in, out], repeated layers are stacked [L, ...].
    shape: tuple[int, ...]
    # Logical name of each axis.
    axes: tuple[str, ...]
    # Name in a checkpoint; '{}' stands for the layer where the weight is stacked.
    hub: str
    # How the checkpoint keeps it, see qwen2_5_vl/names.py.
    transform: Transform
    # 'kernel': its shape there behind the output's axis.
    kernel: tuple[int, ...] = ()

    @property
    def stacked(self) -> bool:
        return '{}' in self.hub

    @property
    def hub_shape(self) -> tuple[int, ...]:
        """Shape of the weight, or of one layer of it, in a checkpoint."""
        shape = self.shape[1:] if self.stacked else self.shape
        if self.transform == 'kernel':
            return (shape[1], *self.kernel)
        return shape[::-1] if self.transform == 'transposed' else shape


@functools.cache
def _weights(config: Config) -> dict[str, Weight]:
    model, named = build_model(config, scan=True), {}
    shapes, axes = flatten_dict(abstract_params(model), sep='/'), flatten_dict(logical_axes(model), sep='/')
    vision = config.vision
    kernel = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    for path, array in shapes.items():
        matching = [row for row in names_of(config) if re.fullmatch(row[0], path)]
        if len(matching) != 1:
            raise ValueError(f'{path}: {len(matching)} rows of the table of hub names fit, expected one.')
        pattern, hub, transform = matching[0]
        named[path] = Weight(array.shape, axes[path], re.sub(pattern, hub, path), transform, kernel)
    return named


def weight_table(config: Config) -> Params:
    """The params' structure with a Weight at every leaf. ValueError for a param that the family's table does not name."""
    return unflatten_dict(_weights(config), sep='/')


def plain_name(name: str) -> str:
    """A tensor's name, or a module's, as before transformers 4.52, whichever version has named it."""
    for old, new in PREFIXES:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def full_name(name: str) -> str:
    """The same as transformers names it since."""
    plain = plain_name(name)
    for old, new in PREFIXES:
        if plain.startswith(old):
            return new + plain.removeprefix(old)
    return name
