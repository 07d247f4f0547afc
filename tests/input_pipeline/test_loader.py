"""The batches from a data set."""

import io
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from input_pipeline import dataset, pictures
from input_pipeline.loader import (
    LoaderSettings,
    PageStore,
    decode,
    is_held_out,
    load,
    load_pages,
    prepare_ahead,
    read_questions,
)


def ids(batches):
    return [sample.question.id for batch in batches for sample in batch]


def test_each_sample_has_its_own_page(built):
    folder, pages, _ = built
    numbers = {page.id: i for i, page in enumerate(pages)}
    settings = LoaderSettings(batch_size=5, split='test', epochs=1)
    for batch in load(folder, settings):
        for sample in batch:
            assert sample.image.size == (400, 560)
            assert sample.image.mode == 'RGB'
            # write_folder paints the page's number into its red channel
            assert np.asarray(sample.image)[0, 0, 0] == numbers[sample.question.page_id] * 7


def test_one_epoch_has_every_question_once(built):
    folder, _, _ = built
    settings = LoaderSettings(batch_size=7, epochs=1)
    seen = ids(load(folder, settings))
    assert sorted(seen) == sorted(question.id for question in read_questions(folder, 'train'))
    assert seen != sorted(seen)


def test_questions_are_chosen_by_their_ids(built):
    folder, _, _ = built
    chosen = [question.id for question in read_questions(folder, 'train')][::3]
    settings = LoaderSettings(batch_size=2, epochs=1, ids=frozenset(chosen))
    assert sorted(ids(load(folder, settings))) == sorted(chosen)
    assert {q.id for batch in load_pages(folder, settings) for page in batch for q in page.questions} == set(chosen)


def test_epochs_differ_and_a_seed_repeats(built):
    folder, _, _ = built
    settings = LoaderSettings(batch_size=8, epochs=2, tasks=('action_recognition',))
    seen = ids(load(folder, settings))
    half = len(seen) // 2
    assert sorted(seen[:half]) == sorted(seen[half:])
    assert seen[:half] != seen[half:]
    assert seen == ids(load(folder, settings))
    assert seen != ids(load(folder, replace(settings, seed=1)))


def test_the_position_is_restored_exactly(built):
    folder, _, _ = built
    settings = LoaderSettings(batch_size=8, threads=3, prefetch=16)
    whole = iter(load(folder, settings))
    first = [[sample.question.id for sample in next(whole)] for _ in range(3)]
    state = whole.get_state()  # while later samples are already being decoded
    rest = [[sample.question.id for sample in next(whole)] for _ in range(20)]  # into the next epoch
    resumed = iter(load(folder, settings))
    resumed.set_state(state)
    assert [[sample.question.id for sample in next(resumed)] for _ in range(20)] == rest
    assert first[0] != rest[0]


