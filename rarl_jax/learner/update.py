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
from jaxtyping import Array, Float

from rarl_jax.conversation.dialogue import Episode
from rarl_jax.learner import losses, optim
from rarl_jax.learner.batches import Batch
from rarl_jax.learner.logprobs import by_episode, choosing_states, score_states
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.models.interface import Model
from rarl_jax.models.lora import Adapted, join
from rarl_jax.models.params import Params
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.runtime.sharding import local_rows, optimizer_shardings, replicated, shardings_of

Metrics = dict[str, Float[Array, '']]
LOGITS_AT_ONCE = 160_000_000  # numbers on a device, 0.6 GB: about 1k tokens where the vocabulary has 152k entries


@dataclass(frozen=True)
class Learner:
    """Where a training stage stands; a checkpoint holds all of it."""

    params: Params
    opt_state: optax.OptState
    step: int  # steps of this stage so far, each with a batch of its own
    batches: Any  # iterator over batches of Samples, with get_state and set_state

    @classmethod
    def start(cls, params: Params, optimizer: optax.GradientTransformation, batches: Any) -> Learner:
        """Before the first update; moments are made where their params live."""
        shardings = optimizer_shardings(optimizer, params, shardings_of(params))
        return cls(params, jax.jit(optimizer.init, out_shardings=shardings)(params), 0, batches)

    @classmethod
    def abstract(cls, params: Params, optimizer: optax.GradientTransformation) -> Learner:
        """The same without numbers: `params` are shapes with shardings, and so is what it holds."""
        shardings = optimizer_shardings(optimizer, params, shardings_of(params))
        state = jax.eval_shape(optimizer.init, params)
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, shardings
        )
        return cls(params, state, 0, None)

    def next_step(self) -> Learner:
        """The same, one step further."""
        return replace(self, step=self.step + 1)


Objective = Callable[[Float[Array, 'E R'], Float[Array, 'E R'], Batch, Denominators], tuple[Float[Array, ''], Metrics]]


def policy_logprobs(
    model: Model, params: Params, batch: Batch, temperature: float, chunk: int
) -> tuple[Float[Array, 'E R'], Float[Array, 'E R']]:
    """Log-probs of the chosen tokens and the entropy where they were chosen; the logits of `chunk` tokens exist at a time."""
    apply = partial(model.apply, {'params': params})
    features = batch.images
    if isinstance(features, VisionBatch):
        features = apply(features, method='encode_images')
    embeds = apply(batch.ids, features, batch.feature_index, method='embed')
    hidden = apply(embeds, batch.positions, batch.segments, method='hidden')
    states = choosing_states(hidden, batch.source)
    scores = score_states(partial(apply, method='logits'), states, batch.targets, temperature, chunk)
    return tuple(by_episode(each, batch.scored) for each in scores)


def imitation(logp, entropy, batch: Batch, denominators: Denominators) -> tuple[Float[Array, ''], Metrics]:
    """Supervised learning: the mean of -logp over the chosen tokens."""
    loss = losses.aggregate(-logp, batch.mask, 'token-mean', denominators)
    return loss, {'loss': loss, 'policy/entropy': losses.masked_sum(entropy, batch.mask) / denominators.tokens}


def reinforcement(settings: LossSettings) -> Objective:
    """The policy loss that the settings name."""

    def objective(logp, entropy, batch, denominators):
        inputs = losses.LossInputs(
            mask=batch.mask,
            advantages=batch.advantages,
            sample_logprobs=batch.sample_logprobs,
            old_logprobs=batch.old_logprobs,
            reference_logprobs=batch.reference_logprobs,
        )
        loss, metrics = losses.policy_loss(logp, entropy, inputs, denominators, settings)
        return loss, metrics | {'loss': loss}

    return objective


