"""What holds of every batch: each violation is told with the episode's name, and nothing that a policy does is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from input_pipeline.traces import Step
from rarl_jax.learner.batches import feature_rows, positions_of
from rarl_jax.learner.invariants import check_episode, check_groups, not_finite, widest_gap
from rarl_jax.models.interface import read_config
from tests.rarl_jax.small_policy import acted, folder, sample

BOX = (40.0, 60.0, 140.0, 200.0)
CONFIG = read_config(folder())
EPISODE = acted(sample(3), Step(box=BOX), Step(answer='running'))


def check(episode, positions=None, features=None):
    placed, _ = positions_of(EPISODE.ids, EPISODE.images, CONFIG)
    rows = feature_rows(EPISODE.ids, [0, 100], EPISODE.images, CONFIG)
    check_episode(
        episode,
        placed if positions is None else positions,
        rows if features is None else features,
        CONFIG.image_token_id,
    )


def changed(name, place, value):
    array = getattr(EPISODE, name).copy()
    array[place] = value
    return replace(EPISODE, **{name: array})


def test_a_conversation_with_a_crop_is_whole():
    assert len(EPISODE.images) == 2 and EPISODE.loss_mask.any()
    check(EPISODE)  # raises nothing


CHOSEN = np.flatnonzero(EPISODE.loss_mask)[0]
IMAGE = np.flatnonzero(EPISODE.ids == CONFIG.image_token_id)[0]


@pytest.mark.parametrize(
    ('episode', 'told'),
    [
        (changed('ids', IMAGE, 5), r'\d+ image tokens, but \d+ features'),
        (changed('loss_mask', 0, True), 'its first token marked as chosen'),
        (changed('loss_mask', IMAGE, True), 'an image token marked as chosen'),
        (changed('sample_logprobs', CHOSEN, np.nan), 'log-prob is not finite'),
        (changed('sample_logprobs', CHOSEN, 0.5), 'probability is over 1'),
    ],
)
def test_a_violation_names_the_episode(episode, told):
    with pytest.raises(ValueError, match=f'^Episode 0 of question page-3/q has .*{told}'):
        check(episode)


def test_positions_never_go_back():
    positions, _ = positions_of(EPISODE.ids, EPISODE.images, CONFIG)
    for axis in range(3):
        back = positions.copy()
        back[axis, -1] = back[axis, -2]
        with pytest.raises(ValueError, match='not behind those before it'):
            check(EPISODE, positions=back)


def test_features_belong_to_image_tokens_alone():
    rows = feature_rows(EPISODE.ids, [0, 100], EPISODE.images, CONFIG)
    with pytest.raises(ValueError, match='features of its images'):
        check(EPISODE, features=np.roll(rows, 1))


def test_groups_are_whole_and_side_by_side():
    one, two = (replace(EPISODE, question_id=name) for name in 'ab')
    check_groups([one, one, two, two], 2)
    for mixed in ([one, two, one, two], [one, one, two]):
        with pytest.raises(ValueError, match=r'^Episode 0 of question . begins a group of 2'):
            check_groups(mixed, 2)


def test_the_widest_gap_and_what_is_not_finite_are_found():
    sampled = EPISODE.sample_logprobs[EPISODE.loss_mask]
    other = replace(EPISODE, question_id='other')
    silent = replace(EPISODE, loss_mask=np.zeros_like(EPISODE.loss_mask))
    worst, gap = widest_gap([EPISODE, other, silent], [sampled, sampled + np.log(1.5), np.zeros(0)])
    assert worst is other and gap == pytest.approx(0.5, rel=1e-5)
    assert widest_gap([silent], [np.zeros(0)]) is None
    assert not_finite([EPISODE, other], np.zeros(2), [sampled, sampled]) == []
    assert not_finite([EPISODE, other], np.array([0, np.nan]), [sampled, sampled]) == ['other']
    assert not_finite([EPISODE, other], np.zeros(2), [sampled - np.inf, sampled]) == ['page-3/q']
