"""A group in one row: the prompt that its episodes share stands once, and what follows it in each episode stands behind it.

    ids       prompt . . . . | episode 0 . . . | episode 1 . . | ... | padding
    segments  0 0 0 0 0 0 0  | 1 1 1 1 1 1 1   | 2 2 2 2 2     | ... | 0

Tokens see their own segment and the prompt, each at the position that it has in its episode, so hidden states are those of one row an episode. With
eight episodes of 120 tokens, 80 of which are the page and the question, a third of the tokens is left. Scores are computed for the whole row, so long
answers are better left apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Int

from rarl_jax.conversation.dialogue import Episode
from rarl_jax.learner.batches import Rollouts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Packed:
    """The rows of a batch of Q groups of G episodes, right-padded to S tokens."""

    ids: Int[np.ndarray, 'Q S']
    positions: Int[np.ndarray, '3 Q S']  # M-RoPE
    feature_index: Int[np.ndarray, 'Q S']  # row of the flattened features; -1 = a text token
    segments: Int[np.ndarray, 'Q S']  # 0 = prompt and padding, else 1 + number of the episode in its group
    before: Int[
        np.ndarray, 'Q G*R'
    ]  # for each chosen token, the place of the token whose hidden state chose it; S = none


def packed_tokens(episodes: Sequence[Episode], group_size: int) -> int:
    """Tokens of the longest row when each group, whose episodes stand side by side, is packed."""
    longest = 0
    for start in range(0, len(episodes), group_size):
        held = [e for e in episodes[start : start + group_size] if e.loss_mask.any()]
        shared = min((int(e.loss_mask.argmax()) for e in held), default=0)
        longest = max(longest, shared + sum(len(e.ids) - shared for e in held))
    return longest


def pack_groups(rollouts: Rollouts, chosen: Int[np.ndarray, 'B R'], group_size: int, tokens: int) -> Packed:
    """Packs each run of `group_size` rows into one of `tokens`. Rows without a chosen token have no part in a loss and are left out.

    Args:
        rollouts: the rows of a group begin with one and the same prompt.
        chosen: places of the chosen tokens, see logprobs.plan_chosen.
    Raises:
        ValueError: rows of a group begin differently, or do not fit `tokens`.
    """
    count, places = len(rollouts.ids) // group_size, chosen.shape[1]
    ids, segments = np.zeros((count, tokens), np.int32), np.zeros((count, tokens), np.int32)
    positions, features = np.zeros((3, count, tokens), np.int32), np.full((count, tokens), -1, np.int32)
    before = np.full((count, group_size, places), tokens, np.int32)
    for q in range(count):
        held = [row for row in range(q * group_size, (q + 1) * group_size) if rollouts.loss_mask[row].any()]
        shared, filled = _shared_prompt(rollouts, held), 0
        for row in held:
            start = shared if filled else 0  # the first brings the prompt
            here = slice(filled, filled + int(rollouts.lengths[row]) - start)
            there = slice(start, int(rollouts.lengths[row]))
            if here.stop > tokens:
                raise ValueError(f'A packed group has more than {tokens} tokens: add a larger size to buckets.groups.')
            ids[q, here], features[q, here] = rollouts.ids[row, there], rollouts.feature_index[row, there]
            positions[:, q, here] = rollouts.positions[:, row, there]
            number = row - q * group_size
            segments[q, here] = np.where(np.arange(there.start, there.stop) < shared, 0, 1 + number)
            own = chosen[row][chosen[row] < rollouts.ids.shape[1]] - 1
            before[q, number, : len(own)] = np.where(own < shared, own, own - start + filled)
            filled = here.stop
    return Packed(ids, positions, features, segments, before.reshape(count, -1))


def _shared_prompt(rollouts: Rollouts, held: Sequence[int]) -> int:
    """Tokens of the prompt of these rows."""
    shared = min((int(rollouts.loss_mask[row].argmax()) for row in held), default=0)
    for array in (rollouts.ids, rollouts.feature_index):
        if shared and (array[held, :shared] != array[held[0], :shared]).any():
            raise ValueError(
                f'Rows {held[0]} to {held[-1]} are packed as one group, but their prompts differ: '
                'episodes of a question must stand side by side, and group_size must be their number.'
            )
    return shared
