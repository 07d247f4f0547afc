"""What the exported files make of awkward texts and pictures, and what the scripts in them say of answers."""

import base64
import importlib.util
import io
import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.exports import WRITERS, export
from input_pipeline.exports.common import indices, plain
from input_pipeline.exports.vlmevalkit import MISSING, columns, write_table
from input_pipeline.schema import CATEGORY_OF, Page, Question
from input_pipeline.tasks import grade
from rarl_jax.conversation.protocol import read_turn

ACTIONS = ('running', 'sitting', 'waving', 'falling')
ANSWERS = (
    *[('action_recognition', 'running', ACTIONS, said) for said in (*ACTIONS, *'ABCDE', 'A. running', 'B running', 'A, B', 'Ａ', '')],
    *[('depth_comparison', 'the tree', ('Ann', 'the tree'), said) for said in ('Ann', 'tree', 'A', 'b', 'both')],
    *[('character_counting', '3', (), said) for said in ('3', 'three', '4', 'two', '-3', '−3', '3.0', '2-3', '３', 'thirteen')],
    *[('panel_reordering', 'B, A, C', (), said) for said in ('B, A, C', 'b a c', 'B > A', 'A, B, C', 'B, A, C, C', 'C')],
    *[('action_recognition', 'eating an apple', (), said) for said in ('eating an apple', 'eating apple', 'an apple')],
    *[('panel_understanding', 'Ann is running', (), said) for said in ('Ann runs', 'ann is RUNNING', 'ｒｕｎｎｉｎｇ')],
)  # fmt: skip
FRAMES = (
    '{}', '({})', '**{}**', r'\boxed{{{}}}', 'The answer is {}.', 'The correct answer is ({})', 'I choose {}', 'Option {}',
    '{} is correct', 'not {}', '{} or nothing',
)  # fmt: skip
TURNS = (
    '<answer>{}</answer>',
    '<think>Bob? <answer>Bob</answer></think> <answer> {} </answer>',
    '<answer>Bob</answer> no, <answer>{}</answer>',
    '<answer>{}</answer>\n<answer>Bo',
    '<answer>{}</answer> I put it inside <answer> tags.',
    '<answer>{}',
    '</answer><answer>{}</answer>',
    '<think><answer>{}</answer>',
    '<tool_call>{{}}</tool_call><answer>{}</answer>',
    '<tool_call>{{}} <answer>{}</answer>',
)
PLACEHOLDERS = '<image> <video><audio> <|image_pad|> <|im_end|> <tool_call> </answer> a < b <b>'


def ask(number, choices=(), answer='running', task='action_recognition', words='What happens?', page='p'):
    prompt = words + (f' Choices: {"; ".join(choices)}.' if choices else '')
    box = ((1.0, 1.0, 50.0, 50.0),)
    return Question(
        f'{page}/{task}/{number}', page, task, CATEGORY_OF[task], prompt, tuple(choices), answer, box, True, 'test'
    )


def write(folder, questions, picture=None, suffix='.png'):
    """Every format of questions about one page."""
    path = folder / f'p{suffix}'
    if picture is None:
        picture = Image.new('RGB', (200, 300), 'white')
    if not path.exists():
        picture.save(path)
    page = Page('p', str(path), 200, 300, 'x', 's', split='test')
    export(folder / 'exports', folder / 'exports', [page], questions, tuple(WRITERS), lambda *_: None)
    return folder / 'exports'


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def scripts(tmp_path_factory):
    root = write(tmp_path_factory.mktemp('scripts'), [ask(0)])
    return [load_script(root / name) for name in ('lmms_eval/utils.py', 'verl/reward.py', 'trl/reward.py')]


