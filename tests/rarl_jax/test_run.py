"""Whole runs from the command line: every config's smoke variant, a run that is stopped, and what a user can get wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from configs import quickstart as quickstart_config
from configs import rarl as rarl_config
from rarl_jax.run import check_inputs, folder_problem, take_workdir
from rarl_jax.settings import settings_from
from tests.campaign import MOMENTS, QUICKSTART, campaign
from tests.commands import QUICK, ROOT, launch

# Everything that a run compiles, by name.
PROGRAMS = {
    *('encode_images', 'empty_cache', 'extend', 'fork', 'take', 'decode'),  # of a rollout
    *('copy', 'logprobs', 'nothing', 'accumulate', 'apply'),  # of updates
    *('_key', 'init_fn', 'all_finite'),
}


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> Path:
    """Where that run finds no compiled program, and leaves its own."""
    return tmp_path_factory.mktemp('programs')


@pytest.fixture(scope='module')
def quickstart(tmp_path_factory, programs) -> Path:
    """The workdir of a finished smoke run of the quickstart."""
    workdir = tmp_path_factory.mktemp('quickstart')
    done = launch(*QUICKSTART.arguments, f'--workdir={workdir}', JAX_COMPILATION_CACHE_DIR=str(programs))
    assert done.returncode == 0, done.stderr
    shutil.copytree(programs, os.environ['JAX_COMPILATION_CACHE_DIR'], dirs_exist_ok=True)  # for the runs to come
    return workdir


def compiled(programs: Path) -> list[str]:
    """Names of the programs there."""
    return sorted(path.name.rpartition('-cache')[0].rpartition('-')[0] for path in programs.glob('*-cache'))


@pytest.mark.slow
def test_the_programs_of_a_run_are_few_and_known(quickstart, programs):
    """A stray operation outside of them is a program of its own, and so is a shape that nobody planned."""
    found = compiled(programs)
    assert {name.removeprefix('jit_') for name in found} <= PROGRAMS and len(found) <= 25, found


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
    assert 0 < trained['sampler/utilisation'] <= 1
    for path in ('config.json', 'report/index.html', 'results.md', 'eval/rarl/results.json'):
        assert (quickstart / path).is_file(), path
    for name in ('tokenizer', 'tokenizer_config', 'preprocessor_config', 'generation_config', 'config'):
        assert (quickstart / 'export' / f'{name}.json').is_file(), name
    for name in ('chat_template.jinja', 'ask.py', 'README.md'):
        assert (quickstart / 'export' / name).is_file(), name
    told, given = (json.loads((quickstart / name).read_text()) for name in ('export/rarl.json', 'config.json'))
    assert [told[kind] for kind in ('page', 'crop')] == [given['model'][kind] for kind in ('page', 'crop')]
    assert told['budget'] == given['conversation']['budget']
    assert list((quickstart / 'tensorboard').iterdir()) and list((quickstart / 'rollouts').glob('main-*.jsonl'))


@pytest.mark.slow
def test_a_finished_run_asks_and_compiles_nothing_again(quickstart, programs):
    before = (quickstart / 'metrics.jsonl').read_text(), compiled(programs)
    done = launch(*QUICKSTART.arguments, f'--workdir={quickstart}', JAX_COMPILATION_CACHE_DIR=str(programs))
    assert done.returncode == 0, done.stderr
    assert ((quickstart / 'metrics.jsonl').read_text(), compiled(programs)) == before


@pytest.mark.slow
def test_a_workdir_of_another_config_is_refused(quickstart):
    done = launch(*QUICKSTART.arguments, f'--workdir={quickstart}', '--config.seed=1')
    assert done.returncode == 1
    assert 'config.seed' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='finds what a killed run leaves in /proc')
def test_a_run_that_is_killed_again_and_again_ends_as_though_nobody_had(quickstart, tmp_path):
    """kill -9 in every phase, also in the midst of a stage of 2 x 2 mini-batches."""
    moments = [moment for moment in MOMENTS if moment.name not in ('making the policy', 'a later update')]
    done = campaign(QUICKSTART, quickstart, tmp_path / 'run', moments, random.Random(0))
    assert all('killed' in line for line in done), done


@pytest.mark.slow
@pytest.mark.parametrize(
    'config',
    [
        'rarl.py:smoke',
        'quickstart_base.py:smoke',
        'quickstart_base.py:qwen3_vl_smoke',
        'quickstart_base.py:wider_smoke',
        'evaluate.py:smoke',
    ],
)
def test_smoke(config, tmp_path):
    done = launch(f'--config=configs/{config}', f'--workdir={tmp_path}')
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
        (['--config=configs/build_ai4va_fg.py'], 'config.data.out is empty'),
        (['--config=configs/evaluate.py'], 'config.data.dir is empty'),
        (['--config=configs/quickstart.py:smoke', '--config.model.path=\x1b[31mx\u202e'], r'\x1b[31mx\u202e'),
        (['--config=configs/quickstart.py:smoke', '--config.mesh.fsdp=64'], 'needs 64 devices, found'),
        ([], 'Flag --config must have a value'),
    ],
)
def test_mistakes_are_told_in_a_sentence(arguments, expected, tmp_path):
    done = launch(*arguments, f'--workdir={tmp_path / "run"}')
    assert done.returncode != 0
    assert expected in done.stderr + done.stdout
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'run').exists(), 'something was made before the mistake was told'


def take(folder, **changes):
    """As a launch of a small config would take its workdir; gives it back at once."""
    stage = ConfigDict({'steps': 3, 'save_every': 1, 'show_every': 1})
    config = ConfigDict({'seed': 0, 'compare': ('a',), 'keep_checkpoints': 2, 'stage': {'main': stage}})
    config.update_from_flattened_dict(changes)
    take_workdir(folder, config).close()


def test_what_is_only_shown_may_change_in_an_old_workdir(tmp_path):
    take(tmp_path / 'run')
    changes = {'compare': ('a', 'b'), 'keep_checkpoints': 5, 'stage.main.save_every': 7, 'stage.main.show_every': 9}
    take(tmp_path / 'run', **changes)
    kept = json.loads((tmp_path / 'run' / 'config.json').read_text())
    assert (kept['compare'], kept['stage']['main']['save_every']) == (['a', 'b'], 7)
    for name, value in {'seed': 1, 'stage.main.steps': 4}.items():
        with pytest.raises(ValueError, match=rf'other settings \(config.{name}\)'):
            take(tmp_path / 'run', **changes, **{name: value})


@pytest.mark.parametrize('content', ['', '[]', '{"seed": 0', '[' * 100_000])
def test_a_damaged_config_is_told(tmp_path, content):
    take(tmp_path)
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(ValueError, match=r'config\.json (is not JSON|holds a list).*put back the copy'):
        take(tmp_path)


def test_a_config_with_a_byte_order_mark_is_the_same(tmp_path):
    take(tmp_path)
    path = tmp_path / 'config.json'
    marked = b'\xef\xbb\xbf' + path.read_bytes()
    path.write_bytes(marked)
    take(tmp_path)
    assert json.loads(path.read_text('utf-8-sig')) == json.loads(marked.decode('utf-8-sig'))
    with pytest.raises(ValueError, match=r'other settings \(config\.seed\)'):
        take(tmp_path, seed=1)


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / 'thesis.tex').write_text('')
    with pytest.raises(ValueError, match=r"is no workdir of a run: it holds 'thesis\.tex'"):
        take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_what_a_killed_launch_leaves_is_taken(tmp_path):
    (tmp_path / '.lock').write_text('')
    (tmp_path / '.config.json.partial').write_text('{')
    take(tmp_path)
    assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_is_told_in_a_sentence(tmp_path):
    """A limit on the size of files stands for the full disk; it is a library in C++ that meets it, at the data set."""
    command = f'ulimit -f 1000; exec {sys.executable} -m rarl_jax.main --config=configs/quickstart.py:smoke --workdir={tmp_path}'
    done = subprocess.run(
        ['bash', '-c', command], cwd=ROOT, env=os.environ | QUICK, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f'error: {tmp_path}: File too large: ' in done.stderr
    assert 'Traceback' not in done.stderr and 'Traceback' in (tmp_path / 'error.log').read_text()


@pytest.mark.slow
def test_a_run_that_is_stopped_says_so_by_its_status_and_refuses_a_second_beside_it(tmp_path):
    command = [sys.executable, '-m', 'rarl_jax.main', '--config=configs/quickstart.py:smoke', f'--workdir={tmp_path}']
    command += ['--config.stage.main.steps=9999', "--config.stages=('main',)", '--config.compare=()']
    told = tmp_path / 'metrics.jsonl'
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | QUICK, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        while not (told.is_file() and told.read_text()):
            time.sleep(0.1)
        second = launch(*command[3:])
        run.send_signal(signal.SIGTERM)
        said, _ = run.communicate(timeout=60)
    assert second.returncode == 1 and f'in use by process {run.pid} on ' in second.stderr
    assert run.returncode == 143
    assert 'Stopped by SIGTERM; everything is saved' in said and 'Traceback' not in said
    steps = [json.loads(line)['step'] for line in told.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    assert [int(path.name) for path in (tmp_path / 'checkpoints').iterdir()] == [len(steps)]


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_never_applied(tmp_path):
    """The loss and its gradient are finite, what the rate makes of them is not: every update is skipped, and the policy is as it was."""
    run = [
        '--config=configs/quickstart.py:smoke',
        f'--workdir={tmp_path}',
        "--config.stages=('main',)",
        '--config.compare=()',
    ]
    # Adam's first step has the rate's length in every direction: its sum of squares is beyond float32.
    done = launch(*run, '--config.stage.main.optimizer.learning_rate=1e38')
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['optimizer/skipped'] for line in lines] == [1.0, 1.0]
    assert 'Step 2 of stage main: optimizer/update_norm would not be finite' in done.stdout
    again = launch(
        *run, '--config.stage.main.optimizer.learning_rate=1e38', f'--replay={tmp_path}/skipped/main-000001.safetensors'
    )
    assert again.returncode == 0 and 'As in the run.' in again.stdout, again.stdout + again.stderr
    before, after = (load_file(tmp_path / name / 'model.safetensors') for name in ('init', 'export'))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def without_end(episode, question):
    """A user's reward that is NaN for one task."""
    return {'own': float('nan') if question.task == 'action_recognition' else 0.5}


