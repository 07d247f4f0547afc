"""A whole run whose open answers are graded by a language model, here a server on localhost that is slow, says nothing of use, and dies."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
import zlib
from pathlib import Path

import pytest

from rarl_jax.conversation.episodes import RolloutRecord, read_rollouts
from tests.commands import launch
from tests.rarl_jax.evaluation.judge_server import Server, says

pytestmark = pytest.mark.slow
STEPS, EPISODES = 3, 16
RUN = (
    '--config=configs/quickstart.py:smoke',
    '--config.model.path=experiments/quickstart_base',  # which answers; random weights would not
    "--config.stages=('main',)",
    '--config.compare=()',
    "--config.data.tasks.tasks=('panel_understanding',)",
    "--config.stage.main.tasks=('panel_understanding',)",
    f'--config.stage.main.steps={STEPS}',
    '--config.stage.main.save_every=1',
    '--config.stage.main.group_size=8',  # two questions, both of which are kept for the report
    '--config.stage.main.judge.kind=endpoint',
    '--config.stage.main.judge.timeout=2.0',
    '--config.stage.main.judge.attempts=1',
    '--config.stage.main.judge.concurrency=4',
    '--config.stage.main.judge.most_missing=0.9',
)


def run(workdir: Path, port: int) -> subprocess.CompletedProcess:
    there = {'OPENAI_BASE_URL': f'http://127.0.0.1:{port}/v1', 'JUDGE_MODEL': 'm', 'NO_PROXY': '127.0.0.1'}
    return launch(*RUN, f'--workdir={workdir}', **there)


def told(workdir: Path) -> list[dict]:
    path = workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def asked(body: dict) -> str:
    return body['messages'][-1]['content']


def kind(body: dict) -> int:
    return zlib.crc32(asked(body).encode()) % 6


def reply(body: dict) -> tuple[int, str, dict]:
    """Of six questions one is answered too late, one without a grade, and four answers are right: always the same ones."""
    if kind(body) == 0:
        time.sleep(5)
    return says('I would rather not say.' if kind(body) == 1 else 'GRADE: 1')


def episodes(workdir: Path, step: int) -> list[RolloutRecord]:
    return read_rollouts(workdir / 'rollouts' / f'main-{step:06d}.jsonl')


def test_a_judge_pays_its_failures_are_counted_and_a_dead_one_costs_no_step(tmp_path):
    workdir, graded, together = tmp_path / 'run', [], threading.Barrier(2)

    def answer(n, body):
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(1.0)  # two questions at once, or none of them is answered soon
        graded.extend([asked(body)] if kind(body) > 1 else [])
        return reply(body)

    def until_it_dies(n, body):
        if told(workdir):  # in the second step
            threading.Thread(target=server.shutdown).start()
            server.server_close()
            return 500, '', {}
        return answer(n, body)

    server = Server(until_it_dies)
    port = server.server_address[1]
    done = run(workdir, port)
    assert done.returncode == 1 and 'The judge gave no verdict on ' in done.stderr, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr and [row['step'] for row in told(workdir)] == [1]
    assert server.busiest > 1, 'one question after the other'
    verdicts = (workdir / 'judge_cache.jsonl').read_text().splitlines()

    again = Server(answer, port)  # the same command goes on where it is back
    done = run(workdir, port)
    again.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row['step'] for row in told(workdir)] == [*range(1, STEPS + 1)]
    assert (workdir / 'judge_cache.jsonl').read_text().splitlines()[: len(verdicts)] == verdicts
    assert len(graded) == len(set(graded)) > len(verdicts) > 1, 'a verdict was asked for twice'

    missed = 0
    for row in told(workdir):
        shown = episodes(workdir, row['step'])
        unknown = [e for e in shown if e.prediction is not None and e.grade is None]
        right = [e for e in shown if e.grade == 1]
        assert len(shown) == EPISODES and len(right) + len(unknown) == sum(e.prediction is not None for e in shown)
        assert row['judge/missing'] == pytest.approx(len(unknown) / EPISODES)
        assert row['reward/accuracy'] == pytest.approx(len(right) / (EPISODES - len(unknown))), 'a failure is no 0'
        assert all(e.advantage == 0 for e in unknown) and not any('accuracy' in e.parts for e in unknown)
        missed += len(unknown)
    assert missed, 'no question failed: nothing is shown'