@pytest.mark.parametrize('turn', TURNS)
def test_every_exported_script_scores_as_we_do(scripts, turn):
    utils, verl, trl = scripts
    for (task, answer, choices, said), frame in product(ANSWERS, FRAMES):
        text = turn.format(frame.format(said))
        read = read_turn(text)
        ours = grade(task, answer, None if read.call is not None else read.answer, choices)
        document = {'task': task, 'answer': answer, 'choices': list(choices)}
        assert utils.process_results(document, [text]) == {'score': ours, 'exact': float(ours == 1.0)}, text
        info = {'choices': np.array(choices, object)}  # as pandas gives a list of a parquet file
        assert verl.compute_score(f'ai4va_fg/{task}', text, answer, extra_info=info) == ours, text
        completions = [[{'role': 'assistant', 'content': text}]]
        assert trl.reward(completions, task=[task], answer=[answer], choices=[list(choices)], id=['x']) == [ours], text


def test_a_benchmark_takes_words_without_tags_and_a_reward_does_not(scripts):
    utils, verl, _ = scripts
    document = {'task': 'character_counting', 'answer': '3', 'choices': []}
    assert utils.process_results(document, ['There are 3.']) == {'score': 1.0, 'exact': 1.0}
    assert utils.process_results(document, ['There are 4.']) == {'score': 0.5, 'exact': 0.0}
    assert utils.process_results(document, ['<think>3</think> There are 4.'])['score'] == 0.5
    assert utils.process_results(document, ['<answer>3'])['score'] == 0.0
    assert verl.compute_score('ai4va_fg/character_counting', 'There are 3.', '3', {}) == 0.0


def test_a_reward_reads_the_turn_after_the_last_crop(scripts):
    called = '<tool_call>{}</tool_call>\nuser\n<tool_response>\n\n</tool_response>\nassistant\n<answer>running</answer>'
    for script in scripts[1:]:
        assert script.compute_score('ai4va_fg/action_recognition', called, 'running', {'choices': ACTIONS}) == 1.0
    parts = [
        [
            {'role': 'tool', 'content': 'x'},
            {'role': 'assistant', 'content': [{'type': 'text', 'text': '<answer>A</answer>'}]},
        ]
    ]
    assert scripts[2].reward(parts, task=['action_recognition'], answer=['running'], choices=[ACTIONS]) == [1.0]
    assert scripts[2].reward(['<answer>A</answer>'], ['action_recognition'], ['running'], [ACTIONS]) == [1.0]


def test_placeholders_in_texts_are_words_in_every_format(tmp_path):
    choices = (f'Ann {PLACEHOLDERS}', 'Bob')
    questions = [ask(0, choices, choices[0], words=f'Who says "{PLACEHOLDERS}"?'), ask(1, answer=f'one {PLACEHOLDERS}')]
    root = write(tmp_path, questions)
    conversations = json.loads((root / 'llamafactory/test.json').read_text(encoding='utf-8'))
    for row in conversations:
        texts = [row['system'].split('Think inside')[0], *(turn['value'] for turn in row['conversations'])]
        assert ''.join(texts).count('<image>') == len(row['images']) == 1
        assert '<video>' not in ''.join(texts) and '<|' not in ''.join(texts)
        answered = read_turn(row['conversations'][1]['value'])
        question = questions[len(row['conversations'][0]['value']) < 60]
        assert grade(question.task, question.answer, answered.answer, question.choices) == 1.0
    for row in pq.read_table(root / 'verl/test.parquet').to_pylist():
        text = row['prompt'][1]['content']
        assert text.count('<image>') == len(row['images']) == 1
        assert not any(tag in text for tag in ('<video>', '<audio>', '<|'))
    for row in pq.read_table(root / 'trl/test.parquet').to_pylist():
        assert not any(tag in row['prompt'][1]['content'] for tag in ('<image>', '<video>', '<audio>', '<|'))
    for line in (root / 'lmms_eval/data/action_recognition.jsonl').read_text(encoding='utf-8').splitlines():
        assert '<image>' not in line and '<|' not in line and 'a < b <b>' in line
    for kind in ('MCQ', 'VQA'):
        text = (root / f'vlmevalkit/ComicsFG_{kind}.tsv').read_text(encoding='utf-8')
        assert '<image>' not in text and '<|' not in text


TEXTS = st.text(st.characters(codec='utf-8'), min_size=1, max_size=20)
PIECES = st.lists(
    TEXTS | st.sampled_from(('<image>', '</answer>', '<|im_end|>', '<video>', '<', '|', 'image>', 'NA', 'None'))
).map(''.join)


