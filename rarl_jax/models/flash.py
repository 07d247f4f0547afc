"""FlashAttention-3 (arXiv 2407.08608) over the KV cache: the kernel of the package flash-attn3-jax, an optional extra.

Its wheels are for Hopper GPUs, float16 or bfloat16 and head size 128, which the published sizes of both families have.
"""

from __future__ import annotations

from importlib.util import find_spec

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

HEAD = 128
PACKAGE = 'flash_attn3_jax'


def check_flash(head: int, dtype: DTypeLike) -> None:
    """ValueError where the kernel cannot be: not installed, or not made for such heads or numbers."""
    if find_spec(PACKAGE) is None:
        raise ValueError(
            "model.attention is 'fa3', but flash-attn3-jax is not installed: pip install flash-attn3-jax, or take 'cudnn'."
        )
    if head != HEAD or jax.numpy.dtype(dtype) != jax.numpy.bfloat16:
        raise ValueError(
            f"model.attention is 'fa3', which is made for heads of {HEAD} in bfloat16; found {head} in {jax.numpy.dtype(dtype)}: take 'cudnn'."
        )


def kernel(
    q: Float[Array, 'B T N H'], keys: Float[Array, 'B S K H'], values: Float[Array, 'B S K H'], lengths: Int[Array, 'B']
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B N T']]:
    """Attention of every query over the first `lengths` keys of its row, and the log-sum-exp of its scores; on one device."""
    from flash_attn3_jax.kvcache import flash_mha_with_kvcache  # it registers its kernels with JAX when it is imported

    return flash_mha_with_kvcache(q, keys, values, cache_seqlens=lengths, return_softmax_lse=True)


@custom_partitioning
def _by_groups(q, keys, values, lengths):
    """The kernel with queries [B T K G H], so that those of a key head stay beside it; log-sum-exp [B T K G]."""
    b, t, k, g, h = q.shape
    out, total = kernel(q.reshape(b, t, k * g, h), keys, values, lengths)
    return out.reshape(q.shape), total.reshape(b, k, g, t).transpose(0, 3, 1, 2)


def _on_each_device(mesh, arguments, results):
    """Rows and key heads may be split: each device runs the kernel on its own."""
    shardings = jax.tree.map(lambda x: x.sharding, (results, arguments))
    return mesh, _by_groups.fun, *shardings


_by_groups.def_partition(
    partition=_on_each_device,
    sharding_rule='b t k g h, b s k h, b s k h, b -> b t k g h, b t k g',
    need_replication_factors=('t', 'g', 'h', 's'),
)


def attend_lengths(
    q: Float[Array, 'B T N H'],
    keys: Float[Array, 'B S K H'],
    values: Float[Array, 'B S K H'],
    lengths: Int[Array, 'B'],
) -> tuple[Float[Array, 'B T N H'], Float[Array, 'B T N']]:
    """softmax(q k' / sqrt(H)) v over the first `lengths` keys of each row, 1 at least, and the log-sum-exp of the scores."""
    b, t, n, h = q.shape
    out, total = _by_groups(q.reshape(b, t, keys.shape[2], -1, h), keys, values, lengths)
    return out.reshape(q.shape), total.reshape(b, t, n)
