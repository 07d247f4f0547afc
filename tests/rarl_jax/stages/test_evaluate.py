"""The evaluation as it is typed: a judge that is not there, one that dies, a run that is killed, and what is told."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.build import BuildSettings, build
from input_pipeline.schema import TASKS
from input_pipeline.synthetic.files import write_pages
from input_pipeline.synthetic.pages import DrawSettings
from rarl_jax.stages.context import Run
from rarl_jax.stages.evaluate import EvaluateSettings, answer, evaluate, has_lost_results, notices, params_at
from rarl_jax.stages.registry import TrainingSettings
from tests.commands import launch
from tests.rarl_jax.evaluation.judge_server import Server, says
from tests.rarl_jax.evaluation.made import question

MODES = ('zoom', 'oracle_zoom')


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A data set of drawn pages, with panels to be told about."""
    folder = tmp_path_factory.mktemp('data')
    write_pages(folder / 'raw', DrawSettings(), {'train': 2, 'test': 2}, seed=0, processes=1)
    build(BuildSettings(raw=str(folder / 'raw'), out=str(folder / 'built'), examples=1))
    return folder / 'built'


def ask_base(data: Path, workdir: Path, **environment: str) -> subprocess.CompletedProcess:
    """Asks the quickstart's base policy about actions and panels, with a judge."""
    command = ['--config=configs/evaluate.py:small', f'--workdir={workdir}']
    command += ['--config.model.path=experiments/quickstart_base', f'--config.data.dir={data}']
    stage = {
        'judge': 'endpoint',
        'questions': 2,
        'modes': MODES,
        'tasks': ('action_recognition', 'panel_understanding'),
    }
    command += [f'--config.stage.evaluation.{name}={value}' for name, value in stage.items()]
    return launch(*command, **environment)


