"""Drawn pages: exact boxes, what the settings promise, the same page for the same seed, and files that the reader of AI4VA takes without loss."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline import tasks
from input_pipeline.pictures import as_shown, decode
from input_pipeline.schema import Question
from input_pipeline.sources import ai4va
from input_pipeline.synthetic import drawing
from input_pipeline.synthetic.files import draw_named, page_name, write_pages
from input_pipeline.synthetic.pages import Canvas, DrawSettings, draw_page

FULL = DrawSettings(panels=(1, 13), figures=(0, 8), balloon_rate=1.0, sound_rate=1.0)
CLEAN = DrawSettings(noise=0.0, blotch=0.0, ageing=0.0, balloon_rate=0.0, sound_rate=0.0, round_rate=0.0)


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def inside(inner, outer):
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def test_a_page_depends_on_seed_and_number_alone():
    first, again, other = draw_page(3, 5, FULL), draw_page(3, 5, FULL), draw_page(3, 6, FULL)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.figures == again.figures
    assert first.image.tobytes() != other.image.tobytes()


def test_a_box_holds_the_visible_pixels_of_its_figure_and_no_row_more():
    canvas = Canvas(200, 200)
    far = drawing.figure_sprite('Ruby', 'reading', 80, 90, False, 4.0)
    near = drawing.figure_sprite('Azur', 'waving', 80, 90, False, 4.0)
    canvas.paste(far, 20, 30, 1)
    assert canvas.visible(1, (20, 30, 100, 120)) == (20, 30, 100, 120)
    canvas.paste(near, 70, 40, 2)
    x1, y1, x2, y2 = canvas.visible(1, (20, 30, 100, 120))
    assert (x1, y1, y2) == (20, 30, 120)
    assert 70 < x2 <= 100  # what the nearer one hides no longer counts
    assert (canvas.owner[:, x2:] != 1).all()
    assert canvas.visible(2, (70, 40, 150, 130)) == (70, 40, 150, 130)


@pytest.mark.parametrize('number', range(4))
def test_boxes_are_the_painted_pixels(number):
    """A figure's colour is met at each side of its box, and next to nowhere else in its panel."""
    page = draw_page(1, number, CLEAN)
    pixels = np.asarray(page.image).astype(int)
    for figure in page.figures:
        colour = np.array(drawing.CAST[figure.identity].colour)
        near = (np.abs(pixels - colour).max(-1) < 12) | (np.abs(pixels - np.array(drawing.INK)).max(-1) < 12)
        x1, y1, x2, y2 = figure.box
        for side in (near[y1, x1:x2], near[y2 - 1, x1:x2], near[y1:y2, x1], near[y1:y2, x2 - 1]):
            assert side.any()
        own = np.abs(pixels - colour).max(-1) < 12
        panel = page.panels[figure.panel]
        found = own[panel[1] : panel[3], panel[0] : panel[2]].sum()
        assert own[y1:y2, x1:x2].sum() > 0.99 * found > 0


@pytest.mark.parametrize('actions', [('reading', 'juggling'), ('waving', 'sleeping')])
def test_the_outline_does_not_tell_the_action(actions):
    masks = [np.asarray(drawing.figure_sprite('Fern', action, 120, 130, False, 5.0))[:, :, 3] for action in actions]
    outside = (masks[0] > 0) != (masks[1] > 0)
    assert outside.mean() < 0.01


def test_a_page_keeps_what_its_settings_promise():
    settings = DrawSettings(panels=(2, 13), figures=(3, 8))
    for number in range(12):
        page = draw_page(2, number, settings)
        assert 2 <= len(page.panels) <= 13
        assert len(page.figures) <= 8
        assert len({figure.identity for figure in page.figures}) == len(page.figures)
        for a, box in enumerate(page.panels):
            assert inside(box, (0, 0, 672, 896))
            for other in page.panels[a + 1 :]:
                assert min(box[2], other[2]) <= max(box[0], other[0]) or min(box[3], other[3]) <= max(box[1], other[1])
        for figure in page.figures:
            assert inside(figure.box, page.panels[figure.panel])
        for lettering in (*page.balloons, *page.sounds):
            assert inside(lettering.box, page.panels[lettering.panel])


def test_of_two_figures_the_nearer_hides_a_part_of_the_farther():
    pairs = 0
    for number in range(12):
        page = draw_page(4, number, CLEAN)
        for far in page.figures:
            if far.depth == 1.0:
                near = next(other for other in page.figures if other.panel == far.panel and other.depth == 0.0)
                assert area(far.box) < area(near.box)
                assert min(far.box[2], near.box[2]) > max(far.box[0], near.box[0]) - 3
                pairs += 1
    assert pairs >= 5


def test_repeating_casts_never_double_in_a_panel():
    settings = DrawSettings(panels=(6, 9), figures=(8, 12), repeat_cast=True, figure_size=(60, 90))
    seen = [draw_page(5, number, settings).figures for number in range(4)]
    assert any(len({f.identity for f in figures}) < len(figures) for figures in seen)
    for figures in seen:
        together = [(figure.panel, figure.identity) for figure in figures]
        assert len(set(together)) == len(together)


