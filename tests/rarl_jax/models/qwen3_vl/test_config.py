import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rarl_jax.models.interface import build_model, config_from_hf, read_config
from rarl_jax.models.params import count_params
from rarl_jax.models.qwen3_vl.config import PRESETS, TextConfig
from rarl_jax.models.qwen3_vl.vision import stretched
from rarl_jax.models.vision_batch import plan_vision
from tests.rarl_jax.models.small import QWEN3, small_image

# Parameters of Qwen3-VL-*-Instruct as the hub counts them.
PUBLISHED = {'2B': 2_127_532_032, '4B': 4_437_815_808, '8B': 8_767_123_696, '32B': 33_357_390_064}


@pytest.mark.parametrize('size', PUBLISHED)
def test_published_sizes(size):
    assert count_params(build_model(PRESETS[size], scan=True)) == PUBLISHED[size]


@pytest.mark.parametrize('config', [QWEN3, *PRESETS.values()])
def test_to_hugging_face_and_back(config, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(config.to_hf()))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ('where', 'field', 'value', 'message'),
    [
        ('', 'model_type', 'qwen3_vl_moe', 'qwen3_vl_moe, a mixture of experts, which is not supported; give a dense'),
        ('text_config', 'attention_bias', True, 'attention_bias is true, which no published Qwen3-VL uses'),
        ('text_config', 'head_dim', 0, 'head_dim is 0, expected a whole number from 1'),
        ('text_config', 'hidden_act', 'gelu', "the decoder's hidden_act is 'gelu', expected 'silu'"),
        ('text_config', 'num_hidden_layers', 1, '2 deepstack_visual_indexes, but the decoder has 1 layers'),
        ('vision_config', 'hidden_act', 'gelu', "hidden_act is 'gelu', expected 'gelu_pytorch_tanh'"),
        ('vision_config', 'num_position_embeddings', 26, 'num_position_embeddings 26 must be a square'),
        ('vision_config', 'deepstack_visual_indexes', [1, 0], r'\(1, 0\) must lie below depth 3 and rise'),
        ('vision_config', 'deepstack_visual_indexes', [3], r'\(3,\) must lie below depth 3'),
    ],
)
def test_a_config_that_cannot_be(where, field, value, message):
    values = QWEN3.to_hf()
    (values[where] if where else values)[field] = value
    with pytest.raises(ValueError, match=message):
        config_from_hf(values)


def test_axes_of_frequencies():
    """As published: 24 for time, of which 20 stand between those of height and width."""
    axes = PRESETS['8B'].text.mrope_axes
    assert axes[:7].tolist() == [0, 1, 2, 0, 1, 2, 0] and axes[-5:].tolist() == [2, 0, 0, 0, 0]
    assert np.bincount(axes).tolist() == [24, 20, 20]
    small = dataclasses.replace(PRESETS['8B'].text, head_dim=16, mrope_section=(5, 2, 1))
    assert isinstance(small, TextConfig) and small.mrope_axes.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


def test_the_table_is_stretched_over_an_image():
    """Its corners lie under the image's, and between them it is linear: a table that is a plane stays one."""
    vision, image = QWEN3.vision, small_image(84, 140)  # 10 rows of 6 patches
    side = vision.table_side
    table = np.stack(np.mgrid[:side, :side], axis=-1).reshape(-1, 2) / (side - 1.0)
    batch = plan_vision([image], vision)
    seen = np.asarray(stretched(jnp.asarray(table), batch))[batch.held]
    np.testing.assert_allclose(seen, batch.coordinates[batch.held] / [9.0, 5.0], atol=1e-6)
    assert math.isclose(seen.max(), 1.0) and jax.numpy.all(seen[0] == 0)
