"""Rollouts: a group of conversations for every question, decoded together.

A prompt is computed once and its cache forked to the group. Then device and host take turns: a segment of decoding, a look at the
rows that have stopped, crops cut and appended to the live cache. Rows in different turns live side by side.

    device   prefill | decode segment | append crops, first token | decode segment | ...
    host             |                | parse, cut, resize        |                | ...
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rarl_jax.conversation.dialogue import Dialogue, Episode, errors_of
from rarl_jax.learner.batches import on_mesh, round_up
from rarl_jax.models.images import Patches, PixelLimits
from rarl_jax.models.interface import Cache, Features
from rarl_jax.models.positions import feature_rows, positions_of
from rarl_jax.runtime.sharding import batch_parts, batch_sharding, everywhere
from rarl_jax.sampler.choice import row_keys
from rarl_jax.sampler.images import encode
from rarl_jax.sampler.programs import Chunk, Program, SamplingParams, append, decode, first_tokens, prefill, take_rows
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.weights import Policy

Progress = Callable[[int, int], None]  # (episodes finished, episodes in all)
SMALLEST_BATCH = 8  # rows; fewer are not worth a compilation
_row_keys = jax.jit(row_keys)


def rollout(
    policy: Policy,
    dialogues: Sequence[Dialogue],
    settings: SamplerSettings,
    sampling: Sampling,
    key: Key[Array, ''],
    progress: Progress | None = None,
) -> list[Episode]:
    """Goes on with every dialogue, whose policy has yet to say its first token, `sampling.samples` times.

    A token depends on the key, its dialogue's question_id, the number of the attempt and its place in the conversation: neither on the batch nor on its order.

    Returns: episodes, those of a dialogue together.
    Raises:
        ValueError: a dialogue has no room for an answer.
    """
    for dialogue in dialogues:
        with errors_of(f'Question {dialogue.question_id}'):
            dialogue.check_room()
    episodes: list[Episode] = []
    together = max(settings.rows // sampling.samples, 1) if settings.rows else len(dialogues)
    for start in range(0, len(dialogues), together):
        decoder = Decoder(policy, settings, sampling, dialogues[start : start + together], key)
        while decoder.rows:
            decoder.decode()
            decoder.append()
            decoder.compact()
            if progress is not None:
                finished = sum(d.finish_reason is not None for d in decoder.dialogues)
                progress(len(episodes) + finished, len(dialogues) * sampling.samples)
        episodes += [dialogue.episode() for dialogue in decoder.dialogues]
    return episodes


class Decoder:
    """Conversations under way, and their rows in the cache.

    Row r of the cache holds the first `cached[r]` tokens of dialogue `rows[r]`; in a turn its newest token is pending, at `positions[r]`
    on all three position axes.
    """

    def __init__(
        self,
        policy: Policy,
        settings: SamplerSettings,
        sampling: Sampling,
        asked: Sequence[Dialogue],
        key: Key[Array, ''],
    ):
        self.policy, self.settings = policy, settings
        self.dialogues = [dialogue.copy(g) for dialogue in asked for g in range(sampling.samples)]
        idle = -len(self.dialogues) % batch_parts(policy.mesh)
        self.rows = [*self.dialogues, *(_idle(asked[0]) for _ in range(idle))]
        self._program = Program(
            model=policy.model,
            method=sampling.method,
            stop_ids=policy.host.chat.stop_ids,
            segment=settings.segment,
            early_exit=settings.early_exit,
        )
        numbers = {
            'banned': policy.banned,
            'temperature': np.float32(1.0 if sampling.greedy else sampling.temperature),
            'top_p': np.float32(sampling.top_p),
        }
        self._key = key
        self._sampling = SamplingParams(keys=self._keys(), **everywhere(numbers, policy.mesh))
        self._start(asked)

    def _keys(self) -> Key[Array, 'B']:
        questions = np.array([zlib.crc32(d.question_id.encode()) for d in self.rows], np.uint32)
        keys = _row_keys(self._key, questions, np.array([d.sample for d in self.rows], np.uint32))
        return jax.device_put(keys, batch_sharding(self.policy.mesh, keys.shape))

    # ---- the beginning: one prefill a question ----

    def _start(self, asked: Sequence[Dialogue]) -> None:
        hidden, cache, positions = self._prefill(asked)
        prompts = np.zeros(len(self.rows), np.int32)  # whose prompt a row has; an idle one the first
        prompts[: len(self.dialogues)] = np.repeat(np.arange(len(asked)), len(self.dialogues) // len(asked))
        self.cached = np.array([len(d.ids) for d in self.rows], np.int32)
        self.positions = positions[prompts]
        self._length = self._room(int(self.cached.max()) + self.settings.segment)
        self._cache = take_rows(self.policy.model, list(cache), prompts, self._length, self.policy.mesh)
        arrays = self._put((prompts, self.cached))
        first = first_tokens(self._program, self.policy.params, hidden, *arrays, self._sampling)
        self._record_first(first, range(len(self.dialogues)))

    def _prefill(self, asked: Sequence[Dialogue]) -> tuple[Float[Array, 'Q D'], Cache, Int[np.ndarray, 'Q']]:
        features, first_rows = self._encode([d.images for d in asked], self.policy.host.page)
        chunk = self._empty_chunk(len(asked), max(len(d.ids) for d in asked))
        positions = np.zeros(len(asked), np.int32)
        for row, dialogue in enumerate(asked):
            ids = np.array(dialogue.ids, np.int32)
            positions[row] = self._fill(chunk, row, ids, dialogue.images, first_rows[row], 0, 0)
        hidden, cache = prefill(self.policy.model, self.policy.params, features, self._put(chunk))
        return hidden, cache, positions

    # ---- a segment of decoding ----

    def decode(self) -> None:
        """Lets every row that is in a turn choose tokens, until it stops or the segment ends."""
        left = np.array([d.tokens_left if d.in_turn else 0 for d in self.rows], np.int32)
        if not left.any():
            return
        steps = np.minimum(left, self.settings.segment)
        self._make_room(int((self.cached + steps).max()))
        pending = np.array([d.ids[-1] for d in self.rows], np.int32)
        arrays = self._put((pending, self.positions, self.cached, left))
        ids, logprobs, self._cache = decode(self._program, self.policy.params, self._cache, *arrays, self._sampling)
        ids, logprobs = np.asarray(ids), np.asarray(logprobs)
        counts = (ids >= 0).sum(axis=0, dtype=np.int32)
        for row in np.flatnonzero(counts):
            self._record(row, ids[: counts[row], row], logprobs[: counts[row], row])
        self.cached += counts
        self.positions += counts

    def _record(self, row: int, ids: Int[np.ndarray, 'N'], logprobs: Float[np.ndarray, 'N']) -> None:
        self.rows[row].take(ids.tolist(), logprobs.tolist())
        self.rows[row].advance()

    def _record_first(self, chosen: tuple[Int[Array, 'B'], Float[Array, 'B']], rows: Iterable[int]) -> None:
        ids, logprobs = map(np.asarray, chosen)
        for row in rows:
            self._record(row, ids[row : row + 1], logprobs[row : row + 1])

    # ---- observations ----

    def append(self) -> None:
        """Puts what the tool returned into the cache of the rows that wait for it; each begins its next turn with a first token."""
        waiting = [row for row, d in enumerate(self.rows) if d.finish_reason is None and not d.in_turn]
        if not waiting:
            return
        image_id = self.policy.host.chat.image_id
        news = [np.array(self.rows[row].ids[self.cached[row] :], np.int32) for row in waiting]
        crops = [self.rows[row].images[-1:] if image_id in ids else [] for row, ids in zip(waiting, news, strict=True)]
        features, first_rows = self._encode(crops, self.policy.host.crop)
        chunk = self._empty_chunk(len(self.rows), max(map(len, news)))
        for row, ids, images, first in zip(waiting, news, crops, first_rows, strict=True):
            self.positions[row] = self._fill(chunk, row, ids, images, first, self.cached[row], self.positions[row])
        self._make_room(int((chunk.start + chunk.lengths).max()))
        *first, self._cache = append(
            self._program, self.policy.params, self._cache, features, self._put(chunk), self._sampling
        )
        self.cached += chunk.lengths
        self._record_first(first, waiting)

    def _encode(self, images: Sequence[Sequence[Patches]], limits: PixelLimits) -> tuple[Features, list[list[int]]]:
        """Features of the images of several rows, and the flattened row at which each image's begin."""
        flat = [image for each in images for image in each]
        features, first_rows = encode(self.policy, flat, limits, self.settings.patches_at_once)
        ends = np.cumsum([len(each) for each in images])
        return features, [first_rows[end - len(each) : end] for end, each in zip(ends, images, strict=True)]

    def _empty_chunk(self, rows: int, tokens: int) -> Chunk:
        width = round_up(tokens, self.settings.lengths, 16)
        return Chunk(
            ids=np.zeros((rows, width), np.int32),
            positions=np.zeros((3, rows, width), np.int32),
            feature_index=np.full((rows, width), -1, np.int32),
            start=np.zeros(rows, np.int32),
            lengths=np.zeros(rows, np.int32),
        )

    def _fill(
        self,
        chunk: Chunk,
        row: int,
        ids: Int[np.ndarray, 'T'],
        images: Sequence[Patches],
        first_rows: Sequence[int],
        start: int,
        position: int,
    ) -> int:
        """Writes one row of a chunk that goes behind `start` cached tokens; the next token's position."""
        config, n = self.policy.model.config, len(ids)
        chunk.ids[row, :n] = ids
        chunk.positions[:, row, :n], following = positions_of(ids, images, config, position)
        chunk.feature_index[row, :n] = feature_rows(ids, first_rows, images, config)
        chunk.start[row], chunk.lengths[row] = start, n
        return following

    # ---- the cache's shape ----

    def compact(self) -> None:
        """Leaves finished rows out once at most half of the rows are alive, so that few shapes are compiled."""
        alive = [row for row, d in enumerate(self.rows) if d.finish_reason is None]
        size = len(self.rows)
        while size > SMALLEST_BATCH and len(alive) <= size // 2 and size // 2 % batch_parts(self.policy.mesh) == 0:
            size //= 2
        if not alive or size == len(self.rows):
            self.rows = self.rows if alive else []
            return
        spare = [row for row in range(len(self.rows)) if row not in set(alive)]
        kept = np.array(sorted(alive + spare[: size - len(alive)]), np.int32)
        self.rows = [self.rows[row] for row in kept]
        self.cached, self.positions = self.cached[kept], self.positions[kept]
        self._sampling = dataclasses.replace(self._sampling, keys=self._keys())
        self._take(kept)

    def _make_room(self, tokens: int) -> None:
        length = self._room(tokens)
        if length > self._length:
            self._length = length
            self._take(np.arange(len(self.rows), dtype=np.int32))

    def _room(self, tokens: int) -> int:
        return round_up(tokens, self.settings.cache_lengths, 32)

    def _take(self, rows: Int[np.ndarray, 'C']) -> None:
        layers, self._cache = list(self._cache), ()  # nobody else holds the old layers, so each goes when it is copied
        self._cache = take_rows(self.policy.model, layers, rows, self._length, self.policy.mesh)

    def _put(self, batch: Any) -> Any:
        return on_mesh(batch, self.policy.mesh)


def _idle(dialogue: Dialogue) -> Dialogue:
    """A finished conversation in a row that belongs to nobody: rows must divide evenly over the devices."""
    other = dialogue.copy(0)
    other.finish_reason = 'stop'
    return other
