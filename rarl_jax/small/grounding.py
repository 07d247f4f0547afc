"""A stage that gives eyes to a vision tower that has seen nothing: every image token learns to say what lies under it, in the decoder's own words.

A decoder that is trained on conversations alone, tower and all from nothing, stays for long at the mere distribution of boxes: it must learn to see,
to find and to speak at once. Here the tower learns first, densely, from all tokens of an image:

    page   each token inside a region: the answer of its question (whose figure it is) and the region's box, one number a coordinate
    crop   each token: the answer of the question that the crop belongs to

and, in the same late steps as crops, the decoder learns the shortest conversation there is: a page, a name, and the four numbers of its box. At a
name it comes to look at whose name it is and to hold the box, which is what a question asks for. Taught by whole conversations alone, where
the name and the box lie apart, it learns exact boxes of just any figure (names matched at chance after 2,000 steps).

A word's score is the dot product of the token's feature, through a projection that is thrown away afterwards, with the word's embedding: what the
tower learns to write is what the decoder reads. A published checkpoint needs none of this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from input_pipeline.loader import PageSample, load_pages, prepare_ahead, read_questions
from input_pipeline.schema import Box, Question, Task
from input_pipeline.traces import loosen
from rarl_jax.conversation.boxes import from_original
from rarl_jax.conversation.dialogue import Host, PageView, view_page
from rarl_jax.conversation.tool import cut
from rarl_jax.learner import optim
from rarl_jax.learner.batches import on_mesh, plan_shared_images
from rarl_jax.learner.update import Learner
from rarl_jax.models.images import Patches, patchify
from rarl_jax.models.interface import Features, Model
from rarl_jax.models.packed import Segments
from rarl_jax.models.params import Params
from rarl_jax.models.positions import mrope_positions
from rarl_jax.models.vision_batch import VisionBatch
from rarl_jax.runtime import processes
from rarl_jax.runtime.sharding import shardings_of
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import StageKind, TrainingSettings
from rarl_jax.stages.training import Training

# Of the parts of the loss, that of the words being 1; late: crops, and boxes that are recited.
BOX_WEIGHT, LATE_WEIGHT = 0.3, 0.5
LEAST_COVER = 0.05  # share of a token's area that a region must cover for the token to speak of it


@dataclass(frozen=True, kw_only=True)
class GroundingSettings(TrainingSettings):
    """A stage that teaches a vision tower from nothing."""

    kind: str = 'rarl_jax.small.grounding'
    pages: int  # pages a step
    optimizer: optim.OptimizerSettings
    page_tasks: tuple[Task, ...] = ('character_identification',)  # their answers and regions are read off the page
    crop_tasks: tuple[Task, ...] = ('action_recognition', 'depth_comparison')  # their answers are read off crops
    crops_a_page: int = 1  # crops cut from each page
    recited: int = 4  # names of each page after which the decoder says a box
    # First steps, in which neither of them counts: Muon gives what is not yet learnt its full share of a step.
    pages_alone: int = 0
    crop_scale: tuple[float, float] = (1.0, 1.3)  # width and height of a crop, in those of its region
    crop_shift: float = 0.05  # most by which its centre lies off, in widths and heights of the region
    save_every: int = 100  # steps

    def __post_init__(self):
        super().__post_init__()
        self.check_least(pages=1, crops_a_page=1, recited=1, pages_alone=0)

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks of pages and of crops, each once."""
        return tuple(dict.fromkeys((*self.page_tasks, *self.crop_tasks)))


@dataclass(frozen=True)
class Words:
    """The ids of the words that image tokens may say."""

    answers: dict[str, int]  # answers of all tasks -> place in `ids`
    ids: Int[np.ndarray, 'W']
    numbers: Int[np.ndarray, 'N']  # ids of the whole numbers from 0


