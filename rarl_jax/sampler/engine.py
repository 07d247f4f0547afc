"""Rollouts: a group of conversations for every question, decoded together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Any

from jaxtyping import Array, Key

from rarl_jax.conversation.dialogue import Dialogue, Episode, errors_of
from rarl_jax.models.features import FeatureCache
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.slots import Attempt, Slots
from rarl_jax.sampler.weights import Policy

Progress = Callable[[int, int], None]  # (episodes finished, episodes in all)


@dataclass
class Usage:
    """How well a rollout uses its slots."""

    chosen: int = 0  # tokens
    room: int = 0  # tokens that might have been chosen: decode steps x slots

    @property
    def utilisation(self) -> float:
        return self.chosen / max(self.room, 1)


def rollout(
    policy: Policy,
    dialogues: Sequence[Dialogue],
    settings: SamplerSettings,
    sampling: Sampling,
    key: Key[Array, ''],
    progress: Progress | None = None,
    usage: Usage | None = None,
    features: FeatureCache | None = None,
) -> list[Episode]:
    """Goes on with every dialogue, whose policy has yet to say its first token, `sampling.samples` times.

    A token depends on the key, its dialogue's question_id, the number of the attempt and its place in the conversation: neither on the batch nor on its order.

    Args:
        usage: is added to.
        features: of the dialogues' images as this policy computes them; those that are not there are added.
    Returns: episodes, those of a dialogue together.
    Raises:
        ValueError: a dialogue has no room for an answer.
    """
    for dialogue in dialogues:
        with errors_of(f'Question {dialogue.question_id}'):
            dialogue.check_room()
    attempts = [Attempt(dialogue, dialogue.copy(g)) for dialogue in dialogues for g in range(sampling.samples)]
    usage, features = usage or Usage(), features or FeatureCache()
    lock, stop = Lock(), Event()

    def call(program: Callable[..., Any], *arguments: Any) -> Any:
        with lock:  # one thread compiles a program and the others find it; it runs outside
            return program(*arguments)

    def tell(chosen: int, room: int) -> None:
        with lock:
            usage.chosen, usage.room = usage.chosen + chosen, usage.room + room
            if progress is not None:
                progress(sum(each.dialogue.finish_reason is not None for each in attempts), len(attempts))

    def follow(policy: Policy, stream: list[Attempt]) -> None:
        most = settings.rows // settings.streams or len(stream)
        slots = Slots(policy, settings, sampling, key, stream, most, features, call)
        while slots.busy and not stop.is_set():
            tell(*slots.step())

    streams = split_by_page(attempts, settings.streams)
    if settings.streams == 1:
        for stream in streams:  # one, or none
            follow(policy, stream)
    else:
        with ThreadPoolExecutor(settings.streams) as threads:
            try:
                list(threads.map(partial(follow, policy.on_first_device()), streams))
            finally:  # an error or an interrupt: the other threads end, too
                stop.set()
    return [attempt.dialogue.episode() for attempt in attempts]


def split_by_page(attempts: Sequence[Attempt], count: int) -> list[list[Attempt]]:
    """Cuts attempts into up to `count` lists of about one length; those at a page stay together, so that its features are computed once."""
    pages: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        pages.setdefault(id(attempt.opened.page), []).append(attempt)
    streams: list[list[Attempt]] = [[] for _ in range(min(count, len(pages)))]
    for page in pages.values():
        min(streams, key=len).extend(page)
    return streams
