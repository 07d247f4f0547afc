"""Other projects' own code reads what we export: their loaders, their task manager, one step of their trainer.

Each test is skipped where its project is not installed; requirements.txt beside it says how to install them all. VLMEvalKit is on no package index:
its rules are stated here again, from vlmeval/dataset/image_base.py and image_mcq.py. That PEFT and transformers load what a run exports is tested in tests/parity.
"""

import base64
import importlib.util
import io
import json
import string
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from input_pipeline.build import BuildSettings, build
from input_pipeline.loader import read_questions
from input_pipeline.tasks import TaskSettings
from rarl_jax.evaluation.exports import write_exports
from tests.input_pipeline.pages import write_folder
from tests.rarl_jax.evaluation.made import record

pytestmark = pytest.mark.neighbours

POLICY = str(Path('experiments/quickstart_base').resolve())
FORMATS = ('verl', 'trl', 'llamafactory', 'vlmevalkit', 'lmms_eval')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """A data set with its exports: drawn on transparent sheets, with placeholders in every balloon and a character called NA."""
    folder = tmp_path_factory.mktemp('neighbours')
    write_folder(folder / 'raw', pages=6)
    for path in (folder / 'raw/images').iterdir():
        sheet = np.zeros((560, 400, 4), np.uint8)
        sheet[100:200, 100:200] = (200, 30, 30, 255)
        Image.fromarray(sheet).save(path)
    sidecar = json.loads((folder / 'raw/sidecar.json').read_text())
    for page in sidecar['pages'].values():
        for fields in page['annotations'].values():
            if fields.get('identity') == 'Ann':
                fields['identity'] = 'NA'
            if 'text' in fields:
                fields['text'] += ' <image> <video> <|image_pad|>'
    (folder / 'raw/sidecar.json').write_text(json.dumps(sidecar))
    settings = BuildSettings(
        raw=str(folder / 'raw'),
        out=str(folder / 'out'),
        keep_source_split=False,
        shares=(0.6, 0.2, 0.2),
        examples=0,
        exports=FORMATS,
        tasks=TaskSettings(per_page=8, open_share=0.3),
    )
    build(settings)
    return folder / 'out'


@pytest.fixture
def cached_here(tmp_path, monkeypatch):
    """What the neighbours keep of data sets stays in this test's folder."""
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'datasets')
    return tmp_path


@pytest.fixture
def processor(monkeypatch):
    """AutoProcessor of the small policy, less the video half, which needs torchvision and has no part in this."""
    transformers = pytest.importorskip('transformers')
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor

    monkeypatch.setattr(AutoVideoProcessor, 'from_pretrained', classmethod(lambda cls, *a, **k: None))
    kind = transformers.Qwen2_5_VLProcessor
    check = kind.check_argument_for_proper_class
    monkeypatch.setattr(kind, 'check_argument_for_proper_class', lambda *a: None if a[2] is None else check(*a))
    return transformers.AutoProcessor.from_pretrained(POLICY)


