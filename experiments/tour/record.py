"""Records one question of a drawn page, answered eight times by the quickstart's base policy, and what an update makes of it.

    python -m experiments.tour.record

Writes experiments/tour/results/episode.json, which the notebook tells token by token: half a minute on two cores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from rich.console import Console

from experiments.arms import HERE, Arm, settings_of
from input_pipeline.loader import LoaderSettings, Sample, SampleSource
from input_pipeline.tasks import grade
from rarl_jax.conversation.dialogue import Episode, Host
from rarl_jax.conversation.episodes import zoom_records
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.conversation.rewards import Reward, reward
from rarl_jax.evaluation.results import source_commit
from rarl_jax.learner.advantages import grpo
from rarl_jax.learner.batches import Buckets, micro_batches, positions_of
from rarl_jax.learner.optim import make_optimizer
from rarl_jax.learner.update import Learner, Updater, reinforcement
from rarl_jax.models.interface import Model, read_config
from rarl_jax.models.params import Params
from rarl_jax.policy import build_model, load_policy, open_chat
from rarl_jax.run import prepare_data
from rarl_jax.runtime.files import write_json
from rarl_jax.runtime.sharding import make_mesh
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.settings import RunSettings

PAGES = {'train': 16, 'validation': 0, 'test': 4}  # drawn; the question is of the test split
QUESTIONS = 16  # answered; of those the first is told whose group shows most
GROUP = 8


def main() -> None:
    record = record_group(quickstart_on_few_pages())
    path = HERE / 'tour' / 'results' / 'episode.json'
    write_json(path, record)
    print(f'{record["question"]["prompt"]} {[each["total"] for each in record["episodes"]]} -> {path}')


def quickstart_on_few_pages() -> RunSettings:
    settings = settings_of(Arm('tour'), seed=0)
    return replace(settings, data=replace(settings.data, pages=PAGES))


@dataclass(frozen=True)
class Group:
    """The attempts at one question, and the policy that made them."""

    mesh: Mesh
    model: Model
    host: Host
    params: Params
    sample: Sample
    episodes: tuple[Episode, ...]  # by attempt
    rewards: tuple[Reward, ...]
    advantages: Float[np.ndarray, 'G']


def sample_group(settings: RunSettings) -> Group:
    """The question, of some about drawn pages, whose attempts earn most differently."""
    mesh, folder = make_mesh(settings.mesh), Path(settings.model.path)
    model = build_model(settings.model, read_config(folder), mesh)
    chat = open_chat(folder, model.config)
    host = Host(chat, model.config.vision, settings.model.page, settings.model.crop, settings.conversation.tool)
    params = load_policy(folder, model, mesh, settings.mesh.rules)
    samples = load_samples(settings)
    policy = Policy.of(model, params, host, mesh)
    dialogues = open_dialogues(host, settings.conversation.budget, samples)
    episodes = rollout(policy, dialogues, settings.sampler, Sampling(samples=GROUP), jax.random.key(0))
    earned = [judge(episode, samples[episode.group], settings) for episode in episodes]
    number = most_telling(episodes, earned)
    group = [(e, r) for e, r in zip(episodes, earned, strict=True) if e.group == number]
    told, rewards = zip(*sorted(group, key=lambda pair: pair[0].sample), strict=True)
    advantage = grpo(np.array([each.total for each in rewards]), np.full(GROUP, number))
    return Group(mesh, model, host, params, samples[number], told, rewards, advantage)


def record_group(settings: RunSettings) -> dict[str, Any]:
    """The group of one question: its episodes, rewards and advantages, one of them token by token, before and after an update on the group."""
    group, stage = sample_group(settings), settings.stage['main']
    model, params, told, rewards, advantage = group.model, group.params, group.episodes, group.rewards, group.advantages
    optimizer = make_optimizer(stage.optimizer, params, steps=1)
    learner = Learner.start(params, optimizer, None)
    updater = Updater(model, reinforcement(stage.loss), optimizer, learner, frozen=stage.optimizer.frozen)
    [batch] = micro_batches(told, advantage, model.config, Buckets(), 0, group.mesh)
    before = chosen_rows(updater.logprobs(learner.params, updater.base, batch), told)
    tokens = sum(int(episode.loss_mask.sum()) for episode in told)
    learner, metrics = updater(learner, [batch], tokens, GROUP)
    after = chosen_rows(updater.logprobs(learner.params, updater.base, batch), told)

    best = int(np.argmax(advantage))
    question = group.sample.question
    return {
        'policy': settings.model.path,
        'commit': source_commit(),
        'question': asdict(question),
        'learning_rate': stage.optimizer.learning_rate,
        'metrics': {name: float(value) for name, value in metrics.items()},
        'episodes': [
            tell_episode(episode, group.sample, earned_, float(a), old, new)
            for episode, earned_, a, old, new in zip(told, rewards, advantage, before, after, strict=True)
        ],
        'told': best,
        'frame': asdict(told[best].page),
        'grids': [list(image.grid) for image in told[best].images],
        'tokens': tell_tokens(told[best], group.host, model.config, before[best], after[best]),
    }


def load_samples(settings: RunSettings) -> list[Sample]:
    """Questions about drawn pages, on a data set that is made for the moment."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare_data(settings.data, Path(folder), 0, Console(quiet=True))
        loader = LoaderSettings(split='test', tasks=('action_recognition',), per_task=QUESTIONS, seed=0)
        source = SampleSource(data, loader)
        return [source[n] for n in range(len(source))]


