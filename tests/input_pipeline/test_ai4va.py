"""AI4VA's format: what is read, and that nothing is lost in silence."""

import json
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipeline.sources import ai4va
from tests.input_pipeline.pages import write_folder

SETTINGS = ai4va.ReadSettings()


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path, pages=2)


def edit(folder, change, file='train-annotations.json'):
    """Changes a JSON file in place."""
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def test_a_page_as_it_is_written(folder):
    pages, report = ai4va.read(folder, SETTINGS)
    page = pages[0]
    assert (page.id, page.series, page.split, page.width, page.height) == ('Page_000', 'Test', 'train', 400, 560)
    assert page.panels[0] == ai4va.Panel('0', (5, 5, 195, 275), order=0)
    assert page.characters[0] == ai4va.Character('1', (15, 105, 75, 225), identity='Ann', action='running', depth=1.0)
    assert page.balloons[0] == ai4va.Balloon('3', (25, 15, 145, 65), text='Line 0 of page 0', order=0, speaker='1')
    assert page.regions[0] == ai4va.Region('4', (85, 205, 105, 225), label='object', depth=5.0)
    assert (report.pages, report.annotations, report.dropped, report.incomplete) == (2, 40, {}, {})


def test_without_a_sidecar_pages_hold_what_the_release_has(tmp_path):
    pages, _ = ai4va.read(write_folder(tmp_path, pages=1, sidecar=False), SETTINGS)
    assert pages[0].series == 'Page'
    assert all(c.identity is None and c.action is None and c.depth is not None for c in pages[0].characters)


def test_depth_can_run_the_other_way(folder):
    pages, _ = ai4va.read(folder, ai4va.ReadSettings(larger_is_farther=False))
    assert pages[0].characters[0].depth == -1.0


def test_files_name_the_splits(tmp_path):
    write_folder(tmp_path, pages=1)
    (tmp_path / 'train-annotations.json').rename(tmp_path / 'val-annotations.json')
    pages, _ = ai4va.read(tmp_path, SETTINGS)
    assert pages[0].split == 'validation'


# --- Annotations that cannot be used as they are: (change to the first character, reason, is it dropped or kept without a field)

BROKEN = {
    'no attributes': (lambda a: a.pop('attributes'), 'depth missing or not a number', 'incomplete'),
    'NaN depth': (lambda a: a['attributes'].update(Interdepth=float('nan')), 'depth missing or not a number', 'incomplete'),
    'depth is text': (lambda a: a['attributes'].update(Interdepth='2'), 'depth missing or not a number', 'incomplete'),
    'half outside': (lambda a: a.update(bbox=[-30, 10, 60, 60]), 'box clipped to its page', 'incomplete'),
    'outside': (lambda a: a.update(bbox=[900, 10, 60, 60]), 'box outside its page, empty or not a number', 'dropped'),
    'no area': (lambda a: a.update(bbox=[10, 10, 0, 60]), 'box outside its page, empty or not a number', 'dropped'),
    'infinite': (lambda a: a.update(bbox=[10, 10, float('inf'), 60]), 'annotation without a usable bbox', 'dropped'),
    'bbox is text': (lambda a: a.update(bbox='10 10 20 20'), 'annotation without a usable bbox', 'dropped'),
    'no bbox, empty mask': (lambda a: a.pop('bbox'), 'annotation without a usable bbox', 'dropped'),
    'RLE alone': (lambda a: a.update(bbox=None, segmentation={'size': [9, 9], 'counts': 'PQ'}), 'annotation without a usable bbox', 'dropped'),
    'unknown category': (lambda a: a.update(category_id=28), 'category not mapped: 28', 'dropped'),
    'same id': (lambda a: a.update(id=0), 'annotation id used twice', 'dropped'),
    'no id': (lambda a: a.pop('id'), 'annotation without a usable id, image_id or category_id', 'dropped'),
    'no such image': (lambda a: a.update(image_id=77), 'annotation of an unknown image', 'dropped'),
}  # fmt: skip


@pytest.mark.parametrize('name', BROKEN)
def test_each_broken_annotation_is_counted(tmp_path, name):
    change, reason, kind = BROKEN[name]
    write_folder(tmp_path, pages=1, sidecar=False)
    edit(tmp_path, lambda coco: change(coco['annotations'][1]))
    pages, report = ai4va.read(tmp_path, SETTINGS)
    assert {'dropped': report.dropped, 'incomplete': report.incomplete}[kind] == {reason: 1}
    assert report.examples[reason]
    assert report.annotations == (19 if kind == 'dropped' else 20)
    assert len(pages) == 1


