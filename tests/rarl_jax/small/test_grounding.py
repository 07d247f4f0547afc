"""What image tokens should say, and the loss that asks them. Boxes of tokens are 28 x 28 px of the page as the policy sees it."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from input_pipeline.loader import PageSample
from rarl_jax.conversation.boxes import iou
from rarl_jax.conversation.dialogue import view_page
from rarl_jax.learner.batches import plan_shared_images
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.models.positions import mrope_positions
from rarl_jax.runtime.sharding import MeshSettings, make_mesh
from rarl_jax.small import grounding
from rarl_jax.small.grounding import (
    GroundingSettings,
    Words,
    box_iou,
    cross_entropy,
    find_words,
    grounding_loss,
    label,
    label_page,
    make_batch,
    recite,
    recite_entropy,
)
from tests.rarl_jax import small_policy

STAGE = GroundingSettings(
    steps=1,
    pages=2,
    optimizer=OptimizerSettings(1e-3),
    page_tasks=('action_recognition',),
    crop_tasks=('action_recognition',),
)


def words() -> Words:
    chat = small_policy.host().chat
    ids = [chat.encode(answer)[0] for answer in ('running', 'sitting')]
    return Words({'running': 0, 'sitting': 1}, np.array(ids), np.arange(256))


def question(answer: str, *box: float):
    """About a region of the page, px of the original, which is twice as large as the policy sees it."""
    return replace(small_policy.sample().question, answer=answer, regions=(box,))


def labelled(*questions):
    host = small_policy.host()
    word, box = label_page(host, view_page(host, small_policy.page()), questions, words())
    return word.reshape(8, 6), box.reshape(8, 6, 4)


def test_a_token_says_whose_region_covers_most_of_it():
    big, small = question('running', 0, 0, 112, 112), question('sitting', 56, 0, 112, 112)
    word, box = labelled(big, small)
    assert word[:2, :2].tolist() == [[0, 0], [0, 0]], 'of two that cover a token equally the first is named'
    assert (word[2:] == -1).all() and (word[:, 2:] == -1).all()
    np.testing.assert_array_equal(box[0, 0], [0, 0, 56, 56])
    word, box = labelled(question('running', 0, 0, 80, 112), small)
    assert word[:2, :2].tolist() == [[0, 1], [0, 1]]
    np.testing.assert_array_equal(box[1, 1], [28, 0, 56, 56])


def test_a_token_that_a_region_hardly_touches_stays_nobodys():
    word, _ = labelled(question('running', 0, 0, 56 + 2, 56))
    assert word[0, 0] == 0 and word[0, 1] == -1


def test_iou_is_that_of_zooms():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 60, (2, 40, 2, 2)), axis=2)
    a, b = corners.reshape(2, 40, 4)
    np.testing.assert_allclose(box_iou(jnp.array(a), jnp.array(b)), np.diag(iou(a, b)), atol=1e-6)
    assert box_iou(jnp.array([9, 9, 3, 3]), jnp.array([3, 3, 9, 9])) == 0


def test_cross_entropy_is_a_mean_over_what_counts():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.1, 0.8]]]))
    loss, right = cross_entropy(logits, jnp.array([[0, 0, -2]]), jnp.array([[True, True, False]]))
    np.testing.assert_allclose(loss, (np.log(2) + np.log(4)) / 2, rtol=1e-6)
    assert right == 0.5


def pages() -> list[PageSample]:
    figures = question('running', 56, 56, 168, 168), question('sitting', 168, 224, 280, 392)
    return [PageSample(figures, small_policy.page(seed)) for seed in (1, 2)]


@pytest.fixture(scope='module')
def world():
    """Mesh, model, params with the heads, and a step's images."""
    policy = small_policy.policy()
    heads = grounding.init_heads(jax.random.key(0), policy.model.config.text.hidden_size, 1, 0.3)
    run = SimpleNamespace(host=small_policy.host())
    images = label(run, words(), STAGE, pages(), np.random.default_rng(0))
    return make_mesh(MeshSettings()), policy.model, policy.params | {'heads': heads}, images


@partial(jax.jit, static_argnums=0)
def loss(model, params, batch, weight):
    return grounding_loss(model, params, batch, words(), weight)[0]