class Updater:
    """The jitted parts of an update, and the loop over micro-batches that joins them.

    Attributes: accumulate (adds a micro-batch's gradient and metrics to a sum), apply (the optimizer's step), logprobs (of the chosen tokens),
    base (the weights under an adapter).
    """

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: optax.GradientTransformation,
        learner: Learner,
        adapted: Adapted | None = None,
        temperature: float = 1.0,
        frozen: Sequence[str] = (),
        length: int = 1,
    ):
        """
        Args:
            learner: what will be updated; only shapes and shardings of its arrays are read, they may be abstract. Results keep these shardings.
            adapted: what the learner's params are an adapter of; None = they are the policy's weights.
            length: the constant of the aggregation seq-mean-token-sum-norm, tokens.
        """
        shardings, state_shardings = shardings_of((learner.params, learner.opt_state))
        everywhere = replicated(jax.tree.leaves(shardings)[0].mesh, 0)
        chunk = scored_at_once(model, shardings)

        def score(params, base, batch):
            weights = params if adapted is None else join(base, params, adapted.lora)
            return policy_logprobs(model, weights, batch, temperature, chunk)

        def loss(params, base, batch, denominators):
            params = optim.stop_frozen(params, optim.label(params, frozen))
            return objective(*score(params, base, batch), batch, denominators)

        def accumulate(params, base, total, batch, denominators):
            gradient, metrics = jax.grad(loss, has_aux=True)(params, base, batch, denominators)
            return jax.tree.map(jnp.add, total, (gradient, metrics))

        def apply(params, opt_state, gradient, loss):
            return optim.apply(optimizer, params, opt_state, gradient, loss)

        def logprobs(params, base, batch):
            return score(params, base, batch)[0]

        def nothing(params, names):
            return jax.tree.map(jnp.zeros_like, params), {name: jnp.float32(0) for name in names}

        self._length, self._loss = length, loss
        self._names: dict[Any, tuple[str, ...]] = {}  # of the metrics, by the structure of the batch
        self.base = {} if adapted is None else adapted.base  # an argument: a constant would be compiled in
        self.accumulate = jax.jit(accumulate, donate_argnums=2, out_shardings=(shardings, everywhere))
        self.apply = jax.jit(apply, donate_argnums=(0, 1), out_shardings=(shardings, state_shardings, None))
        self.nothing = jax.jit(nothing, static_argnums=1, out_shardings=(shardings, everywhere))
        self.logprobs = jax.jit(logprobs)

    def __call__(
        self, learner: Learner, batches: Iterable[Batch], tokens: float, sequences: int
    ) -> tuple[Learner, Metrics]:
        """Updates the policy with `sequences` episodes and `tokens` chosen tokens in all; the learner's arrays are given away."""
        gradient, metrics = self.gradient(learner.params, batches, tokens, sequences)
        params, opt_state, numbers = self.apply(learner.params, learner.opt_state, gradient, metrics['loss'])
        return replace(learner, params=params, opt_state=opt_state), metrics | numbers

    def gradient(
        self, params: Params, batches: Iterable[Batch], tokens: float, sequences: int
    ) -> tuple[Params, Metrics]:
        """Of the loss of all these batches, and what the objective tells of them."""
        denominators = Denominators(np.float32(max(tokens, 1)), np.float32(sequences), np.float32(self._length))
        total = None
        for batch in batches:
            if total is None:
                total = self.nothing(params, self.metric_names(params, batch, denominators))
            total = self.accumulate(params, self.base, total, batch, denominators)
        return total

    def metric_names(self, params: Params, batch: Batch, denominators: Denominators) -> tuple[str, ...]:
        """What the objective tells of such a batch."""
        structure = jax.tree.structure(batch)
        if structure not in self._names:
            _, metrics = jax.eval_shape(self._loss, params, self.base, batch, denominators)
            self._names[structure] = tuple(sorted(metrics))
        return self._names[structure]


def chosen_logprobs(
    updater: Updater, params: Params, batches: Iterable[Batch], episodes: Sequence[Episode]
) -> list[Float[np.ndarray, 'n']]:
    """The log-probs that a policy gives each episode's chosen tokens; `batches` are those of the episodes."""
    scored = [local_rows(updater.logprobs(params, updater.base, batch)) for batch in batches]
    rows = [row for part in scored for row in part]
    return [row[: int(e.loss_mask.sum())] for row, e in zip(rows, episodes, strict=False)]


def scored_at_once(model: Model, shardings: Params) -> int:
    """Tokens whose logits exist at a time: so many for each part of the batch."""
    mesh = jax.tree.leaves(shardings)[0].mesh
    return max(LOGITS_AT_ONCE // model.config.text.vocab_size, 1) * mesh.shape['data'] * mesh.shape['fsdp']


class ReferencePolicy:
    """The policy that a KL term holds the learner to."""

    def __init__(self, model: Model, params: Params, temperature: float):
        chunk = scored_at_once(model, shardings_of(params))
        self.params = params
        self._logprobs = jax.jit(lambda params, batch: policy_logprobs(model, params, batch, temperature, chunk)[0])

    def annotate(self, batch: Batch) -> Batch:
        """The batch with this policy's log-probs of its chosen tokens."""
        return replace(batch, reference_logprobs=self._logprobs(self.params, batch))