def test_thirteen_panels_and_a_round_one():
    pages = [draw_page(6, number, DrawSettings(panels=(13, 13), figures=(4, 8), round_rate=0.5)) for number in range(3)]
    assert {len(page.panels) for page in pages} == {13}
    assert any(any(page.round_panels) for page in pages)


def test_a_page_may_be_as_large_as_a_scan():
    settings = DrawSettings(width=1500, height=2100, panels=(13, 13), figure_size=(150, 260))
    page = draw_page(6, 0, settings)
    assert page.image.size == (1500, 2100)
    foot = np.asarray(page.image)[-20:, -20:]
    assert foot.std() > 2  # grain to the last corner


WRONG = [
    {'panels': (0, 3)}, {'panels': (4, 14)}, {'panels': (5, 4)}, {'figures': (3, 9)}, {'figures': (-1, 2)}, {'figures': (3, 27), 'repeat_cast': True},
    {'width': 0}, {'height': 199}, {'width': 10**6}, {'figure_size': (0, 9)}, {'figure_size': (160, 110)}, {'line': (6.0, 4.0)}, {'line': (0.0, 1.0)},
    {'noise': -1.0}, {'noise': float('nan')}, {'blotch': float('inf')}, {'ageing': 300.0}, {'round_rate': 1.5}, {'sound_rate': float('nan')},
]  # fmt: skip


@pytest.mark.parametrize('wrong', WRONG, ids=str)
def test_settings_that_cannot_be_drawn(wrong):
    with pytest.raises(ValueError, match=f'draw.{next(iter(wrong))} is .*, expected'):
        draw_page(0, 0, DrawSettings(**wrong))


@pytest.mark.parametrize('size', [(200, 200), (200, 900), (900, 200)])
def test_the_smallest_pages_can_be_drawn(size):
    for panels in (1, 13):
        settings = DrawSettings(*size, panels=(panels, panels), figure_size=(8, 160), round_rate=0.5)
        assert len(draw_page(0, 0, settings).panels) == panels


@pytest.mark.parametrize('size', [(672, 896), (1500, 2100)], ids=['within the sheets', 'beyond them'])
def test_noise_is_printed_a_colour_at_a_time_as_on_the_whole_page(size):
    drawing_of = Image.effect_mandelbrot(size, (-2, -1, 1, 1), 50).convert('RGB')
    printed = drawing.print_noise(np.random.default_rng(3), drawing_of, 7.0, 6.0, 16.0)
    w, h = size
    corner = np.random.default_rng(3).integers(0, [max(1, drawing._SHEET - side) for side in (w, h, w, h)])
    rows, columns = np.arange(h)[:, None] % drawing._SHEET, np.arange(w) % drawing._SHEET
    x, y, u, v = corner
    grain = 7.0 * drawing._GRAIN[(rows + y) % drawing._SHEET, (columns + x) % drawing._SHEET]
    grain += 6.0 * drawing._BLOTCH[(rows + v) % drawing._SHEET, (columns + u) % drawing._SHEET]
    page = np.asarray(drawing_of).astype(np.float32) + grain[:, :, None]
    page[:, :, 2] *= 1 - np.linspace(0, 16.0 / 255, w, dtype=np.float32)
    page[:, :, 0] *= (1 - np.linspace(0, 16.0 / 255, h, dtype=np.float32))[:, None]
    assert np.array_equal(np.asarray(printed), np.clip(page, 0, 255).astype(np.uint8))


def test_the_reader_takes_drawn_files_without_loss(tmp_path):
    write_pages(tmp_path, FULL, {'train': 3, 'test': 2}, seed=1, processes=1)
    pages, report = ai4va.read(tmp_path, ai4va.ReadSettings())
    assert [page.split for page in pages].count('test') == 2
    assert report.dropped == {}
    assert ai4va.read(tmp_path, ai4va.ReadSettings(check_images=False)) == (pages, report)
    drawn = draw_page(1, 0, FULL)
    file = tmp_path / 'images' / page_name('train', 0)
    assert np.array_equal(decode(file), drawn.image)
    assert as_shown(file, drawn.image.size) == (file.read_bytes(), '.webp')  # a data set copies it as it is
    read = next(page for page in pages if page.id == page_name('train', 0).removesuffix('.webp'))
    assert [panel.box for panel in read.panels] == [tuple(map(float, box)) for box in drawn.panels]
    assert [panel.round for panel in read.panels] == drawn.round_panels
    facts = {(c.box, c.identity, c.action, c.depth) for c in read.characters}
    assert facts == {(tuple(map(float, f.box)), f.identity, f.action, f.depth) for f in drawn.figures}
    figures = {character.id: character.identity for character in read.characters}
    assert [(b.text, figures[b.speaker]) for b in read.balloons] == [
        (b.text, drawn.figures[b.speaker].identity) for b in drawn.balloons
    ]
    assert {region.text for region in read.regions} == {sound.text for sound in drawn.sounds}


