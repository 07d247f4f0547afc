"""Qwen2.5-VL (arXiv 2502.13923)."""

from __future__ import annotations

from typing import ClassVar

from rarl_jax.models.model import Model
from rarl_jax.models.qwen2_5_vl.vision import VisionTower


class Qwen2_5_VL(Model):
    """Windows in most blocks of the tower; its features take the place of the image's tokens."""

    tower: ClassVar[type[VisionTower]] = VisionTower
