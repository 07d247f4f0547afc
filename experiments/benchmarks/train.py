"""How fast a policy learns: an update on the quickstart's episodes, and a whole RARL step.

    python -m experiments.benchmarks.train [--small]

update    ours: packed groups, the frozen tower's features kept from the rollout, one program
          peer: torch autograd on transformers' model (sdpa) with the same weights, the same episodes and the same loss, the tower frozen, in micro-batches
          of 32 sorted by length, the head where tokens were chosen; AdamW and a global clip on both sides
step      ours: rollout and update; peer: transformers' generate (see rollouts.py) and the update on as many episodes. Rewards, some 10 ms, are left out

Both sides take turns, and agree on loss and gradient norm. Beside each ratio, the share of the machine's own limit: the arithmetic of all tokens, none
twice, at the rate of a large matrix product measured in the same run. The last line is one JSON object; ratio > 1 means ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Float
from transformers import Qwen2_5_VLForConditionalGeneration

from experiments.benchmarks.model import RUNS, seconds, size
from experiments.benchmarks.rollouts import SETTINGS, STAGE, draw_samples, generate_all, operations, product_rate
from input_pipeline.loader import Sample
from rarl_jax.conversation.dialogue import Episode, Host
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.learner.batches import micro_batches
from rarl_jax.learner.optim import make_optimizer
from rarl_jax.learner.update import Learner, Updater, reinforcement
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.interface import Model, read_config
from rarl_jax.models.params import Params, abstract_params
from rarl_jax.policy import build_model, load_policy, open_chat
from rarl_jax.runtime.sharding import cut_cpu, make_mesh
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy

GOALS = {'update': 3.0, 'step': 4.0}
PEER_ROWS = 32
Told = tuple[float, float]  # loss, gradient norm


@dataclass
class Ours:
    """This package, as the quickstart sets it up."""

    model: Model
    params: Params
    host: Host
    mesh: jax.sharding.Mesh

    def __post_init__(self):
        self.optimizer = make_optimizer(STAGE.optimizer, self.params, STAGE.steps)
        start = Learner.start(self.params, self.optimizer, None)
        frozen, length = STAGE.optimizer.frozen, SETTINGS.conversation.budget.turn_tokens
        self.updater = Updater(
            self.model, reinforcement(STAGE.loss), self.optimizer, start, frozen=frozen, length=length
        )

    def rollout(self, samples: Sequence[Sample], number: int) -> tuple[list[Episode], FeatureCache]:
        policy, kept = Policy.of(self.model, self.params, self.host, self.mesh), FeatureCache()
        dialogues = open_dialogues(self.host, SETTINGS.conversation.budget, samples)
        sampling = Sampling(samples=STAGE.group_size, temperature=STAGE.temperature)
        key = jax.random.key(number)
        return rollout(policy, dialogues, SETTINGS.sampler, sampling, key, features=kept), kept

    def learner(self) -> Learner:
        """Where every measured update begins; what it holds is given away."""
        return Learner.start(jax.tree.map(jnp.copy, self.params), self.optimizer, None)

    def update(self, learner: Learner, episodes: Sequence[Episode], advantages, kept: FeatureCache) -> Told:
        batches = micro_batches(
            episodes,
            advantages,
            self.model.config,
            STAGE.buckets,
            STAGE.micro_batch,
            self.mesh,
            STAGE.pack,
            features=kept,
        )
        tokens = sum(int(e.loss_mask.sum()) for e in episodes)
        learner, metrics = self.updater(learner, batches, tokens, len(episodes))
        jax.block_until_ready(learner.params)
        return float(metrics['loss']), float(metrics['optimizer/gradient_norm'])


class Peer:
    """torch and transformers."""

    def __init__(self, path: str):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path).float().eval()
        for name, weight in self.model.named_parameters():
            weight.requires_grad_('visual' not in name)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.start = [weight.detach().clone() for weight in self.trained]

    def optimizer(self) -> torch.optim.Optimizer:
        """Weights and moments as they were at the start."""
        with torch.no_grad():
            for weight, start in zip(self.trained, self.start, strict=True):
                weight.copy_(start)
        settings = STAGE.optimizer
        betas, decay = (settings.b1, settings.b2), settings.weight_decay
        return torch.optim.AdamW(self.trained, settings.learning_rate, betas, settings.eps, weight_decay=decay)

    def update(self, optimizer: torch.optim.Optimizer, episodes: Sequence[Episode], advantages) -> Told:
        tokens, told = sum(int(e.loss_mask.sum()) for e in episodes), 0.0
        order = sorted(range(len(episodes)), key=lambda number: len(episodes[number].ids))
        for at in range(0, len(order), PEER_ROWS):
            piece = order[at : at + PEER_ROWS]
            loss = self.loss([episodes[n] for n in piece], advantages[piece]) / tokens
            loss.backward()
            told += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, STAGE.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return told, norm.item()

    def loss(self, episodes: Sequence[Episode], advantages: Float[np.ndarray, 'E']) -> torch.Tensor:
        """The sum over chosen tokens of -A r: at the first update on a batch the ratio is 1, and nothing is clipped."""
        width = max(len(e.ids) for e in episodes)
        ids, held, chosen = (
            torch.from_numpy(np.stack([np.pad(each(e), (0, width - len(e.ids))) for e in episodes]))
            for each in (lambda e: e.ids.astype(np.int64), lambda e: np.ones_like(e.ids), lambda e: e.loss_mask)
        )
        images = [image for e in episodes for image in e.images]
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=held,
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
            pixel_values=torch.from_numpy(np.concatenate([image.pixels for image in images])),
            image_grid_thw=torch.tensor([image.grid for image in images]),
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, :-1][chosen[:, 1:]])
        logp = torch.log_softmax(logits, -1).gather(-1, ids[chosen][:, None])[:, 0]
        weight = torch.from_numpy(np.repeat(advantages, [int(e.loss_mask.sum()) for e in episodes]))
        return -(weight * torch.exp(logp - logp.detach())).sum()


def compare(questions: int, runs: int) -> list[dict[str, object]]:
    """Both cases; the first run of each side, which compiles, does not count. ValueError where the two sides' maths differ."""
    cut_cpu(SETTINGS.mesh)
    folder, config, mesh = Path(SETTINGS.model.path), read_config(SETTINGS.model.path), make_mesh(SETTINGS.mesh)
    limits = SETTINGS.model.page, SETTINGS.model.crop
    host = Host(open_chat(folder, config), config.vision, *limits, SETTINGS.conversation.tool)
    model = build_model(SETTINGS.model, config, mesh)
    ours, peer = Ours(model, load_policy(folder, model, mesh, SETTINGS.mesh.rules), host, mesh), Peer(str(folder))
    samples, rng = draw_samples(SETTINGS, questions), np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ('rollout', 'update', 'generate', 'autograd')}
    shares: dict[str, list[float]] = {'update': [], 'step': []}
    for number in range(runs + 1):
        spent: dict[str, float] = {}

        def timed(name, run, spent=spent):
            told = []
            spent[name] = seconds(lambda: told.append(run()))
            return told[0]

        episodes, kept = timed('rollout', lambda number=number: ours.rollout(samples, number))
        advantages = rng.standard_normal(len(episodes)).astype(np.float32)
        start, optimizer = jax.block_until_ready(ours.learner()), peer.optimizer()
        mine = timed('update', lambda: ours.update(start, episodes, advantages, kept))  # noqa: B023
        theirs = timed('autograd', lambda: peer.update(optimizer, episodes, advantages))  # noqa: B023
        if not np.allclose(mine, theirs, rtol=1e-3, atol=1e-5):
            raise ValueError(
                f'loss and gradient norm are {mine} here and {theirs} there: the two sides compute different things.'
            )
        peer.optimizer()
        dialogues = open_dialogues(host, SETTINGS.conversation.budget, samples)
        timed('generate', lambda dialogues=dialogues: generate_all(peer.model, dialogues, STAGE.group_size))
        if number:
            for name, value in spent.items():
                times[name].append(value)
            rate, learning = product_rate(), update_operations(model, episodes)
            shares['update'].append(learning / rate / spent['update'])
            whole = learning + operations(model, episodes)
            shares['step'].append(whole / rate / (spent['rollout'] + spent['update']))
    return [
        told(
            'update', f'update on {questions} x {STAGE.group_size} episodes', times['update'], times['autograd'], shares
        ),
        told(
            'step',
            f'RARL step, {questions} questions x {STAGE.group_size}',
            [sum(pair) for pair in zip(times['rollout'], times['update'], strict=True)],
            [sum(pair) for pair in zip(times['generate'], times['autograd'], strict=True)],
            shares,
        ),
    ]


