"""The policy as the sampler takes it, and its images on their way into the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import PyTreeDef
from jaxtyping import Array, Bool, Float

from rarl_jax.batches import on_mesh, round_up
from rarl_jax.episode import Host
from rarl_jax.qwen2_5_vl.images import Patches, PixelLimits
from rarl_jax.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.qwen2_5_vl.params import Params, unstack
from rarl_jax.qwen2_5_vl.vision import VisionBuckets, plan_vision
from rarl_jax.sampler.programs import encode_images
from rarl_jax.sharding import as_own, batch_sharding, constrain, own_mesh, shardings_of, whole_on_each


@dataclass(frozen=True)
class Policy:
    """A model with the weights of one update, and the host's side of its conversations."""

    model: Qwen2_5_VL  # static; `scan` must be off
    params: Params  # layers apart, see `of`
    host: Host
    mesh: Mesh  # this process's devices: rows are split over them

    @classmethod
    def of(cls, model: Qwen2_5_VL, params: Params, host: Host, mesh: Mesh) -> Policy:
        """Makes the sampler's copy of the weights, once for a whole rollout. All processes call it together; what follows is each one's own.

        Layers are taken apart (slicing them at every token would read them twice), cast to what activations are, and gathered from the
        training's `mesh` to where every token needs them: only a tensor axis stays split.
        """
        own = own_mesh(mesh)
        places, structure = jax.tree.flatten(shardings_of(params))
        copied = copier(model, structure, tuple(places))(params)
        sampling = model.clone(scan=False, remat='none', constrain=constrain(own))
        return cls(sampling, jax.tree.map(as_own, copied), host, own)

    @property
    def banned(self) -> Bool[np.ndarray, 'V']:
        """Ids that only the host writes, and those that decode to nothing."""
        banned = np.zeros(self.model.config.text.vocab_size, bool)
        banned[list(self.host.chat.banned_ids)] = True
        banned[self.host.chat.vocab_size :] = True
        return banned


@functools.cache
def copier(model: Qwen2_5_VL, structure: PyTreeDef, places: tuple[NamedSharding, ...]) -> Callable[[Params], Params]:
    """The program that makes the sampler's copy of params that live at `places`."""
    copy, copied = copied_places(model, jax.tree.unflatten(structure, places))
    return jax.jit(copy, out_shardings=copied)


def copied_places(model: Qwen2_5_VL, places: Params) -> tuple[Callable[[Params], Params], Params]:
    """What makes the sampler's copy, and where the copy of params at `places` lives."""
    whole = jax.tree.map(whole_on_each, places)
    for part, layers, count in (
        ('text', 'layers', model.config.text.num_layers),
        ('vision', 'blocks', model.config.vision.depth),
    ):
        one = jax.tree.map(lambda x: NamedSharding(x.mesh, PartitionSpec(*x.spec[1:])), whole[part][layers])
        whole[part][layers] = (one,) * count

    def copy(params):
        return unstack(jax.tree.map(lambda x: x.astype(model.dtype), params))

    return copy, whole


def encode(
    policy: Policy, images: Sequence[Patches], limits: PixelLimits, patches_at_once: int
) -> tuple[Float[Array, 'I M D'], list[int]]:
    """Features of all images, and the flattened row at which each image's begin.

    Images go through the tower in calls of one shape, so that few programs are compiled however many images there are; the number of
    calls whose features are returned is a power of two. Without an image, the features are those of none: zeros.
    """
    vision = policy.model.config.vision
    windows = [_windows(policy, image) for image in images]
    buckets = _call_shape(policy, images, windows, limits, patches_at_once)
    merged = buckets.patches[0] // vision.merge_unit
    if not images:
        shape = (buckets.images[0], merged, policy.model.config.text.hidden_size)
        return on_mesh(np.zeros(shape, policy.model.dtype), policy.mesh), []
    features, rows = [], []
    for number, part in enumerate(_pack(windows, buckets.windows[0], buckets.images[0])):
        plan = plan_vision([images[index] for index in part], vision, buckets)
        features.append(encode_images(policy.model, policy.params, on_mesh(plan, policy.mesh)))
        rows += [(number * buckets.images[0] + place) * merged for place in range(len(part))]
    calls = 1 << (len(features) - 1).bit_length()
    features += features[-1:] * (calls - len(features))
    together = features[0] if calls == 1 else jnp.concatenate(features)
    return jax.device_put(together, batch_sharding(policy.mesh, together.shape)), rows


def _call_shape(
    policy: Policy, images: Sequence[Patches], windows: list[int], limits: PixelLimits, patches_at_once: int
) -> VisionBuckets:
    """Sizes of one call, which follow from the limits alone unless an image is larger than they say."""
    vision = policy.model.config.vision
    most = max((len(image.pixels) for image in images), default=0)
    room = limits.max_pixels // vision.patch_size**2 // vision.merge_unit * vision.merge_unit
    usual = max(round(limits.max_pixels / vision.window_size**2), 1)  # windows of an image as large as allowed
    capacity = max(patches_at_once // vision.window_patches, usual, round_up(max(windows, default=1)))
    return VisionBuckets(images=(capacity // usual,), windows=(capacity,), patches=(max(most, room),))


def _windows(policy: Policy, image: Patches) -> int:
    vision = policy.model.config.vision
    side = vision.window_side * vision.spatial_merge_size
    frames, rows, columns = image.grid
    return frames * -(-rows // side) * -(-columns // side)


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
