"""Rollouts of several turns with crops beside transformers: the quickstart's questions, attempts, budgets and policy.

ours    the sampler, as the quickstart sets it up: pages and crops resized, computed and kept once, prompts shared, slots refilled
peer    the same conversations by generate (sdpa, KV cache) in batches of 64: at every turn prompt, pages and crops go in anew
Host work (parsing, cutting, resizing) is this package's own on both sides.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, PreTrainedModel

from configs._parts import small_qwen3_vl
from configs.quickstart import quickstart
from experiments.benchmarks.model import patch_weights, seconds, size
from input_pipeline.loader import LoaderSettings, Sample, load
from rarl_jax.conversation.dialogue import Dialogue, Episode, Host
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.models.interface import Model, read_config
from rarl_jax.models.params import abstract_params
from rarl_jax.policy import build_model, load_policy, open_chat
from rarl_jax.run import prepare_data
from rarl_jax.runtime.sharding import MeshSettings, make_mesh
from rarl_jax.sampler.engine import Usage, rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.settings import RunSettings

QUICKSTARTS = {
    'qwen2_5_vl': quickstart(),
    'qwen3_vl': quickstart(small_qwen3_vl('experiments/quickstart_base_qwen3_vl')),
}
SETTINGS = QUICKSTARTS['qwen2_5_vl']
STAGE = SETTINGS.stage['main']  # the same of both
GOAL, PEER_ROWS = 6.0, 64


def compare(settings: RunSettings, questions: int, runs: int) -> dict[str, object]:
    """Chosen tokens a second of both sides, which take turns; the first run of each, which compiles, does not count."""
    config = read_config(settings.model.path)
    host = Host(
        open_chat(Path(settings.model.path), config),
        config.vision,
        settings.model.page,
        settings.model.crop,
        settings.conversation.tool,
    )
    mesh = make_mesh(MeshSettings())
    model = build_model(settings.model, config, mesh)
    params = load_policy(Path(settings.model.path), model, mesh, settings.mesh.rules)
    peer = AutoModelForImageTextToText.from_pretrained(settings.model.path).float().eval()
    samples, usage, floors, told = draw_samples(settings, questions), Usage(), [], {'ours': [], 'peer': []}

    def ours() -> list[Episode]:
        policy = Policy.of(model, params, host, mesh)
        sampling = Sampling(samples=STAGE.group_size, temperature=STAGE.temperature)
        dialogues = open_dialogues(host, settings.conversation.budget, samples)
        return rollout(policy, dialogues, settings.sampler, sampling, jax.random.key(0), usage=usage)

    def theirs() -> list[Episode]:
        dialogues = open_dialogues(host, settings.conversation.budget, samples)
        return generate_all(peer, dialogues, STAGE.group_size)

    for number in range(runs + 1):
        for side, run in (('ours', ours), ('peer', theirs)):
            episodes: list[Episode] = []
            spent = seconds(lambda run=run, episodes=episodes: episodes.extend(run()))
            if number:
                told[side].append(sum(int(e.loss_mask.sum()) for e in episodes) / spent)
                if side == 'ours':
                    floors.append(operations(model, episodes) / product_rate() / spent)
    speed = {side: statistics.median(each) for side, each in told.items()}
    return {
        'case': f'rollouts of several turns with crops, {questions} questions x {STAGE.group_size}',
        'ours': round(speed['ours'], 1),
        'peer': round(speed['peer'], 1),
        'unit': 'chosen tokens/s',
        'ratio': round(speed['ours'] / speed['peer'], 2),
        'goal': GOAL,
        'share_of_product_limit': round(statistics.median(floors), 2),
        'utilisation': round(usage.utilisation, 2),
        'runs': runs,
    }


def draw_samples(settings: RunSettings, count: int) -> list[Sample]:
    """Questions of the quickstart's main stage, a page for each."""
    with tempfile.TemporaryDirectory() as folder:
        data = replace(settings.data, pages={'train': count, 'validation': 0, 'test': 0})
        built = prepare_data(data, Path(folder), 0, Console(quiet=True))
        return next(iter(load(built, LoaderSettings(batch_size=count, tasks=STAGE.tasks))))


# ---------------------------------------------------------------- the peer


def generate_all(model: PreTrainedModel, dialogues: Sequence[Dialogue], group: int) -> list[Episode]:
    """The same conversations, a turn of all in a batch at a time."""
    everyone = [dialogue.copy(g) for dialogue in dialogues for g in range(group)]
    for start in range(0, len(everyone), PEER_ROWS):
        alive = everyone[start : start + PEER_ROWS]
        while alive:
            for dialogue, words in zip(alive, generate_turn(model, alive), strict=True):
                dialogue.take(words, [0.0] * len(words))
                dialogue.advance()
            alive = [dialogue for dialogue in alive if dialogue.finish_reason is None]
    return [dialogue.episode() for dialogue in everyone]


@torch.no_grad()
def generate_turn(model: PreTrainedModel, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """The next turn of each, up to its stop token."""
    chat, width = dialogues[0].host.chat, max(len(d.ids) for d in dialogues)
    ids = torch.tensor([[0] * (width - len(d.ids)) + d.ids for d in dialogues])
    mask = torch.tensor([[0] * (width - len(d.ids)) + [1] * len(d.ids) for d in dialogues])
    images = [image for d in dialogues for image in d.images]
    chosen = model.generate(
        input_ids=ids,
        attention_mask=mask,
        mm_token_type_ids=(ids == chat.image_id).int(),
        pixel_values=torch.from_numpy(np.concatenate([image.pixels for image in images])),
        image_grid_thw=torch.tensor([image.grid for image in images]),
        do_sample=True,
        temperature=STAGE.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(d.tokens_left for d in dialogues),
        eos_token_id=list(chat.stop_ids),
        pad_token_id=0,
        suppress_tokens=list(chat.banned_ids),
    )
    turns = []
    for dialogue, row in zip(dialogues, chosen[:, width:].tolist(), strict=True):
        row = row[: dialogue.tokens_left]
        turns.append(row[: next((n + 1 for n, token in enumerate(row) if token in chat.stop_ids), len(row))])
    return turns


# ---------------------------------------------------------------- the limit


def operations(model: Model, episodes: Sequence[Episode]) -> float:
    """Of all matrix products that a rollout needs, prompts and images once, two a weight; attention is left out."""
    text = abstract_params(model)['text']
    prompts = {e.question_id: int(e.loss_mask.argmax()) for e in episodes}
    chosen = sum(int(e.loss_mask.sum()) for e in episodes)
    tokens = sum(prompts.values()) + sum(len(e.ids) - prompts[e.question_id] for e in episodes)
    patches = sum(len(image.frame) for image in {id(i): i for e in episodes for i in e.images}.values())
    decoder = size(text['layers']) * tokens + size(text['embed']) * chosen
    return 2 * (decoder + patch_weights(model.config) * patches)


def product_rate() -> float:
    """Operations a second of a large float32 matrix product on all cores."""
    a = torch.ones(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: a @ a) for _ in range(3))