def read_samples(workdir: Path) -> list[dict]:
    lines = (workdir / 'eval/evaluation/samples.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_dead_judge_and_a_killed_run_cost_no_answer(data, tmp_path):
    workdir = tmp_path / 'run'
    samples = workdir / 'eval/evaluation/samples.jsonl'

    server = Server(lambda n, body: says('GRADE: 0.5') if n == 0 else (401, 'no credit', {}))
    there = {'OPENAI_BASE_URL': server.url, 'JUDGE_MODEL': 'm', 'NO_PROXY': '127.0.0.1'}
    done = ask_base(data, workdir, **there)
    assert done.returncode == 1 and 'refused with status 401 (no credit)' in done.stderr
    assert 'Traceback' not in done.stderr
    assert len((workdir / 'judge_cache.jsonl').read_text().splitlines()) == 1

    # As a kill leaves it: the last answer is torn. The first is marked, to see that it is not asked again.
    first, *others = read_samples(workdir)
    marked = dict(first, resps=[['KEPT']], filtered_resps=['KEPT'])
    whole = [json.dumps(row) + '\n' for row in (marked, *others[:-1])]
    samples.write_text(''.join(whole) + json.dumps(others[-1])[:50])
    server.answer = lambda n, body: says('GRADE: 0.5')
    done = ask_base(data, workdir, **there)
    assert done.returncode == 0, done.stderr
    rows = read_samples(workdir)
    assert rows[0]['filtered_resps'] == ['KEPT']
    assert len({(row['mode'], row['question_id']) for row in rows}) == len(rows) == 1 + len(others)
    results = json.loads((workdir / 'eval/evaluation/results.json').read_text())
    assert set(results['evaluations']) == set(MODES)
    assert results['evaluations']['zoom']['tasks']['panel_understanding']['metric'] == 'judge:m'
    assert results['checkpoint'] == 'experiments/quickstart_base+0'
    assert (workdir / 'eval/evaluation/exports/oracle_zoom/samples_action_recognition.jsonl').is_file()
    assert not (workdir / 'export').exists(), 'a policy that was only measured needs no copy'

    # Somebody has cut a line: it is missed, and the advice mends it.
    whole, results = samples.read_text(), workdir / 'eval/evaluation/results.json'
    samples.write_text(''.join(whole.splitlines(keepends=True)[:-1]))
    done = ask_base(data, workdir, **there)
    assert done.returncode == 1 and f'delete {results}' in done.stderr and 'Traceback' not in done.stderr
    before = json.loads(results.read_text())
    results.unlink()
    done = ask_base(data, workdir, **there)
    assert done.returncode == 0, done.stderr
    assert samples.read_text() == whole and json.loads(results.read_text()) == before
    server.shutdown()


def test_a_judge_that_nobody_named_is_missed_before_anything_is_asked(tmp_path, monkeypatch):
    monkeypatch.delenv('OPENAI_BASE_URL', raising=False)
    stage = EvaluateSettings(kind='evaluate', tasks=TASKS, questions=0, judge='endpoint')
    with pytest.raises(ValueError, match='the judge needs OPENAI_BASE_URL'):
        evaluate(SimpleNamespace(workdir=tmp_path), 'evaluation', stage)  # no policy, no data: it must not get so far


def test_what_is_not_asked_or_not_shown_is_told():
    stage = EvaluateSettings(kind='evaluate', tasks=TASKS, questions=0, modes=MODES)
    few = question(task='action_recognition')
    many = dataclasses.replace(question('q1', task='panel_reordering'), regions=few.regions * 5)
    absent, shown = notices(stage, [few, many], max_crops=4)
    assert absent.startswith('No question of depth_comparison, panel_understanding, dialogue_reordering, character_')
    assert 'in the test split' in absent
    assert shown.startswith('1 questions have more than 4 regions: oracle_zoom shows the first 4 of them')
    stage = EvaluateSettings(kind='evaluate', tasks=('action_recognition',), questions=0)
    assert notices(stage, [few], max_crops=4) == []


def made_run(workdir: Path, done: int, saved: dict | None = None) -> Run:
    """A run of two evaluations with a training stage between them, as far as a question about its stages needs one."""
    run = Run.__new__(Run)
    evaluation = EvaluateSettings(kind='evaluate', tasks=TASKS, questions=0)
    stages = {'before': evaluation, 'rl': TrainingSettings(kind='rl', steps=3), 'after': evaluation}
    run.settings, run.workdir = SimpleNamespace(stages=tuple(stages), stage=stages), workdir
    run.done, run.saved, run.params, run.initial_trainable = done, saved, 'now', lambda: 'at first'
    return run


def test_only_an_evaluation_that_a_run_is_past_can_have_lost_its_results(tmp_path):
    names = ('before', 'rl', 'after')
    for done, saved in ((0, None), (1, None)):
        run = made_run(tmp_path, done, saved)
        assert [name for name in names if has_lost_results(run, name)] == ['before'] * done, (
            'the rest is yet to be done'
        )
    for done, saved in ((0, {'stage': 'rl'}), (1, None)):
        run = made_run(tmp_path, done, saved)
        assert [name for name in names if has_lost_results(run, name)] == ['before']
        assert params_at(run, 'before') == 'at first'
    assert params_at(run, 'after') == 'now'
    run.is_due = lambda name: False
    assert params_at(run, 'after') is None, 'it was trained on since'
    (tmp_path / 'eval' / 'before').mkdir(parents=True)
    (tmp_path / 'eval' / 'before' / 'results.json').write_text('{}')
    assert not has_lost_results(made_run(tmp_path, 1), 'before')


def test_a_policy_of_nan_is_not_scored(monkeypatch):
    """Its answers would all be wrong, and look like a bad policy's."""
    episode = SimpleNamespace(group=0, sample_logprobs=np.array([0, np.nan]), answer='run')
    monkeypatch.setattr('rarl_jax.stages.evaluate.open_dialogues', lambda *_, **__: [])
    monkeypatch.setattr('rarl_jax.stages.evaluate.rollout', lambda *_: [episode])
    conversation = SimpleNamespace(budget=None)
    run = SimpleNamespace(
        host=None, settings=SimpleNamespace(conversation=conversation, sampler=None), key=lambda *_: None
    )
    stage = EvaluateSettings(kind='evaluate', tasks=TASKS, questions=0)
    weights = {'text': {'good': jnp.ones(2), 'norm': jnp.array([1, jnp.nan])}, 'ids': jnp.arange(3)}
    ask = partial(
        answer, run, mode='zoom', stage=stage, doc_ids=[0], samples=[SimpleNamespace(question=question('q7'))]
    )
    with pytest.raises(ValueError, match=r"'q7' with log-probs that are not finite: text\.norm holds NaN"):
        ask(SimpleNamespace(params=weights))
    with pytest.raises(ValueError, match='every weight is finite'):
        ask(SimpleNamespace(params=weights['ids']))
