"""The policy as the sampler takes it, and its images on their way into the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rarl_jax.batches import round_up
from rarl_jax.episode import Host
from rarl_jax.qwen2_5_vl.images import Patches, PixelLimits
from rarl_jax.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.qwen2_5_vl.params import Params, unstack
from rarl_jax.qwen2_5_vl.vision import VisionBuckets, plan_vision
from rarl_jax.sampler.programs import encode_images

_unstack = jax.jit(unstack)


@dataclass(frozen=True)
class Policy:
    """A model with the weights of one update, and the host's side of its conversations."""

    model: Qwen2_5_VL  # static; `scan` must be off
    params: Params  # layers apart, see `of`
    host: Host

    @classmethod
    def of(cls, model: Qwen2_5_VL, params: Params, host: Host) -> Policy:
        """Takes the weights' layers apart, once for a whole rollout: slicing them at every token would read them twice."""
        return cls(model.clone(scan=False, remat='none'), _unstack(params), host)

    @property
    def banned(self) -> Bool[np.ndarray, 'V']:
        """Ids that only the host writes, and those that decode to nothing."""
        banned = np.zeros(self.model.config.text.vocab_size, bool)
        banned[list(self.host.chat.banned_ids)] = True
        banned[self.host.chat.vocab_size :] = True
        return banned


def encode(
    policy: Policy, images: Sequence[Patches], limits: PixelLimits, windows_at_once: int
) -> tuple[Float[Array, 'I M D'], list[int]]:
    """Features of all images, and the flattened row at which each image's begin.

    Images go through the tower in calls of one shape: at most `windows_at_once` windows, patches padded to `limits`.
    """
    vision = policy.model.config.vision
    windows = [_windows(policy, image) for image in images]
    capacity = max(windows_at_once, round_up(max(windows)))
    parts = _pack(windows, capacity)
    most = max(len(image.pixels) for image in images)
    buckets = VisionBuckets(
        images=(round_up(max(len(part) for part in parts)),),
        windows=(capacity,),
        patches=(max(most, limits.max_pixels // vision.patch_size**2 // vision.merge_unit * vision.merge_unit),),
    )
    features, rows = [], []
    for number, part in enumerate(parts):
        plan = plan_vision([images[index] for index in part], vision, buckets)
        features.append(encode_images(policy.model, policy.params, plan))
        merged = plan.merged_slots.shape[1]
        rows += [(number * buckets.images[0] + place) * merged for place in range(len(part))]
    return (features[0] if len(features) == 1 else jnp.concatenate(features)), rows


def _windows(policy: Policy, image: Patches) -> int:
    vision = policy.model.config.vision
    side = vision.window_side * vision.spatial_merge_size
    frames, rows, columns = image.grid
    return frames * -(-rows // side) * -(-columns // side)


def _pack(windows: list[int], capacity: int) -> list[list[int]]:
    """Cuts the images, in their order, into runs of at most `capacity` windows."""
    parts: list[list[int]] = [[]]
    used = 0
    for index, count in enumerate(windows):
        if used + count > capacity:
            parts.append([])
            used = 0
        parts[-1].append(index)
        used += count
    return parts
