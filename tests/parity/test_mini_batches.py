"""Two mini-batches x two epochs: our losses and updates beside the same steps by PyTorch, from verl's formulas (shared numbers in learner/golden)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from rarl_jax.learner.losses import Denominators, LossInputs, LossSettings, policy_loss
from tests.rarl_jax.learner.golden_numbers import load

pytestmark = pytest.mark.parity

INPUTS, OUTPUTS = load()
LOGP, OLD, MASK, ADVANTAGES = (np.asarray(INPUTS[name]) for name in ('log_prob', 'old_log_prob', 'mask', 'adv'))
PARTS = [np.arange(0, 4), np.arange(4, 8)]  # two mini-batches
RATE = 0.5
SETTINGS = {
    'verl': (LossSettings(), 3.0, 0.2),
    'verl, clip-higher': (LossSettings(clip_high=0.28), 3.0, 0.28),
    'trl': (LossSettings(clip_high=0.28, dual_clip=1e9), 1e9, 0.28),
}


def reference_loss(logp: torch.Tensor, part: np.ndarray, dual: float, high: float) -> torch.Tensor:
    """Token mean of max(-A r, -A clip(r)), at most -dual A where A < 0."""
    old, mask, advantages = (torch.tensor(x[part]) for x in (OLD, MASK, ADVANTAGES))
    ratio, advantages = torch.exp(torch.clamp(logp[part] - old, -20, 20)), advantages[:, None]
    loss = torch.maximum(-advantages * ratio, -advantages * torch.clamp(ratio, 0.8, 1 + high))
    loss = torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)
    return (loss * mask).sum() / mask.sum()


@pytest.mark.parametrize('name', SETTINGS)
def test_two_mini_batches_times_two_epochs(name):
    settings, dual, high = SETTINGS[name]
    theirs = torch.tensor(LOGP, requires_grad=True)
    descent, ours = torch.optim.SGD([theirs], lr=RATE), jnp.asarray(LOGP)
    optimizer = optax.sgd(RATE)
    clipped = []
    for part in PARTS * 2:
        descent.zero_grad()
        expected = reference_loss(theirs, part, dual, high)
        expected.backward()
        descent.step()

        def loss(logp, part=part):
            rows = [jnp.asarray(x[part]) for x in (MASK, ADVANTAGES, OLD, OLD)]
            denominators = Denominators(rows[0].sum(), jnp.float32(len(part)), jnp.float32(1))
            return policy_loss(logp[part], jnp.zeros_like(rows[0]), LossInputs(*rows), denominators, settings)

        (value, means), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(ours)
        updates, _ = optimizer.update(gradient, optimizer.init(ours))
        ours = optax.apply_updates(ours, updates)
        clipped.append(float(means['policy/clip_fraction']))
        np.testing.assert_allclose(value, expected.item(), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=1e-7)
    assert all(fraction > 0 for fraction in clipped)


def test_the_first_of_them_is_verl_itself():
    """The reference above, on the whole batch, gives the number that verl printed."""
    expected = OUTPUTS['verl_vanilla/token-mean']
    logp = torch.tensor(LOGP, requires_grad=True)
    value = reference_loss(logp, np.arange(8), 3.0, 0.2)
    value.backward()
    np.testing.assert_allclose(value.item(), expected['loss'], rtol=1e-6)
    np.testing.assert_allclose(logp.grad.numpy(), np.array(expected['grad']), rtol=1e-5, atol=1e-8)
