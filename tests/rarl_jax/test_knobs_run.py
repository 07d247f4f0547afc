"""A whole run with what the paper's recipe leaves out: stages that end early, groups refilled, earlier tasks replayed, the best policy handed on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import rarl
from configs.rarl import RECOGNITION
from input_pipeline.loader import is_held_out, read_questions
from input_pipeline.schema import Question
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.run import check_inputs
from rarl_jax.settings import settings_from
from tests.commands import launch

pytestmark = pytest.mark.slow
# A warm start of short turns that is content after two of its nine steps; steps that move a policy which earns nothing yet; one that collapses at once.
RUN = (
    '--config=configs/rarl.py:dapo_smoke',
    "--config.stages=('warm_start', 'recognition', 'reorder')",
    '--config.compare=()',
    '--config.keep_checkpoints=9',
    '--config.stage.warm_start.steps=9',
    '--config.stage.warm_start.adaptive_end.window=2',
    '--config.stage.warm_start.adaptive_end.zoom_rate=0.0',
    '--config.stage.warm_start.adaptive_end.format=0.0',
    '--config.stage.warm_start.budget.turn_tokens=5',
    '--config.stage.recognition.steps=5',
    '--config.stage.recognition.temperature=0.5',
    '--config.stage.recognition.save_every=1',
    "--config.stage.recognition.reward.extra=('tests.rarl_jax.test_knobs_run:lost_at_last',)",
    *(f'--config.stage.{name}.optimizer.learning_rate=0.01' for name in ('warm_start', 'recognition', 'reorder')),
    '--config.stage.reorder.steps=9',
    '--config.stage.reorder.refills=0',
    '--config.stage.reorder.replay=0.5',
    '--config.stage.reorder.collapse.window=1',
    '--config.stage.reorder.collapse.least_entropy=99.0',
)


def lost_at_last(episode: Episode, question: Question) -> dict[str, float]:
    """A reward that is NaN in the last step of its stage, whose policy has learnt for six."""
    return {'own': float('nan') if episode.versions.max() == 6 else 0.5}


def run(workdir: Path) -> None:
    done = launch(*RUN, f'--workdir={workdir}')
    assert done.returncode == 0, done.stderr
    assert 'reorder ends after 1 of 9 steps, as the policy collapses: entropy is ' in done.stdout
    if workdir.name == 'whole':
        assert 'warm_start has taught calls and form and ends after 2 of 9 steps' in done.stdout
        assert re.search(
            r'warning: step 5 of stage recognition: \d+ % of the answers are cut off\. Likely, ', done.stdout
        )


def lines(workdir: Path) -> list[dict]:
    """What a run told, but times."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(('time/', 'throughput/', 'compiles', 'sampler/'))}
        for row in rows
    ]


def described(workdir: Path, step: int) -> dict:
    return json.loads((workdir / f'checkpoints/{step:08d}/arrays/description.json').read_text())['description']


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp('knobs') / 'whole'
    run(workdir)
    return workdir


def test_a_stage_that_ends_early_is_followed_at_once(whole):
    assert [(row['step'], row['stage']) for row in lines(whole)] == [
        *((step, 'warm_start') for step in (1, 2)),
        *((step, 'recognition') for step in (3, 4, 5, 6, 7)),
        (8, 'reorder'),
    ]
    assert described(whole, 8)['taken'] == {'warm_start': 2, 'recognition': 5, 'reorder': 1}


def test_budget_temperature_and_replay_are_the_stage_s_own(whole):
    warm, cold, replayed = (
        next(row for row in lines(whole) if row['stage'] == stage) for stage in ('warm_start', 'recognition', 'reorder')
    )
    assert warm['length/response'] <= 5 * warm['length/turns'] and cold['length/response'] > 5 * cold['length/turns']
    assert cold['policy/entropy'] < 0.95 * warm['policy/entropy'], 'of a distribution twice as steep'
    assert max(row.get('policy/ratio_gap', 0.0) for row in lines(whole)) < 1e-3, (
        'sampler and trainer have one temperature'
    )
    assert {name.rpartition('/')[2] for name in replayed if name.startswith('reward/format/')} & {*RECOGNITION}


