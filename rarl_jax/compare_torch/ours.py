"""This package's side of a comparison: the states of one full pass, and the logits of cached decoding."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rarl_jax.compare_torch.talk import Greedy, Side, Talk, our_positions
from rarl_jax.models.images import Patches
from rarl_jax.models.interface import Config, Model, build_model
from rarl_jax.models.layers import unconstrained
from rarl_jax.models.params import Params
from rarl_jax.models.positions import feature_rows, positions_of
from rarl_jax.models.vision_batch import VisionBatch, plan_vision
from rarl_jax.models.weights import load_params


def run(folder: Path, config: Config, talk: Talk, dtype: str, fed: dict[str, Int[np.ndarray, 'N']]) -> Side:
    """Loads the folder and shows it the conversation.

    Args:
        fed: for each turn the tokens that are put into the cache one by one, the reference's own: where all of ours equal them, both sides
            would have written the same by themselves.
    """
    params = load_params(folder, config, dtype)
    params['text']['layers'] = take_apart(params['text']['layers'])
    params['vision']['blocks'] = take_apart(params['vision']['blocks'])
    model = build_model(config, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    with jax.default_matmul_precision('highest'):  # a GPU would round float32 to TF32
        states = full_pass(model, params, talk)
        greedy = dict(zip(fed, decode(model, params, talk, list(fed.values())), strict=True))
    pixels = tuple(image.pixels for image in talk.images)
    return Side(talk.ids, pixels, our_positions(talk, config), states, greedy)


def take_apart(layers: Params) -> Params:
    """`params.unstack_layers`, each stack given back before the next is cut: there is never a second copy of all weights."""
    leaves, structure = jax.tree.flatten(layers)
    cut = []
    for leaf in leaves:
        cut.append(jax.block_until_ready(jnp.unstack(leaf)))
        leaf.delete()
    return {str(n): jax.tree.unflatten(structure, layer) for n, layer in enumerate(zip(*cut, strict=True))}


def full_pass(model: Model, params: Params, talk: Talk) -> dict[str, Float[np.ndarray, 'R D']]:
    """The output of every vision block, of the mergers, of every decoder layer, and the logits; padding left out."""
    config = model.config
    batch, index = _images(config, talk.ids, talk.images)
    states, features, logits = _states(model, params, talk.ids, our_positions(talk, config), index, batch)
    named = {f'vision block {n}': np.asarray(x, np.float32)[batch.held] for n, x in enumerate(states['vision'])}
    counts = [image.merged(config.vision.spatial_merge_size) for image in talk.images]
    for n, each in enumerate(jax.tree.leaves(features)):
        rows = np.concatenate([x[:count] for x, count in zip(each, counts, strict=True)])
        named[f'DeepStack merger {n - 1}' if n else 'merger'] = rows.astype(np.float32)
    named |= {f'decoder layer {n}': np.asarray(x, np.float32)[0] for n, x in enumerate(states['text'])}
    return named | {'logits': np.asarray(logits)[0]}


@partial(jax.jit, static_argnums=0)
def _states(model, params, ids, positions, index, batch):
    """The activations that the model shows to its `constrain`, but for the first of either tower, which no layer has made."""
    seen: dict[str, list[Array]] = {'vision': [], 'text': []}

    def note(x: Array, axes: tuple[str, ...]) -> Array:
        if axes[-1] in ('vision_embed', 'embed'):
            seen['vision' if axes[-1] == 'vision_embed' else 'text'].append(x)
        return unconstrained(x, axes)

    apply = partial(model.clone(constrain=note).apply, {'params': params})
    features = apply(batch, method='encode_images')
    embeds = apply(ids[None], features, index[None], method='embed')
    hidden = apply(embeds, positions[:, None], method='hidden')
    return {tower: states[1:] for tower, states in seen.items()}, features, apply(hidden, method='logits')


def decode(model: Model, params: Params, talk: Talk, fed: list[Int[np.ndarray, 'N']]) -> list[Greedy]:
    """As a sampler does it: the prompt into a cache, steps; the call and its crop behind the prompt, steps."""
    config, banned = model.config, np.isin(np.arange(model.config.text.vocab_size), talk.banned)
    cache = model.init_cache(1, len(talk.ids) + max(map(len, fed)))
    held = place = 0
    turns = []
    for images, end, tokens in zip(([talk.images[0]], [talk.images[1]]), (talk.first, len(talk.ids)), fed, strict=True):
        ids = talk.ids[held:end]
        positions, place = positions_of(ids, images, config, place)
        batch, index = _images(config, ids, images)
        embeds = _embed(model, params, ids, index, batch)
        logits, cache = _append(model, params, cache, embeds, positions[:, None], np.array([held]))
        rows = [np.asarray(logits)]
        held = end
        for n, token in enumerate(tokens[:-1]):  # what they leave in the cache is written over by the next chunk
            embeds = _embed_token(model, params, np.array([[token]]))
            where = np.full((3, 1, 1), place + n)
            logits, cache = _append(model, params, cache, embeds, where, np.array([held + n]))
            rows.append(np.asarray(logits))
        turns.append(Greedy(np.where(banned, -np.inf, rows).argmax(-1), np.array(rows)))
    return turns


def _images(config: Config, ids: Int[np.ndarray, 'T'], images: list[Patches]) -> tuple[VisionBatch, np.ndarray]:
    batch = plan_vision(images, config.vision)
    first_rows = np.arange(len(images)) * batch.image_rows
    return batch, feature_rows(ids, first_rows, images, config)


@partial(jax.jit, static_argnums=0)
def _embed(model, params, ids, index, batch):
    features = model.apply({'params': params}, batch, method='encode_images')
    return model.apply({'params': params}, ids[None], features, index[None], method='embed')


@partial(jax.jit, static_argnums=0)
def _embed_token(model, params, ids):
    return model.apply({'params': params}, ids, method='embed')


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _append(model, params, cache, embeds, positions, start):
    """A chunk of one row behind what its cache holds; the logits of its last token [V]."""
    lengths = jnp.array([positions.shape[2]])
    apply = partial(model.apply, {'params': params})
    hidden, cache = apply(cache, embeds, positions, start, lengths, method='extend')
    return apply(hidden[0, -1], method='logits'), cache
