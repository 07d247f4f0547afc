"""The arithmetic that benchmarks hold against a machine's limit is what the model's program does."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rarl_jax.models.interface import build_model
from rarl_jax.models.params import abstract_params
from rarl_jax.preflight.flops import count_flops

pytestmark = pytest.mark.parity  # the benchmarks import PyTorch


@pytest.mark.parametrize('family', ['qwen2_5_vl', 'qwen3_vl'])
def test_operations_are_those_of_the_program(family):
    """Less the later half of the tokens' attention, which is computed and thrown away; norms and biases are few."""
    from experiments.benchmarks.model import CONFIGS, flops, make_work, wide

    config = CONFIGS[family]['10M']
    side = 4 * config.vision.merged_side  # one whole window
    work, _ = make_work(config, 2, 64, (side, side))
    model = build_model(config)

    def program(params, work):
        embeds = model.apply(
            {'params': params},
            work.ids,
            model.apply({'params': params}, work.batch, method='encode_images'),
            work.index,
            method='embed',
        )
        return model.apply({'params': params}, embeds, work.positions, method='hidden')

    traced = count_flops(jax.make_jaxpr(program)(abstract_params(model), work))
    thrown_away = work.ids.size * 2 * work.ids.shape[1] * wide(config.text) * config.text.num_layers
    np.testing.assert_allclose(flops(config, work), traced - thrown_away, rtol=0.01)
