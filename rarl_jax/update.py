"""One update of the policy: the gradient of a global batch, gathered over micro-batches, then a step of the optimizer.

A micro-batch's loss is its share of the global one (the denominators are the global batch's), so shares and their gradients simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from rarl_jax import losses, optim
from rarl_jax.batches import Buckets, Rollouts, collate, round_up
from rarl_jax.episode import Episode
from rarl_jax.logprobs import chosen_logprobs, plan_chosen
from rarl_jax.losses import Denominators, LossSettings
from rarl_jax.qwen2_5_vl.config import Config
from rarl_jax.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.qwen2_5_vl.params import Params

Metrics = dict[str, Float[Array, '']]


@dataclass(frozen=True)
class Learner:
    """Where a training stage stands; a checkpoint holds all of it."""

    params: Params
    opt_state: optax.OptState
    step: int  # updates of this stage so far
    batches: Any  # iterator over batches of Samples, with get_state and set_state

    def advanced(self, params: Params, opt_state: optax.OptState) -> Learner:
        """One update further."""
        return replace(self, params=params, opt_state=opt_state, step=self.step + 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MicroBatch:
    """What one device pass sees."""

    rollouts: Rollouts
    chosen: Int[np.ndarray, 'B R']  # places of the chosen tokens, see logprobs.plan_chosen
    advantages: Float[np.ndarray, 'B T']  # of every chosen token, 0 elsewhere; unused by supervised learning
    reference_logprobs: Float[np.ndarray, 'B T'] | None = None  # of the reference policy, where a KL is weighed


Objective = Callable[
    [Float[Array, 'B T'], Float[Array, 'B T'], MicroBatch, Denominators], tuple[Float[Array, ''], Metrics]
]


def micro_batches(
    episodes: Sequence[Episode],
    advantages: Float[np.ndarray, 'B T'],
    config: Config,
    buckets: Buckets,
    size: int,
) -> list[MicroBatch]:
    """Cuts episodes, whole groups side by side, into batches of `size` rows (0 = one batch); `advantages` may be wider than a batch."""
    size = size or len(episodes)
    batches = []
    for start in range(0, len(episodes), size):
        rollouts = collate(episodes[start : start + size], config, buckets, rows=size)
        longest = round_up(int(rollouts.loss_mask.sum(1).max()), (), least=8)
        own = np.zeros_like(rollouts.loss_mask)
        piece = advantages[start : start + size, : own.shape[1]]
        own[: piece.shape[0], : piece.shape[1]] = piece
        batches.append(MicroBatch(rollouts, plan_chosen(rollouts.loss_mask, [longest]), own))
    return batches


def policy_logprobs(
    model: Qwen2_5_VL, params: Params, batch: MicroBatch, temperature: float
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
    """Log-probs of the chosen tokens and the entropy where they were chosen, 0 elsewhere."""
    rollouts, variables = batch.rollouts, {'params': params}
    features = model.apply(variables, rollouts.vision, method='encode_images')
    embeds = model.apply(variables, rollouts.ids, features, rollouts.feature_index, method='embed')
    hidden = model.apply(variables, embeds, rollouts.positions, method='hidden')
    head = partial(model.apply, variables, method='logits')
    return chosen_logprobs(head, hidden, rollouts.ids, batch.chosen, temperature)


def imitation(logp, entropy, batch: MicroBatch, denominators: Denominators) -> tuple[Float[Array, ''], Metrics]:
    """Supervised learning: the mean of -logp over the chosen tokens."""
    loss = losses.aggregate(-logp, batch.rollouts.loss_mask, 'token-mean', denominators)
    return loss, {
        'loss': loss,
        'policy/entropy': losses.masked_sum(entropy, batch.rollouts.loss_mask) / denominators.tokens,
    }


def reinforcement(settings: LossSettings) -> Objective:
    """The policy loss that the settings name, on-policy: one update a batch, so the old log-probs are the learner's own."""

    def objective(logp, entropy, batch, denominators):
        inputs = losses.Batch(
            mask=batch.rollouts.loss_mask,
            advantages=batch.advantages,
            sample_logprobs=batch.rollouts.sample_logprobs,
            reference_logprobs=batch.reference_logprobs,
        )
        loss, metrics = losses.policy_loss(logp, entropy, inputs, denominators, settings)
        return loss, metrics | {'loss': loss}

    return objective


class Updater:
    """The two jitted halves of an update, and the loop over micro-batches between them."""

    def __init__(
        self,
        model: Qwen2_5_VL,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        temperature: float = 1.0,
        frozen: Sequence[str] = (),
        length: int = 1,
    ):
        """`length` is the constant of the aggregation seq-mean-token-sum-norm, tokens."""

        def loss(params, batch, denominators):
            params = optim.stop_frozen(params, optim.label(params, frozen))
            logp, entropy = policy_logprobs(model, params, batch, temperature)
            return objective(logp, entropy, batch, denominators)

        def accumulate(params, total, batch, denominators):
            gradient, metrics = jax.grad(loss, has_aux=True)(params, batch, denominators)
            return jax.tree.map(jnp.add, total, (gradient, metrics))

        def apply(params, opt_state, gradient, loss):
            return optim.apply(optimizer, params, opt_state, gradient, loss)

        self._length = length
        self._first = jax.jit(jax.grad(loss, has_aux=True))
        self._next = jax.jit(accumulate, donate_argnums=1)
        self._apply = jax.jit(apply, donate_argnums=(0, 1))

    def __call__(
        self, learner: Learner, batches: Iterable[MicroBatch], tokens: float, sequences: int
    ) -> tuple[Learner, Metrics]:
        """Updates the policy with a global batch of `sequences` episodes and `tokens` chosen tokens; the learner's arrays are given away."""
        denominators = Denominators(jnp.float32(max(tokens, 1)), jnp.float32(sequences), jnp.float32(self._length))
        total = None
        for batch in batches:
            if total is None:
                total = self._first(learner.params, batch, denominators)
            else:
                total = self._next(learner.params, total, batch, denominators)
        gradient, metrics = total
        params, opt_state, numbers = self._apply(learner.params, learner.opt_state, gradient, metrics['loss'])
        return learner.advanced(params, opt_state), metrics | numbers


class ReferencePolicy:
    """The policy that a KL term holds the learner to."""

    def __init__(self, model: Qwen2_5_VL, params: Params, temperature: float):
        self._params = params
        self._logprobs = jax.jit(lambda params, batch: policy_logprobs(model, params, batch, temperature)[0])

    def annotate(self, batch: MicroBatch) -> MicroBatch:
        """The batch with this policy's log-probs of its chosen tokens."""
        return replace(batch, reference_logprobs=np.asarray(self._logprobs(self._params, batch)))
