"""Manga109's XML: another drawing, right to left, double pages, speakers; its public add-ons; and the tasks on top of it."""

import re
import time
from xml.sax import saxutils

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
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


# --- Who is nobody


ANONYMOUS = """Other|Others|other|OTHER|the other|The Others|_Other|Other_|__others__|the_other|Ｏｔｈｅｒ|Ｏｈｔｅｒ|Ohters| Other |Other（店員）|Other (a guest)|
Other(man|その他|その他（男）|その他 (通行人)|（その他）|_その他|Ｏｔｈｅｒｓ（客）|THE  OTHER"""


@pytest.mark.parametrize('name', ANONYMOUS.replace('\n', '').split('|'))
def test_anonymous_characters_in_every_spelling(folder, name):
    edit(folder, 'id="c3" name="Other"', f'id="c3" name="{name}"')
    pages, report = manga109.read(folder, SETTINGS)
    assert pages[0].characters[3].identity is None
    assert report.incomplete['character of an anonymous name, left without identity'] == 1


@pytest.mark.parametrize(
    'name', ['Mother', 'Brothers', 'Otherwise', 'The Otter', 'Thea', 'エリ（Other）', 'Another', 'S', '他']
)
def test_names_that_only_contain_it_are_names(folder, name):
    edit(folder, 'id="c3" name="Other"', f'id="c3" name="{name}"')
    assert manga109.read(folder, SETTINGS)[0][0].characters[3].identity == name


@given(st.sampled_from(['other', 'その他', 'ohter']), st.sampled_from(['', 's', 'S']), st.data())
def test_spelling_never_makes_somebody_of_nobody(name, plural, data):
    wide = str.maketrans({chr(c): chr(c + 0xFEE0) for c in range(33, 127)})
    name = data.draw(st.sampled_from(['', 'the ', 'THE_', '_'])) + name + plural
    name = ''.join(data.draw(st.sampled_from([c, c.upper(), c.translate(wide)])) for c in name)
    name += data.draw(
        st.sampled_from(['', ' ', '_', '(', '（', ' (']) | st.text('あa ', max_size=5).map('（{}）'.format)
    )
    assert manga109.plain_name(name) in {'other', 'その他', 'ohter'}


@given(st.text(max_size=30))
@example('(' * 50)
@example('')
def test_a_plain_name_is_its_own_plain_name_but_for_a_plural(name):
    assert isinstance(manga109.plain_name(name), str)


# --- Lines


@given(st.text('ab あい。\n\t\u3000', max_size=40))
def test_joined_lines_keep_every_letter_and_single_spaces(text):
    line = manga109.join_lines(text)
    assert (line or '').replace(' ', '') == ''.join(text.split())
    assert line is None or re.fullmatch(r'\S+( \S+)*', line)


def test_a_text_of_white_space_takes_no_time():
    started = time.perf_counter()
    assert manga109.join_lines('あ' + ' ' * 300_000 + 'b' + '\n ' * 300_000 + 'c') == 'あb c'
    assert time.perf_counter() - started < 2


# --- What stands out of place, and links that do not fit


@pytest.mark.parametrize(
    ('old', 'new', 'reason'),
    [
        ('<page index="3"', '<body id="bx" xmin="1" ymin="1" xmax="60" ymax="90" character="c1"/>\n<page index="3"', 'body outside every page'),
        ('</pages>', '<text id="tx" xmin="1" ymin="1" xmax="60" ymax="90">a</text></pages>', 'text outside every page'),
        ('</pages></book>', '</pages><frame id="fx"/></book>', 'frame outside every page'),
        ('character="c3"/>', 'character="c3"><face id="hx"/></body>', 'face outside every page'),
        ('<pages>', '<page index="9" width="800" height="600"/><pages>', 'element out of its place: page'),
        ('<pages>', '<pages><note/>', 'element out of its place: note'),
        ('</characters>', '<character id="c1" name="ケン"/></characters>', 'character listed twice'),
        ('index="3"', 'index="3.5"', 'page without index, width or height'),
    ],
)  # fmt: skip
def test_strays_are_counted(folder, old, new, reason):
    edit(folder, old, new)
    assert manga109.read(folder, SETTINGS)[1].dropped[reason] == 1


def dialog(folder, *links):
    made = ''.join(
        f'<speaker_to_text id="s{n}" text_id="{text}" speaker_id="{who}"/>' for n, (text, who) in enumerate(links)
    )
    (folder / 'Manga109Dialog/TEST.xml').write_text(
        f'<book title="TEST"><pages><page index="3">{made}</page></pages></book>'
    )
    pages, report = manga109.read(folder, SETTINGS)
    return pages[0].balloons[1].speaker, report.dropped, report.incomplete


def test_speakers_are_never_chosen_among_several(folder):
    several, absent = 'text of several speakers, left without one', 'speaker is not a body of the page'
    lacking = 'dialog link to a text that its book lacks'
    plain = {'page without annotations': 1}
    nobody = {'character of an anonymous name, left without identity': 1}
    assert dialog(folder, ('t1', 'b2')) == ('b2', plain, nobody)
    assert dialog(folder, ('t1', 'b2'), ('t1', 'b2')) == ('b2', plain, nobody)
    assert dialog(folder, ('t1', 'b2'), ('t1', 'b1')) == (None, plain, nobody | {several: 1})
    assert dialog(folder, ('t1', 'zz')) == (None, plain, nobody | {absent: 1})
    assert dialog(folder, ('t1', 'b2'), ('t1', 'zz')) == (None, plain, nobody | {several: 1, absent: 1})
    assert dialog(folder, ('t1', 'f0')) == (None, plain, nobody | {absent: 1})
    assert dialog(folder, ('t9', 'b2'), ('t9', 'b1')) == (None, plain | {lacking: 2}, nobody)
    assert dialog(folder, ('', 'b2')) == (None, plain | {'dialog link without a text or a speaker': 1}, nobody)


