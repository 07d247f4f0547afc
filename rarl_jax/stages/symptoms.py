"""What goes wrong with a policy that learns, as its metrics show it, and why it mostly does. Nothing here ends a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 5  # steps over which means are taken: a single one says little
CALLS_LEFT = 0.2  # tool use collapses below this share of the most that it was
ENTROPY_LEFT = 0.1  # entropy, below this share of what it was in the stage's first steps
MOST_ALIKE = 0.9  # share of groups without variance
MOST_CUT_OFF = 0.2  # share of answers that a budget ended
MOST_GAP = 0.05  # mean |p(trainer) / p(sampler) - 1|

Rows = Sequence[Mapping[str, float]]


def symptoms(rows: Rows) -> dict[str, str]:
    """What is wrong after the last of these steps, by the metric that shows it, with its likely cause.

    Args:
        rows: the metrics of a stage's steps so far, from its first on.
    """
    found = {}
    calls = means(rows, 'zoom/calls')
    # A policy that is taught what to say is to become sure of it; one that learns from its own samples has nothing to learn from then.
    entropy = means([row for row in rows if 'reward/total' in row], 'policy/entropy')
    if calls and max(calls) >= CALLS_LEFT and calls[-1] < CALLS_LEFT * max(calls):
        found['zoom/calls'] = (
            f'tool use collapses: {calls[-1]:.2f} calls an episode, {max(calls):.2f} at most. Likely, calls fail (zoom/failed) '
            'or pay too little (reward.tool_count, tool_iou and the price of a call).'
        )
    if entropy and entropy[-1] < ENTROPY_LEFT * entropy[0]:
        found['policy/entropy'] = (
            f'entropy collapses: {entropy[-1]:.3g} nats a token, {entropy[0]:.3g} at the start. Likely, the learning rate is too high; '
            'loss.clip_high of 0.28, loss.entropy_weight or a higher temperature keep the policy trying.'
        )
    for name, most, told in (
        (
            'group/zero_variance',
            MOST_ALIKE,
            'of the groups earn one reward throughout and teach nothing. Likely, the questions are too easy or too hard for this policy, '
            'or temperature and group_size too low; `refills` draws others.',
        ),
        (
            'length/cut_off',
            MOST_CUT_OFF,
            'of the answers are cut off. Likely, conversation.budget is too small for how this policy writes, or nothing tells it to be brief '
            '(a price of length, masked_endings).',
        ),
        (
            'policy/ratio_gap',
            MOST_GAP,
            'is how far the probabilities of sampler and trainer differ. Likely, activations are bfloat16 or the two run other programs; '
            "loss.correction='token' weighs it out.",
        ),
    ):
        values = means(rows, name)
        if values and values[-1] > most:
            found[name] = f'{100 * values[-1]:.0f} % {told}'
    return found


def new_symptoms(rows: Rows) -> dict[str, str]:
    """Those that the last step has brought: each is told when it begins."""
    before = symptoms(rows[:-1])
    return {name: told for name, told in symptoms(rows).items() if name not in before}


def means(rows: Rows, name: str) -> list[float]:
    """The metric's means over each WINDOW steps in a row; none where fewer steps have it."""
    values = [row[name] for row in rows if name in row]
    if len(values) < WINDOW:
        return []
    return np.lib.stride_tricks.sliding_window_view(np.array(values), WINDOW).mean(-1).tolist()