@given(PIECES)
def test_no_text_holds_a_placeholder(text):
    made = plain(ask(0, (), text, words=text))
    assert not any(
        tag in made.prompt for tag in ('<image>', '<video>', '<audio>', '<|', '<answer>', '</answer>', '<think>')
    )
    assert made.prompt.replace('< ', '<') == text.replace('< ', '<')
    assert plain(made) == made


@given(
    st.lists(
        PIECES.map(lambda text: text.replace('\0', '')).filter(str.strip), min_size=2, max_size=5, unique_by=str.strip
    )
)
def test_any_text_comes_out_of_the_table_that_pandas_reads(texts):
    file = io.StringIO(newline='')
    asked = [ask(0, texts, texts[0]), ask(1, texts[:2], texts[1])]
    write_table(file, [{'index': i, **columns(question)} for i, question in enumerate(asked)])
    rows = pd.read_csv(io.BytesIO(file.getvalue().encode()), sep='\t', dtype=str).to_dict('records')
    for row, question in zip(rows, asked, strict=True):
        offered = [row[letter] for letter in 'ABCDE' if letter in row and not pd.isna(row[letter])]
        assert [option.strip() for option in offered] == [choice.strip() for choice in question.choices]
        assert row[row['answer']].strip() == question.answer.strip()


@pytest.mark.parametrize('page_id', ['series/volume 1/p', 'a..b', 'ページ', "it's #1 100%"])
def test_a_page_may_be_called_anything_that_a_file_may(tmp_path, page_id):
    Image.new('RGB', (200, 300), 'white').save(tmp_path / 'p.png')
    page = Page(page_id, str(tmp_path / 'p.png'), 200, 300, 'x', 's', split='test')
    root = tmp_path / 'exports'
    export(root, root, [page], [ask(0, ACTIONS, page=page_id)], tuple(WRITERS), lambda *_: None)
    document = json.loads((root / 'lmms_eval/data/action_recognition.jsonl').read_text(encoding='utf-8'))
    assert load_script(root / 'lmms_eval/utils.py').doc_to_visual(document)[0].size == (200, 300)
    row = json.loads((root / 'llamafactory/test.json').read_text(encoding='utf-8'))[0]
    assert (root / 'llamafactory' / row['images'][0]).is_file()


def test_an_ordinary_question_is_exported_as_it_is():
    question = ask(0, ACTIONS, 'running', words='Is a < b, or <i>this</i> | that?')
    assert plain(question) == question


def pictures():
    sheet = np.zeros((300, 200, 4), np.uint8)  # ink on a transparent sheet
    sheet[100:200, 50:150] = (200, 30, 30, 255)
    drawn = Image.fromarray(sheet)
    gray = Image.new('LA', (200, 300), (0, 0))
    paletted = drawn.convert('RGB').quantize(8)
    paletted.info['transparency'] = paletted.getpixel((0, 0))
    return {'RGBA': drawn, 'LA': gray, 'P': paletted, 'L': Image.new('L', (200, 300), 'white'), 'RGB': Image.new('RGB', (200, 300), 'white')}  # fmt: skip


@pytest.mark.parametrize('mode', pictures())
@pytest.mark.parametrize('suffix', ['.png', '.webp'])
def test_a_page_looks_the_same_in_every_format_as_to_the_policy(tmp_path, mode, suffix):
    picture = pictures()[mode]
    root = write(tmp_path, [ask(0, ACTIONS)], picture.convert('RGBA') if suffix == '.webp' else picture, suffix)
    shown = []
    document = json.loads((root / 'lmms_eval/data/action_recognition.jsonl').read_text(encoding='utf-8'))
    shown += load_script(root / 'lmms_eval/utils.py').doc_to_visual(document)
    table = pd.read_csv(root / 'vlmevalkit/ComicsFG_MCQ.tsv', sep='\t')
    shown.append(Image.open(io.BytesIO(base64.b64decode(table['image'][0]))))
    shown.append(
        Image.open(
            pq.read_table(root / 'verl/test.parquet').to_pylist()[0]['images'][0]['image'].removeprefix('file://')
        )
    )
    shown.append(Image.open(pq.read_table(root / 'trl/test.parquet').to_pylist()[0]['image']['path']))
    shown.append(
        Image.open(root / 'llamafactory' / json.loads((root / 'llamafactory/test.json').read_text())[0]['images'][0])
    )
    for image in shown:
        assert image.mode in ('RGB', 'L')
        assert image.size == (200, 300)
        assert image.convert('RGB').getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize('stored', [(300, 200), (200, 300)])  # annotated as it is shown, and as it is stored
