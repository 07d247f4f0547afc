import html.parser
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from rarl_jax.conversation.episodes import read_rollouts
from rarl_jax.report.__main__ import main
from rarl_jax.report.build import build_report, duration, labels
from rarl_jax.report.episodes import Piece, pieces
from tests.rarl_jax.report.made import make_workdir

HOSTILE = (
    '<answer></span></pre><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
    '<a href="javascript:alert(1)">x</a>\'"><svg onload=alert(1)>{{ 7*7 }}\u202e\ud800\0\x1b[31m</answer>'
)


class Tags(html.parser.HTMLParser):
    """Every tag with its attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return make_workdir(tmp_path_factory.mktemp('runs') / 'one', pages=4, hostile=HOSTILE)


@pytest.fixture(scope='module')
def page(workdir):
    return build_report([workdir]).read_text(encoding='utf-8')


def test_everything_is_on_the_page(workdir, page):
    text = ' '.join(Tags(page).text)
    for word in (
        'assets/base',
        'zoom, over the stages',
        'after, its modes',
        'reward/tool_iou',
        'reward/accuracy/depth_comparison',
        'warm_start',
        'rl_main',
    ):
        assert word in text
    shown = [episode for path in (workdir / 'rollouts').glob('*.jsonl') for episode in read_rollouts(path)]
    assert len(shown) == 72
    for episode in shown:
        assert f'{episode.total:.2f}' in text and f'{episode.advantage:+.2f}' in text
    assert all(
        f'{n}: {zoom.iou:.2f}' in text for each in shown for n, zoom in enumerate(each.zooms, 1) if zoom.iou is not None
    )


def test_the_head_says_when_where_and_with_what(page):
    head = page.partition('class="facts"')[2].partition('</section>')[0]
    facts = [text.strip() for text in Tags(head).text if text.strip()]
    assert facts[1:] == [
        *('began', '2026-01-02 03:04:05 UTC'),
        *('duration', '90 min, and 1 launches that did not finish'),
        *('machine', 'node7, 8 x NVIDIA H100'),
        *('commit', 'abc123'),
        *('model', 'assets/base'),
        *('data', '20 pages, 1,910 questions'),
        *('asked', 'before 12, after 12'),
        *('stages', 'base → warm_start → rl_main → after'),
        *('seed', '0'),
    ]


@pytest.mark.parametrize(
    'events, text',
    [
        ([], ''),
        ([('began', 0)], '1 launches that did not finish'),
        ([('began', 0), ('finished', 5)], '5 s'),
        ([('began', 0), ('finished', 150)], '2 min'),
        ([('began', 0), ('finished', 7200), ('began', 9000), ('finished', 9060)], '2 h 1 min'),
    ],
)
def test_durations(events, text):
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    launches = [{'event': event, 'time': (begin + timedelta(seconds=at)).isoformat()} for event, at in events]
    assert duration(launches) == text


def test_what_would_repeat_stands_once(page):
    assert page.count('Brackets: 95 %') == page.count('McNemar: exact') == page.count('Paper: arXiv') == 1
    cards = page.split('<div class="card">')[1:]
    assert ['paper: RARL' in card for card in cards] == [True, *[False] * (len(cards) - 1)]


def test_a_run_on_drawn_pages_is_not_set_beside_the_paper(tmp_path):
    workdir = make_workdir(tmp_path / 'x', pages=3)
    config = json.loads((workdir / 'config.json').read_text())
    (workdir / 'config.json').write_text(json.dumps(config | {'data': {'draw': {'width': 9}, 'dir': '', 'raw': ''}}))
    assert 'paper: ' not in build_report([workdir]).read_text(encoding='utf-8')


def test_a_metric_that_never_changes_is_a_number(tmp_path):
    rows = [{'step': step, 'stage': 'rl', 'reward/total': step / 3, 'policy/clip_fraction': 0.0} for step in range(5)]
    (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    text = build_report([tmp_path]).read_text(encoding='utf-8')
    assert text.count('<figure>') == 1 and 'policy/clip_fraction <b>0</b>' in text


def test_nothing_steers_the_reader(page):
    assert all(character.isprintable() or character in '\n\xa0' for character in page)
    assert r'\u202e\ud800\x00\x1b[31m' in page


def test_no_text_of_a_model_becomes_markup(page):
    tags = Tags(page)
    assert not {tag for tag, _ in tags.tags} & {'script', 'iframe', 'object', 'embed', 'base', 'form'}
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith('on')]
    addresses = [attributes[name] for _, attributes in tags.tags for name in ('href', 'src') if name in attributes]
    assert all(address.startswith(('#', '../rollouts/images/')) for address in addresses)
    assert '<script>document.title="owned"</script>' in ''.join(tags.text)  # it is there, as text
    assert '{{ 7*7 }}' in ''.join(tags.text)
    policy = next(
        attributes['content']
        for _, attributes in tags.tags
        if attributes.get('http-equiv') == 'Content-Security-Policy'
    )
    assert policy.startswith("default-src 'none'") and 'script' not in policy


def test_pictures_are_found_from_the_page(workdir, page):
    pictures = {attributes['src'] for tag, attributes in Tags(page).tags if tag == 'img'}
    assert len(pictures) > 12
    assert all((workdir / 'report' / unquote(picture)).is_file() for picture in pictures)


def test_a_missing_picture_is_said(tmp_path):
    workdir = make_workdir(tmp_path / 'x', pages=3)
    shutil.rmtree(workdir / 'rollouts' / 'images')
    tags = Tags(build_report([workdir]).read_text(encoding='utf-8'))
    assert 'img' not in {tag for tag, _ in tags.tags}
    assert "The page's picture is missing." in tags.text and "The crop's picture is missing." in tags.text


def test_one_file_alone_is_enough(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "stage": "sft", "loss": 2.5}\n')
    text = ' '.join(Tags(build_report([tmp_path]).read_text(encoding='utf-8')).text)
    assert 'No evaluation has finished yet.' in text and 'No episodes have been written yet.' in text and 'loss' in text


def test_several_runs_share_their_charts(tmp_path, capsys):
    first, second = make_workdir(tmp_path / 'a', pages=3), make_workdir(tmp_path / 'b', pages=3)
    assert main([str(first), str(second)]) == 0
    assert capsys.readouterr().out.strip() == str(first / 'report' / 'index.html')
    text = (first / 'report' / 'index.html').read_text(encoding='utf-8')
    charts = [figure for figure in text.split('<figure>')[1:] if 'reward/total' in figure.partition('</figure>')[0]]
    assert len(charts) == 1 and 'polyline class="r0"' in charts[0] and 'polyline class="r1"' in charts[0]
    ids = [attributes['id'] for _, attributes in Tags(text).tags if 'id' in attributes]
    assert len(ids) == len(set(ids)), 'tabs of one group would switch those of another'
    assert 'The runs, zoom' in text and 'src="../../b/rollouts/images/' in text


@pytest.mark.parametrize(
    'line', ['{"event": "began"}', '{"event": "began", "time": 7}', '{"event": "began", "time": "now"}', '[]', '{']
)
def test_a_launch_that_is_none_is_a_note(tmp_path, line):
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "stage": "sft", "loss": 2.5}\n')
    (tmp_path / 'launches.jsonl').write_text(line + '\n')
    (tmp_path / 'data' / 'built').mkdir(parents=True)
    (tmp_path / 'data' / 'built' / 'report.json').write_text('{"pages": 7, "questions": {}}')
    notes = build_report([tmp_path]).read_text(encoding='utf-8').partition('class="notes"')[2]
    assert 'launches.jsonl' in notes.partition('</ul>')[0]


def test_folders_of_any_name(tmp_path):
    first, second = (make_workdir(tmp_path / name, pages=3) for name in ('a\u202e\x1b[31m', '<b>&'))
    text = build_report([first, second]).read_text(encoding='utf-8')
    assert r'a\u202e\x1b[31m' in text and '&lt;b&gt;&amp;' in text
    assert all(character.isprintable() or character in '\n\xa0' for character in text)


def test_wrong_folders_are_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 1
    assert 'is no run' in capsys.readouterr().err
    with pytest.raises(ValueError, match='is named twice'):
        labels([tmp_path, tmp_path])


def test_labels_are_as_short_as_can_be_told_apart(tmp_path):
    assert labels([tmp_path / 'a' / 'x', tmp_path / 'b' / 'x']) == ['a/x', 'b/x']
    assert labels([tmp_path / 'a', tmp_path / 'b']) == ['a', 'b']


@pytest.mark.parametrize(
    'text', ['', 'plain', '<think>a</think>b<answer>c</answer>', '</think><think><answer>', HOSTILE]
)
def test_pieces_joined_are_the_text(text):
    assert ''.join(piece.text for piece in pieces(text)) == text


def test_pieces_by_hand():
    assert pieces('<think>a</think>b<answer>c') == [
        Piece('tag', '<think>'),
        Piece('think', 'a'),
        Piece('tag', '</think>'),
        Piece('plain', 'b'),
        Piece('tag', '<answer>'),
        Piece('answer', 'c'),
    ]


@pytest.mark.slow
@pytest.mark.browser
def test_in_a_browser(workdir, page, tmp_path):
    """Chromium opens it from disk, shows every tab's page, and runs nothing that a model wrote."""
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium is installed')
    flags = [
        '--headless',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-background-networking',
        f'--user-data-dir={tmp_path}',
    ]
    address = (workdir / 'report' / 'index.html').as_uri()
    done = subprocess.run(
        [chromium, *flags, '--dump-dom', address], capture_output=True, text=True, timeout=300, check=True
    )
    opened = Tags(done.stdout)
    assert [tag for tag, _ in opened.tags] == [tag for tag, _ in Tags(page).tags]
    assert 'one · rarl_jax' in opened.text
