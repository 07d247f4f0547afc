"""Policy losses: a loss for each token, a reducer, diagnostics, and `policy_loss`, which puts them together.

Letters: r = exp(logp - old) is the ratio of the policy that learns to the one that sampled, A the advantage, m the mask of chosen tokens. All arrays
are float32 [E, R], R places of chosen tokens for each of E episodes; A is one number an episode, [E, 1] here. Minimising the loss makes tokens of
positive advantage likelier.

Before the first update on a batch old is logp itself: r is 1 and nothing is clipped. Clips and bounds bind from the second update on, where a stage
has mini-batches or epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

Tokens = Float[Array, 'E R']
Episodes = Float[Array, 'E 1']
Aggregation = Literal['token-mean', 'token-sum', 'seq-mean-token-sum', 'seq-mean-token-mean', 'seq-mean-token-sum-norm']
KlEstimator = Literal['k1', 'k2', 'k3']


@dataclass(frozen=True)
class LossSettings:
    """What one update minimises. Clips and the dual bound bind where a stage has several updates a step (its mini_batches and epochs)."""

    loss: Literal['ppo', 'gspo', 'cispo'] = 'ppo'
    clip_low: float = 0.2  # the ratio is clipped below 1 - clip_low
    clip_high: float = 0.2  # and above 1 + clip_high; 0.28 is "clip-higher"
    dual_clip: float = 3.0  # ppo: bound of the loss of a token of negative advantage, in units of -A
    aggregation: Aggregation = 'token-mean'
    kl_weight: float = 0.0  # 0 = no reference policy is needed
    kl_estimator: KlEstimator = 'k3'  # k1's gradient has mean zero: it is measured, not minimised
    entropy_weight: float = 0.0  # the entropy's mean, times this, is subtracted
    # Sampler against trainer, see `correction_weight`.
    correction: Literal['none', 'token', 'sequence', 'mask'] = 'none'
    correction_cap: float = 2.0  # token, sequence: the weight's largest value
    correction_band: tuple[float, float] = (0.5, 2.0)  # mask: what a kept sequence's mean ratio lies in

    def __post_init__(self):
        low, high = self.correction_band
        for name, good, expected in (
            ('clip_low', 0 <= self.clip_low <= 1, 'a number from 0 to 1'),
            ('clip_high', 0 <= self.clip_high < inf, 'a number from 0 on'),
            ('dual_clip', 1 <= self.dual_clip < inf, 'a number from 1 on: a lower bound would cut a ratio of 1'),
            ('kl_weight', 0 <= self.kl_weight < inf, 'a number from 0 on'),
            ('entropy_weight', abs(self.entropy_weight) < inf, 'a finite number'),
            ('correction_cap', 0 < self.correction_cap < inf, 'a number above 0'),
            ('correction_band', 0 <= low <= high < inf, 'two numbers from 0 on, the lower one first'),
        ):
            if not good:
                raise ValueError(f'{name} is {getattr(self, name)}, expected {expected}.')
        if self.kl_weight and self.kl_estimator == 'k1':
            raise ValueError("kl_estimator 'k1' has a zero-mean gradient inside a loss: use 'k2' or 'k3'.")


class Denominators(NamedTuple):
    """What the reducers divide by: counts of the whole global batch, so that micro-batches and devices add up exactly."""

    tokens: Float[Array, '']  # chosen tokens
    sequences: Float[Array, '']  # episodes, those with no token in the loss included
    length: Float[Array, '']  # a constant number of tokens, for seq-mean-token-sum-norm (Dr. GRPO)


class LossInputs(NamedTuple):
    """The arrays of a loss beside logp and entropy; None where the settings need none."""

    mask: Tokens  # 1 where the policy chose a token
    advantages: Float[Array, 'E']
    sample_logprobs: Tokens  # log-probs the sampler saw
    # The trainer's own before its first update on this batch; None = this is the first.
    old_logprobs: Tokens | None = None
    reference_logprobs: Tokens | None = None


def policy_loss(
    logp: Tokens, entropy: Tokens, inputs: LossInputs, denominators: Denominators, settings: LossSettings
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
    """The loss of a (micro-)batch and its diagnostics, both as shares of the global batch: sum them over micro-batches.

    ValueError if an array is not [E, R], the advantages not [E], or the settings weigh a KL and the inputs bring no reference.
    """
    _check_shapes(logp, {'entropy': entropy} | inputs._asdict())
    if settings.kl_weight and inputs.reference_logprobs is None:
        raise ValueError(
            f'kl_weight is {settings.kl_weight} but the batch has no reference_logprobs: compute them, or set kl_weight to 0.'
        )
    first, mask, advantages = inputs.old_logprobs is None, inputs.mask, inputs.advantages[:, None]
    old = stop_gradient(logp) if first else inputs.old_logprobs
    loss = token_loss(logp, old, advantages, mask, settings)
    weight = correction_weight(old, inputs.sample_logprobs, mask, settings)
    loss *= weight
    if settings.entropy_weight:
        loss -= settings.entropy_weight * entropy
    diagnostics = {'policy/entropy': entropy, 'policy/ratio_gap': ratio_gap(old, inputs.sample_logprobs)}
    diagnostics |= {'policy/sampler_kl': inputs.sample_logprobs - old, 'policy/correction': weight}
    if not first:
        diagnostics |= movement(logp, old, advantages, mask, settings)
    if inputs.reference_logprobs is not None:
        divergence = kl(logp, inputs.reference_logprobs, settings.kl_estimator)
        loss += settings.kl_weight * divergence
        diagnostics['policy/kl'] = divergence
    means = {name: masked_sum(stop_gradient(x), mask) / denominators.tokens for name, x in diagnostics.items()}
    return aggregate(loss, mask, settings.aggregation, denominators), means


def _check_shapes(logp: Tokens, others: Mapping[str, Tokens | None]) -> None:
    """A rank too few would broadcast, and the loss be quietly wrong."""
    for name, x in others.items():
        expected = logp.shape[:1] if name == 'advantages' else logp.shape
        if x is not None and x.shape != expected:
            raise ValueError(f'{name} has shape {x.shape}, expected {expected} beside a logp of {logp.shape}.')


# ---------------------------------------------------------------- per token


def token_loss(logp: Tokens, old: Tokens, advantages: Episodes, mask: Tokens, settings: LossSettings) -> Tokens:
    """The loss that the settings name."""
    low, high = settings.clip_low, settings.clip_high
    if settings.loss == 'ppo':
        return ppo(logp, old, advantages, low, high, settings.dual_clip)
    if settings.loss == 'gspo':
        return gspo(logp, old, advantages, mask, low, high)
    return cispo(logp, old, advantages, low, high)


def ppo(logp: Tokens, old: Tokens, advantages: Episodes, low: float, high: float, dual: float) -> Tokens:
    """max(-A r, -A clip(r, 1 - low, 1 + high)), and at most -dual A where A < 0.

    The clip is PPO's (arXiv 1707.06347), the bound "dual clip" (arXiv 1912.09729), low < high "clip-higher" (arXiv 2503.14476).
    """
    ratio = jnp.exp(log_ratio(logp, old))
    loss = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high))
    return jnp.where(advantages < 0, jnp.minimum(loss, -dual * advantages), loss)


def gspo(logp: Tokens, old: Tokens, advantages: Episodes, mask: Tokens, low: float, high: float) -> Tokens:
    """PPO's clipped loss with the sequence's ratio, exp(mean over its tokens of logp - old), in place of each token's (arXiv 2507.18071)."""
    ratio = jnp.exp(sequence_mean(log_ratio(logp, old), mask))[:, None]
    return jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, 1 - low, 1 + high))