def test_padding_changes_no_loss(world):
    """A page alone, and the same page beside padding of another's size."""
    mesh, model, params, images = world
    one = replace(
        images,
        **{name: getattr(images, name)[:1] for name in ('pages', 'labels', 'recited', 'crops', 'answers', 'tasks')},
    )
    plain = make_batch(one, small_policy.host(), mesh)
    batch = make_batch(images, small_policy.host(), mesh)
    word, answer, recited = batch.word.copy(), batch.answer.copy(), batch.recited.copy()
    word[1:], answer[1:], recited[1:] = -2, -2, -1
    losses = [
        loss(model, params, each, jnp.float32(0.5))
        for each in (plain, replace(batch, word=word, answer=answer, recited=recited))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_what_comes_late_teaches_nothing_before(world):
    """Crops, and what is recited: the decoder's layers learn from nothing else."""
    mesh, model, params, images = world
    batch = make_batch(images, small_policy.host(), mesh)

    @jax.jit
    def gradients(weight):
        gradient = jax.grad(loss, argnums=1)(model, params, batch, weight)
        return [optax.global_norm(part) for part in (gradient['heads']['answer'], gradient['text']['layers'])]

    assert gradients(0.0) == [0, 0] and min(gradients(0.5)) > 0


def test_a_name_is_recited_with_its_box_unless_a_page_has_it_twice():
    host, rng = small_policy.host(), np.random.default_rng(0)
    view = view_page(host, small_policy.page())
    twice = [question('running', 0, 0, 56, 56), question('running', 60, 0, 120, 56)]
    ids = recite(view, [*twice, question('sitting', 112, 28, 224, 140)], words(), 3, rng)
    assert ids[0].tolist() == [words().ids[1], 56, 14, 112, 70], (
        'px of the page as the policy sees it, half the original'
    )
    assert (ids[1:] == -1).all()


def test_a_task_of_pages_and_of_crops_is_loaded_once():
    """Loaded twice, every name would stand twice on its page, and none would be recited."""
    assert STAGE.all_tasks == ('action_recognition',)


def test_two_processes_draw_for_a_page_what_one_draws(monkeypatch):
    """They take turns in the pages of a step: what each makes of its own is what one makes of all."""
    run = SimpleNamespace(host=small_policy.host())
    four = [page for _ in range(2) for page in pages()]
    whole = label(run, words(), STAGE, four, np.random.default_rng(0))
    assert len({patches.pixels.tobytes() for patches in whole.crops}) == 4, 'each is drawn anew'
    monkeypatch.setattr('jax.process_count', lambda: 2)
    for process in range(2):
        monkeypatch.setattr('jax.process_index', lambda process=process: process)
        part = label(run, words(), STAGE, four[process::2], np.random.default_rng(0))
        np.testing.assert_array_equal(part.recited, whole.recited[process::2])
        for mine, theirs in zip(part.crops, whole.crops[process::2], strict=True):
            np.testing.assert_array_equal(mine.pixels, theirs.pixels)


def test_what_is_recited_is_scored_as_a_conversation_by_itself(world):
    """A page, one name and its box, alone in the model: the same cross-entropy, whatever else the batch holds."""
    mesh, model, params, _ = world
    host = small_policy.host()
    small = [PageSample((question('running', 8, 8, 100, 90),), small_policy.page(3, 168, 224))]
    images = label(SimpleNamespace(host=host), words(), STAGE, [*pages(), *small], np.random.default_rng(0))
    batch = make_batch(images, host, mesh)

    @jax.jit
    def entropy(params, batch):
        features = model.apply({'params': params}, batch.pages, method='encode_images')
        return recite_entropy(model, {'params': params}, features, batch)[0]

    found, logits_of = entropy(params, batch), jax.jit(model.apply)

    losses = []
    for page, sentences in zip(images.pages, images.recited, strict=True):
        count = page.merged(host.vision.spatial_merge_size)
        for sentence in sentences[sentences[:, 0] >= 0]:
            ids = np.concatenate([np.full(count, host.chat.image_id), sentence])
            positions, _ = mrope_positions(ids, [page.grid], host.chat.image_id, host.vision.spatial_merge_size)
            index = np.concatenate([np.arange(count), np.full(5, -1)])
            logits = logits_of(
                {'params': params},
                ids[None],
                positions[:, None],
                index[None],
                plan_shared_images([page], host.vision, mesh),
            )
            losses += optax.softmax_cross_entropy_with_integer_labels(logits[0, -5:-1], sentence[1:]).tolist()
    assert len(losses) == 4 * 5
    np.testing.assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_an_answer_of_several_tokens_is_refused(monkeypatch):
    asked = [question('a word that no phrase holds', 0, 0, 9, 9)]
    monkeypatch.setattr(grounding, 'read_questions', lambda folder, split: asked)
    run = SimpleNamespace(data_dir='', host=small_policy.host())
    with pytest.raises(ValueError, match='answers of one token'):
        find_words(run, STAGE)


def test_a_tokenizer_without_a_token_for_a_coordinate_is_refused():
    """Cut to the numbers that there are, all boxes would be alike."""
    host, few = small_policy.host(), replace(words(), numbers=np.arange(10))
    view, asked = view_page(host, small_policy.page()), [question('running', 56, 56, 168, 168)]
    for say in (
        lambda: label_page(host, view, asked, few),
        lambda: recite(view, asked, few, 4, np.random.default_rng(0)),
    ):
        with pytest.raises(ValueError, match='Grounding says 84 px by one token'):
            say()


@pytest.mark.parametrize(
    'change', [{'pages': 0}, {'crops_a_page': 0}, {'recited': 0}, {'pages_alone': -1}, {'steps': 0}]
)
def test_settings_that_cannot_be(change):
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=f'{name} is {value}'):
        replace(STAGE, **change)
