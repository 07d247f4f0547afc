"""What holds of every batch that a policy learns from, whatever it is and whoever wrote the sampler: checked at each update, on the host, by a few comparisons.

A violation is a fault of the program, not of the policy: the run stops, and the error names the episode.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from rarl_jax.conversation.dialogue import Episode


def check_episode(
    episode: Episode, positions: Int[np.ndarray, '3 T'], features: Int[np.ndarray, 'T'], image_token_id: int
) -> None:
    """ValueError, naming the episode, for what no conversation of a policy can be.

    Args:
        positions: M-RoPE's, of the whole conversation.
        features: row of each image token's feature; -1 for text.
    """
    is_image, chosen, logprobs = episode.ids == image_token_id, episode.loss_mask, episode.sample_logprobs
    count = len(np.unique(features[features >= 0]))
    highest = np.maximum.accumulate(positions.max(0))
    follows = positions.min(0)[1:] > highest[:-1]  # text stands behind all that came before
    for holds, told in (
        (((features >= 0) == is_image).all(), f'{is_image.sum()} image tokens, but {count} features of its images'),
        (not chosen[:1].any(), 'its first token marked as chosen: a prompt must come first'),
        (not (chosen & is_image).any(), 'an image token marked as chosen, which only the host writes'),
        ((follows | is_image[1:]).all(), 'a token of text at a position that is not behind those before it'),
        (np.isfinite(logprobs[chosen]).all(), 'a chosen token whose log-prob is not finite'),
        ((logprobs[chosen] <= 1e-3).all(), 'a chosen token whose probability is over 1'),  # rounding
    ):
        if not holds:
            raise ValueError(f'{name_of(episode)} has {told}: this is a fault of the program, please report it.')


def check_groups(episodes: Sequence[Episode], group_size: int) -> None:
    """ValueError where the episodes are not whole groups side by side: advantages would compare answers to different questions."""
    for start in range(0, len(episodes), group_size):
        held = episodes[start : start + group_size]
        if len(held) < group_size or any(e.question_id != held[0].question_id for e in held):
            raise ValueError(
                f'{name_of(held[0])} begins a group of {group_size}, but beside it stand {sorted({e.question_id for e in held})}, '
                f'{len(held)} episodes: this is a fault of the program, please report it.'
            )


def widest_gap(episodes: Sequence[Episode], logprobs: Sequence[Float[np.ndarray, 'n']]) -> tuple[Episode, float] | None:
    """The episode whose log-probs differ most from those that the sampler had, and the mean of |ratio - 1| over its tokens; None if none has a token.

    Args:
        logprobs: the trainer's, of each episode's chosen tokens.
    """
    pairs = [(e, own, e.sample_logprobs[e.loss_mask]) for e, own in zip(episodes, logprobs, strict=True) if len(own)]
    gaps = [(e, float(np.abs(np.exp(np.clip(own - sample, -20, 20)) - 1).mean())) for e, own, sample in pairs]
    return max(gaps, key=lambda gap: gap[1], default=None)


def not_finite(
    episodes: Sequence[Episode], advantages: Float[np.ndarray, 'E'], logprobs: Sequence[Float[np.ndarray, 'n']]
) -> list[str]:
    """Question ids of the episodes whose advantage (hence a reward of their group) or log-probs are not finite."""
    found = [
        e.question_id
        for e, advantage, own in zip(episodes, advantages, logprobs, strict=True)
        if not (np.isfinite(advantage) and np.isfinite(own).all())
    ]
    return list(dict.fromkeys(found))


def name_of(episode: Episode) -> str:
    """How errors and warnings call an episode."""
    return f'Episode {episode.sample} of question {episode.question_id}'