def cispo(logp: Tokens, old: Tokens, advantages: Episodes, low: float, high: float) -> Tokens:
    """-stop_gradient(clip(r, 1 - low, 1 + high)) A logp: a clipped weight, so that no token's gradient is dropped (arXiv 2506.13585)."""
    ratio = jnp.exp(log_ratio(logp, old))
    return -stop_gradient(jnp.clip(ratio, 1 - low, 1 + high)) * advantages * logp


def kl(logp: Tokens, reference: Tokens, estimator: KlEstimator) -> Tokens:
    """Estimates of KL(policy || reference) from the tokens that the policy chose (http://joschu.net/blog/kl-approx.html).

    k1 = logp - ref; k2 = k1^2 / 2; k3 = expm1(-k1) + k1, never negative, clipped to 10 so that one token cannot rule a batch.
    """
    if estimator == 'k1':
        return logp - reference
    if estimator == 'k2':
        return jnp.square(logp - reference) / 2
    difference = log_ratio(reference, logp)
    return jnp.clip(jnp.expm1(difference) - difference, -10, 10)


def log_ratio(logp: Tokens, old: Tokens) -> Tokens:
    """logp - old, within +-20: beyond, its exponential is of no use to float32."""
    return jnp.clip(logp - old, -20, 20)


# ---------------------------------------------------------------- sampler against trainer