def test_masks_beside_a_bbox_do_not_matter_and_polygons_stand_in_for_a_missing_one(tmp_path):
    write_folder(tmp_path, pages=1, sidecar=False)

    def change(coco):
        coco['annotations'][1]['segmentation'] = {'size': [560, 400], 'counts': [0, 5]}
        coco['annotations'][2].update(bbox=[], segmentation=[[10, 20, 50, 20, 50, 90], [5, 30, 20, 30, 20, 40]])

    edit(tmp_path, change)
    pages, report = ai4va.read(tmp_path, SETTINGS)
    assert report.dropped == {}
    assert [c.box for c in pages[0].characters][:2] == [(15, 105, 75, 225), (5, 20, 50, 90)]


def test_a_category_id_used_twice_keeps_its_first_name(folder):
    edit(folder, lambda coco: coco['categories'].append({'id': 2, 'name': 'zeppelin'}))
    pages, report = ai4va.read(folder, SETTINGS)
    assert len(pages[0].characters) == 8
    assert report.dropped == {'category id used twice': 1}


def test_unmapped_and_ignored_categories_are_named(folder):
    edit(folder, lambda coco: coco['categories'][3].update(name=' Zeppelin '))
    _, report = ai4va.read(folder, SETTINGS)
    assert report.dropped == {'category not mapped: zeppelin': 8}
    pages, report = ai4va.read(folder, ai4va.ReadSettings(categories={**ai4va.CATEGORIES, 'zeppelin': 'region'}))
    assert report.dropped == {}
    assert pages[0].regions[0].label == 'zeppelin'


# --- Images


def test_image_names_that_lead_outside_are_never_opened(tmp_path):
    folder = write_folder(tmp_path / 'in', pages=4)
    Image.new('RGB', (400, 560)).save(tmp_path / 'secret.png')
    (folder / 'images' / 'link.png').symlink_to(tmp_path / 'secret.png')
    names = ['../secret.png', str(tmp_path / 'secret.png'), 'link.png', 'a\x00b.png']

    def change(coco):
        for image, name in zip(coco['images'], names, strict=True):
            image['file_name'] = name

    edit(folder, change)
    (folder / 'sidecar.json').unlink()
    pages, report = ai4va.read(folder, SETTINGS)
    assert pages == []
    assert report.dropped == {'image name points outside the folder': 4}


def test_corrupt_missing_and_wrong_images_are_counted(tmp_path):
    folder = write_folder(tmp_path, pages=6)
    images = folder / 'images'
    data = (images / 'Page_000.png').read_bytes()
    (images / 'Page_000.png').write_bytes(data[: len(data) // 2])
    (images / 'Page_001.png').unlink()
    (images / 'Page_002.png').write_text('not an image')
    Image.new('RGB', (40, 56)).save(images / 'Page_003.png')
    Image.new('I;16', (400, 560)).save(images / 'Page_005.png')
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.id for page in pages] == ['Page_004']
    assert report.dropped == {
        'image cannot be decoded': 2,
        'image file missing': 1,
        'image size differs from its annotation': 1,
        'image has more than 8 bits a channel': 1,
    }


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    """A header that promises 30000 x 30000 px over a few bytes of data."""
    folder = write_folder(tmp_path, pages=2)

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    for number, side in ((0, 30_000), (1, 7_000)):  # above Pillow's own limit, and above ours alone
        header = struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
        png = (
            b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', header)
            + chunk(b'IDAT', zlib.compress(b'\0' * 9))
            + chunk(b'IEND', b'')
        )
        (folder / 'images' / f'Page_00{number}.png').write_bytes(png)
    edit(folder, lambda coco: [image.update(width=30_000, height=30_000) for image in coco['images']])
    pages, report = ai4va.read(folder, SETTINGS)
    assert pages == []
    assert report.dropped == {'image larger than 40 megapixels': 2}


def test_a_page_listed_twice_is_read_once(folder):
    """In two files it would be trained on and tested on."""
    (folder / 'test-annotations.json').write_text((folder / 'train-annotations.json').read_text())
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.split for page in pages] == ['train', 'train']
    assert report.dropped == {'image listed twice': 2}