def test_splits_share_no_page_and_processes_change_nothing(tmp_path):
    write_pages(tmp_path / 'one', CLEAN, {'train': 8, 'test': 2}, seed=1, processes=1)
    write_pages(tmp_path / 'two', CLEAN, {'train': 8, 'test': 2}, seed=1, processes=2)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name / 'images').iterdir()} for name in ('one', 'two'))
    assert one == two
    assert len(set(one.values())) == len(one) == 10
    assert (tmp_path / 'one' / 'sidecar.json').read_text() == (tmp_path / 'two' / 'sidecar.json').read_text()


def test_all_seven_tasks_find_questions(tmp_path):
    settings = DrawSettings(panels=(5, 8), figures=(6, 8), figure_size=(90, 120), balloon_rate=1.0)
    write_pages(tmp_path, settings, {'train': 6}, seed=2, processes=1)
    pages, _ = ai4va.read(tmp_path, ai4va.ReadSettings())
    vocabulary = tasks.collect_vocabulary(pages)
    made = [q for page in pages for q in tasks.make_questions(page, 0, tasks.TaskSettings(), vocabulary)]
    assert {q.task for q in made if isinstance(q, Question)} == set(tasks.TaskSettings().tasks)


def test_an_unknown_split_is_named(tmp_path):
    with pytest.raises(ValueError, match="'dev' is unknown"):
        write_pages(tmp_path, CLEAN, {'dev': 1}, seed=0)


def test_a_page_is_drawn_anew_from_its_name(tmp_path):
    write_pages(tmp_path, CLEAN, {'train': 0, 'test': 18}, seed=3)
    name = page_name('test', 17)  # the second issue's second page
    with Image.open(tmp_path / 'images' / name) as kept:
        assert np.array_equal(np.asarray(kept), np.asarray(draw_named(name, 3, CLEAN).image))
    with pytest.raises(ValueError, match="'page-1' is no name of a drawn page"):
        draw_named('page-1', 0, CLEAN)


@pytest.mark.parametrize('pages', [-1, 48_001])
def test_no_split_runs_into_the_names_of_the_next(tmp_path, pages):
    assert page_name('train', 47_999) != page_name('validation', 0) == page_name('train', 48_000)
    with pytest.raises(ValueError, match=f'validation asks for {pages}, expected 0 to 48000'):
        write_pages(tmp_path, CLEAN, {'train': 1, 'validation': pages}, seed=0)


# --- Workers

DRAW = """
import sys
from input_pipeline.synthetic.files import write_pages
from input_pipeline.synthetic.pages import DrawSettings

if __name__ == '__main__':
    try:
        write_pages(sys.argv[1], DrawSettings(), {'train': 4000}, seed=0, processes=2, progress=lambda n: print('drawn', flush=True))
    except KeyboardInterrupt:
        print('interrupted', flush=True)
"""


def children(process):
    return [int(pid) for pid in Path(f'/proc/{process}/task/{process}/children').read_text().split()]


def alive(process):
    try:
        return Path(f'/proc/{process}/stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


@pytest.fixture
def drawing_process(tmp_path):
    """A process that draws with two workers."""
    (tmp_path / 'draw.py').write_text(DRAW, encoding='utf-8')
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / 'draw.py'), str(tmp_path / 'raw')],
        env=os.environ | {'PYTHONPATH': str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until(true, seconds=30):
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert true()


needs_proc = pytest.mark.skipif(not Path('/proc').is_dir(), reason='finds the workers in /proc')


@needs_proc
def test_workers_die_with_their_parent(drawing_process):
    assert drawing_process.stdout.readline() == 'drawn\n'
    workers = children(drawing_process.pid)
    assert len(workers) >= 2
    drawing_process.kill()
    drawing_process.wait()
    wait_until(lambda: not any(map(alive, workers)))


@needs_proc
@pytest.mark.parametrize('begun', [True, False])
def test_an_interrupt_is_the_parent_s_alone(drawing_process, begun):
    """Ctrl-C reaches the whole group; it is told once, also while the workers are still starting."""
    if begun:
        assert drawing_process.stdout.readline() == 'drawn\n'
    wait_until(lambda: len(children(drawing_process.pid)) >= 3)  # the third follows what they share
    workers = children(drawing_process.pid)
    os.killpg(drawing_process.pid, signal.SIGINT)
    out, err = drawing_process.communicate(timeout=60)
    assert out.splitlines()[-1] == 'interrupted'
    assert (err, drawing_process.returncode) == ('', 0)
    wait_until(lambda: not any(map(alive, workers)))


def test_an_interrupted_drawing_leaves_no_file_that_passes_for_a_whole_one(tmp_path):
    def interrupt(n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pages(tmp_path, CLEAN, {'train': 3}, seed=1, processes=1, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ['images']
