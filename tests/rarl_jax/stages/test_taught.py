"""Conversations that are not made from annotations: a file's say the same as those that are, an evaluation's answers come at once, and mistakes are told by line."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from configs import distill, sft_s
from input_pipeline.loader import PageSample
from input_pipeline.traces import TraceSettings, make_conversation
from rarl_jax.evaluation.records import to_json
from rarl_jax.evaluation.samples import SAMPLES
from rarl_jax.run import check_inputs
from rarl_jax.settings import settings_from
from rarl_jax.stages.sft import recite
from rarl_jax.stages.taught import answers_at_once, read_conversations
from tests.rarl_jax.evaluation.made import question, record
from tests.rarl_jax.small_policy import BUDGET, acted, host, page, sample

ASKED = {name: replace(question(name), split='train') for name in ('q0', 'q1')}


def written(tmp_path, *lines):
    path = tmp_path / 'taught.jsonl'
    path.write_text('\n'.join(json.dumps(line) for line in lines))  # the last line has no end, as a user may leave it
    return path


def test_a_conversation_that_was_written_down_is_the_one_that_was_made(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        make_conversation([ASKED['q0']], (200, 300), {}, settings, rng)
        for settings in (TraceSettings(box_scale=(1.0, 2.0)), TraceSettings(answer=0.0, direct=1.0, guess_rate=0.0))
    ]
    lines = [
        {
            'question_id': each.question_id,
            'turns': [{'box': step.box} if step.box else {'answer': step.answer} for step in each.exchanges[0].steps],
        }
        for each in made
    ]
    assert list(read_conversations(written(tmp_path, *lines), ASKED)) == made


def test_the_tool_is_offered_to_one_that_answers_at_once_where_the_line_says_so(tmp_path):
    line = {'question_id': 'q0', 'turns': [{'thought': 'I see him run.', 'answer': 'run'}]}
    told = list(read_conversations(written(tmp_path, line, line | {'offers_tool': True}), ASKED))
    assert [each.offers_tool for each in told] == [False, True]
    assert told[0].exchanges[0].steps[0].thought == 'I see him run.'


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        ({'question_id': 'q7', 'turns': [{'answer': 'run'}]}, "'q7' is no question of the training split"),
        ({'question_id': 'q0', 'turns': []}, 'a last one that has an answer'),
        ({'question_id': 'q0', 'turns': [{'box': [1, 2, 3, 4]}]}, 'a last one that has an answer'),
        ({'question_id': 'q0', 'turns': [{'answer': 'run'}, {'answer': 'run'}]}, 'turns that each have a box'),
        ({'question_id': 'q0', 'turns': [{'box': [1, 2]}, {'answer': 'run'}]}, 'turns.box'),
        ({'question_id': 'q0', 'turn': []}, 'turn'),
        ([], 'a list, expected an object'),
    ],
)
def test_a_line_that_is_no_conversation_is_told(tmp_path, line, told):
    good = {'question_id': 'q0', 'turns': [{'answer': 'run'}]}
    with pytest.raises(ValueError, match=f'taught.jsonl, line 2: .*{told}'):
        list(read_conversations(written(tmp_path, good, line), ASKED))


def test_an_evaluation_teaches_what_was_answered_right_or_wrong(tmp_path):
    """At once and without the tool, whatever was looked at; where there was no answer there is nothing to teach."""
    rows = [
        record('q0', [0.0], mode='oracle_zoom', said='jump', ious=(1.0,)),
        record('q1', [0.0], mode='oracle_zoom', said=None),
    ]
    (tmp_path / SAMPLES).write_text(''.join(json.dumps(to_json(row)) + '\n' for row in rows))
    [told] = answers_at_once(tmp_path, ASKED)
    assert told.question_id == 'q0' and not told.offers_tool
    assert [step.answer for step in told.exchanges[0].steps] == ['jump']


def test_a_step_recites_one_conversation_of_each_page(tmp_path):
    """The episode is that of a policy which wrote these turns."""
    asked = sample().question
    line = {'question_id': asked.id, 'turns': [{'box': list(asked.regions[0])}, {'answer': 'running'}]}
    [told] = read_conversations(written(tmp_path, line), {asked.id: asked})
    run = SimpleNamespace(host=host(), settings=SimpleNamespace(conversation=SimpleNamespace(budget=BUDGET)))
    kind, [episode] = recite(run, {asked.id: [told]}, [PageSample((asked,), page())], np.random.default_rng(0))
    assert kind == 'taught' and episode.ids.tolist() == acted(sample(), *told.exchanges[0].steps).ids.tolist()


@pytest.mark.parametrize(
    ('config', 'changes', 'told'),
    [
        (sft_s.get_config('smoke'), {'stage.sft.taught': 'nowhere.jsonl'}, 'neither a file nor a stage before it'),
        (sft_s.get_config('smoke'), {'stage.sft.taught': 'tuned'}, 'neither a file nor a stage before it'),
        (sft_s.get_config('smoke'), {'stage.sft.taught': 'base'}, 'does not evaluate the train split'),
        (distill.get_config('smoke'), {}, None),
    ],
)
def test_what_is_taught_is_looked_for_before_anything_is_made(config, changes, told):
    config.update_from_flattened_dict(changes)
    if told is None:
        check_inputs(settings_from(config.to_dict()))
        return
    with pytest.raises(ValueError, match=told):
        check_inputs(settings_from(config.to_dict()))
