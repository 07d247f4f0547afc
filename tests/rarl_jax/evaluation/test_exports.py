import json

import pandas as pd
import pytest

from rarl_jax.evaluation.exports import write_lmms_eval, write_vlmevalkit
from rarl_jax.evaluation.records import hash_question
from tests.rarl_jax.evaluation.made import question, record


def test_lmms_eval_files(tmp_path):
    records = [
        record('b', [1.0], doc_id=2),
        record('a', [0.0], doc_id=0, said='jump'),
        record('c', [0.5], doc_id=1, task='panel_reordering', choices=(), answer='2, 1', said='1, 2'),
    ]
    paths = write_lmms_eval(tmp_path, records)
    assert [path.name for path in paths] == ['samples_action_recognition.jsonl', 'samples_panel_reordering.jsonl']
    rows = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert [row['doc_id'] for row in rows] == [0, 2]
    assert rows[0] == {
        'doc_id': 0,
        'input': 'What is in a?',
        'target': 'run',
        'resps': [['jump']],
        'filtered_resps': ['jump'],
        'doc_hash': hash_question(question('a')),
        'accuracy': 0.0,
    }
    assert json.loads(paths[1].read_text())['kendall_tau'] == 0.5


def test_vlmevalkit_table(tmp_path):
    records = [
        record('b', [0.5], doc_id=1, task='panel_reordering', choices=(), answer='2, 1', said='1,\t2\n"quoted"'),
        record('a', [0.0], doc_id=0, choices=('run', 'jump', 'NA'), answer='jump', said=None),
    ]
    write_vlmevalkit(tmp_path / 'x.tsv', records)
    table = pd.read_csv(tmp_path / 'x.tsv', sep='\t', keep_default_na=False)
    assert list(table.columns) == [
        'index',
        'question',
        'A',
        'B',
        'C',
        'answer',
        'prediction',
        'category',
        'l2-category',
        'hit',
    ]
    first, second = table.to_dict('records')
    assert (first['A'], first['B'], first['C'], first['answer'], first['prediction']) == ('run', 'jump', 'NA', 'B', '')
    assert (second['A'], second['answer'], second['prediction']) == ('', '2, 1', '1,\t2\n"quoted"')
    assert (second['category'], second['l2-category'], second['hit']) == ('panel_reordering', 'reorder', 0.5)


def test_more_choices_than_letters_are_refused(tmp_path):
    many = tuple(map(str, range(27)))
    with pytest.raises(ValueError, match=r'27 choices.*at most 26'):
        write_vlmevalkit(tmp_path / 'x.tsv', [record('a', [1.0], choices=many, answer='3')])
