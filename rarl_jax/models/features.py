"""What the vision tower has made of images: kept on the host, so that nobody computes it twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from rarl_jax.models.images import Patches


class FeatureCache:
    """Features of images as one set of weights computes them, found by the image itself, not by what it shows.

    A rollout fills it. As long as the tower's weights stand, an update may read from it.
    """

    def __init__(self):
        # The image is kept, too: its number would otherwise be given to another.
        self._kept: dict[int, tuple[Patches, Any]] = {}

    def __contains__(self, image: Patches) -> bool:
        return id(image) in self._kept

    def __getitem__(self, image: Patches) -> Any:
        """A pytree of [M ...], a row for each merged token of the image, in raster order."""
        return self._kept[id(image)][1]

    def missing(self, images: Iterable[Patches]) -> list[Patches]:
        """Those that are not kept, each once, in order of appearance."""
        return list({id(image): image for image in images if image not in self}.values())

    def keep(self, images: Iterable[Patches], features: Any, merge_size: int) -> None:
        """Takes over what `encode_images` has made of these images, leaves [I M ...]."""
        features = jax.tree.map(np.asarray, features)
        for number, image in enumerate(images):
            rows = image.merged(merge_size)
            self._kept[id(image)] = image, jax.tree.map(lambda x, n=number, m=rows: x[n, :m].copy(), features)

    def leaves(self, images: Iterable[Patches]) -> list[np.ndarray]:
        """The features of images one behind the other, leaf by leaf, in float32, which holds every dtype that features have."""
        each = [jax.tree.leaves(self[image]) for image in images]
        return [np.concatenate(rows).astype(np.float32) for rows in zip(*each, strict=True)]

    def like(self, example: Any) -> FeatureCache:
        """The same where features have the structure and dtypes of an example."""
        dtypes, structure = jax.tree.map(lambda x: x.dtype, jax.tree.leaves(example)), jax.tree.structure(example)
        other = FeatureCache()
        for image, features in self._kept.values():
            leaves = [x.astype(dtype) for x, dtype in zip(jax.tree.leaves(features), dtypes, strict=True)]
            other._kept[id(image)] = image, jax.tree.unflatten(structure, leaves)
        return other

    def take(self, images: Sequence[Patches], counts: Sequence[int], leaves: Sequence[np.ndarray]) -> None:
        """Takes over what `leaves` has given of these images, so many rows each."""
        cuts = [np.split(leaf, np.cumsum(counts)[:-1]) for leaf in leaves]
        for image, *rows in zip(images, *cuts, strict=True):
            self._kept[id(image)] = image, rows

    def stacked(self, images: Iterable[Patches], count: int, rows: int) -> Any:
        """The features of at least one image, one behind the other, in arrays [count rows ...]; zeros in padding. KeyError for one that is not kept."""

        def stack(*each: np.ndarray) -> np.ndarray:
            whole = np.zeros((count, rows, *each[0].shape[1:]), each[0].dtype)
            for number, features in enumerate(each):
                whole[number, : len(features)] = features
            return whole

        return jax.tree.map(stack, *[self[image] for image in images])
