"""Stage kinds: the core's names, and import paths of a user's own."""

from __future__ import annotations

import sys
import types

import pytest

from configs import quickstart
from rarl_jax.settings import settings_from
from rarl_jax.stages.registry import StageKind, TrainingSettings, load_kind


@pytest.fixture
def own_stage(monkeypatch) -> str:
    """The import path of a module with a stage of one's own."""
    module = types.ModuleType('a_lab_stage')
    module.STAGE = StageKind(TrainingSettings, lambda run, name, stage: None)
    monkeypatch.setitem(sys.modules, 'a_lab_stage', module)
    return 'a_lab_stage'


def test_core_kinds_have_short_names():
    assert load_kind('rl').trains and load_kind('sft').trains and not load_kind('evaluate').trains
    assert not load_kind('rarl_jax.small.grounding').takes_adapter


def test_a_config_names_a_stage_of_its_own(own_stage):
    config = quickstart.get_config('smoke').to_dict()
    config['stage']['main'] = {'kind': own_stage, 'steps': 3}
    assert settings_from(config).stage['main'] == TrainingSettings(kind=own_stage, steps=3)


@pytest.mark.parametrize('kind', ['no_such_module', 'rarl_jax.run', '', None, 7, 'json'])
def test_what_is_no_kind_is_named(kind):
    config = quickstart.get_config('smoke').to_dict()
    config['stage']['main'] = {'kind': kind, 'steps': 3}
    with pytest.raises(ValueError, match=r'The kind of a stage, if none of sft, rl, evaluate, is .*STAGE'):
        settings_from(config)


def test_what_is_wrong_in_a_stage_names_its_key():
    config = quickstart.get_config('smoke').to_dict()
    config['stage']['base']['samples'] = 0
    with pytest.raises(ValueError, match=r'config\.stage\.base: .*samples 0'):
        settings_from(config)


def test_what_is_compared_must_be_measured():
    config = quickstart.get_config('smoke').to_dict()
    config['compare'] = ('base:zoom', 'rarl:direct', 'main', 'nowhere')
    with pytest.raises(ValueError, match=r"config\.compare names \['rarl:direct', 'main', 'nowhere'\].*rarl:zoom"):
        settings_from(config)


def test_a_fresh_policy_of_an_unknown_kind_is_named():
    config = quickstart.get_config('smoke').to_dict()
    config['model']['fresh']['kind'] = 'rarl_jax.run'
    with pytest.raises(ValueError, match=r'config\.model\.fresh\.kind is .*POLICY'):
        settings_from(config)
