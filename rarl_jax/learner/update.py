"""One update of the policy: the gradient of a global batch, gathered over micro-batches, then a step of the optimizer.

A micro-batch's loss is its share of the global one (the denominators are the global batch's), so shares and their gradients simply add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from rarl_jax.conversation.dialogue import Episode
from rarl_jax.learner import losses, optim
from rarl_jax.learner.batches import Buckets, Rollouts, as_part, collate, image_sizes, multiple, on_mesh, round_up
from rarl_jax.learner.logprobs import chosen_logprobs, plan_chosen, score_states
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.learner.packing import Packed, pack_groups, packed_tokens
from rarl_jax.models.interface import Config, Model
from rarl_jax.models.lora import Adapted, join
from rarl_jax.models.params import Params
from rarl_jax.runtime import processes
from rarl_jax.runtime.sharding import batch_parts, optimizer_shardings, processes_of, shardings_of

Metrics = dict[str, Float[Array, '']]
LOGITS_AT_ONCE = 1024  # tokens on a device; with 152k entries they take 0.6 GB


@dataclass(frozen=True)
class Learner:
    """Where a training stage stands; a checkpoint holds all of it."""

    params: Params
    opt_state: optax.OptState
    step: int  # updates of this stage so far
    batches: Any  # iterator over batches of Samples, with get_state and set_state

    @classmethod
    def start(cls, params: Params, optimizer: optax.GradientTransformation, batches: Any) -> Learner:
        """Before the first update; moments are made where their params live."""
        places = optimizer_shardings(optimizer, params, shardings_of(params))
        return cls(params, jax.jit(optimizer.init, out_shardings=places)(params), 0, batches)

    @classmethod
    def abstract(cls, params: Params, optimizer: optax.GradientTransformation) -> Learner:
        """The same without numbers: `params` are shapes with shardings, and so is what it holds."""
        places = optimizer_shardings(optimizer, params, shardings_of(params))
        state = jax.eval_shape(optimizer.init, params)
        state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
        return cls(params, state, 0, None)

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
    packed: Packed | None = None  # the same rows, a group in one: what the decoder is given in their place
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
    mesh: Mesh,
    pack: int = 1,
) -> Iterator[MicroBatch]:
    """Cuts episodes, whole groups side by side, into batches of `size` rows (0 = one batch), and puts each on the mesh when it is asked for.

    With several processes each brings its own episodes, as many as the others, and its share of every batch's rows.

    Args:
        advantages: may be wider than a batch.
        pack: episodes of a group that share one row and its prompt; 1 = each has its own.
    Raises:
        ValueError: `size` does not divide evenly over the devices.
    """
    parts, process, count = batch_parts(mesh), jax.process_index(), processes_of(mesh)
    rows = size // count if size else multiple(len(episodes), parts * pack)
    if size % (parts * count * pack):
        raise ValueError(
            f'micro_batch is {size} rows, expected a multiple of {parts * count * pack} (devices of data x fsdp, times the episodes '
            'of a packed group), or 0 for the whole batch.'
        )
    starts = range(0, len(episodes), rows)
    sizes = agreed_sizes([episodes[start : start + rows] for start in starts], config, buckets, parts, pack)
    for start, exact in zip(starts, sizes, strict=True):
        rollouts = as_part(collate(episodes[start : start + rows], config, exact, rows=rows), process, count)
        own = np.zeros_like(rollouts.loss_mask)
        piece = advantages[start : start + rows, : own.shape[1]]
        own[: piece.shape[0], : piece.shape[1]] = piece
        chosen = plan_chosen(rollouts.loss_mask, exact.chosen)
        packed = pack_groups(rollouts, chosen, pack, exact.groups[0]) if pack > 1 else None
        yield on_mesh(MicroBatch(rollouts, chosen, own, packed), mesh)


def agreed_sizes(
    batches: Sequence[Sequence[Episode]], config: Config, buckets: Buckets, parts: int, pack: int
) -> list[Buckets]:
    """For each batch the one size of everything in it: that of the process which needs most, so that all processes make arrays of one shape.

    Images and windows are multiples of the `parts` that a process's rows are split into; `pack` episodes of a group share a packed row.
    """
    needed = []
    for episodes in batches:
        images = list({id(image): image for e in episodes for image in e.images}.values())
        count, windows, patches = image_sizes(images, config.vision, buckets)
        length = round_up(max(len(e.ids) for e in episodes), buckets.lengths, 16)
        chosen = round_up(max(int(e.loss_mask.sum()) for e in episodes), buckets.chosen, 8)
        groups = round_up(packed_tokens(episodes, pack), buckets.groups, 16) if pack > 1 else 0
        needed.append([length, multiple(count, parts), multiple(windows, parts), patches, chosen, groups])
    return [Buckets(*((int(size),) for size in sizes)) for sizes in processes.largest(np.array(needed))]


def policy_logprobs(
    model: Model, params: Params, batch: MicroBatch, temperature: float, chunk: int
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T']]:
    """Log-probs of the chosen tokens and the entropy where they were chosen, 0 elsewhere; the logits of `chunk` tokens exist at a time."""
    rollouts, variables = batch.rollouts, {'params': params}
    features = model.apply(variables, rollouts.vision, method='encode_images')
    head = partial(model.apply, variables, method='logits')
    tokens = rollouts if batch.packed is None else batch.packed
    embeds = model.apply(variables, tokens.ids, features, tokens.feature_index, method='embed')
    if batch.packed is None:
        hidden = model.apply(variables, embeds, tokens.positions, method='hidden')
        return chosen_logprobs(head, hidden, rollouts.ids, batch.chosen, temperature, chunk)
    hidden = model.apply(variables, embeds, tokens.positions, tokens.segments, method='hidden')
    states = jnp.take_along_axis(hidden, tokens.before[..., None], axis=1, mode='fill', fill_value=0)
    states = states.reshape(*batch.chosen.shape, hidden.shape[-1])
    return score_states(head, states, rollouts.ids, batch.chosen, temperature, chunk)


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
    """The jitted parts of an update, and the loop over micro-batches that joins them.

    Attributes: first (gradient of a micro-batch), next (the same, added to a sum), apply (the optimizer's step), base (the weights under an adapter).
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
            learner: what will be updated; only shapes and places of its arrays are read, they may be abstract. Results stay in these places.
            adapted: what the learner's params are an adapter of; None = they are the policy's weights.
            length: the constant of the aggregation seq-mean-token-sum-norm, tokens.
        """
        places, state_places = shardings_of((learner.params, learner.opt_state))
        chunk = logits_at_once(places)

        def loss(params, base, batch, denominators):
            params = optim.stop_frozen(params, optim.label(params, frozen))
            if adapted is not None:
                params = join(base, params, adapted.lora)
            logp, entropy = policy_logprobs(model, params, batch, temperature, chunk)
            return objective(logp, entropy, batch, denominators)

        def accumulate(params, base, total, batch, denominators):
            gradient, metrics = jax.grad(loss, has_aux=True)(params, base, batch, denominators)
            return jax.tree.map(jnp.add, total, (gradient, metrics))

        def apply(params, opt_state, gradient, loss):
            return optim.apply(optimizer, params, opt_state, gradient, loss)

        self._length = length
        self.base = {} if adapted is None else adapted.base  # an argument: a constant would be compiled in
        self.first = jax.jit(jax.grad(loss, has_aux=True), out_shardings=(places, None))
        self.next = jax.jit(accumulate, donate_argnums=2, out_shardings=(places, None))
        self.apply = jax.jit(apply, donate_argnums=(0, 1), out_shardings=(places, state_places, None))

    def __call__(
        self, learner: Learner, batches: Iterable[MicroBatch], tokens: float, sequences: int
    ) -> tuple[Learner, Metrics]:
        """Updates the policy with a global batch of `sequences` episodes and `tokens` chosen tokens; the learner's arrays are given away."""
        denominators = Denominators(np.float32(max(tokens, 1)), np.float32(sequences), np.float32(self._length))
        total = None
        for batch in batches:
            if total is None:
                total = self.first(learner.params, self.base, batch, denominators)
            else:
                total = self.next(learner.params, self.base, total, batch, denominators)
        gradient, metrics = total
        params, opt_state, numbers = self.apply(learner.params, learner.opt_state, gradient, metrics['loss'])
        return learner.advanced(params, opt_state), metrics | numbers


def logits_at_once(places: Params) -> int:
    """Tokens whose logits exist at a time: so many for each part of the batch."""
    mesh = jax.tree.leaves(places)[0].mesh
    return LOGITS_AT_ONCE * mesh.shape['data'] * mesh.shape['fsdp']


class ReferencePolicy:
    """The policy that a KL term holds the learner to."""

    def __init__(self, model: Model, params: Params, temperature: float):
        chunk = logits_at_once(shardings_of(params))
        self._params = params
        self._logprobs = jax.jit(lambda params, batch: policy_logprobs(model, params, batch, temperature, chunk)[0])

    def annotate(self, batch: MicroBatch) -> MicroBatch:
        """The batch with this policy's log-probs of its chosen tokens."""
        return replace(batch, reference_logprobs=self._logprobs(self._params, batch))
