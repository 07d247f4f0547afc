import dataclasses
import json
import subprocess

import pytest

from rarl_jax.evaluation.results import Provenance, read_results, region_size, source_commit, summarize, write_results
from rarl_jax.evaluation.samples import read_samples, rewrite_samples
from tests.rarl_jax.evaluation.made import record

PROVENANCE = Provenance(
    'after', 20, 'checkpoints/20', 'abc', '0' * 64, {'page': (784, 50176), 'crop': (784, 12544)}, seed=0
)


def test_a_task_by_hand():
    records = [
        record('a', [1.0], page='p0', ious=(0.8, None, 0.4)),
        record('b', [0.0], page='p1', ious=(0.3,), zoom_needed=False, region_share=0.1),
        record('c', [1.0], page='p1', ious=(None,), region_share=0.001),
        record('d', [0.0], page='p2', said=None, region_share=None),
    ]
    task = summarize(records)['zoom']['tasks']['action_recognition']
    assert (task['metric'], task['n'], task['pages'], task['accuracy']) == ('accuracy', 4, 3, 0.5)
    assert task['zoom_iou_first'] == pytest.approx(0.55) and task['zoom_iou_second'] == pytest.approx(0.4)
    assert (task['zoom_hit_rate'], task['zoom_rate'], task['zoom_calls']) == (0.5, 0.5, 1.25)
    assert task['zoom_failed'] == 0.4 and task['zoom_statuses'] == {'bad_box': 2, 'ok': 3}
    assert task['answered'] == 0.75 and task['finish_reasons'] == {'answer': 4}
    assert {name: part['n'] for name, part in task['by_zoom_needed'].items()} == {'yes': 3, 'no': 1}
    assert {name: part['n'] for name, part in task['by_region_size'].items()} == {
        'tiny': 1,
        'small': 1,
        'large': 1,
        'none': 1,
    }
    assert task['by_zoom_needed']['no']['zoom_iou_first'] == 0.3


def test_sampled_answers_are_a_mean_and_a_pass_rate():
    records = [
        record(name, grades, decoding='sampled')
        for name, grades in [('a', [1.0, 0.0, 0.0, 0.0]), ('b', [1.0, 1.0, 0.5, 0.0])]
    ]
    evaluation = summarize(records)['zoom@4']
    task = evaluation['tasks']['action_recognition']
    assert (evaluation['k'], evaluation['decoding']) == (4, 'sampled')
    assert task['accuracy'] == pytest.approx((0.25 + 0.625) / 2) and task['exact'] == 3 / 8
    assert task['pass_at'] == pytest.approx({'1': 3 / 8, '2': (0.5 + 5 / 6) / 2, '4': 1.0})


def test_choices_and_open_form_are_told_apart():
    records = [record('a', [1.0]), record('b', [0.5], choices=()), record('c', [0.0], choices=())]
    task = summarize(records)['zoom']['tasks']['action_recognition']
    assert (task['metric'], task['accuracy']) == ('accuracy+token_f1', 0.5)
    assert {name: (part['n'], part['accuracy']) for name, part in task['by_form'].items()} == {
        'choices': (1, 1.0),
        'open': (2, 0.25),
    }


def test_modes_and_tasks_stay_apart():
    records = [
        record('a', [1.0]),
        record('a', [0.0], mode='blank_crop'),
        record('b', [0.5], task='panel_reordering', choices=()),
    ]
    evaluations = summarize(records)
    assert set(evaluations) == {'zoom', 'blank_crop'}
    assert {task: part['accuracy'] for task, part in evaluations['zoom']['tasks'].items()} == {
        'action_recognition': 1.0,
        'panel_reordering': 0.5,
    }
    assert evaluations['zoom']['accuracy'] == 0.75
    assert evaluations['zoom']['tasks']['panel_reordering']['metric'] == 'kendall_tau'


def test_what_was_not_judged_is_counted_and_not_averaged():
    task = summarize([record('a', [None]), record('b', [1.0])])['zoom']['tasks']['action_recognition']
    assert (task['n'], task['unjudged'], task['accuracy']) == (2, 1, 1.0)
    nothing = summarize([record('a', [None])])['zoom']
    assert nothing['accuracy'] is None and nothing['tasks']['action_recognition']['interval'] is None


@pytest.mark.parametrize(
    ('share', 'name'),
    [(None, 'none'), (0.0, 'tiny'), (0.005, 'small'), (0.0799, 'medium'), (0.08, 'large'), (1.0, 'large')],
)
def test_region_sizes(share, name):
    assert region_size(share) == name


