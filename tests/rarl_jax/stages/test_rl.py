"""GRPO's stage: what its settings refuse, and how a step's groups are cut into mini-batches."""

from dataclasses import replace

import numpy as np
import pytest

from configs.quickstart import updates
from configs.quickstart_base import get_config
from rarl_jax.conversation.dialogue import Budget
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.settings import settings_from
from rarl_jax.stages.rl import mini_batches, questions_of
from rarl_jax.stages.rl_settings import JudgeSettings, StageBudget
from rarl_jax.stages.sft import SftSettings

STAGE = updates(1, RewardSettings())
GROUP = np.repeat(np.arange(6), 4)  # six groups of four episodes, side by side


def test_one_update_takes_all_episodes_as_they_stand():
    (part,) = mini_batches(replace(STAGE, questions=6), GROUP)
    assert part.tolist() == [*range(24)]


def test_mini_batches_are_whole_groups_each_once_an_epoch():
    stage = replace(STAGE, questions=6, mini_batches=3, epochs=2)
    parts = [part.tolist() for part in mini_batches(stage, GROUP)]
    assert parts == [[*range(8)], [*range(8, 16)], [*range(16, 24)]] * 2 and stage.updates == 6


def test_processes_cut_the_same_mini_batches():
    """Two processes that take turns in drawing questions, each with the groups that it numbers from 0."""
    stage = replace(STAGE, questions=4, mini_batches=2)
    whole = [set(part // 4) for part in mini_batches(stage, GROUP[:16])]
    shares = [[{2 * g + p for g in part // 4} for part in mini_batches(stage, GROUP[:8])] for p in (0, 1)]
    assert [a | b for a, b in zip(*shares, strict=True)] == whole


def test_processes_that_cannot_share_a_mini_batch_are_told_before_a_rollout(monkeypatch):
    monkeypatch.setattr('jax.process_count', lambda: 2)
    assert questions_of('main', replace(STAGE, questions=8, mini_batches=4)) == 4
    with pytest.raises(
        ValueError, match=r'config\.stage\.main: questions / mini_batches is 1, expected a multiple of the 2 pro'
    ):
        questions_of('main', replace(STAGE, questions=8, mini_batches=8))
    with pytest.raises(ValueError, match=r'config\.stage\.main\.questions is 7'):
        questions_of('main', replace(STAGE, questions=7))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'mini_batches': 5}, 'a number that divides questions, 32'),
        ({'epochs': 0}, 'epochs is 0, expected at least 1'),
        ({'questions': 0}, 'questions is 0'),
        ({'temperature': float('nan')}, 'temperature nan'),
        ({'temperature': 0.0}, 'temperature 0.0'),
        ({'micro_batch': -8}, 'micro_batch is -8'),
        ({'micro_batch': 12}, 'micro_batch is 12, expected a multiple of the 8 of a row'),
        ({'pack': 3}, 'divides group_size, 8'),
        ({'refills': -1}, 'refills is -1'),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        replace(STAGE, **change)


@pytest.mark.parametrize('change', [{'pages': 0}, {'crops_a_page': 0}, {'micro_batch': -8}])
def test_supervised_settings_that_cannot_be(change):
    name, value = next(iter(change.items()))
    stages = settings_from(get_config().to_dict()).stage
    stage = next(s for s in stages.values() if isinstance(s, SftSettings))
    with pytest.raises(ValueError, match=f'{name} is {value}, expected at least'):
        replace(stage, **change)


def test_a_stage_may_bound_conversations_otherwise():
    run = Budget(max_turns=5, turn_tokens=512, total_tokens=8192)
    assert StageBudget().over(run) == run
    assert StageBudget(max_turns=2, total_tokens=4096).over(run) == Budget(2, 512, 4096)
    with pytest.raises(ValueError, match=r'budget\.turn_tokens is -1'):
        StageBudget(turn_tokens=-1)


@pytest.mark.parametrize('change', [{'timeout': 0.0}, {'attempts': 0}, {'concurrency': 0}, {'most_missing': 1.5}])
def test_a_judge_that_cannot_be(change):
    with pytest.raises(ValueError, match=f'judge.{next(iter(change))} is'):
        JudgeSettings(**change)