@dataclass(frozen=True)
class Labelled:
    """The images of a step and what their tokens should say."""

    pages: list[Patches]  # as the policy sees them
    # a page each: place of the answer among Words.ids (-1 = no region here), and its box, px of the page as the policy sees it
    labels: list[tuple[Int[np.ndarray, 'M'], Int[np.ndarray, 'M 4']]]
    recited: list[Int[np.ndarray, 'K 5']]  # a page each: ids of name, x1, y1, x2, y2; -1 = there are fewer names
    crops: list[Patches]
    answers: list[int]  # a crop each: place among Words.ids
    tasks: list[int]  # a crop each: place among the stage's crop tasks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroundingBatch:
    """What the image tokens of a step should say."""

    pages: VisionBatch
    word: Int[np.ndarray, 'I M']  # place of the answer among Words.ids; -1 = no region here; -2 = padding
    box: Int[np.ndarray, 'I M 4']  # xyxy in px of the page as the policy sees it
    recited: Int[np.ndarray, 'I K 5']  # ids of name, x1, y1, x2, y2; -1 = padding
    positions: Int[np.ndarray, '3 I M+5']  # M-RoPE of a page and what is recited after it
    segments: Int[np.ndarray, 'I M+5']  # 1; 2 = the page's padding, which nothing else sees
    crops: VisionBatch
    answer: Int[np.ndarray, 'C M']  # place among Words.ids; -2 = padding
    task: Int[np.ndarray, 'C']  # place among the stage's crop tasks


def train(run: Run, name: str, stage: GroundingSettings) -> None:
    """Trains the run's tower and embeddings for `stage.steps` updates, from wherever the stage stands."""
    training = Training(run, name, stage)
    words = find_words(run, stage)
    heads = init_heads(
        run.key(name, 0), run.model.config.text.hidden_size, len(stage.crop_tasks), run.model.config.init_scale
    )
    optimizer = optim.make_optimizer(stage.optimizer, run.params | {'heads': heads}, stage.steps)
    count = processes.share(stage.pages, f'config.stage.{name}.pages')
    pages = load_pages(run.data_dir, run.loading(count, stage.all_tasks), *run.processes)
    batches = prepare_ahead(pages, partial(label, run, words, stage), run.data_seed(name))
    learner = training.begin(optimizer, iter(batches), {'heads': heads})
    update = make_update(run.model, words, optimizer, learner)
    with training.progress(learner.step) as bar:
        while learner.step < stage.steps:
            clock = training.clock()
            # Images are prepared in a thread; sizes are agreed on here, where all processes ask for them in the same order.
            batch = make_batch(next(learner.batches), run.host, run.mesh)
            clock.lap('images')
            late_weight = np.float32(0.0 if learner.step < stage.pages_alone else LATE_WEIGHT)
            learner, metrics = update(learner, on_mesh(batch, run.mesh), late_weight)
            metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
            clock.lap('update')
            tokens = processes.total(batch.word.size + batch.answer.size)
            training.after_step(learner, metrics | clock.metrics(tokens))
            bar.advance(loss=metrics['loss'], who=metrics['grounding/word'], iou=metrics['grounding/iou'])


def find_words(run: Run, stage: GroundingSettings) -> Words:
    """The answers of the training split and the numbers up to the first of several tokens. ValueError for an answer of several tokens."""
    answers = sorted({q.answer for q in read_questions(run.data_dir, 'train') if q.task in stage.all_tasks})
    chat, side = run.host.chat, int(np.sqrt(run.host.page.max_pixels) * 2)
    numbers = []
    for number in range(side):
        if len(ids := chat.encode(str(number))) > 1:
            break
        numbers += ids
    ids = [chat.encode(answer) for answer in answers]
    if long := [answer for answer, tokens in zip(answers, ids, strict=True) if len(tokens) > 1]:
        raise ValueError(
            f'Grounding needs answers of one token, but {long[:3]} have several: make them phrases of the tokenizer.'
        )
    return Words({answer: i for i, answer in enumerate(answers)}, np.array(ids)[:, 0], np.array(numbers))


# ---------------------------------------------------------------- what the tokens should say