@pytest.mark.slow
def test_rewards_that_are_not_finite_are_skipped_kept_and_end_the_run(tmp_path):
    run = ['--config=configs/quickstart.py:smoke', f'--workdir={tmp_path}', "--config.stages=('main',)"]
    run += ['--config.compare=()', '--config.stage.main.steps=3', '--config.stage.main.most_skipped=1']
    run += ["--config.stage.main.reward.extra=('tests.rarl_jax.test_run:without_end',)", '--config.seed=1']
    run += ["--config.stage.main.tasks=('action_recognition',)"]
    done = launch(*run)
    assert done.returncode == 1, done.stdout
    kept = tmp_path / 'skipped' / 'main-000002.safetensors'
    assert 'Step 1 of stage main: loss, ' in done.stdout and 'was skipped. Questions: ' in done.stdout
    assert '2 in a row (most_skipped is 1). Questions: Gang_0001_1945_01_07-' in done.stderr
    assert 'reward/own, ' in done.stderr and f'--replay={kept} repeats it' in done.stderr
    lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    assert [line['optimizer/skipped'] for line in lines] == [1, 1]
    assert all('loss' not in line and 'reward/format' in line for line in lines)
    before = files_of(tmp_path)
    again = launch(*run, f'--replay={kept}')
    assert again.returncode == 0, again.stdout + again.stderr
    assert '  loss: nan\n' in again.stdout and 'As in the run.' in again.stdout
    assert 'Gradients that are not finite: ' in again.stdout and 'Questions that are not finite: Gang_' in again.stdout
    assert files_of(tmp_path) == before


