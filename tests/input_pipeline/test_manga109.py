"""Manga109's XML: another drawing, right to left, double pages, speakers; and the tasks on top of it."""

import pytest
from PIL import Image

from input_pipeline.dataset import split_pages
from input_pipeline.schema import Question
from input_pipeline.sources import manga109
from input_pipeline.tasks import TaskSettings, collect_vocabulary, make_questions

SETTINGS = manga109.ReadSettings()

# Right page: a full-width panel over two. Left page: one panel. Eri stands in two panels, Ken in two, a passer-by in one.
BOOK = """<?xml version="1.0" encoding="UTF-8"?>
<book title="TEST"><characters><character id="c1" name="エリ"/><character id="c2" name="ケン"/><character id="c3" name="Other"/></characters>
<pages><page index="0" width="800" height="600"/>
<page index="3" width="800" height="600">
 <frame id="f0" xmin="10" ymin="10" xmax="390" ymax="590"/>
 <frame id="f1" xmin="410" ymin="10" xmax="790" ymax="290"/>
 <frame id="f2" xmin="410" ymin="310" xmax="590" ymax="590"/>
 <frame id="f3" xmin="610" ymin="310" xmax="790" ymax="590"/>
 <body id="b0" xmin="100" ymin="100" xmax="200" ymax="400" character="c1"/>
 <body id="b1" xmin="420" ymin="40" xmax="500" ymax="280" character="c2"/>
 <body id="b2" xmin="680" ymin="40" xmax="760" ymax="280" character="c1"/>
 <body id="b3" xmin="450" ymin="350" xmax="550" ymax="580" character="c3"/>
 <body id="b4" xmin="650" ymin="350" xmax="760" ymax="580" character="c2"/>
 <face id="h0" xmin="120" ymin="100" xmax="180" ymax="160" character="c1"/>
 <text id="t0" xmin="20" ymin="20" xmax="60" ymax="90">さよ
   うなら</text>
 <text id="t1" xmin="740" ymin="15" xmax="780" ymax="80">やあ</text>
 <text id="t2" xmin="700" ymin="315" xmax="740" ymax="345">どうも</text>
</page></pages></book>"""
DIALOG = '<book title="TEST"><pages><page index="3"><speaker_to_text id="s0" text_id="t1" speaker_id="b2"/></page></pages></book>'


@pytest.fixture
def folder(tmp_path):
    for name in ('annotations', 'images/TEST', 'Manga109Dialog'):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / 'annotations/TEST.xml').write_text(BOOK, encoding='utf-8')
    (tmp_path / 'Manga109Dialog/TEST.xml').write_text(DIALOG)
    Image.new('RGB', (800, 600), 'white').save(tmp_path / 'images/TEST/003.jpg')
    return tmp_path


def edit(folder, old, new):
    path = folder / 'annotations/TEST.xml'
    assert old in path.read_text(encoding='utf-8')
    path.write_text(path.read_text(encoding='utf-8').replace(old, new), encoding='utf-8')


def test_a_double_page(folder):
    pages, report = manga109.read(folder, SETTINGS)
    (page,) = pages
    assert (page.id, page.series, page.right_to_left, page.double, page.split) == ('TEST_003', 'TEST', True, True, None)
    assert page.characters[0] == manga109.Character('b0', (100, 100, 200, 400), identity='エリ')
    assert page.characters[3].identity is None  # a passer-by
    assert page.balloons[0] == manga109.Balloon('t0', (20, 20, 60, 90), text='さようなら')
    assert page.balloons[1].speaker == 'b2'
    assert page.regions[0].label == 'head'
    assert report.dropped == {'page without annotations': 1}
    assert report.annotations == 13


def test_lines_of_a_balloon_are_joined_as_their_script_wants_it(folder):
    edit(folder, 'さよ\n   うなら', '\n さよ\n うなら  Good\n  bye OK ')
    page = manga109.read(folder, SETTINGS)[0][0]
    assert page.balloons[0].text == 'さようならGood bye OK'