def label(
    run: Run, words: Words, stage: GroundingSettings, pages: Sequence[PageSample], rng: np.random.Generator
) -> Labelled:
    """The pages as the policy sees them, crops cut from them, and what the tokens of both should say.

    What is drawn for a page depends on the page's place in the batch of all processes alone.
    """
    draws = processes.spawn(rng, len(pages))
    views = [view_page(run.host, page.image) for page in pages]
    asked_of_pages = [[q for q in page.questions if q.task in stage.page_tasks] for page in pages]
    seen = list(zip(views, asked_of_pages, strict=True))
    labels = [label_page(run.host, view, asked, words) for view, asked in seen]
    recited = [recite(*each, words, stage.recited, draw) for each, draw in zip(seen, draws, strict=True)]
    crops, answers, tasks = [], [], []
    for page, draw in zip(pages, draws, strict=True):
        asked = [q for q in page.questions if q.task in stage.crop_tasks]
        for i in draw.permutation(len(asked))[: stage.crops_a_page]:
            crops.append(cut_crop(run.host, page, asked[i], stage, draw))
            answers.append(words.answers[asked[i].answer])
            tasks.append(stage.crop_tasks.index(asked[i].task))
    return Labelled([view.patches for view in views], labels, recited, crops, answers, tasks)


def make_batch(labelled: Labelled, host: Host, mesh: Mesh) -> GroundingBatch:
    """The same as padded arrays, in sizes that all processes have agreed on."""
    page_plan = plan_shared_images(labelled.pages, host.vision, mesh)
    crop_plan = plan_shared_images(labelled.crops, host.vision, mesh)
    word, box = pad_labels(labelled.labels, page_plan.merged_slots.shape)
    recited = np.full((len(word), *labelled.recited[0].shape), -1, np.int32)
    recited[: len(labelled.recited)] = labelled.recited
    positions, segments = place_recited(labelled.pages, word.shape, recited.shape[-1], host)
    answer = np.full(crop_plan.merged_slots.shape, -2, np.int32)
    for row, (crop, place) in enumerate(zip(labelled.crops, labelled.answers, strict=True)):
        answer[row, : crop.merged(host.vision.spatial_merge_size)] = place
    task = np.zeros(len(answer), np.int32)
    task[: len(labelled.tasks)] = labelled.tasks
    return GroundingBatch(page_plan, word, box, recited, positions, segments, crop_plan, answer, task)