def judge(episode: Episode, sample: Sample, settings: RunSettings) -> Reward:
    question = sample.question
    accuracy = grade(question.task, question.answer, episode.answer, question.choices)
    return reward(episode, question, accuracy, settings.stage['main'].reward)


def most_telling(episodes: Sequence[Episode], earned: Sequence[Reward]) -> int:
    """The question whose eight rewards differ most."""
    totals = [
        np.array([r.total for e, r in zip(episodes, earned, strict=True) if e.group == g])
        for g in range(max(e.group for e in episodes) + 1)
    ]
    return int(np.argmax([total.std() for total in totals]))


def chosen_rows(logprobs: Float[Array, 'E R'], episodes: Sequence[Episode]) -> list[Float[np.ndarray, 'n']]:
    """Each episode's log-probs without padding."""
    return [row[: int(e.loss_mask.sum())] for row, e in zip(np.asarray(logprobs), episodes, strict=False)]


def tell_episode(episode, sample: Sample, earned: Reward, advantage: float, before, after) -> dict[str, Any]:
    return {
        'turns': [turn.text for turn in episode.turns],
        'answer': episode.answer,
        'zooms': [asdict(zoom) for zoom in zoom_records(episode, sample.question)],
        'finish_reason': episode.finish_reason,
        'parts': dict(earned.parts),
        'total': earned.total,
        'advantage': advantage,
        'logprob': float(before.sum()),
        'logprob_after': float(after.sum()),
    }


def tell_tokens(episode: Episode, host: Host, config, before, after) -> list[dict[str, Any]]:
    """Every token with its text, place and, where the policy chose it, its log-probs: the sampler's, the learner's, and after the update."""
    positions, _ = positions_of(episode.ids, episode.images, config)
    chosen = iter(zip(before.tolist(), after.tolist(), strict=True))
    tokens = []
    for place, (token, mask, sampled) in enumerate(
        zip(episode.ids.tolist(), episode.loss_mask.tolist(), episode.sample_logprobs.tolist(), strict=True)
    ):
        row = {'text': host.chat.decode([token]), 'position': positions[:, place].tolist(), 'chosen': mask}
        if mask:
            learner, later = next(chosen)
            row |= {'sampler': sampled, 'learner': learner, 'after': later}
        tokens.append(row)
    return tokens


if __name__ == '__main__':
    main()
