"""The data set on disk: what comes back, splits, refusals, damaged files."""

import contextlib
import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import dataset
from input_pipeline.loader import (
    LoaderSettings,
    load,
    read_questions,
)
from input_pipeline.schema import Page


def test_questions_come_back_field_by_field(built):
    folder, _, questions = built
    for split in dataset.SPLITS:
        assert read_questions(folder, split) == [question for question in questions if question.split == split]


def test_a_page_is_stored_once_and_in_one_split_only(built):
    folder, pages, questions = built
    stored = {
        split: [record['id'].decode() for record in dataset.open_records(folder, 'pages', split)]
        for split in dataset.SPLITS
    }
    assert Counter(name for names in stored.values() for name in names) == Counter(page.id for page in pages)
    assert {split: len(names) for split, names in stored.items()} == {'train': 12, 'validation': 4, 'test': 4}
    assert all(question.page_id in stored[question.split] for question in questions)


# --- Splits and refusals, without files


def pages_of(series, number, split=None):
    return [Page(f'{series}{i}', 'x.png', 1, 1, 'test', series, split=split) for i in range(number)]


def test_splits_take_their_share_of_each_series():
    pages = dataset.split_pages(pages_of('a', 50) + pages_of('b', 10), (0.8, 0.1, 0.1), 0, True)
    assert Counter((page.series, page.split) for page in pages) == {
        ('a', 'train'): 40, ('a', 'validation'): 5, ('a', 'test'): 5,
        ('b', 'train'): 8, ('b', 'validation'): 1, ('b', 'test'): 1,
    }  # fmt: skip


def test_splits_do_not_depend_on_the_order_of_pages():
    pages = pages_of('a', 30)
    forward = {page.id: page.split for page in dataset.split_pages(pages, (0.5, 0.25, 0.25), 3, True)}
    backward = {page.id: page.split for page in dataset.split_pages(pages[::-1], (0.5, 0.25, 0.25), 3, True)}
    assert forward == backward
    assert forward != {page.id: page.split for page in dataset.split_pages(pages, (0.5, 0.25, 0.25), 4, True)}


def test_the_source_s_splits_are_kept_where_wanted():
    pages = pages_of('a', 10, 'validation')
    assert {page.split for page in dataset.split_pages(pages, (1, 0, 0), 0, True)} == {'validation'}
    assert {page.split for page in dataset.split_pages(pages, (1, 0, 0), 0, False)} == {'train'}
    with pytest.raises(ValueError, match='add up to 1'):
        dataset.split_pages(pages, (0.5, 0.5, 0.5), 0, True)


def test_a_data_set_that_would_leak_is_refused(built, tmp_path):
    _, pages, questions = built
    with pytest.raises(ValueError, match=r'but its page \w+ is in train'):
        dataset.write(tmp_path / 'x', [replace(page, split='train') for page in pages], questions)
    with pytest.raises(ValueError, match='occurs twice'):
        dataset.write(tmp_path / 'x', [*pages, pages[0]], questions)
    with pytest.raises(ValueError, match='question id occurs twice'):
        dataset.write(tmp_path / 'x', pages, [*questions, questions[0]])
    with pytest.raises(ValueError, match='nothing to write'):
        dataset.write(tmp_path / 'x', pages, [])
    assert not (tmp_path / 'x').exists()


# --- Damaged files


def spoil(data, kind):
    middle = len(data) // 3
    return {
        'empty': b'',
        'cut': data[: len(data) // 2],
        'flipped': data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :],
        'another type': b'[1]',
    }[kind]


@pytest.mark.parametrize('damage', ['empty', 'cut', 'flipped', 'another type', 'gone'])
@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json', 'comics-test.array_record-00000-of-00001'])
@pytest.mark.parametrize('kind', ['pages', 'questions'])
def test_a_damaged_data_set_is_a_sentence_with_its_path(built, tmp_path, kind, name, damage):
    folder = Path(shutil.copytree(built[0], tmp_path / 'out'))
    path = folder / 'comics' / kind / '1.0.0' / name
    data = path.read_bytes()
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes(spoil(data, damage))
    settings = LoaderSettings(batch_size=4, epochs=1, split='test', shuffle=False)
    if damage == 'flipped' and 'array_record' in name:  # may lie between the records
        with contextlib.suppress(ValueError):
            list(load(folder, settings))
        return
    with pytest.raises((ValueError, FileNotFoundError), match=kind) as error:
        list(load(folder, settings))
    assert str(path.parent) in str(error.value)
    assert str(error.value).endswith('.')


def test_a_page_that_cannot_be_decoded_names_itself(built, tmp_path, monkeypatch):
    _, pages, questions = built
    monkeypatch.setattr(dataset, 'as_shown', lambda path, size: (Path(path).read_bytes(), ''))  # as another may write
    shown = next(page for page in pages if page.split == 'test')
    for data, reason in (
        (b'not a picture', 'cannot be decoded'),
        (ico(), 'cannot be decoded'),
        (png((1, 1)), 'differs'),
    ):
        (tmp_path / 'page.png').write_bytes(data)
        spoilt = [replace(page, image=str(tmp_path / 'page.png')) if page is shown else page for page in pages]
        out = tmp_path / reason / str(len(data))
        dataset.write(out, spoilt, questions)
        with pytest.raises(ValueError, match=f'page {shown.id}: image .*{reason}'):
            list(load(out, LoaderSettings(epochs=1, split='test', shuffle=False)))


def png(size):
    file = io.BytesIO()
    Image.new('RGB', size).save(file, 'PNG')
    return file.getvalue()


def ico():
    file = io.BytesIO()
    Image.new('RGB', (64, 64)).save(file, 'ICO')
    return file.getvalue()


def test_what_is_stored_is_shown_alike_by_any_program(built, tmp_path):
    """A transparent page and a turned one: another reader of the TFDS folder sees what the policy is shown."""
    _, pages, questions = built
    shown = next(page for page in pages if page.split == 'test')
    sheet, exif = Image.new('RGBA', (560, 400), (9, 9, 9, 0)), Image.Exif()
    exif[0x0112] = 6
    sheet.paste((200, 30, 30, 255), (0, 0, 100, 50))
    sheet.save(tmp_path / 'page.png', exif=exif)
    changed = [replace(page, image=str(tmp_path / 'page.png')) if page is shown else page for page in pages]
    dataset.write(tmp_path / 'out', changed, questions)
    record = next(r for r in dataset.open_records(tmp_path / 'out', 'pages', 'test') if r['id'].decode() == shown.id)
    stored = Image.open(io.BytesIO(record['image']))
    assert (stored.mode, stored.size) == ('RGB', (400, 560))
    samples = [s for b in load(tmp_path / 'out', LoaderSettings(epochs=1, split='test')) for s in b]
    image = next(sample.image for sample in samples if sample.question.page_id == shown.id)
    assert np.array_equal(image, stored)
    assert image.getpixel((390, 10)) == (200, 30, 30)
    assert image.getpixel((0, 0)) == (255, 255, 255)