def test_questions_read_from_right_to_left(folder):
    pages = split_pages(manga109.read(folder, SETTINGS)[0], (1, 0, 0), 0, True)
    made = make_questions(pages[0], 0, TaskSettings(per_page=20), collect_vocabulary(pages))
    questions = {m.task: m for m in made if isinstance(m, Question)}
    assert set(questions) == {
        'character_identification',
        'character_counting',
        'dialogue_reordering',
        'panel_reordering',
    }
    dialogue = questions['dialogue_reordering']
    shown = dict(zip('ABC', dialogue.prompt.split('"')[1::2], strict=True))
    assert [shown[label] for label in dialogue.answer.split(', ')] == ['やあ', 'どうも', 'さようなら']


def test_panels_are_numbered_from_right_to_left(folder):
    pages = split_pages(manga109.read(folder, SETTINGS)[0], (1, 0, 0), 0, True)
    settings = TaskSettings(tasks=('character_identification',))
    made = [m for seed in range(10) for m in make_questions(pages[0], seed, settings, collect_vocabulary(pages))]
    regions = {m.prompt.split(' Choices')[0]: m.regions[0] for m in made if isinstance(m, Question)}
    assert regions == {
        'Who is the leftmost character in panel 1?': (420, 40, 500, 280),
        'Who is the rightmost character in panel 1?': (680, 40, 760, 280),
        'Who is the character in panel 2?': (650, 350, 760, 580),  # the right one of the lower row
        'Who is the character in panel 4?': (100, 100, 200, 400),  # panel 3 holds the passer-by
    }


@pytest.mark.parametrize(
    ('old', 'new', 'kind', 'reason'),
    [
        ('xmin="100" ymin="100"', 'xmin="oops" ymin="100"', 'dropped', 'annotation without a usable box'),
        ('xmin="100" ymin="100"', 'xmin="nan" ymin="100"', 'dropped', 'annotation without a usable box'),
        ('xmin="100" ymin="100"', 'xmin="300" ymin="100"', 'dropped', 'box outside its page, empty or not a number'),
        ('xmin="100" ymin="100"', 'xmin="-40" ymin="100"', 'incomplete', 'box clipped to its page'),
        ('id="b1"', 'id="b0"', 'dropped', 'annotation id missing or used twice'),
        ('character="c3"', 'character="c9"', 'incomplete', 'character not in the list of its book'),
        ('<face id="h0"', '<nose id="h0"', 'dropped', 'element not mapped: nose'),
        ('id="b2"', 'id="bb"', 'incomplete', 'speaker is not a body of the page'),
        ('index="0" width="800"', 'index="0" width="?"', 'dropped', 'page without index, width or height'),
        ('index="0" width="800"', 'index="0" width="inf"', 'dropped', 'page without index, width or height'),
    ],
)
def test_losses_are_counted(folder, old, new, kind, reason):
    edit(folder, old, new)
    pages, report = manga109.read(folder, SETTINGS)
    assert len(pages) == 1
    assert {'dropped': report.dropped, 'incomplete': report.incomplete}[kind][reason] == 1


def test_a_missing_image_is_counted(folder):
    (folder / 'images/TEST/003.jpg').unlink()
    pages, report = manga109.read(folder, SETTINGS)
    assert pages == []
    assert report.dropped['image file missing'] == 1
    assert (report.annotations, report.lost_with_pages) == (0, 13)


def test_entities_and_broken_files_are_refused(folder):
    bomb = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY c "&a;&a;&a;">]>'
    edit(folder, '<book title="TEST">', f'{bomb}<book title="&c;">')
    with pytest.raises(ValueError, match='declares a document type or entities'):
        manga109.read(folder, SETTINGS)
    path = folder / 'annotations/TEST.xml'
    path.write_text(BOOK[:400], encoding='utf-8')
    with pytest.raises(ValueError, match='is not valid XML'):
        manga109.read(folder, SETTINGS)
    path.write_bytes(BOOK.encode('utf-16'))
    with pytest.raises(ValueError, match='is not UTF-8'):
        manga109.read(folder, SETTINGS)
    path.write_text('<comic/>')
    with pytest.raises(ValueError, match='expected <book>'):
        manga109.read(folder, SETTINGS)


def test_books_can_be_chosen(folder):
    with pytest.raises(FileNotFoundError, match="no book 'NONE'"):
        manga109.read(folder, manga109.ReadSettings(books=('NONE',)))
    with pytest.raises(FileNotFoundError, match='holds no annotations'):
        manga109.read(folder / 'images', SETTINGS)
    assert len(manga109.read(folder, manga109.ReadSettings(books=('TEST',)))[0]) == 1