def told(
    name: str, case: str, ours: list[float], peer: list[float], shares: dict[str, list[float]]
) -> dict[str, object]:
    mine, theirs = statistics.median(ours), statistics.median(peer)
    return {
        'case': case,
        'ours': round(1 / mine, 3),
        'peer': round(1 / theirs, 3),
        'unit': f'{name}s/s',
        'ratio': round(theirs / mine, 2),
        'goal': GOALS[name],
        'share_of_product_limit': round(statistics.median(shares[name]), 2),
        'runs': len(ours),
    }


def update_operations(model: Model, episodes: Sequence[Episode]) -> float:
    """Of all matrix products of an update, prompts once, six a weight and token; attention is left out, and the tower is frozen."""
    text = abstract_params(model)['text']
    prompts = {e.question_id: int(e.loss_mask.argmax()) for e in episodes}
    tokens = sum(prompts.values()) + sum(len(e.ids) - prompts[e.question_id] for e in episodes)
    return 6 * (size(text['layers']) * tokens + size(text['embed']) * sum(int(e.loss_mask.sum()) for e in episodes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='the same cases shrunk, under a minute')
    small = parser.parse_args().small
    torch.set_num_threads(os.cpu_count())
    cases = compare(questions=4 if small else STAGE.questions, runs=1 if small else RUNS)
    machine = f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}'
    print(json.dumps({'name': 'train', 'machine': machine, 'cases': cases}))


if __name__ == '__main__':
    main()
