"""The largest arrays that a config allows, as shapes without content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from rarl_jax.learner.batches import Batch, batch_axes, multiple, round_up
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import VisionConfig
from rarl_jax.models.packed import RowLayout, Segments
from rarl_jax.models.vision_batch import VisionSizes
from rarl_jax.runtime.sharding import batch_sharding, replicated
from rarl_jax.settings import RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import RlSettings
from rarl_jax.stages.sft import SftSettings


@dataclass(frozen=True)
class Largest:
    """The sizes of a training step at its worst, over all devices unless it says otherwise."""

    stage: str  # whose update it is
    rows: int  # episodes of a pass
    pack: int  # of them in a row
    length: int  # tokens of a row
    prompt: int  # of them, that a shared prompt has room for
    segment: int  # tokens of a packed episode behind it
    chosen: int  # tokens of an episode that the policy chose
    scored: int  # those of all episodes of a row together
    images: int  # of a pass
    windows: int  # of them, if the config has buckets; 0 = as many as the pixel limits allow
    micro_batches: int  # passes of an update
    group: int  # episodes that stay together
    decoded: int  # rows that a process decodes together
    cached: int  # tokens of a row of the cache


def largest_of(settings: RunSettings, processes: int, devices: int) -> Largest:
    """The stage whose micro-batches have most tokens, and the most rows that any stage decodes. ValueError if no stage has conversations."""
    named = [(name, settings.stage[name]) for name in settings.stages]
    trained = [
        largest_update(name, stage, settings, processes, devices)
        for name, stage in named
        if isinstance(stage, RlSettings | SftSettings)
    ]
    if not trained:
        raise ValueError(
            f'--preflight: none of the stages {list(settings.stages)} is of kind rl or sft; give a config that trains.'
        )
    most = max(trained, key=lambda each: each['rows'] * each['length'])
    sampler = settings.sampler
    decoded = max(multiple(rows, processes) // processes for rows in map(asked, (stage for _, stage in named)))
    return Largest(
        **most,
        decoded=min(decoded, sampler.rows or decoded),
        cached=max(sampler.cache_lengths, default=round_up(settings.conversation.budget.total_tokens, (), 32)),
    )


def asked(stage: Any) -> int:
    """Episodes that a stage decodes at a time, if nothing bounds them; 1 where it decodes none."""
    if isinstance(stage, RlSettings):
        return stage.questions * stage.group_size
    return stage.batch_size * stage.samples if isinstance(stage, EvaluateSettings) else 1


def largest_update(
    name: str, stage: RlSettings | SftSettings, settings: RunSettings, processes: int, devices: int
) -> dict[str, Any]:
    """The largest buckets, which are each process's, or where there are none what the budget allows.

    A rare batch beyond the buckets is larger than what is weighed here (see batches.round_up).
    """
    budget, buckets = settings.conversation.budget, stage.buckets
    pack = 1
    if isinstance(stage, RlSettings):
        budget = stage.budget.over(budget)
        episodes, group, chosen = (
            asked(stage) // stage.mini_batches,
            stage.group_size,
            budget.max_turns * budget.turn_tokens,
        )
        pack = stage.pack
    else:
        episodes, group, chosen = stage.pages * (stage.crops_a_page if stage.traces.crop else 1), 1, budget.total_tokens
    rows = multiple(min(stage.micro_batch * devices or episodes, episodes), devices * pack)
    chosen = round_up(min(chosen, budget.total_tokens), (), 8)
    chosen = max(buckets.chosen, default=chosen)
    length = max(buckets.lengths, default=round_up(pack * budget.total_tokens, (), 16))
    crops = rows * settings.conversation.tool.max_crops
    return {
        'stage': name,
        'rows': rows,
        'pack': pack,
        'length': length,
        'prompt': max(buckets.prompts, default=budget.total_tokens),
        'segment': max(buckets.segments, default=budget.total_tokens),
        'chosen': chosen,
        'scored': max(buckets.scored, default=pack * chosen) if pack > 1 else chosen,
        'images': processes * max(buckets.images) if buckets.images else round_up(-(-rows // group) + crops),
        'windows': processes * max(buckets.windows, default=0),
        'micro_batches': -(-episodes // rows),
        'group': group,
    }


def image_shape(settings: RunSettings, largest: Largest, vision: VisionConfig, parts: int) -> VisionSizes:
    """Of the whole micro-batch."""
    buckets, page, crop = settings.stage[largest.stage].buckets, settings.model.page, settings.model.crop
    pages = min(-(-largest.rows // largest.group), largest.images)
    windows = pages * windows_of(page, vision) + (largest.images - pages) * windows_of(crop, vision)
    patches = page.max_pixels // vision.patch_size**2
    return VisionSizes(
        multiple(largest.images, parts),
        multiple(largest.windows or round_up(windows), parts),
        max(buckets.patches, default=round_up(patches, (), vision.merge_unit)),
    )


def windows_of(limits: PixelLimits, vision: VisionConfig) -> int:
    """Windows of a square image as large as allowed."""
    side = math.ceil(math.sqrt(limits.max_pixels) / vision.patch_size)
    return vision.windows((1, side, side))


def abstract(arrays: Any, places: Any) -> Any:
    """Shapes and dtypes with a sharding each."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arrays, places)


def abstract_rows(batch: Any, mesh: Mesh) -> Any:
    """A batch of shapes where `batches.on_mesh` would put it."""

    def place(x: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
        sharding = replicated(mesh, len(x.shape)) if axis < 0 else batch_sharding(mesh, x.shape, axis)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, batch, batch_axes(batch))


def integers(*shape: int) -> Int[np.ndarray, '...']:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape: int) -> Float[np.ndarray, '...']:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def micro_batch(largest: Largest, images: Any) -> Batch:
    """The arrays that `batches.micro_batches` makes, without content; `images` is the layout of its images, or their features."""
    rows, t = largest.rows // largest.pack, largest.length
    scored, chosen, segments = (rows, largest.scored), (largest.rows, largest.chosen), None
    if largest.pack > 1:
        segments = Segments(integers(rows, t), RowLayout(largest.prompt, largest.segment, largest.pack))
    return Batch(
        ids=integers(rows, t),
        positions=integers(3, rows, t),
        feature_index=integers(rows, t),
        segments=segments,
        images=images,
        source=integers(*scored),
        targets=integers(*scored),
        scored=integers(*chosen),
        mask=floats(*chosen),
        sample_logprobs=floats(*chosen),
        advantages=floats(largest.rows),
    )
