"""The images of conversations on their way into the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from rarl_jax.learner.batches import on_mesh, round_up
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.images import Patches, PixelLimits
from rarl_jax.models.interface import Features, VisionConfig
from rarl_jax.models.vision_batch import VisionSizes, plan_vision
from rarl_jax.sampler.programs import encode_images
from rarl_jax.sampler.weights import Policy

Call = Callable[..., Any]  # runs a program: (program, *arguments) -> its results


def encode(policy: Policy, images: Sequence[Patches], patches_at_once: int, kept: FeatureCache, call: Call) -> None:
    """Computes the features of those images that are not kept yet.

    Images go through the tower in calls of two shapes, one for crops and one for pages, so that few programs are compiled however many images there are.
    """
    vision, host = policy.model.config.vision, policy.host
    rest, told = kept.missing(images), []
    for limits in sorted((host.crop, host.page), key=lambda limits: limits.max_pixels):
        room = most_patches(limits, vision)
        here = [image for image in rest if len(image.frame) <= room or limits.max_pixels >= host.page.max_pixels]
        rest = [image for image in rest if not any(image is other for other in here)]
        sizes = call_shape(here, limits, patches_at_once, vision)
        for part in _pack([vision.windows(image.grid) for image in here], sizes.windows, sizes.images):
            group = [here[index] for index in part]
            plan = on_mesh(plan_vision(group, vision, sizes), policy.mesh)
            told.append((group, call(encode_images, policy.model, policy.params, plan)))
    for group, features in told:
        kept.keep(group, features, vision.spatial_merge_size)


def most_patches(limits: PixelLimits, vision: VisionConfig) -> int:
    """Patches of the largest image within the limits."""
    return limits.max_pixels // vision.patch_size**2 // vision.merge_unit * vision.merge_unit


def call_shape(
    images: Sequence[Patches], limits: PixelLimits, patches_at_once: int, vision: VisionConfig
) -> VisionSizes:
    """Sizes of one call, which follow from the limits alone unless an image is larger than they say."""
    most = max((len(image.frame) for image in images), default=0)
    windows = max((vision.windows(image.grid) for image in images), default=1)
    # Windows of an image as large as allowed.
    usual = max(round(limits.max_pixels / vision.patch_size**2 / vision.window_patches), 1)
    capacity = max(patches_at_once // vision.window_patches, usual, round_up(windows))
    return VisionSizes(images=capacity // usual, windows=capacity, patches=max(most, most_patches(limits, vision)))


def _pack(windows: list[int], most_windows: int, most_images: int) -> list[list[int]]:
    """Cuts the images, in their order, into runs that one call holds."""
    parts: list[list[int]] = []
    used = most_windows
    for index, count in enumerate(windows):
        if used + count > most_windows or len(parts[-1]) == most_images:
            parts.append([])
            used = 0
        parts[-1].append(index)
        used += count
    return parts


def write_features(
    features: Features, row: int, places: Int[np.ndarray, 'M'], images: Sequence[Patches], kept: FeatureCache
) -> None:
    """Puts the images' features, one behind the other, at `places` of a chunk's row."""
    if images:
        together = jax.tree.map(lambda *each: np.concatenate(each), *[kept[image] for image in images])
        jax.tree.map(lambda whole, new: whole[row].__setitem__(places, new), features, together)
