"""A whole build from files, its report, and the same questions in other projects' formats."""

import base64
import importlib.util
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from configs import build_ai4va_fg
from input_pipeline.balance import BalanceSettings
from input_pipeline.build import BuildSettings, build, load_reader
from input_pipeline.exports.common import bare_prompt, indices
from input_pipeline.grading import INSTRUCTION
from input_pipeline.loader import LoaderSettings, load, read_questions
from input_pipeline.report import notices
from input_pipeline.schema import TASKS
from input_pipeline.tasks import TaskSettings
from input_pipeline.traces import TraceSettings
from tests.input_pipeline.pages import write_folder

EVIL = '<script>alert("x")</script>'
FORMATS = ('verl', 'trl', 'llamafactory', 'vlmevalkit', 'lmms_eval')


def settings(folder, **changes):
    values = {
        'raw': str(folder / 'raw'),
        'out': str(folder / 'out'),
        'keep_source_split': False,
        'shares': (0.6, 0.2, 0.2),
        'examples': 2,
    }
    return BuildSettings(**{**values, **changes})


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """(folder, report) of a build with every export; one name tries to be markup, one page is broken."""
    folder = tmp_path_factory.mktemp('build')
    write_folder(folder / 'raw', pages=11)
    (folder / 'raw' / 'images' / 'Page_010.png').write_bytes(b'broken')
    sidecar = json.loads((folder / 'raw' / 'sidecar.json').read_text())
    for page in sidecar['pages'].values():
        for fields in page['annotations'].values():
            if fields.get('identity') == 'Ann':
                fields['identity'] = EVIL
    (folder / 'raw' / 'sidecar.json').write_text(json.dumps(sidecar))
    return folder, build(settings(folder, exports=FORMATS))


@pytest.fixture(scope='module')
def questions(built):
    return {split: read_questions(built[0] / 'out', split) for split in ('train', 'validation', 'test')}


def test_the_report_adds_up(built, questions):
    folder, report = built
    assert report == json.loads((folder / 'out' / 'report.json').read_text())
    everything = [question for own in questions.values() for question in own]
    assert report['read']['dropped'] == {'image cannot be decoded': 1}
    assert report['pages'] == {
        'total': 10, 'without_a_question': 0, 'split': {'train': 6, 'validation': 2, 'test': 2}, 'series': {'Test': 10},
    }  # fmt: skip
    assert report['questions']['total'] == len(everything) == sum(report['tasks'][task]['questions'] for task in TASKS)
    assert report['questions']['split'] == {split: len(own) for split, own in questions.items()}
    assert report['questions']['zoom_needed'] == sum(question.zoom_needed for question in everything) / len(everything)
    for task in TASKS:
        own = [question for question in everything if question.task == task]
        row = report['tasks'][task]
        assert row['zoom_needed'] == sum(question.zoom_needed for question in own) / len(own)
        assert row['regions']['number'] == sum(len(question.regions) for question in own)
        assert sum(row['answer_places'].values()) == sum(bool(question.choices) for question in own)
        assert report['baselines'][task]['n'] == sum(question.task == task for question in questions['test'])
    # A figure of 60 x 120 px on a page of 400 x 560 px, which the model sees whole.
    assert report['tasks']['action_recognition']['regions']['model_px']['50%'] == pytest.approx(
        (60 * 120) ** 0.5, abs=1e-3
    )


