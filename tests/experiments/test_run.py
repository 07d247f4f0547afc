"""Every arm of every experiment is a run that can begin; one of them runs for a moment, once; results are those of the arms as they are."""

import shlex

import pytest

from experiments import run
from experiments.arms import HERE, Arm, Experiment, home, known, launch_lines, load_experiment, settings_of
from experiments.collect import RUN, is_kept
from experiments.results import load, read_run
from rarl_jax.runtime.files import write_json
from rarl_jax.runtime.launches import LAUNCHES

ARMS = [(name, arm) for name in known() for arm in load_experiment(name).arms]


@pytest.mark.parametrize(('name', 'arm'), ARMS)
def test_an_arm_can_begin_at_every_size(name, arm):
    found = load_experiment(name).arms[arm]
    for settings in (settings_of(found, 1), settings_of(found, 1, small=True)):
        assert settings.seed == 1 and set(settings.stages) <= set(settings.stage)
    if found.full is not None:
        assert settings_of(Arm(found.label, found.full_config, found.full), 0).model.dtype == 'bfloat16'


@pytest.mark.parametrize('name', known())
def test_launch_lines_are_shell_lines_of_every_arm_and_seed(name):
    experiment = load_experiment(name)
    lines = list(launch_lines(name, experiment))
    assert len(lines) == len(experiment.arms) * len(experiment.seeds)
    words = [shlex.split(line) for line in lines if not line.startswith('#')]
    assert all(
        line[:3] == ['python', '-m', 'rarl_jax.main'] and line[3].startswith('--config=configs/') for line in words
    )
    assert len({line[6] for line in words}) == len(words)  # workdirs


def test_a_shared_arm_is_the_other_experiments_own():
    arms = load_experiment('warm_length').arms
    ours, theirs = arms['warm_5'], load_experiment('warm_start').arms['warm_start']
    assert home('warm_length', 'warm_5', ours) == ('warm_start', 'warm_start')
    assert settings_of(ours, 2) == settings_of(theirs, 2) and ours.full != theirs.full
    assert home('warm_length', 'warm_10', arms['warm_10']) == ('warm_length', 'warm_10')


def test_what_has_results_runs_again_where_another_starts_from_its_policy(tmp_path):
    """Committed results have no export."""

    def job(name, kept, begins=None):
        results = tmp_path / 'kept' / name
        made = run.Job(name, Arm(name), 0, None, tmp_path / name, results, (), begins, False)
        if kept:
            write_json(results / RUN, made.about)
        return made

    first, second, other = job('first', True), job('second', False, tmp_path / 'first' / 'export'), job('other', True)
    assert run.missing([first, second, other]) == [first, second]
    assert run.missing([first, job('second', True, first.export), other]) == []
    (tmp_path / 'first').mkdir()
    (tmp_path / 'first' / LAUNCHES).write_text('{"event": "finished"}\n')
    assert run.missing([first, job('third', False, first.export)])[0].name == 'third'


def test_an_arm_begins_with_one_before_it():
    with pytest.raises(ValueError, match="Arm later begins with 'first', which is no arm before it"):
        Experiment('?', {'later': Arm('later', begins_with='first'), 'first': Arm('first')})


@pytest.mark.slow
def test_an_arm_runs_once_and_its_results_are_read(tmp_path, capsys, monkeypatch):
    """The one with most kinds of stages: reinforcement, answers to training questions, and students of these."""
    command = ['distilled', '--small', '--seeds=1', '--arms', 'distilled', f'--runs={tmp_path}']
    assert run.main(command) == 0
    folder = tmp_path / 'distilled-small' / 'results' / 'distilled-0'
    found = read_run(folder)
    assert (found.arm, found.seed) == ('distilled', 0)
    students = ('student', 'distilled', 'student_tower', 'distilled_tower')
    assert found.metrics['stage'].tolist() == ['warm_start', 'main', 'rarl', 'teacher', *students]
    modes = ('rarl:blank_crop', 'rarl:zoom', 'teacher:oracle_zoom', 'distilled:direct', 'distilled_tower:direct')
    assert sorted(found.answers) == sorted(modes)
    assert {len(records) for records in found.answers.values()} == {8}
    assert found.episodes and all(episode.page_image.endswith('.jpg') for episode in found.episodes)
    assert sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) < 300_000
    monkeypatch.setattr(run, 'run_one', lambda *_: pytest.fail('what is finished was run again'))
    assert run.main(command) == 0
    assert '1 runs, results in' in capsys.readouterr().out
    about = {'run': 'distilled-0', 'seed': 0, 'config': 'configs/distill.py:small'}
    assert is_kept(folder, about) and not is_kept(folder, about | {'seed': 1})


@pytest.mark.parametrize('name', [name for name in known() if (HERE / name / 'results').is_dir()])
def test_committed_results_are_those_of_the_arms(name):
    """Reading refuses another arm's; and no arm's results are large."""
    for found in load(name).runs:
        assert found.answers and found.about['commit'] and '-dirty' not in found.about['commit']


def test_an_arm_without_the_one_that_it_begins_with_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(['main_table', '--arms', 'rl_after_sft_r'])
    assert 'rl_after_sft_r begins with sft_r: name it too.' in capsys.readouterr().err
