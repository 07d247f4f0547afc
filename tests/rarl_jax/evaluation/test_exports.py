"""An evaluation's files join with the exported benchmark as the two kits join them."""

import hashlib
import json

import pandas as pd
import pytest
from PIL import Image

from input_pipeline.exports import export
from input_pipeline.schema import Page
from rarl_jax.evaluation.exports import write_exports
from tests.rarl_jax.evaluation.made import question, record

QUESTIONS = [
    question('p0/action_recognition/0', choices=('run', 'jump', 'NA'), answer='jump'),
    question('p0/panel_reordering/0', task='panel_reordering', choices=(), answer='2, 1'),
    question('p0/action_recognition/1', choices=('run', 'jump'), answer='run'),
    question('p0/action_recognition/2', choices=(), answer='None'),
    question('p0/action_recognition/3', choices=('run', 'jump'), answer='run'),
]
SAID = ['', '1,\t2\r"quoted"\r\n3', 'run', 'None', None]


@pytest.fixture
def folder(tmp_path):
    """BENCHMARK and ANSWERS of the questions, the third of which was not asked."""
    Image.new('RGB', (40, 60), 'white').save(tmp_path / 'p0.png')
    page = Page('p0', str(tmp_path / 'p0.png'), 40, 60, 'x', 's', split='test')
    export(
        tmp_path / 'benchmark', tmp_path / 'benchmark', [page], QUESTIONS, ('lmms_eval', 'vlmevalkit'), lambda *_: None
    )
    records = [
        record(q.id, [1.0], task=q.task, choices=q.choices, answer=q.answer, said=said, doc_id=i)
        for i, (q, said) in enumerate(zip(QUESTIONS, SAID, strict=True))
        if i != 2
    ]
    write_exports(tmp_path / 'answers', records[::-1], QUESTIONS)
    return tmp_path


def test_lmms_eval_samples_are_those_of_the_exported_documents(folder):
    for task, asked in (('action_recognition', [0, 3, 4]), ('panel_reordering', [1])):
        lines = (folder / f'benchmark/lmms_eval/data/{task}.jsonl').read_text(encoding='utf-8').splitlines()
        rows = [json.loads(line) for line in (folder / f'answers/zoom/samples_{task}.jsonl').read_text().splitlines()]
        of_task = [q for q in QUESTIONS if q.task == task]
        assert [of_task[row['doc_id']] for row in rows] == [QUESTIONS[i] for i in asked]
        for row, i in zip(rows, asked, strict=True):
            document = json.loads(lines[row['doc_id']])
            said = json.dumps(document, indent=2, ensure_ascii=False)  # what lmms-eval hashes
            assert row['doc_hash'] == hashlib.sha256(said.encode()).hexdigest()
            assert (row['input'], row['target']) == (document['question'], document['answer'])
            assert row['filtered_resps'] == (SAID[i] or '')
            assert (row['score'], row['exact']) == (1.0, 1.0)


def test_vlmevalkit_joins_its_files_by_index(folder):
    asked = {'MCQ': [0, 4], 'VQA': [1, 3]}
    for kind, places in asked.items():
        data = pd.read_csv(folder / f'benchmark/vlmevalkit/ComicsFG_{kind}.tsv', sep='\t')
        answers = pd.read_csv(folder / f'answers/zoom/ComicsFG_{kind}.tsv', sep='\t')  # as the kit reads both
        assert list(answers.columns) == [*(name for name in data.columns if name != 'image'), 'prediction', 'hit']
        by_index = {row['index']: row for row in data.to_dict('records')}
        assert [row['id'] for row in answers.to_dict('records')] == [QUESTIONS[i].id for i in places]
        for row, i in zip(answers.to_dict('records'), places, strict=True):
            joined = by_index[row['index']]
            for name in ('id', 'question', 'answer', *'AB'):
                assert name not in joined or str(joined[name]) == str(row[name])
            assert ('' if pd.isna(row['prediction']) else row['prediction'].strip()) == (SAID[i] or '')
            assert row['hit'] == 1.0


def test_several_answers_are_a_list_to_lmms_eval_and_the_first_to_vlmevalkit(tmp_path):
    write_exports(
        tmp_path, [record(QUESTIONS[0].id, [0.0, 1.0], choices=QUESTIONS[0].choices, answer='jump')], QUESTIONS
    )
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / 'samples_action_recognition.jsonl').read_text())['filtered_resps'] == ['run', 'run']
    assert pd.read_csv(folder / 'ComicsFG_MCQ.tsv', sep='\t')['hit'][0] == 0.0


def test_more_choices_than_letters_are_refused(tmp_path):
    many = tuple(map(str, range(27)))
    asked = question('a', choices=many, answer='3')
    with pytest.raises(ValueError, match=r'27 choices.*at most 26'):
        write_exports(tmp_path, [record('a', [1.0], choices=many, answer='3')], [asked])