class Tags(HTMLParser):
    """Collects the tags and pictures of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.pictures += [value for key, value in attrs if key == 'src']


def test_the_report_page_shows_examples_and_runs_no_script(built):
    folder, _ = built
    text = (folder / 'out' / 'report' / 'index.html').read_text()
    page = Tags(text)
    assert 'script' not in page.tags
    assert '&lt;script&gt;alert(&#34;x&#34;)' in text
    assert len(page.pictures) == 2 * len(TASKS)
    for name in page.pictures:
        with Image.open(folder / 'out' / 'report' / name) as picture:
            assert picture.size == (400, 560)
            red = [pixel for pixel in picture.convert('RGB').getdata() if pixel[0] > 180 and pixel[1] < 110]
            assert red  # the regions


def test_the_same_settings_leave_the_data_set_alone_and_others_are_refused(built):
    folder, report = built
    before = (folder / 'out' / 'report.json').stat().st_mtime_ns
    assert build(settings(folder, exports=FORMATS)) == report
    assert (folder / 'out' / 'report.json').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r'other settings \(exports, seed differ\)'):
        build(settings(folder, seed=1))


def test_two_builds_are_the_same(built, questions, tmp_path):
    folder, _ = built
    build(settings(folder, out=str(tmp_path / 'again')))
    assert {split: read_questions(tmp_path / 'again', split) for split in questions} == questions


def test_a_failed_build_leaves_nothing_that_looks_whole(built, tmp_path, monkeypatch):
    folder, _ = built
    monkeypatch.setattr('input_pipeline.report_page.write_page', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(settings(folder, out=str(tmp_path / 'half')))
    assert not (tmp_path / 'half').exists()
    monkeypatch.undo()
    build(settings(folder, out=str(tmp_path / 'half')))  # what was left beside it is no obstacle
    assert sorted(path.name for path in tmp_path.iterdir()) == ['half']


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'raw': ''}, 'raw is empty'),
        ({'reader': 'input_pipeline.nowhere'}, 'is no reader'),
        ({'reader': 'input_pipeline.schema'}, 'is no reader'),
        ({'read': {'max_pixel': 3}}, "no setting 'max_pixel'"),
        ({'read': {'max_pixels': 3}}, 'gave no page'),
        ({'exports': ('coco',)}, "no export 'coco'"),
    ],
)
def test_refusals(built, tmp_path, changes, message):
    folder, _ = built
    with pytest.raises(ValueError, match=message):
        build(settings(folder, **{'out': str(tmp_path / 'out'), **changes}))
    assert not (tmp_path / 'out').exists()


def test_a_release_without_a_sidecar_says_what_is_missing(tmp_path):
    write_folder(tmp_path / 'raw', pages=3, sidecar=False)
    report = build(settings(tmp_path))
    made = {task for task in TASKS if report['tasks'][task]['questions']}
    assert made == {'depth_comparison', 'character_counting'}
    reasons = {row['task']: (row['reason'], row['questions'], row['pages']) for row in report['skipped']}
    assert reasons['action_recognition'] == ('the source gives no action', 24, 3)
    assert reasons['dialogue_reordering'] == ('the source gives no text of balloons', 3, 3)
    assert set(TASKS) - made <= set(reasons)


def test_a_test_file_without_depth_leaves_its_task_measured_on_validation(tmp_path):
    """As AI4VA is published: its test file knows no depth. The task is then measured on validation, and the builder says so."""
    raw = tmp_path / 'raw'
    for folder, file in (('a', 'train'), ('b', 'val'), ('c', 'test')):
        write_folder(raw, pages=4, sidecar=False, file=f'{file}-annotations.json')
        coco = json.loads((raw / f'{file}-annotations.json').read_text())
        for image in coco['images']:
            name = image['file_name']
            image['file_name'] = folder + name
            (raw / 'images' / name).rename(raw / 'images' / image['file_name'])
        for annotation in coco['annotations']:
            annotation['attributes'] = {} if file == 'test' else annotation['attributes']
        (raw / f'{file}-annotations.json').write_text(json.dumps(coco))
    report = build(settings(tmp_path, keep_source_split=True, exports=('lmms_eval',)))
    assert report['tasks']['depth_comparison']['split'] == {'train': 16, 'validation': 16}
    assert report['baselines']['depth_comparison']['split'] == 'validation'
    assert report['baselines']['character_counting']['split'] == 'test'
    exported = (tmp_path / 'out/exports/lmms_eval/data/depth_comparison.jsonl').read_text().splitlines()
    assert {json.loads(line)['id'][0] for line in exported} == {'b'}
    told = notices(report)
    assert told[0] == 'No question of action_recognition: the source gives no action (96).'
    assert told[-1].startswith('No test question of depth_comparison: ')
    html = (tmp_path / 'out/report/index.html').read_text()
    assert all(notice in html for notice in told)


def test_a_folder_with_something_else_is_not_touched(built, tmp_path):
    (tmp_path / 'thesis.txt').write_text('')
    with pytest.raises(ValueError, match='is not empty'):
        build(settings(built[0], out=str(tmp_path)))


@pytest.mark.parametrize('variant', ['', 'smoke', 'input_pipeline.sources.manga109'])
def test_the_config_names_settings_that_exist(variant):
    data = build_ai4va_fg.get_config(variant).data.to_dict()
    nested = {'tasks': TaskSettings(**data.pop('tasks')), 'balance': BalanceSettings(**data.pop('balance'))}
    settings = BuildSettings(**nested, **data)
    load_reader(settings.reader, settings.read)
    with pytest.raises(ValueError, match='is no reader'):
        build_ai4va_fg.get_config('x')


# --- Other projects' formats, loaded as they load them


def test_verl_parquet(built, questions):
    folder, _ = built
    for split, own in questions.items():
        rows = pq.read_table(folder / 'out/exports/verl' / f'{split}.parquet').to_pylist()
        for index, (row, question) in enumerate(zip(rows, own, strict=True)):
            assert row['prompt'] == [
                {'role': 'system', 'content': INSTRUCTION},
                {'role': 'user', 'content': f'<image>\n{question.prompt}'},
            ]
            assert row['reward_model'] == {'style': 'rule', 'ground_truth': question.answer}
            assert (row['data_source'], row['ability']) == (f'ai4va_fg/{question.task}', question.category)
            extra = row['extra_info']
            assert (extra['split'], extra['index'], extra['id'], extra['page_id']) == (
                split,
                index,
                question.id,
                question.page_id,
            )
            assert (extra['answer'], extra['question'], extra['task']) == (
                question.answer,
                question.prompt,
                question.task,
            )
            assert tuple(extra['choices']) == question.choices
            assert tuple(map(tuple, extra['regions'])) == question.regions
            assert extra['zoom_needed'] == question.zoom_needed
            with Image.open(row['images'][0]['image'].removeprefix('file://')) as image:
                assert image.size == (400, 560)
    frame = pd.read_parquet(folder / 'out/exports/verl/train.parquet')
    assert list(frame.columns) == ['data_source', 'prompt', 'images', 'ability', 'reward_model', 'extra_info']


def test_llamafactory_sharegpt(built, questions):
    folder, _ = built
    root = folder / 'out/exports/llamafactory'
    info = json.loads((root / 'dataset_info.json').read_text())
    assert sorted(info) == ['comics_test', 'comics_train', 'comics_validation']
    for split, own in questions.items():
        entry = info[f'comics_{split}']
        assert entry['formatting'] == 'sharegpt'
        rows = json.loads((root / entry['file_name']).read_text())
        for row, question in zip(rows, own, strict=True):
            human, gpt = row[entry['columns']['messages']]
            assert (human['from'], gpt['from'], gpt['value']) == ('human', 'gpt', f'<answer>{question.answer}</answer>')
            assert row[entry['columns']['system']] == INSTRUCTION
            assert human['value'] == f'<image>{question.prompt}'
            assert human['value'].count('<image>') == len(row[entry['columns']['images']]) == 1
            assert (root / row['images'][0]).is_file()


def test_vlmevalkit_tsv(built, questions):
    folder, _ = built
    by_id = {question.id: question for question in questions['test']}
    seen = []
    for kind in ('MCQ', 'VQA'):
        frame = pd.read_csv(
            folder / f'out/exports/vlmevalkit/ComicsFG_{kind}.tsv', sep='\t', dtype=str, keep_default_na=False
        )
        index_of = indices(questions['test'])
        assert list(frame['index']) == [str(index_of[i]) for i in frame['id']]
        images = dict(zip(frame['index'], frame['image'], strict=True))
        for row in frame.to_dict('records'):
            question = by_id[row['id']]
            seen.append(question.id)
            # An entry of at most 64 characters names the row that holds the picture.
            data = row['image'] if len(row['image']) > 64 else images[row['image']]
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                assert image.getpixel((0, 0))[0] == int(question.page_id[-3:]) * 7
            assert (row['category'], row['l2-category'], row['split']) == (question.task, question.category, 'test')
            assert row['question'] == bare_prompt(question)
            if kind == 'MCQ':
                offered = [row[letter] for letter in 'ABCD' if row[letter]]
                assert tuple(offered) == question.choices
                assert row[row['answer']] == question.answer
                assert 'Choices:' not in row['question']
            else:
                assert row['answer'] == question.answer
        assert sum(len(value) > 64 for value in images.values()) == len({by_id[i].page_id for i in frame['id']})
    assert sorted(seen) == sorted(by_id)


def test_lmms_eval_task_folder(built, questions):
    folder, _ = built
    root = folder / 'out/exports/lmms_eval'
    spec = importlib.util.spec_from_file_location('exported_utils', root / 'utils.py')
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    yaml.SafeLoader.add_constructor('!function', lambda loader, node: ('function', node.value))
    group = yaml.safe_load((root / 'comics_fg.yaml').read_text())
    by_id = {question.id: question for question in questions['test']}
    seen = []
    for name in group['task']:
        task = yaml.safe_load((root / f'{name}.yaml').read_text())
        assert (task['task'], task['dataset_path'], task['test_split']) == (name, 'json', 'test')
        for key in ('doc_to_visual', 'doc_to_text', 'process_results'):
            module, function = task[key][1].split('.')
            assert module == 'utils'
            assert callable(vars(utils)[function])
        for doc in pd.read_json(
            task['dataset_kwargs']['data_files']['test'], lines=True, convert_dates=False, dtype=False
        ).to_dict('records'):
            question = by_id[doc['id']]
            seen.append(question.id)
            assert (doc['question'], doc['answer'], doc['task']) == (question.prompt, question.answer, question.task)
            assert tuple(doc['choices']) == question.choices
            assert utils.doc_to_visual(doc)[0].getpixel((0, 0))[0] == int(question.page_id[-3:]) * 7
            words = task['lmms_eval_specific_kwargs']['default']
            assert utils.doc_to_text(doc, words) == question.prompt + '\nGive only the answer.'
            assert utils.process_results(doc, [question.answer]) == {'score': 1.0, 'exact': 1.0}
            assert utils.process_results(doc, [f'Hm. <answer> {question.answer.upper()} </answer>'])['score'] == 1.0
            assert utils.process_results(doc, ['no idea'])['exact'] == 0.0
    assert sorted(seen) == sorted(by_id)
    assert (group['aggregate_metric_list'][0]['metric'], group['aggregate_metric_list'][0]['weight_by_size']) == (
        'score',
        True,
    )


def test_the_loader_reads_what_was_built(built):
    batch = next(iter(load(built[0] / 'out', LoaderSettings(batch_size=3, split='validation'))))
    assert len(batch) == 3


# --- Ranges of settings


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: BuildSettings('raw', 'out', seed=-1), 'seed is -1, expected 0 or more'),
        (
            lambda: BuildSettings('raw', 'out', shares=(1.5, -0.5, 0.0)),
            r'shares is \(1.5, -0.5, 0.0\), expected 0 to 1',
        ),
        (lambda: BuildSettings('raw', 'out', examples=-1), 'examples is -1'),
        (lambda: BalanceSettings(pair_share=1.0), 'pair_share is 1.0, expected 0.01 to 0.99'),
        (lambda: TaskSettings(open_share=float('nan')), 'open_share is nan, expected 0 to 1'),
        (lambda: TaskSettings(choices=1), 'choices is 1, expected 2 to 26'),
        (lambda: TaskSettings(per_page=0), 'per_page is 0, expected 1 or more'),
        (lambda: TaskSettings(order_items=(5, 3)), r'order_items is \(5, 3\), expected the least first'),
        (lambda: TaskSettings(order_items=(3, 27)), 'order_items'),
        (lambda: TaskSettings(naming=()), 'naming is empty'),
        (lambda: TraceSettings(zoom_rate=2), 'zoom_rate is 2, expected 0 to 1'),
        (lambda: TraceSettings(answer=0), 'are all 0'),
        (lambda: TraceSettings(crop=-1), 'crop is -1'),
        (lambda: TraceSettings(box_scale=(2, 1)), 'box_scale'),
    ],
)
def test_a_setting_outside_its_range_is_refused_before_anything_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('content', ['[1]', '{}', '{"settings": 1}', '{"settings"'])
def test_a_damaged_report_is_no_data_set(built, tmp_path, content):
    (tmp_path / 'report.json').write_text(content)
    with pytest.raises(ValueError, match=r'report\.json (is not|holds a)|is not empty and holds no data set'):
        build(settings(built[0], out=str(tmp_path)))


@pytest.mark.browser
def test_the_report_fits_a_phone(built, tmp_path):
    """At 400 px nothing has to be scrolled sideways, and the pictures are there."""
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium is installed')
    address = (built[0] / 'out/report/index.html').as_uri()
    script = """onload = () => {
        const page = document.querySelector('iframe').contentDocument;
        const cells = [...page.querySelectorAll('td')].map(cell => cell.getBoundingClientRect().right);
        document.body.dataset.found = [Math.ceil(Math.max(...cells)), page.querySelector('img').naturalWidth].join(' ')
    }"""
    outer = tmp_path / 'outer.html'
    outer.write_text(
        f'<body><iframe src="{address}" width="400" height="900" frameborder="0"></iframe><script>{script}</script>'
    )
    flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--allow-file-access-from-files',
        f'--user-data-dir={tmp_path / "user"}',
    ]
    command = [chromium, *flags, '--virtual-time-budget=5000', '--dump-dom', outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    width, picture = map(int, re.search(r'data-found="(\d+) (\d+)"', done.stdout).groups())
    assert width < 400 == picture
