"""FlashAttention-3 without a GPU: the package takes the call and lowers it for one; on several devices each runs it on its own rows and heads."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from configs._parts import small_model
from rarl_jax.models import flash
from rarl_jax.models.cache import attend_by_lengths
from rarl_jax.models.interface import read_config
from rarl_jax.policy import build_model
from rarl_jax.runtime.sharding import MeshSettings, make_mesh
from tests.commands import on_eight_devices
from tests.rarl_jax.models.test_cache import like_flash
from tests.rarl_jax.small_policy import folder


@pytest.mark.parametrize('width', [1, 64], ids=['decode', 'extend'])
def test_the_package_takes_the_call(width):
    """At the head sizes of the 3B: one call of its kernel, on the cache as it stands, with lengths."""
    q, cache, lengths = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((3, width, 16, 128), jnp.bfloat16),
            ((3, 2048, 2, 128), jnp.bfloat16),
            ((3,), jnp.int32),
        )
    )
    program = jax.jit(flash.kernel).trace(q, cache, cache, lengths)
    assert [x.shape for x in program.out_info] == [(3, width, 16, 128), (3, 16, width)]
    text = program.lower(lowering_platforms=('cuda',)).as_text()
    assert text.count('custom_call @flash_mha_fwd(%arg0, %arg1, %arg2,') == 1, text
    assert 'is_causal = false' in text and '%arg3' in text.partition('custom_call @flash_mha_fwd')[2].partition('\n')[0]


def test_what_it_is_not_made_for_is_told(monkeypatch):
    settings = replace(small_model(folder()), attention='fa3')
    with pytest.raises(ValueError, match=r"made for heads of 128 in bfloat16; found \d+ in float32: take 'cudnn'"):
        build_model(settings, read_config(folder()), make_mesh(MeshSettings()))
    monkeypatch.setattr(flash, 'PACKAGE', 'not_there')
    with pytest.raises(ValueError, match='flash-attn3-jax is not installed: pip install flash-attn3-jax'):
        build_model(settings, read_config(folder()), make_mesh(MeshSettings()))


@pytest.mark.slow
def test_on_eight_devices():
    done = on_eight_devices(__name__)
    assert done.returncode == 0, done.stderr


def check_on_eight_devices():
    """Rows over fsdp, heads over tensor: nothing is gathered, and each device's kernel sees a row and a key head."""
    seen = []

    def kernel(q, keys, values, lengths):
        seen.append((q.shape, keys.shape))
        return like_flash(q, keys, values, lengths)

    flash.kernel = kernel
    mesh, rng = make_mesh(MeshSettings(fsdp=4, tensor=2)), np.random.default_rng(0)
    q = rng.standard_normal((4, 3, 4, 8), np.float32)
    keys, values = rng.standard_normal((2, 4, 16, 2, 8)).astype(np.float32)
    lengths = np.array([1, 5, 16, 9], np.int32)
    places = [PartitionSpec('fsdp', None, 'tensor', None)] * 3 + [PartitionSpec('fsdp')]
    placed = [
        jax.device_put(x, NamedSharding(mesh, place))
        for x, place in zip((q, keys, values, lengths), places, strict=True)
    ]
    program = jax.jit(flash.attend_lengths).lower(*placed).compile()
    for found, expected in zip(program(*placed), attend_by_lengths('xla', q, keys, values, lengths), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert found.sharding.spec[0] == 'fsdp' and found.sharding.spec[2] == 'tensor'
    assert seen[-1] == ((1, 3, 2, 8), (1, 16, 1, 8)) and 'all-gather' not in program.as_text()
