"""COCO files as other tools write them: folders of series, Windows paths, ids and sizes in any spelling, marks and encodings, hostile sizes."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.sources import ai4va, reading
from tests.input_pipeline.pages import write_folder

SETTINGS = ai4va.ReadSettings()
FILE = 'train-annotations.json'


def edit(folder, change, file=FILE):
    content = json.loads((folder / file).read_text(encoding='utf-8'))
    change(content)
    (folder / file).write_text(json.dumps(content), encoding='utf-8')


def series(folder, names, file=FILE, where='images'):
    """Pages without panels under the given names."""
    coco = {'images': [], 'annotations': [], 'categories': [{'id': 0, 'name': 'character'}]}
    for i, name in enumerate(names):
        path = folder / where / Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (200, 300), (60 * i % 256, 90, 120)).save(path)
        coco['images'].append({'id': i, 'file_name': name, 'width': 200, 'height': 300})
        coco['annotations'].append({'id': i, 'image_id': i, 'category_id': 0, 'bbox': [10, 10, 50, 60]})
    (folder / file).write_text(json.dumps(coco))
    return folder


# --- Names of files


def test_one_name_in_two_folders_is_two_pages_of_two_series(tmp_path):
    pages, report = ai4va.read(
        series(tmp_path, ['Placid/001.png', 'Muzo/001.png', 'Placid/002.png', 'Muzo/002.png']), SETTINGS
    )
    assert [page.id for page in pages] == ['Placid_001', 'Muzo_001', 'Placid_002', 'Muzo_002']
    assert {page.series for page in pages} == {'Placid', 'Muzo'}
    assert report.dropped == {}


def test_page_ids_differ_whatever_the_files_are_called(tmp_path):
    names = ['a/b_c.png', 'a_b/c.png', 'a_b_c.png', 'A_B_C.png', 'a_b_c.jpg', 'a_b_c-2.png', 'x/y/1.png', 'x/z/1.png']
    pages, report = ai4va.read(series(tmp_path, names), SETTINGS)
    assert len({page.id.lower() for page in pages}) == len(names)
    assert not any('/' in page.id for page in pages), 'an id becomes a file name'
    assert [page.series for page in pages][-2:] == ['x', 'x']
    assert report.dropped == {}


def test_each_split_may_number_its_images_anew(tmp_path):
    series(tmp_path, ['001.png'], where='train')
    series(tmp_path, ['001.png'], 'val-annotations.json', where='images/val')
    pages, _ = ai4va.read(tmp_path, SETTINGS)
    assert [(page.id, page.split) for page in pages] == [('001', 'train'), ('001-2', 'validation')]
    assert [Path(page.image).parent.name for page in pages] == ['train', 'val']


def test_an_image_is_one_page_however_often_it_is_listed(tmp_path):
    folder = series(tmp_path, ['a.png', 'b.png'])
    (folder / 'images/link.png').symlink_to(folder / 'images/a.png')

    def change(coco):
        one = coco['images'][0]
        coco['images'] += [one, one | {'file_name': 'b.png'}, one | {'id': 7, 'file_name': 'images\\a.png'}]
        coco['images'].append(one | {'id': 8, 'file_name': 'link.png'})

    edit(folder, change)
    pages, report = ai4va.read(folder, SETTINGS)
    assert [(page.id, len(page.characters)) for page in pages] == [('a', 1), ('b', 1)]
    assert report.dropped == {'image listed twice': 4}


@pytest.mark.parametrize('form', ['{}', 'images/{}', 'images\\{}', '.\\{}', './images/./{}', 'images//{}'])
def test_windows_paths_name_the_same_pages(tmp_path, form):
    folder = write_folder(tmp_path, pages=2)
    edit(folder, lambda coco: [image.update(file_name=form.format(image['file_name'])) for image in coco['images']])
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.id for page in pages] == ['Page_000', 'Page_001']
    assert pages[0].characters[0].identity == 'Ann', 'the sidecar is found'
    assert report.dropped == {}


@pytest.mark.parametrize(
    'form', ['..\\images\\{}', 'C:\\comics\\images\\{}', 'C:{}', '\\{}', '\\\\host\\share\\{}', 'images\\..\\..\\{}']
)
def test_windows_paths_do_not_lead_outside(tmp_path, form):
    folder = write_folder(tmp_path, pages=2, sidecar=False)
    edit(folder, lambda coco: [image.update(file_name=form.format(image['file_name'])) for image in coco['images']])
    pages, report = ai4va.read(folder, SETTINGS)
    assert (pages, report.dropped) == ([], {'image name points outside the folder': 2})


@given(st.text(max_size=20) | st.text('./\\:ac \x00', max_size=12))
def test_no_name_leads_out(name):
    parts = reading.path_parts(name)
    assert all(part not in ('', '..', '/') and '\\' not in part and '/' not in part for part in parts)


def test_sidecars_name_pages_by_path(tmp_path):
    folder = series(tmp_path, ['Placid/001.png', 'Muzo/001.png', 'Muzo/002.png'])
    known = {
        'Placid\\001.png': {'annotations': {'0.0': {'identity': 'Placid'}}},
        'images/Muzo/001.png': {'series': 'Muzo the bear', 'annotations': {'1': {'identity': 'Muzo'}}},
        '002.png': {},
    }
    (folder / 'sidecar.json').write_text(json.dumps({'version': 1, 'pages': known}))
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.characters[0].identity for page in pages] == ['Placid', 'Muzo', None]
    assert [page.series for page in pages] == ['Placid', 'Muzo the bear', 'Muzo']
    assert report.dropped == {'sidecar page without annotations': 1}, 'which 002.png is meant, it does not say'
    twice = {'a\\1.png': {}, 'a/1.png': {}}
    (folder / 'sidecar.json').write_text(json.dumps({'version': 1, 'pages': twice}))
    with pytest.raises(ValueError, match=r'a/1\.png is there twice'):
        ai4va.read(folder, SETTINGS)


def test_files_may_lie_one_folder_down(tmp_path):
    folder = write_folder(tmp_path, pages=1)
    (folder / 'annotations').mkdir()
    for name in (FILE, 'sidecar.json'):
        (folder / name).rename(folder / 'annotations' / name)
    pages, _ = ai4va.read(folder, SETTINGS)
    assert pages[0].characters[0].identity == 'Ann'
    (folder / FILE).write_text('{}')
    with pytest.raises(ValueError, match='lies in annotations/ too'):
        ai4va.read(folder, SETTINGS)


# --- Numbers and ids


def all_annotations(**fields):
    return lambda coco: [annotation.update(fields) for annotation in coco['annotations']]


def spell(change):
    """Every id and size of the file in another spelling."""

    def apply(coco):
        for kind, keys in {
            'images': ('id', 'width', 'height'),
            'categories': ('id',),
            'annotations': ('id', 'image_id', 'category_id'),
        }.items():
            for entry in coco[kind]:
                entry.update({key: change(entry[key]) for key in keys})

    return apply


FORMS = {
    'RLE and a crowd': all_annotations(segmentation={'counts': [10, 5, 223985], 'size': [560, 400]}, iscrowd=1),
    'compressed RLE': all_annotations(segmentation={'counts': 'PPYo0', 'size': [560, 400]}),
    'no segmentation': lambda coco: [annotation.pop('segmentation') for annotation in coco['annotations']],
    'text': spell(str),
    'floats': spell(float),
    'floats as text': spell(lambda n: f' {n}.0 '),
    'annotations alone as text': lambda coco: [a.update(image_id=str(a['image_id'])) for a in coco['annotations']],
    'category 0': lambda coco: (
        [c.update(id=c['id'] - 1) for c in coco['categories']],
        [a.update(category_id=a['category_id'] - 1) for a in coco['annotations']],
    ),
    'ids anew on each image': lambda coco: [a.update(id=n % 20) for n, a in enumerate(coco['annotations'])],
    'names with spaces and capitals': lambda coco: [
        c.update(name=f' {c["name"].upper()} ') for c in coco['categories']
    ],
    'names as ids': spell(lambda n: n if n > 399 else f'id-{n}'),
}


@pytest.mark.parametrize('form', FORMS)
def test_forms_of_coco_read_alike(tmp_path, form):
    folder = write_folder(tmp_path, pages=2, sidecar=False)
    plain = ai4va.read(folder, SETTINGS)[0]
    edit(folder, FORMS[form])
    pages, report = ai4va.read(folder, SETTINGS)
    assert [[c.box for c in page.characters] for page in pages] == [[c.box for c in page.characters] for page in plain]
    assert [[p.box for p in page.panels] for page in pages] == [[p.box for p in page.panels] for page in plain]
    assert (report.dropped, report.lost_with_pages) == ({}, 0)


def test_spellings_of_the_sidecar_s_numbers(tmp_path):
    folder = write_folder(tmp_path, pages=1)

    def change(sidecar):
        facts = sidecar['pages']['Page_000.png']['annotations']
        sidecar['version'] = '1'
        facts['3'].update(speaker='1.0', reading_order='0')
        facts['8.0'] = facts.pop('8')

    plain = ai4va.read(folder, SETTINGS)[0]
    edit(folder, change, 'sidecar.json')
    assert ai4va.read(folder, SETTINGS)[0] == plain


@given(st.integers(-(10**25), 10**25))
def test_a_whole_number_is_the_same_in_every_spelling(number):
    for spelling in (number, str(number), f' {number}.00 ', f'{number}.'):
        assert reading.whole(spelling) == number
        assert reading.as_key(spelling) == str(number)
    if abs(number) < 2**53:
        assert reading.whole(float(number)) == number


@given(st.none() | st.booleans() | st.floats() | st.text() | st.lists(st.integers(), max_size=2))
def test_what_is_no_whole_number_is_none(value):
    meant = reading.whole(value)
    assert meant is None or float(value) == meant
    assert isinstance(reading.as_key(value), str | None)


def test_ids_that_only_look_alike_stay_apart():
    keys = ['1_2', '12', '1e3', '0x1', '1.5', 'nan', '１', '1 2']
    assert [reading.as_key(key) for key in keys] == [*keys[:6], '1', '1 2']


# --- Files that are damaged, of the wrong type, or too much


@pytest.mark.parametrize('mark', [codecs.BOM_UTF8, b''])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_any_encoding_of_unicode(tmp_path, mark, encoding):
    folder = write_folder(tmp_path, pages=1)
    for name in (FILE, 'sidecar.json'):
        text = (folder / name).read_text(encoding='utf-8').replace('Ann', 'Zoë')
        (folder / name).write_bytes((mark if encoding == 'utf-8' else b'') + text.encode(encoding))
    assert ai4va.read(folder, SETTINGS)[0][0].characters[0].identity == 'Zoë'


@pytest.mark.parametrize('file', [FILE, 'sidecar.json'])
@pytest.mark.parametrize(
    'content',
    [b'', b'[' * 100_000, b'{"a":' * 100_000, b'[]', b'7', b'null', b'\xff\xfe\xff', b'9' * 5000, b'{"a": 1}'],
)
def test_damaged_json_is_a_sentence_with_its_path(tmp_path, file, content):
    folder = write_folder(tmp_path, pages=1)
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=file) as error:
        ai4va.read(folder, SETTINGS)
    assert str(error.value).endswith('.')
    assert '\n' not in str(error.value)


def test_read_json_wants_a_type(tmp_path):
    (tmp_path / 'a.json').write_text('[1]')
    assert reading.read_json(tmp_path / 'a.json', list) == [1]
    with pytest.raises(ValueError, match='holds a list, expected a dict'):
        reading.read_json(tmp_path / 'a.json')


def test_halves_of_surrogate_pairs_can_be_written_later(tmp_path):
    folder = write_folder(tmp_path, pages=1)
    (folder / 'sidecar.json').write_text(
        (folder / 'sidecar.json').read_text(encoding='utf-8').replace('Ann', 'A\\ud83d')
    )
    edit(folder, lambda coco: coco['images'].append({'id': 9, 'file_name': '\udfff.png', 'width': 1, 'height': 1}))
    pages, report = ai4va.read(folder, SETTINGS)
    assert pages[0].characters[0].identity == 'A?'
    assert report.dropped == {'image file missing': 1}


def test_a_report_stays_short_and_can_be_written(tmp_path):
    folder = write_folder(tmp_path, pages=1, sidecar=False)

    def change(coco):
        many = [coco['annotations'][0] | {'id': n, 'category_id': f'\ud800{n}' + 'x' * 999} for n in range(100, 900)]
        coco['annotations'] += many

    edit(folder, change)
    report = ai4va.read(folder, SETTINGS)[1]
    assert sum(report.dropped.values()) == 800
    assert len(report.dropped) == 101 and report.dropped['category not mapped: others'] == 700
    assert len(json.dumps(report.examples, ensure_ascii=False).encode()) < 100_000


def test_a_page_of_a_million_annotations_is_left_out(tmp_path):
    folder = write_folder(tmp_path, pages=2, sidecar=False)

    def change(coco):
        extra = [coco['annotations'][-1] | {'id': 10_000 + n} for n in range(100_000)]
        coco['annotations'] += extra

    edit(folder, change)
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.id for page in pages] == ['Page_000']
    assert report.dropped == {'page with more than 1000 annotations': 1}
    assert report.lost_with_pages == 100_020


def test_a_strip_that_no_policy_can_be_shown_is_left_out(tmp_path):
    folder = write_folder(tmp_path, pages=3)
    for number, size in ((0, (20, 4600)), (1, (20, 4000))):
        Image.new('RGB', size, 'white').save(folder / 'images' / f'Page_00{number}.png')
        edit(folder, lambda coco, n=number, s=size: coco['images'][n].update(width=s[0], height=s[1]))
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.id for page in pages] == ['Page_001', 'Page_002']
    assert report.dropped['image over 200 times as long as wide, which no policy can be shown'] == 1


def test_turned_pictures_are_read_as_they_were_annotated(tmp_path):
    folder = write_folder(tmp_path, pages=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, size in ((0, (560, 400)), (1, (400, 560))):  # stored; shown, and annotated, as 400 x 560
        Image.new('RGB', size).save(folder / 'images' / f'Page_00{number}.png', exif=exif)
    pages, report = ai4va.read(folder, SETTINGS)
    assert len(pages) == 3
    assert report.incomplete | {'box clipped to its page': 0} == {
        'image turned as its EXIF says': 1,
        'image not turned as its EXIF says, as it was annotated so': 1,
        'box clipped to its page': 0,
    }