def test_a_turned_picture_is_exported_as_it_was_annotated(tmp_path, stored):
    drawn = Image.new('RGB', stored, 'white')
    drawn.paste((200, 30, 30), (0, 0, 40, 40))
    exif = drawn.getexif()
    exif[0x0112] = 6
    drawn.save(tmp_path / 'p.jpg', exif=exif, quality=95)
    root = write(tmp_path, [ask(0)], drawn, '.jpg')
    with Image.open(root / 'images/p.png') as image:
        assert (image.size, image.getexif().get(0x0112, 1)) == ((200, 300), 1)
        corner = (190, 10) if stored == (300, 200) else (10, 10)
        assert image.getpixel(corner)[1] < 80


def test_a_plain_file_is_copied_byte_for_byte(tmp_path):
    root = write(tmp_path, [ask(0)])
    assert (root / 'images/p.png').read_bytes() == (tmp_path / 'p.png').read_bytes()


def test_words_that_pandas_takes_for_missing_are_read_by_vlmevalkit(tmp_path):
    questions = [ask(i, (word, 'Placid'), word, words=f'Who is {i}?') for i, word in enumerate(sorted(MISSING))]
    questions += [
        ask(i, (), word, words=f'What is {i}?', task='character_identification')
        for i, word in enumerate(sorted(MISSING))
    ]
    root = write(tmp_path, questions)
    by_index = {number: question for question in questions for number in [indices(questions)[question.id]]}
    seen = 0
    for kind in ('MCQ', 'VQA'):
        for row in pd.read_csv(root / f'vlmevalkit/ComicsFG_{kind}.tsv', sep='\t').to_dict(
            'records'
        ):  # as the kit reads it
            question = by_index[row['index']]
            offered = [row[letter].strip() for letter in 'AB' if kind == 'MCQ' and not pd.isna(row[letter])]
            assert tuple(offered) == question.choices
            assert (row[row['answer']] if kind == 'MCQ' else row['answer']).strip() == question.answer
            seen += 1
    assert seen == len(questions)


def test_the_words_for_missing_are_those_of_pandas():
    from pandas._libs.parsers import STR_NA_VALUES

    assert set(STR_NA_VALUES) - {''} <= MISSING


def test_an_index_depends_on_the_question_alone():
    questions = [ask(i) for i in range(50)]
    assert indices(questions[::-1]) == indices(questions)
    assert indices(questions[:1])[questions[0].id] == indices(questions)[questions[0].id] < 2**48
    with pytest.raises(ValueError, match='same index'):
        indices([_Twin('x'), _Twin('y')])


class _Id(str):
    """Two ids that are different and yet hash alike, as no two known strings do."""

    def encode(self, *_):
        return b'same'


def _Twin(name):
    return replace(ask(0), id=_Id(name))


def test_trl_rows_say_how_datasets_reads_them(tmp_path):
    root = write(tmp_path, [ask(0, ACTIONS)])
    table = pq.read_table(root / 'trl/test.parquet')
    features = json.loads(table.schema.metadata[b'huggingface'])['info']['features']
    assert list(features) == table.column_names
    assert features['image'] == {'_type': 'Image'}
    row = table.to_pylist()[0]
    assert [message['role'] for message in row['prompt']] == ['system', 'user']
    assert (row['answer'], row['choices'], row['task']) == ('running', list(ACTIONS), 'action_recognition')