def files_of(workdir: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in workdir.rglob('*') if path.is_file() and path.name != '.lock'}


@pytest.mark.slow
def test_an_ascii_terminal_ends_no_run(tmp_path):
    plain = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={tmp_path}', **plain)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'report' / 'index.html').is_file()


@pytest.mark.parametrize(
    ('key', 'value', 'told'),
    [
        ('stage.main.save_every', 0, 'config.stage.main: steps is 2 and save_every 0'),
        ('stage.main.steps', 0, 'config.stage.main: steps is 0'),
        ('stage.main.show_every', -1, 'config.stage.main: show_every is -1'),
        ('mesh.tensor', 0, 'tensor 0 and cpu_devices 2'),
        ('mesh.data', -1, 'data is -1'),
        ('mesh.rules.embed', ('x',), "rules has embed=('x',)"),
        ('stage.main.optimizer.learning_rate', float('nan'), 'config.stage.main.optimizer.learning_rate is NaN'),
        ('data.draw.balloon_rate', float('inf'), 'config.data.draw.balloon_rate is NaN or infinite'),
        ('seed', -1, '^config.seed is -1, expected 0'),
        ('keep_checkpoints', 0, '^config.keep_checkpoints is 0'),
        ('hang_factor', -1.0, '^config.hang_factor is -1'),
        ('stage.main.most_gap', 0.0, 'config.stage.main: most_gap is 0'),
        ('stage.main.most_skipped', -1, 'config.stage.main: most_skipped is -1'),
        ('compare', ('main:zoom',), "config.compare names ['main:zoom']"),
        ('data.pages.test', -3, 'pages.test is -3'),
        ('data.held_out', 1.0, 'data.held_out is 1.0'),
    ],
)
def test_settings_that_cannot_be_are_told_by_name(key, value, told):
    config = quickstart_config.get_config('smoke')
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=told.replace('[', r'\[').replace('(', r'\(').replace(')', r'\)')):
        settings_from(config.to_dict())