def test_annotations_go_with_their_page_and_are_counted(tmp_path):
    """What was in the file is handed on, dropped for a reason, or was on a page that was dropped."""
    folder = write_folder(tmp_path, pages=4)
    (folder / 'images' / 'Page_000.png').unlink()
    (folder / 'images' / 'Page_001.png').write_text('not an image')
    edit(folder, lambda coco: coco['annotations'][65].update(category_id=28))  # on the last page
    pages, report = ai4va.read(folder, SETTINGS)
    assert [page.id for page in pages] == ['Page_002', 'Page_003']
    assert (report.annotations, report.lost_with_pages) == (39, 40)
    assert report.dropped['category not mapped: 28'] == 1


def test_a_page_of_30_megapixels_is_read(tmp_path):
    pages, report = ai4va.read(write_folder(tmp_path, pages=1, size=(5000, 6000)), SETTINGS)
    assert (pages[0].width, pages[0].height) == (5000, 6000)
    assert report.dropped == {}


@pytest.mark.parametrize('size', [(0, 10), (-5, 10), ('4x0', 560), (400.5, 560), (None, 560), (True, 560)])
def test_an_impossible_size_is_counted(folder, size):
    edit(folder, lambda coco: coco['images'][0].update(width=size[0], height=size[1]))
    _, report = ai4va.read(folder, SETTINGS)
    assert report.dropped == {'image entry without a positive size': 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_the_file_says_it_is_read_or_refused_in_a_sentence(tmp_path, data):
    """One value of the annotation file, at any depth, becomes anything that JSON can hold."""
    folder = tmp_path if (tmp_path / 'train-annotations.json').is_file() else write_folder(tmp_path, pages=1)
    if not (folder / 'kept.json').is_file():
        (folder / 'kept.json').write_text((folder / 'train-annotations.json').read_text())
    coco = json.loads((folder / 'kept.json').read_text())
    place, path = coco, []
    while isinstance(place, dict | list) and place and (not path or data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(min(len(place), 5))))
        path.append((place, key))
        place = place[key]
    holder, key = path[-1]
    holder[key] = data.draw(JSON | st.just(10**400) | st.just('x' * 300))
    (folder / 'train-annotations.json').write_text(json.dumps(coco))
    try:
        pages, report = ai4va.read(folder, SETTINGS)
    except ValueError as error:
        assert str(error).endswith('.')
        return
    assert report.pages == len(pages)
    assert len(pages) == 1 or report.dropped


# --- The sidecar


def first(sidecar):
    return sidecar['pages']['Page_000.png']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.update(version=2), 'version 1'),
        (lambda s: first(s).update(colour='red'), "unknown key 'colour'"),
        (lambda s: first(s)['annotations']['1'].update(acton='running'), "unknown key 'acton'"),
        (lambda s: first(s)['annotations']['1'].update(action=3), 'action is 3'),
        (lambda s: first(s)['annotations']['0'].update(reading_order=True), 'reading_order is True'),
        (lambda s: first(s).update(reading_direction='up'), "reading_direction is 'up'"),
    ],
)
def test_a_malformed_sidecar_is_refused_by_name(folder, change, message):
    edit(folder, change, 'sidecar.json')
    with pytest.raises(ValueError, match=message):
        ai4va.read(folder, SETTINGS)


def test_ambiguous_orders_and_unknown_speakers_are_left_out(folder):
    def change(sidecar):
        fields = first(sidecar)['annotations']
        fields['5']['reading_order'] = 0  # a second panel that claims the first place
        fields['3']['speaker'] = 0  # a panel cannot speak
        fields['999'] = {'action': 'running'}

    edit(folder, change, 'sidecar.json')
    pages, report = ai4va.read(folder, SETTINGS)
    assert [panel.order for panel in pages[0].panels] == [None] * 4
    assert pages[0].balloons[0].speaker is None
    assert report.incomplete == {
        'panel reading order incomplete or ambiguous, left to geometry': 1,
        'speaker is not a character of the page': 1,
    }
    assert report.dropped == {'sidecar annotation without an annotation': 1}


# --- Folders


def test_refusals_name_the_thing_and_the_fix(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
        ai4va.read(tmp_path / 'nowhere', SETTINGS)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='at least one of train-annotations'):
        ai4va.read(tmp_path / 'empty', SETTINGS)
    text = (folder / 'train-annotations.json').read_text()
    (folder / 'train-annotations.json').write_text(text[:500])
    with pytest.raises(ValueError, match='not valid JSON'):
        ai4va.read(folder, SETTINGS)
    (folder / 'train-annotations.json').write_text('[]')
    with pytest.raises(ValueError, match="no list 'images'"):
        ai4va.read(folder, SETTINGS)