def correction_weight(old: Tokens, sample: Tokens, mask: Tokens, settings: LossSettings) -> Tokens:
    """What a token's loss is multiplied with, because the sampler's numbers are not quite the trainer's.

    token: min(exp(old - sample), cap), truncated importance sampling. sequence: the same with the sum over the episode. mask: 0 for episodes whose
    geometric mean of exp(old - sample) leaves the band, else 1.
    """
    if settings.correction == 'none':
        return jnp.ones_like(mask)
    gap = stop_gradient(log_ratio(old, sample)) * mask
    if settings.correction == 'token':
        weight = jnp.exp(gap)
    elif settings.correction == 'sequence':
        weight = jnp.broadcast_to(jnp.exp(jnp.clip(gap.sum(-1, keepdims=True), -20, 20)), mask.shape)
    else:
        mean, (low, high) = jnp.exp(sequence_mean(gap, mask))[:, None], settings.correction_band
        return jnp.where((mean >= low) & (mean <= high), mask, 0)
    return jnp.minimum(weight, settings.correction_cap) * mask


# ---------------------------------------------------------------- reducers


def aggregate(loss: Tokens, mask: Tokens, aggregation: Aggregation, denominators: Denominators) -> Float[Array, '']:
    """Reduces [E, R] to this batch's share of the global loss.

    token-mean: sum / tokens. token-sum: sum. seq-mean-*: sum over episodes / sequences, of an episode's sum, its mean, or its sum / length.
    """
    if aggregation == 'seq-mean-token-mean':
        return sequence_mean(loss, mask).sum() / denominators.sequences
    total = masked_sum(loss, mask)
    return {
        'token-sum': total,
        'token-mean': total / denominators.tokens,
        'seq-mean-token-sum': total / denominators.sequences,
        'seq-mean-token-sum-norm': total / (denominators.sequences * denominators.length),
    }[aggregation]


def masked_sum(x: Tokens, mask: Tokens) -> Float[Array, '']:
    """Sum over chosen tokens; what stands elsewhere, NaN included, is not looked at."""
    return jnp.where(mask > 0, x * mask, 0).sum()


def sequence_mean(x: Tokens, mask: Tokens) -> Float[Array, 'E']:
    """Mean over each row's chosen tokens; 0 for a row without any."""
    return jnp.where(mask > 0, x * mask, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


# ---------------------------------------------------------------- diagnostics


def ratio_gap(old: Tokens, sample: Tokens) -> Tokens:
    """|exp(logp of the trainer - of the sampler) - 1| before the update: how far the sampler's arithmetic is from the trainer's."""
    return jnp.abs(jnp.exp(log_ratio(old, sample)) - 1)


def movement(
    logp: Tokens, old: Tokens, advantages: Episodes, mask: Tokens, settings: LossSettings
) -> dict[str, Tokens]:
    """How far the policy has moved within a batch of several updates.

    clip_fraction: 1 where the clipped term is the larger one, so that the token's gradient is cut; update_kl: old - logp (k1).
    """
    ratio = jnp.exp(log_ratio(logp, old))
    if settings.loss == 'gspo':
        ratio = jnp.exp(sequence_mean(log_ratio(logp, old), mask))[:, None]
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    cut = jnp.broadcast_to(-advantages * clipped > -advantages * ratio, logp.shape)
    return {'policy/clip_fraction': cut, 'policy/update_kl': old - logp}