def label_page(
    host: Host, view: PageView, questions: Sequence[Question], words: Words
) -> tuple[Int[np.ndarray, 'M'], Int[np.ndarray, 'M 4']]:
    """For each image token the answer and the box of the region that covers most of it; -1 where none covers enough."""
    side = host.vision.merged_side
    rows, columns = (n // host.vision.spatial_merge_size for n in view.patches.grid[1:])
    y, x = (axis.reshape(-1) * side for axis in np.mgrid[:rows, :columns])
    word, box = np.full(rows * columns, -1, np.int32), np.zeros((rows * columns, 4), np.int32)
    most = np.full(rows * columns, LEAST_COVER * side * side)
    for question in questions:
        x1, y1, x2, y2 = seen = from_original(question.regions[0], 'model', view.frame)
        cover = np.clip(np.minimum(x + side, x2) - np.maximum(x, x1), 0, None)
        cover *= np.clip(np.minimum(y + side, y2) - np.maximum(y, y1), 0, None)
        here = cover > most
        word[here], box[here], most[here] = words.answers[question.answer], in_numbers(seen, words), cover[here]
    return word, box


def in_numbers(box: Box, words: Words) -> Int[np.ndarray, '4']:
    """A box in whole px. ValueError where the tokenizer has no token for one of them: cut to those that it has, boxes would be learned in a moment."""
    whole = np.round(box).astype(int)
    if whole.max() >= len(words.numbers):
        raise ValueError(
            f'Grounding says {whole.max()} px by one token, but whole numbers are single tokens of this tokenizer only below {len(words.numbers)}: '
            'make them tokens of their own, or show smaller pages.'
        )
    return whole


def recite(
    view: PageView, questions: Sequence[Question], words: Words, count: int, rng: np.random.Generator
) -> Int[np.ndarray, 'K 5']:
    """Up to `count` answers that a page has once, each with its region's box in px of the page as the policy sees it, as ids; -1 where there are fewer."""
    times = Counter(question.answer for question in questions)
    once = [question for question in questions if times[question.answer] == 1]
    ids = np.full((count, 5), -1, np.int32)
    for row, i in enumerate(rng.permutation(len(once))[:count]):
        box = from_original(once[i].regions[0], 'model', view.frame)
        ids[row, 0] = words.ids[words.answers[once[i].answer]]
        ids[row, 1:] = words.numbers[in_numbers(box, words)]
    return ids


def place_recited(
    pages: Sequence[Patches], shape: tuple[int, int], length: int, host: Host
) -> tuple[Int[np.ndarray, '3 I T'], Int[np.ndarray, 'I T']]:
    """Positions and segments of `length` tokens after each page, which is padded to the same number of tokens."""
    rows, width = shape
    positions, segments = np.zeros((3, rows, width + length), np.int32), np.ones((rows, width + length), np.int32)
    for row, page in enumerate(pages):
        tokens, merge = page.merged(host.vision.spatial_merge_size), host.vision.spatial_merge_size
        ids = np.array([host.chat.image_id] * tokens + [0] * length)
        row_positions, _ = mrope_positions(ids, [page.grid], host.chat.image_id, merge)
        positions[:, row, :tokens], positions[:, row, width:] = row_positions[:, :tokens], row_positions[:, tokens:]
        segments[row, tokens:width] = 2
    return positions, segments


def pad_labels(labels, shape: tuple[int, int]) -> tuple[Int[np.ndarray, 'I M'], Int[np.ndarray, 'I M 4']]:
    word, box = np.full(shape, -2, np.int32), np.zeros((*shape, 4), np.int32)
    for row, (own_word, own_box) in enumerate(labels):
        word[row, : len(own_word)], box[row, : len(own_box)] = own_word, own_box
    return word, box


def cut_crop(host: Host, page: PageSample, question: Question, stage: GroundingSettings, rng) -> Patches:
    box: Box = loosen(question.regions[0], stage.crop_scale, stage.crop_shift, page.image.size, rng)
    return patchify(cut(page.image, box), host.crop, host.vision)


# ---------------------------------------------------------------- the loss


def init_heads(key: Array, width: int, tasks: int, scale: float) -> Params:
    """The projections that are thrown away. Leaves named `w` are matrices [in, out]."""
    keys = jax.random.split(key, 3)
    return {
        'nobody': scale * jax.random.normal(keys[0], (width,)),  # stands for "no region here"
        'box': {'w': scale * jax.random.normal(keys[1], (4, width, width))},
        'answer': {'w': scale * jax.random.normal(keys[2], (tasks, width, width))},
    }


def grounding_loss(
    model: Model, params: Params, batch: GroundingBatch, words: Words, late_weight: Float[Array, '']
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
    """Cross-entropies of words, boxes, crops' answers and what is recited (the last two times `late_weight`), and how often they are right."""
    heads, embed = params['heads'], params['text']['embed']
    variables = {'params': {'text': params['text'], 'vision': params['vision']}}
    features = model.apply(variables, batch.pages, method='encode_images')
    pages = model.apply(variables, features, method='image_embeds')
    crops = model.apply(variables, batch.crops, method='encode_images')
    crops = model.apply(variables, crops, method='image_embeds')
    vocabulary, numbers = embed[words.ids], embed[words.numbers]

    word_logits = pages @ jnp.concatenate([vocabulary, heads['nobody'][None]]).T
    target = jnp.where(batch.word == -1, len(words.ids), batch.word)
    word_loss, word_right = cross_entropy(word_logits, target, batch.word > -2)
    box_logits = jnp.einsum('imd,kde->imke', pages, heads['box']['w']) @ numbers.T
    inside = batch.word >= 0
    box_loss, _ = cross_entropy(box_logits, batch.box, inside[..., None])
    crop_logits = jnp.einsum('cmd,cde->cme', crops, heads['answer']['w'][batch.task]) @ vocabulary.T
    crop_loss, crop_right = cross_entropy(crop_logits, batch.answer, batch.answer >= 0)

    recite_loss, recite_right = recite_entropy(model, variables, features, batch)

    loss = word_loss + BOX_WEIGHT * box_loss + late_weight * (crop_loss + recite_loss)
    overlap = box_iou(box_logits.argmax(-1), batch.box)
    metrics = {
        'loss': loss,
        'grounding/word': word_right,
        'grounding/iou': jnp.where(inside, overlap, 0).sum() / jnp.maximum(inside.sum(), 1),
        'grounding/answer': crop_right,
        'grounding/recited': recite_right,
    }
    return loss, metrics


def recite_entropy(
    model: Model, variables: Params, features: Features, batch: GroundingBatch
) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Cross-entropy of the boxes' numbers after a page and a name, each name by itself, and the share of them that are right."""
    count, length = batch.recited.shape[1:]
    ids = batch.recited.reshape(-1, length)
    width = batch.positions.shape[2] - length  # a page's rows of features
    rows = jnp.repeat(jnp.arange(len(batch.recited) * width).reshape(-1, width), count, axis=0)
    index = jnp.pad(rows, ((0, 0), (0, length)), constant_values=-1)
    said = jnp.pad(jnp.maximum(ids, 0), ((0, 0), (width, 0)))
    embeds = model.apply(variables, said, features, index, method='embed')
    positions, segments = (jnp.repeat(batch.positions, count, axis=1), jnp.repeat(batch.segments, count, axis=0))
    hidden = model.apply(variables, embeds, positions, Segments(segments), method='hidden')
    logits = model.apply(variables, hidden[:, -length:-1], method='logits')
    return cross_entropy(logits, ids[:, 1:], ids[:, 1:] >= 0)


def cross_entropy(logits, target, counts) -> tuple[Float[Array, ''], Float[Array, '']]:
    """Mean over what counts of -log p(target), and the share in which the target is the likeliest."""
    target = jnp.maximum(target, 0)
    counts = jnp.broadcast_to(counts, target.shape)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    total = jnp.maximum(counts.sum(), 1)
    return jnp.where(counts, loss, 0).sum() / total, (counts & (logits.argmax(-1) == target)).sum() / total


def box_iou(a: Int[Array, '... 4'], b: Int[Array, '... 4']) -> Float[Array, '...']:
    """Intersection over union of boxes, pair by pair; 0 for reversed ones."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    shared = jnp.maximum(sides, 0).prod(-1)
    areas = jnp.maximum(a[..., 2:] - a[..., :2], 0).prod(-1) + jnp.maximum(b[..., 2:] - b[..., :2], 0).prod(-1)
    return shared / jnp.maximum(areas - shared, 1)


def make_update(model: Model, words: Words, optimizer: optax.GradientTransformation, learner: Learner) -> Any:
    """(learner, batch, late weight) -> (learner, metrics), one step down the loss. Arrays stay where those of `learner` are."""

    def step(params, opt_state, batch, late_weight):
        measured = jax.value_and_grad(lambda p: grounding_loss(model, p, batch, words, late_weight), has_aux=True)
        (loss, metrics), gradient = measured(params)
        params, opt_state, numbers = optim.apply(optimizer, params, opt_state, gradient, loss)
        return params, opt_state, metrics | numbers

    places = shardings_of((learner.params, learner.opt_state))
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(*places, None))

    def update(learner, batch, late_weight):
        params, opt_state, metrics = jitted(learner.params, learner.opt_state, batch, late_weight)
        return replace(learner, params=params, opt_state=opt_state).next_step(), metrics

    return update


STAGE = StageKind(GroundingSettings, train, takes_adapter=False)