@pytest.mark.parametrize(
    'change',
    [
        lambda book: book.replace(' character="c2"/>', '/>', 1),
        lambda book: re.sub(r' <frame [^>]*/>\n', '', book),
        lambda book: book.replace('やあ', 'A &amp; B &lt;やあ&gt; &#12354;'),
        lambda book: '\ufeff' + book.replace('\n', '\r\n'),
        lambda book: book.replace('index="3" width="800" height="600"', 'index="3.0" width=" 800 " height="600.0"'),
    ],
)
def test_books_that_differ_a_little_are_read(folder, change):
    (folder / 'annotations/TEST.xml').write_text(change(BOOK), encoding='utf-8')
    assert [page.id for page in manga109.read(folder, SETTINGS)[0]] == ['TEST_003']


# --- Add-ons, in the form of manga109/public-annotations


@pytest.mark.parametrize('name', ['COO', 'COO-Comic-Onomatopoeia/v2022.07.07'])
def test_onomatopoeia_become_regions(folder, name):
    (folder / name).mkdir(parents=True)
    (folder / name / 'TEST.xml').write_text(
        """<?xml version='1.0' encoding='utf-8'?>
<book title="TEST"><pages><page height="600" index="0" width="800" />
 <page height="600" index="3" width="800">
  <onomatopoeia id="1000ab5b" x0="397" y0="431" x1="408" y1="443" x2="385" y2="474" x3="373" y3="465" x4="385" y4="450">パ チ</onomatopoeia>
  <onomatopoeia id="1000ab5c" x0="oops" y0="1" x1="9" y1="9">パチ</onomatopoeia>
  <onomatopoeia id="1000ab5d">パチ</onomatopoeia>
 </page><page index="8"><onomatopoeia id="1000ab5e" x0="1" y0="1" x1="9" y1="9"/></page></pages></book>""",
        encoding='utf-8',
    )
    pages, report = manga109.read(folder, SETTINGS)
    assert pages[0].regions[1] == manga109.Region('1000ab5b', (373, 431, 408, 474), 'onomatopoeia', 'パチ')
    assert report.dropped == {
        'page without annotations': 1,
        'annotation without a usable box': 2,
        'onomatopoeia of a page that its book lacks': 1,
    }
    assert report.annotations == 14


def test_people_s_counts_are_told(folder):
    (folder / 'MangaUB').mkdir()
    path = folder / 'MangaUB/character_count.csv'
    path.write_text('\ufeffpanel_id,n_characters\nf0,1\nf1,2.0\nzz,3\nf2,many\nf0,2\n', encoding='utf-8')
    report = manga109.read(folder, SETTINGS)[1]
    assert report.incomplete["people's count of a panel, not used: counting asks about whole pages"] == 2
    assert report.dropped["people's count of a panel that is in none of the books"] == 1
    assert report.dropped["people's count without panel_id or n_characters, or of a panel twice"] == 2
    for wrong in (b'panel_id,n_characters\n\xff\xfe,1', b'panel_id,n_characters\n"' + b'x' * 200_000 + b'",1'):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match='is not a CSV file in UTF-8'):
            manga109.read(folder, SETTINGS)


@pytest.mark.parametrize('name', ['Manga109Dialog', 'COO'])
@pytest.mark.parametrize('content', [b'<book>', b'<comic/>', b'', b'\xff\xfe', b'<!DOCTYPE a><book/>', b'<a>' * 10_000])
def test_damaged_add_ons_are_a_sentence_with_their_path(folder, name, content):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / 'TEST.xml').write_bytes(content)
    with pytest.raises(ValueError, match=f'{name}/TEST') as error:
        manga109.read(folder, SETTINGS)
    assert str(error.value).endswith('.')


def test_a_page_of_too_many_things_is_left_out(folder):
    many = ''.join(f'<frame id="g{i}" xmin="1" ymin="1" xmax="9" ymax="9"/>' for i in range(1000))
    edit(folder, '</page></pages>', f'{many}</page></pages>')
    pages, report = manga109.read(folder, SETTINGS)
    assert pages == []
    assert report.dropped['page with more than 1000 annotations'] == 1
    assert report.lost_with_pages == 1013


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_an_attribute_says_the_book_is_read_or_refused_in_a_sentence(folder, data):
    attributes = list(re.finditer(r'"([^"<>?]*)"', BOOK))[2:]
    chosen = data.draw(st.sampled_from(attributes))
    value = data.draw(st.text(max_size=8) | st.sampled_from(['-1', '1e999', 'nan', '9' * 400, 'c1', 'b0', 'TEST', '']))
    (folder / 'annotations/TEST.xml').write_text(
        BOOK[: chosen.start(1)] + saxutils.escape(value, {'"': '&quot;'}) + BOOK[chosen.end(1) :],
        encoding='utf-8', errors='replace',
    )  # fmt: skip
    try:
        pages, report = manga109.read(folder, SETTINGS)
    except ValueError as error:
        assert str(error).endswith('.')
        return
    assert report.pages == len(pages)
    assert len(pages) == 1 or report.dropped