def test_a_task_named_twice_is_told_with_its_stage():
    settings = settings_from(quickstart_config.get_config('smoke').to_dict())
    twice = replace(settings.stage['main'], tasks=('depth_comparison', 'depth_comparison'))
    with pytest.raises(ValueError, match=r'config\.stage\.main\.tasks names depth_comparison more than once'):
        check_inputs(replace(settings, stage={**settings.stage, 'main': twice}))


def test_a_relative_path_from_another_folder_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = folder_problem('config.model.path', 'experiments/quickstart_base', 'a policy')
    assert f'no folder in {tmp_path}, but one in {ROOT}' in told
    assert folder_problem('config.model.path', str(ROOT / 'experiments'), 'a policy') is None
    (tmp_path / 'file').write_text('')
    assert 'is a file and no folder' in folder_problem('config.model.path', str(tmp_path / 'file'), 'a policy')


def test_everything_that_is_missing_is_told_at_once(monkeypatch):
    for name in ('OPENAI_BASE_URL', 'JUDGE_MODEL'):
        monkeypatch.delenv(name, raising=False)
    config = rarl_config.get_config()
    config.stage.rarl.judge = 'endpoint'
    config.stage.character.judge.kind = 'endpoint'
    with pytest.raises(ValueError) as told:
        check_inputs(settings_from(config.to_dict()))
    judges = [f'config.stage.{name}.judge: the judge needs' for name in ('character', 'rarl')]
    parts = ('config.model.path is empty', 'config.data.dir is empty', *judges)
    assert [part in line for part, line in zip(parts, str(told.value).splitlines(), strict=True)] == [True] * 4


def test_a_config_file_from_another_folder_is_told(tmp_path):
    done = launch('--config=configs/quickstart.py', cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert (
        f'No config file configs/quickstart.py in {tmp_path}: did you mean --config={ROOT}/configs/quickstart.py?'
        in done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_workdir_that_leads_in_a_circle_is_told(tmp_path):
    (tmp_path / 'a').symlink_to(tmp_path / 'b')
    (tmp_path / 'b').symlink_to(tmp_path / 'a')
    done = launch('--config=configs/quickstart.py:smoke', f'--workdir={tmp_path}/a/run')
    assert done.returncode == 1
    assert 'error: ' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('config', 'folder'),
    [('configs/quickstart.py', 'quickstart'), ('configs/quickstart.py:wider_smoke', 'quickstart_wider_smoke')],
)
def test_variants_have_workdirs_of_their_own(config, folder, monkeypatch):
    """In one folder, the second would be refused as a run with other settings."""
    from rarl_jax import main  # not above: runs import this file for their rewards, and its flags are defined once

    monkeypatch.setattr(main, '_WORKDIR', SimpleNamespace(value=''))
    monkeypatch.setattr(main.config_flags, 'get_config_filename', lambda flag: config)
    assert main.workdir() == (Path.cwd() / 'runs' / folder)


def test_help_lists_the_configs():
    assert 'configs/quickstart.py: RARL on drawn comic pages' in launch('--help').stdout
