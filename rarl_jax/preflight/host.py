"""What a process holds in its machine's own memory, beside the program itself: pictures of a step, and the copy of what is being saved."""

from __future__ import annotations

from dataclasses import dataclass

from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import VisionConfig
from rarl_jax.settings import RunSettings
from rarl_jax.stages.evaluate import EvaluateSettings
from rarl_jax.stages.rl_settings import RlSettings

FLOAT = 4  # bytes of a number of a patch


@dataclass(frozen=True)
class HostNeeds:
    """Bytes of one process at their worst: every page and crop as large as the limits allow, every call allowed made."""

    pages: int  # as the policy sees them
    crops: int  # of all episodes of a step, which keep them until its last update
    checkpoint: int  # its share of weights and moments, copied before they are written


def host_needs(settings: RunSettings, vision: VisionConfig, processes: int, saved: int) -> HostNeeds:
    """Of the stage that holds most pictures. `saved`: bytes of what a checkpoint holds, of all processes."""
    page, crop = (patch_bytes(limits, vision) for limits in (settings.model.page, settings.model.crop))
    most = settings.conversation.tool.max_crops
    held = [(0, 0)]
    for stage in (settings.stage[name] for name in settings.stages):
        if isinstance(stage, RlSettings):
            questions = stage.questions * (1 + stage.refills)
            held.append((questions, questions * stage.group_size * most))
        elif isinstance(stage, EvaluateSettings):
            held.append((stage.batch_size, stage.batch_size * stage.samples * most))
    pages, crops = max(held, key=lambda each: each[0] * page + each[1] * crop)
    return HostNeeds(*(-(-count // processes) for count in (pages * page, crops * crop, saved)))


def patch_bytes(limits: PixelLimits, vision: VisionConfig) -> int:
    """Of the largest image's patches."""
    return limits.max_pixels * vision.in_channels * vision.temporal_patch_size * FLOAT