@pytest.mark.parametrize('shuffle', [False, True])
def test_processes_share_an_epoch(built, shuffle):
    folder, _, _ = built
    settings = LoaderSettings(batch_size=4, epochs=1, shuffle=shuffle)
    shares = [ids(load(folder, settings, process, 3)) for process in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(ids(load(folder, settings)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_filters(built):
    folder, _, _ = built
    base = LoaderSettings(batch_size=4, epochs=1, shuffle=False)

    def tasks(**changes):
        return Counter(sample.question.task for batch in load(folder, replace(base, **changes)) for sample in batch)

    assert set(tasks(tasks=('depth_comparison', 'panel_reordering'))) == {'depth_comparison', 'panel_reordering'}
    assert tasks(tasks=('character_counting',)) == {'character_counting': 24}
    assert tasks(per_task=3) == dict.fromkeys(dataset.CATEGORY_OF, 3)
    with pytest.raises(ValueError, match='widen the filters'):
        load(folder, replace(base, tasks=()))


def test_page_by_page_each_page_comes_once_with_all_its_questions(built):
    folder, pages, _ = built
    numbers = {page.id: i for i, page in enumerate(pages)}
    settings = LoaderSettings(batch_size=5, epochs=1, tasks=('action_recognition', 'character_counting'))
    batches = list(load_pages(folder, settings))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    samples = [sample for batch in batches for sample in batch]
    for sample in samples:
        assert np.asarray(sample.image)[0, 0, 0] == numbers[sample.questions[0].page_id] * 7
        assert len({question.page_id for question in sample.questions}) == 1
    asked = sorted(question.id for sample in samples for question in sample.questions)
    assert asked == sorted(
        question.id for question in read_questions(folder, 'train') if question.task in settings.tasks
    )


def test_what_is_prepared_ahead_goes_on_from_the_last_batch_handed_out(built):
    """The thread is ahead of the training step: a saved position must not be."""

    def prepare(samples, rng):
        return [sample.question.id for sample in samples], int(rng.integers(1 << 30))

    prepared = prepare_ahead(load(built[0], LoaderSettings(batch_size=3)), prepare, seed=5)
    batches = iter(prepared)
    first = [next(batches) for _ in range(3)]
    state = batches.get_state()
    later = [next(batches) for _ in range(3)]
    again = iter(prepared)
    again.set_state(state)
    assert [next(again) for _ in range(3)] == later
    assert len({drawn for _, drawn in first + later}) == 6, 'each batch has random numbers of its own'


def test_the_last_batch_may_be_dropped(built):
    folder, _, _ = built
    settings = LoaderSettings(batch_size=5, epochs=1, tasks=('character_counting',))  # 24 questions
    assert [len(batch) for batch in load(folder, settings)] == [5, 5, 5, 5, 4]
    assert [len(batch) for batch in load(folder, replace(settings, drop_remainder=True))] == [5, 5, 5, 5]


def test_the_cache_keeps_what_it_has_room_for(built):
    folder, _, _ = built
    one_page = 400 * 560 * 4
    store = PageStore(folder, 'train', 2 * one_page)
    first = store[0]
    assert store[0] is first
    store[1], store[0], store[2]  # the second was used least recently
    assert store[0] is first
    small = PageStore(folder, 'train', 0)
    assert small[0] is not small[0]
    assert small[0].tobytes() == first.tobytes()


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'LA', 'P', 'L', '1', 'CMYK'])
def test_pages_of_any_mode_become_rgb_on_white(mode):
    page = Image.new('RGBA', (4, 2), (0, 0, 0, 0))
    page.putpixel((1, 1), (0, 0, 0, 255))
    file = io.BytesIO()
    if mode not in ('RGBA', 'LA', 'P'):
        page = Image.alpha_composite(Image.new('RGBA', page.size, 'white'), page)
    page.convert(mode).save(file, 'JPEG' if mode == 'CMYK' else 'PNG', quality=100)
    image = decode(file.getvalue())
    assert (image.mode, image.size) == ('RGB', (4, 2))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert sum(image.getpixel((1, 1))) < 30


def test_a_task_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match='tasks names depth_comparison more than once'):
        LoaderSettings(tasks=('depth_comparison', 'action_recognition', 'depth_comparison'))


def test_missing_data_and_splits_are_named(built, tmp_path):
    folder, _, _ = built
    with pytest.raises(FileNotFoundError, match='holds no data set'):
        load(tmp_path, LoaderSettings())
    with pytest.raises(ValueError, match="no questions of split 'exam'"):
        dataset.open_records(folder, 'questions', 'exam')


# ---------------------------------------------------------------- mixtures and pages held out

ACTION, COUNTING, DEPTH = 'action_recognition', 'character_counting', 'depth_comparison'


MIXED = LoaderSettings(batch_size=10, mixture=(((ACTION,), 0.5), ((COUNTING, DEPTH), 0.3), ((DEPTH,), 0.2)))


def test_a_mixture_keeps_its_proportions_and_is_the_same_every_time(built):
    folder, _, _ = built
    stream, again = iter(load(folder, MIXED)), iter(load(folder, MIXED))
    batches = [next(stream) for _ in range(8)]  # beyond the end of every part
    for batch in batches:
        tasks = Counter(sample.question.task for sample in batch)
        assert tasks[ACTION] == 5 and tasks[COUNTING] + tasks[DEPTH] == 5
    assert ids(next(again) for _ in range(8)) == ids(batches)


def test_a_mixture_goes_on_from_a_saved_position(built):
    folder, _, _ = built
    stream = iter(load(folder, MIXED))
    for _ in range(3):
        next(stream)
    state, ahead = stream.get_state(), ids(next(stream) for _ in range(4))
    resumed = iter(load(folder, MIXED))
    resumed.set_state(state)
    assert ids(next(resumed) for _ in range(4)) == ahead