def test_the_file_names_what_made_it_and_is_plain_json(tmp_path):
    records = [record('a', [1.0], ious=(0.5,))]
    rewrite_samples(tmp_path, records)
    written = write_results(tmp_path, PROVENANCE, records)
    read, answers = read_results(tmp_path)
    assert answers == records and read['samples']['count'] == 1
    assert read == json.loads(json.dumps(written))
    assert (read['stage'], read['step'], read['checkpoint'], read['commit']) == ('after', 20, 'checkpoints/20', 'abc')
    assert read['pixel_limits'] == {'page': [784, 50176], 'crop': [784, 12544]} and read['prompt_hash'] == '0' * 64
    task = read['evaluations']['zoom']['tasks']['action_recognition']
    assert {'n', 'metric', 'accuracy', 'interval', 'zoom_iou_first', 'zoom_iou_second', 'zoom_rate'} <= set(task)


def test_a_result_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'results\.json was not found: run the same command again'):
        read_results(tmp_path)
    (tmp_path / 'results.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match=r'samples\.jsonl was not found.*delete .*results\.json'):
        read_results(tmp_path)
    (tmp_path / 'results.json').write_text('{"stage": ')
    with pytest.raises(ValueError, match=r'results\.json is not JSON'):
        read_results(tmp_path)


@pytest.mark.parametrize(
    'change',
    [
        lambda lines: lines[:-1],
        lambda lines: [
            lines[0],
            lines[1].replace('"grade": 0.0', '"grade": 1.0').replace('"accuracy": 0.0', '"accuracy": 1.0'),
        ],
        lambda lines: [lines[1], lines[1].replace('"b"', '"c"')],
        lambda lines: [lines[0], lines[1].replace('"iou": 0.5', '"iou": 0.9')],
    ],
)
def test_answers_that_changed_under_their_results_are_refused(tmp_path, change):
    records = [record('a', [1.0], ious=(0.5,)), record('b', [0.0], ious=(0.5,))]
    rewrite_samples(tmp_path, records)
    write_results(tmp_path, PROVENANCE, records)
    assert read_results(tmp_path)[1] == records
    path = tmp_path / 'samples.jsonl'
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(''.join(change(lines)))
    assert ''.join(change(lines)) != ''.join(lines)
    with pytest.raises(
        ValueError, match=r'not those that .*results\.json was made from \(2\): delete .*results\.json.*same command'
    ):
        read_results(tmp_path)
    (tmp_path / 'results.json').unlink()
    write_results(tmp_path, PROVENANCE, read_samples(tmp_path))
    read_results(tmp_path)


@pytest.mark.parametrize(
    'old, new',
    [
        ('"grade": 0.5', '"grade": 1.0'),
        ('"grade": 0.5', '"grade": 7'),
        ('"turns": 1', '"turns": "x"'),
        ('"greedy"', '"beam"'),
    ],
)
def test_a_line_that_contradicts_itself_is_named(tmp_path, old, new):
    rewrite_samples(tmp_path, [record('a', [0.5])])
    path = tmp_path / 'samples.jsonl'
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r'samples\.jsonl, line 1 was not written by this version.*delete that line'):
        read_samples(tmp_path)


def test_refused_calls_are_told_beside_the_score():
    """Without a tool a policy may still call it, and answer when it is told that there is none."""
    called = record('a', [1.0], mode='direct', ious=(None,))
    zooms = tuple(dataclasses.replace(zoom, status='unknown_tool') for zoom in called.attempts[0].zooms)
    called = dataclasses.replace(called, attempts=(dataclasses.replace(called.attempts[0], zooms=zooms),))
    task = summarize([called, record('b', [1.0], mode='direct')])['direct']['tasks']['action_recognition']
    assert (task['zoom_rate'], task['refused_rate'], task['zoom_statuses']) == (0.0, 0.5, {'unknown_tool': 1})


def test_the_commit_is_the_programs_whatever_results_a_run_leaves_in_it(tmp_path):
    assert source_commit(tmp_path) == 'unknown'
    code, kept = tmp_path / 'code.py', tmp_path / 'experiments' / 'any' / 'results' / 'run.json'
    kept.parent.mkdir(parents=True)
    for path in (code, kept):
        path.write_text('1\n')
    author = ('-c', 'user.name=a', '-c', 'user.email=a@b.c')
    for words in (('init', '-q'), ('add', '.'), (*author, 'commit', '-q', '-m', 'first')):
        subprocess.run(['git', *words], cwd=tmp_path, check=True)
    commit = source_commit(kept.parent)
    assert len(commit) == 12
    kept.write_text('2\n')
    assert source_commit(kept.parent) == commit
    code.write_text('2\n')
    assert source_commit(kept.parent) == f'{commit}-dirty'