def test_every_step_tells_how_far_sampler_and_trainer_are_apart_and_what_calls_cost(whole):
    names = {
        'policy/staleness',
        'group/zero_variance',
        'zoom/calls',
        'zoom/crop_tokens',
        'length/cut_off',
        'optimizer/skipped',
    }
    of_loss = {'policy/ratio_gap', 'policy/sampler_kl', 'policy/correction', 'policy/entropy'}
    priced, learned = {'reward/cost', 'reward/overlong', 'reward/own'}, []
    for row in lines(whole)[:6]:
        assert names <= row.keys() and 'policy/kl' not in row
        assert (priced <= row.keys()) == (row['stage'] == 'recognition')
        learned.append(row['stage'] == 'warm_start' or row['group/zero_variance'] < 1)
        assert not of_loss - row.keys() if learned[-1] else not of_loss & row.keys(), (
            'of no token there is nothing to tell'
        )
    assert learned.count(False) > 0


def test_what_refills_cost_is_told(whole):
    """A random policy earns nothing: no group has variance, and every step answers all the draws it may."""
    rows = [row for row in lines(whole) if row['stage'] == 'recognition']
    assert all(row['group/answered'] == 3 for row in rows if row['group/zero_variance'] == 1)
    assert all(1 <= row['group/answered'] <= 3 for row in rows) and rows[0]['group/answered'] > 1


def test_the_best_policy_is_handed_on(whole):
    scores = {row['step']: row['held_out/score'] for row in lines(whole) if 'held_out/score' in row}
    assert [*scores] == [3, 4, 5, 6, 7, 8]
    first_best = max(range(3, 8), key=lambda step: (scores[step], -step))
    last = described(whole, 7)
    assert last['notes']['best'] == [scores[first_best], first_best - 2]
    assert last['finished'] and last['policy'] == first_best and last['kept'] == {'best': first_best, 'skipped': 7}


def test_the_last_update_can_be_repeated_though_another_policy_was_handed_on(whole):
    kept = whole / 'skipped' / 'recognition-000005.safetensors'
    assert lines(whole)[6]['optimizer/skipped'] == 1
    done = launch(*RUN, f'--workdir={whole}', f'--replay={kept}')
    assert done.returncode == 0 and 'As in the run.' in done.stdout, done.stdout + done.stderr


def test_a_resumed_run_is_the_whole_one(whole, tmp_path):
    """From the middle of the stage that remembers its best score, behind one that ended early."""
    assert (whole / 'checkpoints' / '00000004').is_dir()
    again = tmp_path / 'again'
    shutil.copytree(whole, again, ignore=shutil.ignore_patterns('0000000[5678]', 'export', 'report'))
    run(again)
    assert lines(again) == lines(whole)
    before, after = (load_file(folder / 'export' / 'model.safetensors') for folder in (whole, again))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    started = load_file(whole / 'init' / 'model.safetensors')
    assert any(not np.array_equal(before[name], started[name]) for name in before), 'nothing was learnt, nothing shown'


def test_no_stage_asks_about_pages_held_out(whole):
    pages = {
        row['page_id']
        for path in (whole / 'rollouts').glob('*.jsonl')
        for row in map(json.loads, path.read_text().splitlines())
    }
    assert pages and not any(is_held_out(page, 0.25) for page in pages)
    assert any(is_held_out(q.page_id, 0.25) for q in read_questions(whole / 'data' / 'built', 'train'))


def test_a_gap_beyond_its_limit_ends_the_run_and_names_the_episode(whole, tmp_path):
    made = (
        f'--config.data.dir={whole}/data/built',
        f'--config.model.path={whole}/init',
        f'--workdir={tmp_path / "run"}',
    )
    done = launch(
        RUN[0],
        "--config.stages=('recognition',)",
        '--config.compare=()',
        '--config.stage.recognition.most_gap=1e-12',
        *made,
    )
    assert done.returncode == 1 and 'at most 1e-12 is allowed (most_gap). Episode ' in done.stderr, done.stderr


def test_pages_to_measure_on_must_be_held_out():
    config = rarl.get_config('dapo_smoke')
    config.data.held_out = 0.0
    with pytest.raises(
        ValueError, match=r'config\.stage\.recognition\.held_out\.every is 1, but config\.data\.held_out is 0'
    ):
        check_inputs(settings_from(config.to_dict()))


def test_every_variant_is_whole():
    for variant in ('', 'lora', 'dapo', 'joint', 'joint_smoke', 'qwen3_vl', 'qwen3_vl_lora', 'qwen3_vl_smoke'):
        settings = settings_from(rarl.get_config(variant).to_dict())
        assert settings.stages[-1] == 'rarl' and settings.stages[0] == 'base'
