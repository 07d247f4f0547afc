"""Every hidden state, the logits, every gradient and 200 greedy tokens against transformers; and proof that the comparison can fail."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rarl_jax.models.interface import Config, build_model
from rarl_jax.models.names import plain_name, weight_table
from rarl_jax.models.params import Params, unstack
from rarl_jax.models.positions import mrope_positions
from rarl_jax.models.qwen3_vl import vision
from rarl_jax.models.qwen3_vl.config import TextConfig
from rarl_jax.models.qwen3_vl.model import Qwen3_VL
from rarl_jax.models.vision_batch import VisionSizes, plan_vision
from rarl_jax.models.weights import load_params, tensors_of
from tests.parity.reference import (
    CONFIGS,
    END,
    IMAGE,
    SPECIAL,
    START,
    Conversation,
    conversation,
    random_reference,
    relative,
)

QWEN2_5 = [name for name, config in CONFIGS.items() if config.model_type == 'qwen2_5_vl']
QWEN3 = [name for name, config in CONFIGS.items() if config.model_type == 'qwen3_vl']
TOLERANCE = 1e-4  # relative, float32
GRADIENT_TOLERANCE = 1e-3


@dataclass
class Pair:
    """The same weights on both sides, and a conversation."""

    config: Config
    reference: torch.nn.Module
    params: Params
    talk: Conversation


@pytest.fixture(scope='module')
def pair(name, tmp_path_factory) -> Pair:
    config = CONFIGS[name]
    reference = random_reference(config)
    folder = tmp_path_factory.mktemp(name)
    reference.save_pretrained(folder)
    return Pair(config, reference, load_params(folder, config, jnp.float32), conversation(config))


@partial(jax.jit, static_argnums=0)
def run_logits(config, params, ids, positions, index, batch):
    return build_model(config).apply({'params': params}, ids[None], positions[:, None], index[None], batch)[0]


def our_logits(pair: Pair, config: Config | None = None, talk: Conversation | None = None, index=None) -> np.ndarray:
    """[T, V] of the pair's conversation; the arguments bring in a mistake."""
    config, talk = config or pair.config, talk or pair.talk
    batch = plan_vision(talk.images, config.vision)
    index = talk.feature_index(batch.image_rows) if index is None else index
    return np.asarray(run_logits(config, pair.params, talk.ids, talk.positions, index, batch))


@pytest.fixture(scope='module')
def reference_logits(pair) -> np.ndarray:
    with torch.no_grad():
        return pair.reference(**pair.talk.torch_inputs()).logits[0].numpy()