def test_processes_share_a_mixture(built):
    """Each has the proportions of the whole, and no question of the other's epoch."""
    folder, _, _ = built
    parts = [[next(stream) for _ in range(2)] for stream in (iter(load(folder, MIXED, i, 2)) for i in range(2))]
    for batches in parts:
        assert all(Counter(s.question.task for s in batch)[ACTION] == 5 for batch in batches)
    one, two = ({s.question.id for batch in batches for s in batch if s.question.task == ACTION} for batches in parts)
    assert not one & two
    with pytest.raises(ValueError, match='do not suffice for 1000 processes'):
        load(folder, MIXED, 0, 1000)


def test_pages_held_out_are_learnt_from_by_nobody(built):
    folder, _, _ = built
    rest = LoaderSettings(batch_size=1, epochs=1, held_out=0.4)
    kept, out = (
        {s.question.page_id for [s] in load(folder, replace(rest, only_held_out=only))} for only in (False, True)
    )
    assert kept and out and not kept & out
    assert kept | out == {question.page_id for question in read_questions(folder, 'train')}
    assert {p.questions[0].page_id for [p] in load_pages(folder, rest)} == kept
    other = {s.question.page_id for [s] in load(folder, replace(rest, seed=7, tasks=(ACTION,)))}
    assert not other & out, 'another seed or another task would see them'


# ---------------------------------------------------------------- two pages


@pytest.fixture(scope='module')
def pairs(built, tmp_path_factory):
    """A data set with two questions over two pages among the others, both of which have the same page at the left."""
    _, pages, questions = built
    train = [page for page in pages if page.split == 'train']
    asked = next(q for q in questions if q.page_id == train[0].id)
    made = [
        replace(asked, id=f'pair/{number}', second_page_id=train[number].id, regions=((410.0, 20.0, 500.0, 90.0),))
        for number in (1, 2)
    ]
    folder = tmp_path_factory.mktemp('pairs')
    dataset.write(folder, pages, [*questions, *made])
    return folder, pages, made


def test_a_question_over_two_pages_shows_both_as_one_picture(pairs):
    folder, pages, made = pairs
    numbers = {page.id: i for i, page in enumerate(pages)}
    assert [q for q in read_questions(folder, 'train') if q.second_page_id] == made
    seen = {s.question.id: s for [s] in load(folder, LoaderSettings(batch_size=1, epochs=1))}
    for question in made:
        picture = np.asarray(seen[question.id].image)
        assert picture.shape == (560, 800, 3)
        # write_folder paints the page's number into its red channel
        left, right = (numbers[name] * 7 for name in (question.page_id, question.second_page_id))
        assert (picture[0, 0, 0], picture[0, 400, 0]) == (left, right)
        assert seen[question.id].question.picture_id == f'{question.page_id}+{question.second_page_id}'
    alone = next(s for s in seen.values() if not s.question.second_page_id)
    assert alone.image.size == (400, 560)


def test_pages_of_a_pair_are_asked_about_apart_from_either_page(pairs):
    """What is drawn for supervised learning page by page."""
    folder, _, _ = pairs
    shown = [p for [p] in load_pages(folder, LoaderSettings(batch_size=1, epochs=1))]
    together = [p for p in shown if p.image.size == (800, 560)]
    assert sorted(q.id for p in together for q in p.questions) == ['pair/1', 'pair/2'] and len(together) == 2
    assert all(not q.second_page_id for p in shown if p not in together for q in p.questions)


def test_a_pair_with_one_page_held_out_is_neither_learnt_from_nor_measured(pairs):
    folder, _, made = pairs
    share = next(s for s in np.linspace(0.05, 0.95, 19) if len({is_held_out(n, s) for n in pair_of(made[0])}) == 2)
    for only in (False, True):
        settings = LoaderSettings(batch_size=1, epochs=1, held_out=float(share), only_held_out=only)
        assert made[0].id not in ids(load(folder, settings))


def pair_of(question):
    return question.page_id, question.second_page_id


def test_pages_side_by_side_keep_their_upper_edges():
    pages = [Image.new('RGB', size, colour) for size, colour in (((30, 20), 'red'), ((10, 40), 'blue'))]
    picture = pictures.side_by_side(pages)
    assert picture.size == (40, 40)
    assert [picture.getpixel(at) for at in ((0, 19), (0, 20), (30, 39))] == [(255, 0, 0), (255,) * 3, (0, 0, 255)]
    assert pictures.side_by_side(pages[:1]) is pages[0]


def test_a_second_page_of_another_split_is_refused(pairs):
    _, pages, made = pairs
    other = next(page.id for page in pages if page.split == 'test')
    with pytest.raises(ValueError, match=f'is in split train, but its page {other} is in test'):
        dataset.write('unused', pages, [replace(made[0], second_page_id=other)])
