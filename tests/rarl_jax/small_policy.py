"""A tiny policy, a page, and a script that the policy follows: what the tests of conversations and of the sampler share."""

from __future__ import annotations

import functools
import tempfile
import zlib
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from input_pipeline.loader import Sample
from input_pipeline.schema import Question
from input_pipeline.traces import Conversation, Exchange, Step
from rarl_jax.conversation import protocol
from rarl_jax.conversation.chat import Chat
from rarl_jax.conversation.dialogue import Budget, Episode, Host
from rarl_jax.conversation.replay import replay
from rarl_jax.conversation.tool import ZoomTool
from rarl_jax.learner.batches import Batch, Buckets, collate, sizes_of
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import build_model, read_config
from rarl_jax.policy import load_policy
from rarl_jax.runtime.sharding import RULES, MeshSettings, make_mesh
from rarl_jax.sampler import programs, slots
from rarl_jax.sampler.weights import Policy
from rarl_jax.small.policy import SmallShape, write_small_folder
from rarl_jax.small.qwen3 import SmallQwen3Shape

SIZES = {
    'hidden': 32,
    'layers': 2,
    'heads': 2,
    'kv_heads': 1,
    'mlp': 48,
    'vision_hidden': 16,
    'vision_layers': 2,
    'vision_heads': 2,
    'vision_mlp': 24,
    'vocab_size': 640,
}
SHAPE = SmallShape(**SIZES, full_blocks=(1,))
SHAPES = {
    'qwen2_5_vl': SHAPE,
    'qwen3_vl': SmallQwen3Shape(**SIZES, head_dim=20, table_side=4, deepstack_blocks=(0,)),
}
Family = Literal['qwen2_5_vl', 'qwen3_vl']
CORPUS = ['What is the figure in red doing?', 'How many figures are there?'] * 4
PAGE, CROP = PixelLimits(56 * 56, 168 * 224), PixelLimits(28 * 28, 112 * 112)
BUDGET = Budget(max_turns=4, turn_tokens=40, total_tokens=320)


@functools.cache
def folder(family: Family = 'qwen2_5_vl') -> str:
    """A small Hugging Face folder, written once for all tests."""
    directory = tempfile.mkdtemp(prefix='small-policy-')
    write_small_folder(
        directory,
        corpus=CORPUS,
        phrases=(*protocol.fixed_strings(), 'running', 'sitting'),
        chat_template=protocol.CHAT_TEMPLATE,
        shape=SHAPES[family],
        init_scale=0.3,
    )
    return directory


@functools.cache
def host(family: Family = 'qwen2_5_vl', **tool: object) -> Host:
    config = read_config(folder(family))
    return Host(Chat.from_folder(folder(family)), config.vision, PAGE, CROP, ZoomTool(**tool))


@functools.cache
def policy(family: Family = 'qwen2_5_vl') -> Policy:
    """Random weights, large enough that tokens differ and attention matters."""
    model, mesh = build_model(read_config(folder(family))), make_mesh(MeshSettings())
    return Policy.of(model, load_policy(Path(folder(family)), model, mesh, RULES), host(family), mesh)


def page(seed: int = 0, width: int = 336, height: int = 448) -> Image.Image:
    """Blocks of colour, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (8, 6, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.NEAREST
    )


def sample(
    number: int = 0, prompt: str = 'What is the figure in red doing?', regions=((40.0, 60.0, 140.0, 200.0),)
) -> Sample:
    question = Question(
        id=f'page-{number}/q',
        page_id=f'page-{number}',
        task='action_recognition',
        category='recognition',
        prompt=prompt,
        choices=('running', 'sitting'),
        answer='running',
        regions=regions,
        zoom_needed=True,
        split='test',
    )
    return Sample(question, page(number))


def acted(
    sample: Sample,
    *steps: Step,
    group: int = 0,
    budget: Budget = BUDGET,
    family: Family = 'qwen2_5_vl',
    **conversation: object,
) -> Episode:
    """The episode in which a policy takes exactly these turns."""
    exchanges = (Exchange(sample.question.prompt, steps),)
    told = Conversation(
        **{'exchanges': exchanges, 'offers_tool': True, **conversation},
        question_id=sample.question.id,
        page_id=sample.question.page_id,
    )
    return replay(told, sample.image, host(family), budget, group=group)


def one_a_row(
    episodes: list[Episode], buckets: Buckets | None = None, rows: int = 0, family: Family = 'qwen2_5_vl'
) -> Batch:
    """The episodes as an update would see them, each in a row of its own."""
    config = read_config(folder(family))
    sizes = sizes_of(episodes, config, buckets or Buckets())
    return collate(episodes, np.zeros(len(episodes)), config, sizes, rows or len(episodes))


def follow_script(monkeypatch, episodes: list[Episode]) -> None:
    """Makes the sampler choose, at each place of a conversation, the token that the episode of the same question has there.

    The model, its cache and its log-probs stay real: only the draw is replaced. `uniforms` hands over the scripted id in the place
    of a uniform number, `choose` takes it.
    """
    width = max(len(e.ids) for e in episodes) + 64
    script = np.stack([np.pad(e.ids, (0, width - len(e.ids))) for e in episodes]).astype(np.float32)

    numbers = jnp.array([zlib.crc32(e.question_id.encode()) for e in episodes], jnp.uint32)

    def numbered_keys(key, questions, attempts):
        del key, attempts
        rows = jnp.argmax(questions[:, None] == numbers, axis=1).astype(jnp.uint32)
        return jax.random.wrap_key_data(jnp.stack([jnp.zeros_like(rows), rows], axis=1))

    def scripted(keys, places, count):
        rows = jax.random.key_data(keys)[:, 1]
        return jnp.asarray(script)[rows[None], places[None] + jnp.arange(count)[:, None]]

    def take(logits, uniform, banned, temperature, top_p, choice):
        del banned, top_p, choice
        ids = uniform.astype(jnp.int32)
        return ids, jnp.take_along_axis(jax.nn.log_softmax(logits / temperature), ids[:, None], -1)[:, 0]

    for name, ours in (('row_keys', numbered_keys), ('uniforms', scripted), ('choose', take)):
        monkeypatch.setattr(programs, name, ours)
    plain = programs.decode.__wrapped__  # compiled anew: what was traced before knows no script
    monkeypatch.setattr(slots, 'decode', jax.jit(lambda *a: plain(*a), static_argnums=0, donate_argnums=2))
