"""The images of conversations on their way into the model."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from rarl_jax.learner.batches import on_mesh, round_up
from rarl_jax.models.images import Patches, PixelLimits
from rarl_jax.models.interface import Features
from rarl_jax.models.vision_batch import VisionSizes, plan_vision
from rarl_jax.runtime.sharding import batch_sharding
from rarl_jax.sampler.programs import encode_images
from rarl_jax.sampler.weights import Policy


def encode(
    policy: Policy, images: Sequence[Patches], limits: PixelLimits, patches_at_once: int
) -> tuple[Features, list[int]]:
    """Features of all images, and the flattened row at which each image's begin.

    Images go through the tower in calls of one shape, so that few programs are compiled however many images there are; the number of
    calls whose features are returned is a power of two. Without an image, the features are those of none: zeros.
    """
    vision = policy.model.config.vision
    windows = [vision.windows(image.grid) for image in images]
    sizes = _call_shape(policy, images, windows, limits, patches_at_once)
    merged = sizes.patches // vision.merge_unit
    if not images:
        return on_mesh(policy.model.no_features(sizes.images, merged), policy.mesh), []
    features, rows = [], []
    for number, part in enumerate(_pack(windows, sizes.windows, sizes.images)):
        plan = plan_vision([images[index] for index in part], vision, sizes)
        features.append(encode_images(policy.model, policy.params, on_mesh(plan, policy.mesh)))
        rows += [(number * sizes.images + slot) * merged for slot in range(len(part))]
    calls = 1 << (len(features) - 1).bit_length()
    features += features[-1:] * (calls - len(features))
    together = features[0] if calls == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *features)
    return jax.device_put(together, jax.tree.map(lambda x: batch_sharding(policy.mesh, x.shape), together)), rows


def _call_shape(
    policy: Policy, images: Sequence[Patches], windows: list[int], limits: PixelLimits, patches_at_once: int
) -> VisionSizes:
    """Sizes of one call, which follow from the limits alone unless an image is larger than they say."""
    vision = policy.model.config.vision
    most = max((len(image.pixels) for image in images), default=0)
    room = limits.max_pixels // vision.patch_size**2 // vision.merge_unit * vision.merge_unit
    usual = max(
        round(limits.max_pixels / vision.patch_size**2 / vision.window_patches), 1
    )  # windows of an image as large as allowed
    capacity = max(patches_at_once // vision.window_patches, usual, round_up(max(windows, default=1)))
    return VisionSizes(images=capacity // usual, windows=capacity, patches=max(most, room))


def _pack(windows: list[int], most_windows: int, most_images: int) -> list[list[int]]:
    """Cuts the images, in their order, into runs that one call holds."""
    parts: list[list[int]] = [[]]
    used = 0
    for index, count in enumerate(windows):
        if used + count > most_windows or len(parts[-1]) == most_images:
            parts.append([])
            used = 0
        parts[-1].append(index)
        used += count
    return parts