def reference_states(pair: Pair) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Outputs of every vision block [P, C], features of every merger [M, D], outputs of every decoder layer [T, D]."""
    blocks, layers, merged = [], [], []
    towers = pair.reference.model
    hooks = [
        *(
            block.register_forward_hook(lambda _m, _i, out: blocks.append(out.numpy()))
            for block in towers.visual.blocks
        ),
        *(
            layer.register_forward_hook(lambda _m, _i, out: layers.append(out[0].numpy()))
            for layer in towers.language_model.layers
        ),
        towers.visual.register_forward_hook(
            lambda _m, _i, out: merged.extend([out.pooler_output, *getattr(out, 'deepstack_features', ())])
        ),
    ]
    with torch.no_grad():
        pair.reference(**pair.talk.torch_inputs())
    for hook in hooks:
        hook.remove()
    return blocks, [feature.numpy() for feature in merged], layers


def our_states(pair: Pair) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """The same, from the activations that the model shows to its `constrain`."""
    talk, batch = pair.talk, plan_vision(pair.talk.images, pair.config.vision)

    def run(params, batch, ids, index, positions):
        seen = []
        model = build_model(pair.config, constrain=lambda x, axes: seen.append(x) or x)
        features = model.apply({'params': params}, batch, method='encode_images')
        x = model.apply({'params': params}, ids[None], features, index[None], method='embed')
        model.apply({'params': params}, x, positions[:, None], method='hidden')
        return seen, features

    outputs = jax.jit(run)(pair.params, batch, talk.ids, talk.feature_index(batch.image_rows), talk.positions)
    seen, features = jax.tree.map(np.asarray, outputs)
    blocks = [x[batch.held] for x in seen[1 : 1 + pair.config.vision.depth]]
    counts = [image.merged(2) for image in talk.images]
    features = [
        np.concatenate([rows[:count] for rows, count in zip(feature, counts, strict=True)])
        for feature in jax.tree.leaves(features)
    ]
    return blocks, features, [x[0] for x in seen[2 + pair.config.vision.depth :]]


def test_hidden_states(pair):
    our_blocks, our_features, our_layers = our_states(pair)
    blocks, features, layers = reference_states(pair)
    assert (
        len(our_blocks) == len(blocks) == pair.config.vision.depth
        and len(our_layers) == len(layers) == pair.config.text.num_layers
    )
    ours, theirs = our_blocks + our_features + our_layers, blocks + features + layers
    differences = [relative(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    assert max(differences) < TOLERANCE, differences


def test_logits(pair, reference_logits):
    assert np.abs(reference_logits).max() > 1  # magnified: differences would show
    assert relative(our_logits(pair), reference_logits) < TOLERANCE


@pytest.mark.parametrize(('scan', 'remat'), [(False, 'none'), (True, 'attention')])
def test_gradients(pair, scan, remat):
    talk, batch = pair.talk, plan_vision(pair.talk.images, pair.config.vision, VisionSizes(4, 30, 256))
    model, index = build_model(pair.config, scan=scan, remat=remat), talk.feature_index(256 // 4)

    def loss(params, ids, positions, index, batch):
        rows = model.apply({'params': params}, ids[None], positions[:, None], index[None], batch)[0, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(rows), ids[1:, None], axis=-1).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(pair.params, talk.ids, talk.positions, index, batch)
    pair.reference.zero_grad()
    inputs = talk.torch_inputs()
    expected = pair.reference(**inputs, labels=inputs['input_ids']).loss
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    theirs = {hub: weight.grad.numpy() for hub, weight in hub_parameters(pair.reference)}
    ours = {plain_name(hub): weight for hub, weight in tensors_of(gradient, pair.config)}
    assert ours.keys() == theirs.keys()
    wrong = {hub: relative(ours[hub], theirs[hub]) for hub in ours}
    assert max(wrong.values()) < GRADIENT_TOLERANCE, sorted(wrong.items(), key=lambda item: -item[1])[:5]


def hub_parameters(reference: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(plain_name(name), weight) for name, weight in reference.named_parameters()]


# ---- proof that a mistake shows


def test_positions_of_one_axis_show(pair, reference_logits):
    line = np.broadcast_to(np.arange(len(pair.talk.ids)), (3, len(pair.talk.ids)))
    assert (
        relative(our_logits(pair, talk=dataclasses.replace(pair.talk, positions=line)), reference_logits)
        > 100 * TOLERANCE
    )


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_every_axis_counts(pair, reference_logits, axis):
    positions = pair.talk.positions.copy()
    positions[axis] = positions[(axis + 1) % 3]
    assert (
        relative(our_logits(pair, talk=dataclasses.replace(pair.talk, positions=positions)), reference_logits)
        > 100 * TOLERANCE
    )


@pytest.mark.parametrize('name', QWEN2_5, indirect=True)
def test_swapped_blocks_show(pair, reference_logits):
    vision = pair.config.vision
    swapped = tuple(index for index in range(vision.depth) if index not in vision.fullatt_block_indexes)
    config = dataclasses.replace(pair.config, vision=dataclasses.replace(vision, fullatt_block_indexes=swapped))
    assert relative(our_logits(pair, config=config), reference_logits) > 100 * TOLERANCE


def test_a_dropped_second_image_shows(pair, reference_logits):
    merged = plan_vision(pair.talk.images, pair.config.vision).image_rows
    index = pair.talk.feature_index(merged)
    index = np.where(index // merged == 1, index - merged, index)  # the first image's features in its place
    assert relative(our_logits(pair, index=index), reference_logits) > 100 * TOLERANCE


@pytest.mark.parametrize('where', ['tower', 'positions'])
def test_a_wrong_crop_grid_shows(pair, reference_logits, where):
    page, crop, *others = pair.talk.images
    turned = dataclasses.replace(crop, grid=(crop.grid[0], crop.grid[2], crop.grid[1]))
    talk = pair.talk
    if where == 'tower':
        talk = dataclasses.replace(talk, images=(page, turned, *others))
    else:
        grids = [image.grid for image in (page, turned, *others)]
        talk = dataclasses.replace(talk, positions=mrope_positions(talk.ids, grids, IMAGE, 2)[0])
    assert relative(our_logits(pair, talk=talk), reference_logits) > 100 * TOLERANCE


def sections(text):
    """The axes of three contiguous sections, as an earlier family has them."""
    return np.repeat(np.arange(3), text.mrope_section)


def beside(table, batch):
    """The row of the table under each patch, as if the table were not stretched."""
    side = round(len(table) ** 0.5)
    row, column = jnp.moveaxis(jnp.minimum(batch.coordinates, side - 1), -1, 0)
    return table[row * side + column]


@pytest.mark.parametrize(
    ('where', 'attribute', 'mistake'),
    [
        (TextConfig, 'mrope_axes', property(sections)),
        (TextConfig, 'qk_norm', False),
        (Qwen3_VL, 'hidden', lambda self, embeds, *place: self.text(embeds[0], *place)),
        (vision, 'stretched', beside),
    ],
    ids=['interleaving off', 'q/k norm dropped', 'DeepStack dropped', 'table not interpolated'],
)
@pytest.mark.parametrize('name', QWEN3, indirect=True)
def test_what_is_new_shows(pair, reference_logits, where, attribute, mistake, monkeypatch):
    monkeypatch.setattr(where, attribute, mistake)
    jax.clear_caches()
    assert relative(our_logits(pair), reference_logits) > 100 * TOLERANCE
    monkeypatch.undo()
    jax.clear_caches()


# ---- generation


def reference_greedy(reference: torch.nn.Module, talk: Conversation, tokens: int) -> np.ndarray:
    out = reference.generate(
        **talk.torch_inputs(),
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=list(SPECIAL),
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(talk.ids) :].numpy()


class Greedy:
    """Cached decoding of one row, as a sampler does it: prefill, steps, an appended chunk, steps."""

    def __init__(self, pair: Pair, length: int):
        self.config, self.params = pair.config, jax.jit(unstack)(pair.params)
        self.cache, self.held, self.position = build_model(pair.config).init_cache(1, length), 0, 0

    def append(self, ids: np.ndarray, images: tuple) -> int:
        """Feeds a chunk with its images; returns the best next token."""
        positions, delta = mrope_positions(ids, [image.grid for image in images], IMAGE, 2, start=self.position)
        self.position = len(ids) + delta
        part = Conversation(ids, images, positions, delta)
        batch = plan_vision(images, self.config.vision)
        index = part.feature_index(batch.image_rows)
        return self._feed(embed_chunk(self.config, self.params, ids, index, batch), positions)

    def generate(self, token: int, tokens: int) -> np.ndarray:
        """`token` and what follows it, `tokens` in all; the last one is not fed."""
        out = [token]
        while len(out) < tokens:
            positions, self.position = np.full((3, 1), self.position), self.position + 1
            out.append(self._feed(embed_token(self.config, self.params, np.array([[out[-1]]])), positions))
        return np.array(out)

    def _feed(self, embeds, positions) -> int:
        best, self.cache = step(self.config, self.params, self.cache, embeds, positions[:, None], np.array([self.held]))
        self.held += positions.shape[1]
        return int(best)


@partial(jax.jit, static_argnums=0)
def embed_chunk(config, params, ids, index, batch):
    model = build_model(config)
    features = model.apply({'params': params}, batch, method='encode_images')
    return model.apply({'params': params}, ids[None], features, index[None], method='embed')


@partial(jax.jit, static_argnums=0)
def embed_token(config, params, ids):
    return build_model(config).apply({'params': params}, ids, method='embed')


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def step(config, params, cache, embeds, positions, start):
    apply = partial(build_model(config).apply, {'params': params})
    hidden, cache = apply(cache, embeds, positions, start, jnp.array([positions.shape[2]]), method='extend')
    return jnp.argmax(apply(hidden[0, -1], method='logits').at[jnp.array(SPECIAL)].set(-jnp.inf)), cache


def test_two_turns_with_an_inserted_crop(pair):
    talk = conversation(pair.config, sizes=((170, 230),), seed=7)
    ours = Greedy(pair, length=len(talk.ids) + 250)
    first = ours.generate(ours.append(talk.ids, talk.images), 100)
    assert np.array_equal(first, reference_greedy(pair.reference, talk, 100))

    crop = conversation(pair.config, sizes=((90, 60),), seed=8).images
    chunk = np.array([first[-1], 5, START, *[IMAGE] * crop[0].merged(2), END, 6, 7])
    second = ours.generate(ours.append(chunk, crop), 100)
    ids, images = np.concatenate([talk.ids, first[:-1], chunk]), talk.images + crop
    whole = Conversation(ids, images, *mrope_positions(ids, [image.grid for image in images], IMAGE, 2))
    assert np.array_equal(second, reference_greedy(pair.reference, whole, 100))
    assert len(set(first)) > 10 and len(set(second)) > 10  # no loop on one token that would agree by chance


def test_table_names_every_weight(pair):
    names = {hub for hub, _ in hub_parameters(pair.reference)}
    assert {plain_name(hub) for hub, _ in tensors_of(pair.params, pair.config)} == names
    assert jax.tree.structure(pair.params) == jax.tree.structure(weight_table(pair.config))
