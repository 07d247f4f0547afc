"""A small Qwen3-VL from nothing, see policy.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rarl_jax.runtime.plugins import PolicyKind
from rarl_jax.small.policy import SmallSizes, make_policy


@dataclass(frozen=True)
class SmallQwen3Shape(SmallSizes):
    """Sizes of a small Qwen3-VL; the defaults have 1.8 M parameters."""

    model_type: ClassVar[str] = 'qwen3_vl'

    kind: str = 'rarl_jax.small.qwen3'
    head_dim: int = 32  # width of the decoder's heads
    table_side: int = 16  # rows, and columns, of the table of positions
    # Vision blocks behind which patches also go to the decoder's first layers.
    deepstack_blocks: tuple[int, ...] = (0, 1, 2)

    @property
    def mrope_section(self) -> tuple[int, int, int]:
        """Rotary frequencies of time, row and column: thirds of the half head, time has the rest."""
        third = self.head_dim // 6
        return (self.head_dim // 2 - 2 * third, third, third)

    def own_fields(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See SmallSizes."""
        rope = {'rope_type': 'default', 'mrope_interleaved': True, 'mrope_section': list(self.mrope_section)}
        vision = {
            'num_position_embeddings': self.table_side**2,
            'deepstack_visual_indexes': list(self.deepstack_blocks),
        }
        return {'head_dim': self.head_dim, 'rope_scaling': rope}, vision


POLICY = PolicyKind(SmallQwen3Shape, make_policy)
