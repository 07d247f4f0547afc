"""Whole runs from the command line: every config's smoke variant, a run that is stopped, and what a user can get wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.commands import launch


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory) -> Path:
    """The workdir of a finished smoke run of the quickstart."""
    workdir = tmp_path_factory.mktemp('quickstart')
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_the_quickstart_leaves_what_a_user_relies_on(quickstart):
    lines = [json.loads(line) for line in (quickstart / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['step'], line['stage']) for line in lines] == [
        (0, 'base'),
        (1, 'warm_start'),
        (2, 'main'),
        (3, 'main'),
        (3, 'rarl'),
    ]
    trained = lines[2]
    for name in ('reward/total', 'reward/format', 'zoom/calls', 'policy/ratio_gap', 'time/rollout', 'compiles'):
        assert name in trained
    assert trained['policy/ratio_gap'] < 1e-3, 'the sampler and the trainer disagree about log-probs'
    for path in ('config.json', 'report/index.html', 'results.md', 'eval/rarl/results.json'):
        assert (quickstart / path).is_file(), path
    for name in ('tokenizer', 'tokenizer_config', 'preprocessor_config', 'generation_config', 'config'):
        assert (quickstart / 'export' / f'{name}.json').is_file(), name
    assert (quickstart / 'export' / 'chat_template.jinja').is_file()
    assert list((quickstart / 'tensorboard').iterdir()) and list((quickstart / 'rollouts').glob('main-*.jsonl'))


@pytest.mark.slow
def test_a_finished_run_asks_nothing_again(quickstart):
    before = (quickstart / 'metrics.jsonl').read_text()
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={quickstart}')
    assert done.returncode == 0, done.stderr
    assert (quickstart / 'metrics.jsonl').read_text() == before


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(quickstart):
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={quickstart}', '--config.seed=1')
    assert done.returncode == 1
    assert 'config.seed' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
def test_a_run_killed_after_a_step_ends_with_the_same_policy(quickstart, tmp_path):
    """The checkpoint of the first stage alone is put into a workdir: what is trained from there is bit-equal to the whole run's."""
    again = tmp_path / 'again'
    shutil.copytree(quickstart, again, ignore=shutil.ignore_patterns('00000003', 'rarl', 'export', 'report'))
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={again}')
    assert done.returncode == 0, done.stderr
    whole, resumed = (load_file(d / 'export' / 'model.safetensors') for d in (quickstart, again))
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize('config', ['rarl', 'quickstart_base', 'evaluate'])
def test_smoke(config, tmp_path):
    done = launch(f'--config=configs/{config}.py:smoke', f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'report' / 'index.html').is_file()


@pytest.mark.slow
def test_a_baseline_begins_with_the_policy_that_the_run_began_with(tmp_path):
    """Plain RL comes after RARL's stages; with a learning rate of 0 it must leave the first policy, not theirs."""
    still = '--config.stage.plain.optimizer.learning_rate=0.0'
    done = launch('--config=configs/quickstart_compare.py:smoke', still, f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    first, last = (load_file(tmp_path / folder / 'model.safetensors') for folder in ('init', 'export'))
    assert all(np.array_equal(first[name], last[name]) for name in first)
    assert 'plain_rl' in (tmp_path / 'results.md').read_text()
    for stage in ('rarl', 'plain_rl'):  # as many updates each, from the same policy
        assert json.loads((tmp_path / 'eval' / stage / 'results.json').read_text())['checkpoint'] == 'init+3'


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config=configs/quickstat.py'], 'did you mean --config=configs/quickstart.py'),
        (['--config=configs/quickstart.py:smok'], "Unknown variant 'smok'"),
        (['--config=configs/quickstart.py', '--config.seeed=1'], 'seeed'),
        (['--config=configs/quickstart.py:smoke', '--config.model.path=nowhere', '--config.data.dir=.'], 'nowhere'),
        (['--config=configs/quickstart.py:smoke', '--config.data.dir=nowhere'], "config.data.dir is 'nowhere'"),
        (['--config=configs/build_ai4va_fg.py'], 'config.data.raw is empty'),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, expected, tmp_path):
    done = launch(*arguments, f'--workdir={tmp_path / "run"}')
    assert done.returncode != 0
    assert expected in done.stderr + done.stdout
    assert 'Traceback' not in done.stderr


def test_help_lists_the_configs():
    assert 'configs/quickstart.py: RARL on drawn comic pages' in launch('--help').stdout
