"""A small policy's preflight: sizes told by hand, products counted, and a verdict that knows what to change."""

import dataclasses
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rarl
from configs._parts import SMALL_TASKS
from configs.quickstart import updates
from rarl_jax.conversation.dialogue import ConversationSettings
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import PRESETS, read_config
from rarl_jax.models.layers import attend_at_once, attend_in_blocks
from rarl_jax.models.packed import Segments
from rarl_jax.preflight import architecture
from rarl_jax.preflight.flops import count_flops
from rarl_jax.preflight.host import HostNeeds, host_needs
from rarl_jax.preflight.measure import Needs
from rarl_jax.preflight.report import verdict
from rarl_jax.preflight.shapes import Largest
from rarl_jax.settings import settings_from
from rarl_jax.stages.evaluate import EvaluateSettings
from tests.commands import launch
from tests.rarl_jax.small_policy import folder

LARGEST = Largest('main', 16, 1, 256, 0, 0, 64, 64, 8, 0, 4, 4, 64, 320)
GB = 10**9


def needs(**changed):
    held = dict.fromkeys(Needs.__dataclass_fields__, 0) | {
        'parameters': 5 * GB,
        'optimizer': 10 * GB,
        'sampler': 5 * GB,
    }
    return Needs(**(held | changed))


def test_products_are_counted_through_loops():
    w = jnp.ones((4, 5, 5))

    def program(x):
        x, _ = jax.lax.scan(lambda x, w: (jax.checkpoint(jnp.dot)(x, w), None), x, w)
        return jax.lax.while_loop(lambda s: s[0] < 9, lambda s: (s[0] + 1, s[1] @ w[0]), (0, x))[1]

    once = 2 * 3 * 5 * 5
    assert count_flops(jax.make_jaxpr(program)(jnp.ones((3, 5))), turns=7) == (4 + 7) * once


def test_host_memory_by_hand():
    """Two questions of a group of three, up to four crops an episode, as many questions again in a refill; on two processes."""
    vision = read_config(folder()).vision
    page, crop = PixelLimits(1, 333), PixelLimits(1, 166)
    stage = replace(updates(1, RewardSettings()), questions=2, group_size=3, pack=1, refills=1)
    settings = SimpleNamespace(
        model=SimpleNamespace(page=page, crop=crop),
        conversation=ConversationSettings(),
        stages=('look', 'main'),
        stage={'main': stage, 'look': EvaluateSettings(tasks=SMALL_TASKS, questions=0, batch_size=2)},
    )
    pixel = 3 * 2 * 4  # colours, frames, float32
    found = host_needs(settings, vision, 2, 1000)
    assert found == HostNeeds(2 * 2 * 333 * pixel // 2, 2 * 2 * 3 * 4 * 166 * pixel // 2, 500)


def test_it_fits():
    words, fits = verdict(needs(cache=20 * GB), LARGEST, 80.0, 8)
    assert fits and '40.0 GB at most (decoding)' in words


def test_what_to_change_is_a_number_that_fits():
    """80 GB leave 73.6: 53.6 for a cache of 1 GB a row, of which 52 rows are whole groups of 4 on 4 devices; 58.6
    for activations of 8 GB a row."""
    words, fits = verdict(needs(cache=64 * GB, update=16 * 8 * GB), LARGEST, 80.0, 4)
    assert not fits
    assert '--config.sampler.rows=52' in words
    assert '--config.stage.main.micro_batch=1' in words


def test_attention_in_blocks_is_attention():
    """Values and gradients, with padding in the last block, causality, segments and lengths."""
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, (2, 10, heads, 4)) for key, heads in zip(keys, (4, 2, 2), strict=False))
    some = Segments(jax.random.randint(keys[3], (2, 10), 0, 3))
    for causal, lengths, segments in (
        (True, None, None),
        (True, None, some),
        (False, jnp.array([3, 10]), None),
    ):

        def plain(q, k, v, how=(causal, lengths, segments)):
            return attend_at_once(q, k, v, 'xla', *how)

        def blocks(q, k, v, how=(causal, lengths, segments)):
            return attend_in_blocks(q, k, v, *how, 4)

        for one, other in zip(jax.vjp(plain, q, k, v)[1](q), jax.vjp(blocks, q, k, v)[1](q), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(plain(q, k, v), blocks(q, k, v), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('variant', 'family', 'rows', 'verdicts'),
    [('', 'qwen2_5_vl', 192, (('80', 0), ('0.000001', 1))), (':qwen3_vl', 'qwen3_vl', 56, (('80', 0),))],
)
def test_a_small_config_is_compiled_for_devices_that_are_not_there(variant, family, rows, verdicts):
    """The rarl recipe with a small policy: the table, and the exit code of a device that is too small."""
    command = [
        f'--config=configs/rarl.py{variant}',
        '--preflight',
        f'--config.model.path={folder(family)}',
    ]
    command += [
        '--config.mesh.fsdp=4',
        '--config.conversation.budget.total_tokens=512',
        '--config.sampler.cache_lengths=(512,)',
    ]
    command += [
        f'--config.stage.{name}.buckets.{sizes}'
        for name in ('warm_start', 'recognition', 'reorder', 'character')
        for sizes in ('lengths=(256,)', 'images=(8,)', 'windows=(16,)', 'patches=(64,)', 'chosen=(64,)')
    ]
    for gigabytes, code in verdicts:
        done = launch(*command, f'--device_gb={gigabytes}')
        assert done.returncode == code, done.stdout + done.stderr
        assert f'KV cache: {rows} rows of 512 tokens' in done.stdout
        assert ('It fits' in done.stdout) == (code == 0)


def test_the_published_model_that_an_empty_path_stands_for():
    settings = settings_from(rarl.get_config('qwen3_vl').to_dict())
    assert architecture(settings.model) == PRESETS['Qwen3-VL-8B']
    with pytest.raises(ValueError, match=r"config\.model\.published is 'Qwen3-VL-9B', expected one of .*Qwen3-VL-8B"):
        architecture(dataclasses.replace(settings.model, published='Qwen3-VL-9B'))
