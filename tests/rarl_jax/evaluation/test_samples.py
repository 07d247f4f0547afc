import dataclasses
import json

import pytest

from rarl_jax.evaluation.records import hash_question, to_json
from rarl_jax.evaluation.samples import SampleFile, read_samples, rewrite_samples
from rarl_jax.runtime import files as jsonl
from tests.rarl_jax.evaluation.made import question, record

IDENTITY = {'checkpoint': 'base', 'page_pixels': (784, 50176)}


def test_records_survive_the_file(tmp_path):
    records = [
        record('a', [1.0], ious=(0.7, None, 0.2)),
        record('b', [0.0, None], decoding='sampled', said=None, region_share=None, ious=()),
        record('c', [0.5], task='panel_reordering', choices=(), answer='2, 1', said='<b>"\\\u2028é'),
    ]
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add(records)
    assert read_samples(tmp_path) == records


def test_a_line_has_lmms_evals_keys(tmp_path):
    row = json.loads(json.dumps(to_json(record('a', [1.0, 0.0], decoding='sampled', doc_id=3))))
    assert (row['doc_id'], row['input'], row['target']) == (3, 'What is in a?', 'run')
    assert (row['resps'], row['filtered_resps'], row['accuracy']) == ([['run', 'run']], ['run', 'run'], 0.5)
    assert row['doc_hash'] == hash_question(question('a'))


def test_a_restart_asks_only_for_the_rest(tmp_path):
    questions = [question('a'), question('b'), question('c')]
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add([record('a', [1.0]), record('b', [1.0], mode='direct')])
    with SampleFile(tmp_path, IDENTITY) as file:
        assert [(i, each.id) for i, each in file.missing(questions, 'zoom', 'greedy')] == [(1, 'b'), (2, 'c')]
        assert [each.id for _, each in file.missing(questions, 'direct', 'greedy')] == ['a', 'c']
        assert [each.id for _, each in file.missing(questions, 'zoom', 'sampled')] == ['a', 'b', 'c']
        assert len(file.records) == 2


def test_a_question_that_has_changed_since_is_refused(tmp_path):
    """The data set was built again in its place: the same id now asks something else."""
    changed = dataclasses.replace(question('a'), answer='jump')
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add([record('a', [1.0])])
        assert file.missing([question('a')], 'zoom', 'greedy') == []
        with pytest.raises(ValueError, match=r"question 'a' is another one now.*delete this one"):
            file.missing([changed], 'zoom', 'greedy')


def test_an_answer_is_on_disk_before_the_file_is_closed(tmp_path):
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add([record('a', [1.0])])
        assert len(read_samples(tmp_path)) == 1


@pytest.mark.parametrize('kept', [1, 40, 300])
def test_a_torn_last_line_is_cut_off_and_asked_again(tmp_path, kept):
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add([record('a', [1.0]), record('b', [1.0])])
    path = tmp_path / 'samples.jsonl'
    first, second, _ = path.read_bytes().split(b'\n')
    path.write_bytes(first + b'\n' + second[:kept])
    with SampleFile(tmp_path, IDENTITY) as file:
        assert [each.id for _, each in file.missing([question('a'), question('b')], 'zoom', 'greedy')] == ['b']
        file.add([record('b', [0.0])])
    assert [each.question_id for each in read_samples(tmp_path)] == ['a', 'b']


def test_another_policys_answers_are_refused(tmp_path):
    SampleFile(tmp_path, IDENTITY).close()
    SampleFile(tmp_path, IDENTITY).close()
    with pytest.raises(ValueError, match=r"checkpoint = 'base', and now it is 'step 20'.*delete this one"):
        SampleFile(tmp_path, {**IDENTITY, 'checkpoint': 'step 20'})


def test_a_spoilt_line_is_named(tmp_path):
    path = tmp_path / 'samples.jsonl'
    path.write_text(
        jsonl.dump(to_json(record('a', [1.0]))) + '{"doc_id": 1,\n' + jsonl.dump(to_json(record('b', [1.0])))
    )
    with pytest.raises(ValueError, match=r'samples\.jsonl, line 2 is not JSON.*delete that line'):
        read_samples(tmp_path)
    path.write_text('{"doc_id": 1}\n')
    with pytest.raises(ValueError, match='was not written by this version'):
        read_samples(tmp_path)


def test_judged_answers_replace_the_file(tmp_path):
    with SampleFile(tmp_path, IDENTITY) as file:
        file.add([record('a', [None]), record('b', [1.0])])
    judged = [dataclasses.replace(each, metric='judge:m') for each in read_samples(tmp_path)]
    rewrite_samples(tmp_path, judged)
    assert read_samples(tmp_path) == judged
    assert not list(tmp_path.glob('.*partial'))