def load_script(path):
    spec = importlib.util.spec_from_file_location('comics_reward', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lmms_eval_runs_the_tasks_and_hashes_documents_as_we_do(built, cached_here):
    tasks = pytest.importorskip('lmms_eval.tasks', exc_type=ImportError)
    from lmms_eval.utils import handle_non_serializable, hash_string

    manager = tasks.TaskManager(include_path=str(built / 'exports/lmms_eval'), include_defaults=False)
    ((group, members),) = tasks.get_task_dict(['comics_fg'], manager).items()
    assert [metric['metric'] for metric in group.config['aggregate_metric_list']] == ['score', 'exact']
    questions = read_questions(built, 'test')
    records = [record(q.id, [1.0], task=q.task, choices=q.choices, answer=q.answer, said=q.answer) for q in questions]
    write_exports(cached_here / 'answers', records, questions)
    assert len(members) == 7
    for task in members.values():
        for doc_id, doc in enumerate(task.test_docs()):
            assert task.doc_to_visual(doc)[0].getpixel((0, 0)) == (255, 255, 255)
            assert doc['question'] in task.doc_to_text(doc)
            assert '<image>' not in task.doc_to_text(doc)
            assert task.process_results(doc, [task.doc_to_target(doc)]) == {'score': 1.0, 'exact': 1.0}
            lines = (cached_here / f'answers/zoom/samples_{doc["task"]}.jsonl').read_text(encoding='utf-8').splitlines()
            ours = json.loads(lines[doc_id])
            said = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
            assert (ours['doc_id'], ours['doc_hash']) == (doc_id, hash_string(said))


def test_trl_takes_a_step(built, cached_here, processor):
    trl = pytest.importorskip('trl', exc_type=ImportError)
    files = {'train': str(built / 'exports/trl/train.parquet')}
    data = pytest.importorskip('datasets').load_dataset('parquet', data_files=files)['train']
    assert data[0]['image'].getpixel((0, 0)) == (255, 255, 255)
    seen = []

    def reward(completions, **columns):
        scores = script.reward(completions, **columns)
        right = [[{'role': 'assistant', 'content': f'<answer>{answer}</answer>'}] for answer in columns['answer']]
        seen.append((scores, script.reward(right, **columns)))
        return scores

    script = load_script(built / 'exports/trl/reward.py')
    settings = trl.GRPOConfig(
        output_dir=str(cached_here / 'trl'),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=8,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        save_strategy='no',
        report_to=[],
    )
    trainer = trl.GRPOTrainer(POLICY, reward, settings, data, processing_class=processor)
    assert trainer.train().global_step == 1
    ((scores, right),) = seen
    assert len(scores) == 2 and right == [1.0, 1.0]


def test_verl_reads_every_row_and_pays_the_right_answer(built, cached_here, processor):
    rl_dataset = pytest.importorskip('verl.utils.dataset.rl_dataset', exc_type=ImportError)
    rewards = pytest.importorskip('verl.trainer.ppo.reward', exc_type=ImportError)
    from omegaconf import OmegaConf

    config = OmegaConf.create({'cache_dir': str(cached_here / 'verl'), 'filter_overlong_prompts': False})
    files = str(built / 'exports/verl/train.parquet')
    data = rl_dataset.RLHFDataset(files, processor.tokenizer, config, processor)
    named = {'path': str(built / 'exports/verl/reward.py'), 'name': 'compute_score'}
    score = rewards.get_custom_reward_fn(OmegaConf.create({'reward': {'custom_reward_function': named}}))
    assert len(data) == len(read_questions(built, 'train'))
    for row in (data[i] for i in range(len(data))):
        kinds = [part['type'] for message in row['raw_prompt'] for part in message['content']]
        assert kinds == ['text', 'image', 'text']
        truth = row['reward_model']['ground_truth']
        said = {'solution_str': f'<answer>{truth}</answer>', 'ground_truth': truth, 'extra_info': row['extra_info']}
        assert score(data_source=row['data_source'], **said) == 1.0


def test_llamafactory_makes_training_rows(built, cached_here, processor, monkeypatch):
    monkeypatch.setenv('DISABLE_VERSION_CHECK', '1')
    sound = ModuleType('torchaudio')  # imported for sounds alone, and built for older versions of torch
    sound.__spec__ = ModuleSpec('torchaudio', None)
    monkeypatch.setitem(sys.modules, 'torchaudio', sound)
    data = pytest.importorskip('llamafactory.data', exc_type=ImportError)
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    processor.video_processor = processor.image_processor  # it wants one, and shows it nothing
    root = str(built / 'exports/llamafactory')
    wanted = DataArguments(
        template='qwen2_vl', dataset='comics_train', dataset_dir=root, media_dir=root, cutoff_len=4096
    )
    template = data.get_template_and_fix_tokenizer(processor.tokenizer, wanted)
    rows = data.get_dataset(
        template,
        ModelArguments(model_name_or_path=POLICY),
        wanted,
        Seq2SeqTrainingArguments(output_dir=str(cached_here / 'lf'), report_to=[], use_cpu=True),
        stage='sft',
        tokenizer=processor.tokenizer,
        processor=processor,
    )['train_dataset']
    questions = read_questions(built, 'train')
    assert len(rows) == len(questions)
    for row, question in zip(rows, questions, strict=True):
        (picture,) = row['images']
        with Image.open(picture) as image:
            assert image.getpixel((0, 0)) == (255, 255, 255)
        learnt = processor.tokenizer.decode([i for i in row['labels'] if i >= 0])
        assert learnt.startswith(f'<answer>{question.answer}</answer>')


# ---------------------------------------------------------------- VLMEvalKit's rules


def read_benchmark(path):
    """ImageBaseDataset.__init__: rows with their pictures, an image of at most 64 characters naming the row that holds it."""
    data = pd.read_csv(path, sep='\t')
    data = data[~pd.isna(data['image'])]
    data['index'] = [str(i) for i in data['index']]
    images = dict(zip(data['index'], map(str, data['image']), strict=True))
    for index, image in images.items():
        if len(image) <= 64:
            assert len(images[image]) > 64
            images[index] = images[image]
    data['image'] = [images[index] for index in data['index']]
    data['index'] = list(map(int, data['index']))
    return data.to_dict('records')


def options_of(row):
    """ImageMCQDataset.build_prompt: letters in capitals whose cell is not missing."""
    return {letter: row[letter] for letter in string.ascii_uppercase if letter in row and not pd.isna(row[letter])}


def test_vlmevalkit_shows_every_option_and_joins_the_answers(built, tmp_path):
    questions = {question.id: question for question in read_questions(built, 'test')}
    records = [
        record(q.id, [1.0], task=q.task, choices=q.choices, answer=q.answer, said=q.answer) for q in questions.values()
    ]
    write_exports(tmp_path, records, list(questions.values()))
    seen = 0
    for kind in ('MCQ', 'VQA'):
        rows = read_benchmark(built / f'exports/vlmevalkit/ComicsFG_{kind}.tsv')
        answers = pd.read_csv(tmp_path / f'zoom/ComicsFG_{kind}.tsv', sep='\t').to_dict('records')
        by_index = {row['index']: row for row in rows}
        assert sorted(by_index) == sorted(row['index'] for row in answers)
        for said in answers:
            row = by_index[said['index']]
            question = questions[row['id']]
            offered = options_of(row)
            assert tuple(option.strip() for option in offered.values()) == question.choices
            right = offered[row['answer']] if kind == 'MCQ' else str(row['answer'])
            assert right.strip() == str(said['prediction']).strip() == question.answer
            picture = Image.open(io.BytesIO(base64.b64decode(row['image'])))
            assert picture.convert('RGB').getpixel((0, 0)) == (255, 255, 255)
            assert '<image>' not in row['question']
            seen += 1
    assert seen == len(questions)
    assert any('NA' in question.choices for question in questions.values())
