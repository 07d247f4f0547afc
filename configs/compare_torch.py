"""Compares a folder's policy here with the same in transformers: ids, pixels, positions, every layer, logits, greedy tokens.

    python -m rarl_jax.main --config=configs/compare_torch.py --config.model.path=DIR

Prints a table, writes WORKDIR/comparison.json, and leaves with exit code 1 where the two differ. Needs PyTorch (its CPU build will do). A drawn page, a
call and its crop go through both. The weights are in memory once at a time: 15 GB for 3B and 33 GB for 7B in float32; half of that with
--config.model.dtype=bfloat16 --config.tolerance=0.1, in which rounding alone differs by hundredths. With --config.reference=OTHER transformers
reads another folder: where does a policy part from what it was made of? Variant smoke: the quickstart's base policy on a few tokens.
"""

from dataclasses import replace

from ml_collections import ConfigDict

from configs._parts import choose
from rarl_jax.models.images import PixelLimits
from rarl_jax.settings import ComparedModel, CompareSettings

COMPARE = CompareSettings(
    stages=('compare_torch',),
    model=ComparedModel(path='', page=PixelLimits(56 * 56, 256 * 28 * 28), crop=PixelLimits(56 * 56, 64 * 28 * 28)),
)


def get_config(variant: str = '') -> ConfigDict:
    """Variants: none and smoke."""
    base = replace(COMPARE.model, path='experiments/quickstart_base')
    return choose(
        __file__, variant, {'': lambda: COMPARE, 'smoke': lambda: replace(COMPARE, model=base, greedy_tokens=4)}
    )
