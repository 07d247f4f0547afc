import os

import pytest

from rarl_jax.report.workdir import Series, Stage, choose_steps, lay_out, read_run


def row(step, stage, **scalars):
    return {'step': step, 'stage': stage, **scalars}


def test_steps_through_the_run_stay():
    metrics, stages = lay_out([row(1, 'a', x=0.1), row(2, 'a', x=0.2), row(3, 'b', x=0.3)])
    assert metrics == {'x': Series((1, 2, 3), (0.1, 0.2, 0.3))}
    assert stages == [Stage('a', 1), Stage('b', 3)]


def test_steps_that_begin_anew_follow_each_other():
    metrics, stages = lay_out([row(1, 'a', x=1.0), row(2, 'a', x=2.0), row(1, 'b', x=3.0), row(2, 'b', x=4.0)])
    assert metrics['x'] == Series((1, 2, 3, 4), (1.0, 2.0, 3.0, 4.0))
    assert stages[1] == Stage('b', 3)


def test_of_a_step_written_twice_the_last_counts():
    metrics, _ = lay_out([row(1, 'a', x=1.0), row(2, 'a', x=2.0), row(2, 'a', x=9.0), row(3, 'a', x=3.0)])
    assert metrics['x'] == Series((1, 2, 3), (1.0, 9.0, 3.0))


def test_words_and_missing_numbers_are_no_points():
    metrics, _ = lay_out(
        [row(1, 'a', x=None, note='hi', flag=True, y=float('nan')), row(2, 'a', x=1.0), {'stage': 'a', 'x': 5.0}]
    )
    assert metrics == {'x': Series((2,), (1.0,))}


def test_a_few_steps_of_every_stage_are_shown(tmp_path):
    paths = [tmp_path / f'rl-{step:06d}.jsonl' for step in range(10, 110, 10)] + [tmp_path / 'a-b-000001.jsonl']
    for i, path in enumerate(paths):
        path.touch()
        os.utime(path, (i, i))
    assert [path.stem for path in choose_steps(paths)] == [
        'rl-000010',
        'rl-000040',
        'rl-000070',
        'rl-000100',
        'a-b-000001',
    ]


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'is no run: it has none of config\.json'):
        read_run(tmp_path, 'x')


def test_what_cannot_be_read_becomes_a_note(tmp_path):
    (tmp_path / 'config.json').write_text('{')
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "stage": "a", "x": 1}\nnonsense\n{"step": 2')
    (tmp_path / 'rollouts').mkdir()
    (tmp_path / 'rollouts' / 'rl-000001.jsonl').write_text('{}\n')
    (tmp_path / 'eval' / 'before').mkdir(parents=True)
    (tmp_path / 'eval' / 'before' / 'results.json').write_text('{"evaluations": {}}')
    run = read_run(tmp_path, 'x')
    assert (run.config, run.metrics, run.groups, run.evaluations) == ({}, {}, (), ())
    assert len(run.notes) == 4 and all('\n' not in note for note in run.notes)


def test_a_folder_where_a_file_is_meant_becomes_a_note(tmp_path):
    for name in ('config.json', 'metrics.jsonl'):
        (tmp_path / name).mkdir()
    run = read_run(tmp_path, 'x')
    assert sorted(note.partition(': ')[0] for note in run.notes) == [
        f'{tmp_path}/{n}' for n in ('config.json', 'metrics.jsonl')
    ]


def test_a_run_that_is_still_writing_is_read(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "stage": "a", "x": 1}\n{"step": 2, "sta')
    run = read_run(tmp_path, 'x')
    assert run.metrics == {'x': Series((1,), (1.0,))} and run.notes == []
