"""What is saved is finite."""

import jax.numpy as jnp
import pytest

from rarl_jax.stages.training import all_finite


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_one_number_that_is_not_finite_is_found(bad, dtype):
    arrays = {'params': {'w': jnp.ones((3, 4), dtype)}, 'opt_state': [jnp.zeros((), jnp.int32), jnp.ones(2)]}
    assert all_finite(arrays)
    assert not all_finite(arrays | {'params': {'w': arrays['params']['w'].at[2, 1].set(bad)}})
    assert not all_finite(arrays | {'opt_state': [jnp.zeros((), jnp.int32), jnp.full(2, bad)]})
