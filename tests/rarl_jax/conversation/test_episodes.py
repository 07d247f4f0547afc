import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from rarl_jax.conversation.boxes import PageFrame
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.episodes import observations, read_rollouts, write_rollouts
from rarl_jax.conversation.protocol import read_turn
from rarl_jax.conversation.rewards import Reward
from rarl_jax.conversation.tool import Zoom
from tests.rarl_jax.evaluation.made import question

PIECES = {
    1: 'What? ',
    2: '<|vision_start|>',
    3: '<|image_pad|>',
    4: '<|vision_end|>',
    5: 'zoom',
    6: 'seen ',
    7: '<answer>run</answer>',
}


def decode(ids):
    return ''.join(PIECES[each] for each in ids)


def episode(**changes):
    """prompt, page, `zoom` (two tokens), observation with a crop, answer, and one token of the host after it."""
    ids = [1, 2, 3, 3, 4, 5, 5, 2, 3, 3, 3, 4, 6, 7, 1]
    chosen = [each in (5, 7) for each in ids]
    own = Episode(
        question_id='q0',
        group=3,
        sample=1,
        ids=np.array(ids, np.int32),
        loss_mask=np.array(chosen),
        sample_logprobs=np.zeros(len(ids), np.float32),
        images=(),
        zooms=(
            Zoom((1.0, 2.0, 3.0, 6.0), (10.0, 20.0, 30.0, 60.0), 'model', 'ok', 0, 'him'),
            Zoom((float('nan'), 0.0, 1.0, 1.0), None, 'model', 'bad_box', 0),
        ),
        turns=(read_turn('zoom'), read_turn('<answer>run</answer>')),
        finish_reason='answer',
        page=PageFrame(100, 200, 10, 20),
    )
    return dataclasses.replace(own, **changes)


@pytest.fixture
def page():
    image = Image.new('RGB', (100, 200), 'white')
    image.paste((255, 0, 0), (10, 20, 30, 60))
    return image


def write(folder, page, episodes=None, page_id='p0', step=7):
    episodes = [episode()] if episodes is None else episodes
    pay = Reward(2.5, {'accuracy': 1.0, 'format': 1.0})
    many = len(episodes)
    asked = {'q0': dataclasses.replace(question('q0'), page_id=page_id)}
    return write_rollouts(folder, step, 'rl', episodes, asked, [pay] * many, [0.5] * many, {page_id: page}, decode)


def test_what_is_written_is_read(tmp_path, page):
    path = write(tmp_path, page)
    assert path.name == 'rl-000007.jsonl'
    (own,) = read_rollouts(path)
    assert (own.stage, own.step, own.group, own.sample, own.prediction) == ('rl', 7, 3, 1, 'run')
    assert (own.total, own.advantage, own.parts) == (2.5, 0.5, {'accuracy': 1.0, 'format': 1.0})
    assert own.regions == ((10, 20, 30, 60),) and own.page_size == (100, 200) and own.chosen_tokens == 3
    right, wrong = own.zooms
    assert (right.iou, right.status, right.requested, right.label) == (1.0, 'ok', (1.0, 2.0, 3.0, 6.0), 'him')
    assert (wrong.iou, wrong.status, wrong.requested, wrong.box, wrong.image) == (None, 'bad_box', None, None, None)


def test_keys_of_an_object(tmp_path, page):
    row = json.loads(write(tmp_path, page).read_text())
    keys = 'question_id page_id task prompt answer regions group sample turn_texts observations zooms page_image parts total advantage'
    assert {*keys.split(), 'finish_reason', 'step', 'stage'} <= set(row)
    assert {'box', 'requested', 'frame', 'status', 'iou', 'image'} <= set(row['zooms'][0])


def test_observations_are_what_the_policy_did_not_choose_between_its_turns():
    assert observations(episode(), decode) == ('[picture]seen ',)
    assert observations(episode(loss_mask=np.zeros(15, bool)), decode) == ()


def test_pictures_are_the_page_and_the_crop(tmp_path, page):
    (own,) = read_rollouts(write(tmp_path, page))
    with Image.open(tmp_path / own.page_image) as shown:
        assert shown.size == (100, 200)
    with Image.open(tmp_path / own.zooms[0].image) as crop:
        assert crop.size == (20, 40)
        assert np.asarray(crop.convert('RGB'))[20, 10].tolist() == pytest.approx([255, 0, 0], abs=6)


def test_large_pages_are_kept_small(tmp_path):
    path = write(tmp_path, Image.new('L', (3000, 6000)), [episode(page=PageFrame(3000, 6000, 10, 20))])
    with Image.open(tmp_path / read_rollouts(path)[0].page_image) as shown:
        assert shown.size == (600, 1200)


def test_a_picture_is_written_once_and_a_step_twice_is_the_same(tmp_path, page):
    first = write(tmp_path, page, [episode(), episode(sample=2)])
    content = first.read_bytes()
    assert len(list((tmp_path / 'images').iterdir())) == 2
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'images').iterdir()}
    assert write(tmp_path, page, [episode(), episode(sample=2)]).read_bytes() == content
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / 'images').iterdir()} == times


@pytest.mark.parametrize('page_id', ['../../outside', '/etc/x', 'a' * 300, 'é"<b>\x00', '.'])
def test_no_page_id_names_a_file_elsewhere(tmp_path, page, page_id):
    folder = tmp_path / 'rollouts'
    (own,) = read_rollouts(write(folder, page, page_id=page_id))
    assert own.page_id == page_id
    assert (folder / own.page_image).resolve().parent == (folder / 'images').resolve()
    assert [path.name for path in tmp_path.iterdir()] == ['rollouts']


def test_two_pages_whose_names_look_alike_stay_two(tmp_path, page):
    names = {
        read_rollouts(write(tmp_path, page, page_id=each, step=i))[0].page_image
        for i, each in enumerate(['a/b', 'a?b'])
    }
    assert len(names) == 2


def test_half_a_surrogate_survives(tmp_path, page):
    """A model can write one as JSON: "\\ud800"."""
    odd = episode(zooms=(dataclasses.replace(episode().zooms[0], label='\ud800'),))
    assert read_rollouts(write(tmp_path, page, [odd]))[0].zooms[0].label == '\ud800'


def test_a_foreign_file_is_named(tmp_path):
    path = tmp_path / 'x-000001.jsonl'
    path.write_text('{"zooms": []}\n')
    with pytest.raises(ValueError, match=r'x-000001\.jsonl was not written by this version'):
        read_rollouts(path)
