"""Slots: rows of the cache, in which conversations stand side by side, whichever turn they are in.

A finished conversation's slot is taken by the next that waits. A prompt is computed once and its row copied to the attempts at its question, which need not
start together. Then device and host take turns:

    device   prompts, copies | decode a segment | observations | decode a segment | ...
    host                     |                  | parse, cut, resize; the next conversations | ...
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int, Key

from rarl_jax.conversation.dialogue import Dialogue
from rarl_jax.learner.batches import multiple, on_mesh, round_up
from rarl_jax.models.features import FeatureCache
from rarl_jax.models.images import Patches
from rarl_jax.models.positions import positions_of
from rarl_jax.runtime.sharding import batch_parts, everywhere
from rarl_jax.sampler.images import Call, encode, write_features
from rarl_jax.sampler.programs import Chunk, Program, Rows, SamplingParams, decode, empty_cache, extend, fork, take_rows
from rarl_jax.sampler.settings import SamplerSettings, Sampling
from rarl_jax.sampler.weights import Policy

SMALLEST = 16  # rows; fewer are not worth a compilation
SHRINK = 4  # when the rest needs no more than one row of so many, the others are left out
LOOK = 8  # a segment ends early when one row of so many has stopped, and has something to wait for


@dataclass(eq=False)
class Attempt:
    """A conversation that waits for a slot, or has one."""

    opened: Dialogue  # whose prompt it shares with other attempts
    dialogue: Dialogue  # its own


class Slots:
    """Conversations under way, and those that wait.

    Row r of the cache holds the first `cached[r]` tokens of attempt `rows[r]`. Between segments that is all but the newest, which is pending, at
    `positions[r]` on all three position axes.
    """

    def __init__(
        self,
        policy: Policy,
        settings: SamplerSettings,
        sampling: Sampling,
        key: Key[Array, ''],
        waiting: Sequence[Attempt],
        most: int,
        features: FeatureCache,
        call: Call,
    ):
        """
        Args:
            waiting: in the order in which they begin, attempts at a question together.
            most: slots.
            features: of images; filled on the way.
        """
        self.policy, self.settings, self.waiting = policy, settings, deque(waiting)
        self._features, self._call = features, call
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
        self._sampling = SamplingParams(key=key, **everywhere(numbers, policy.mesh))
        self._parts = batch_parts(policy.mesh)
        count = self._fitting(multiple(most, self._parts), len(waiting))
        self.rows: list[Attempt | None] = [None] * count
        self.cached, self.positions = np.zeros(count, np.int32), np.zeros(count, np.int32)
        # Whose prompt the row of the cache begins with, whether or not that attempt is still there, and where the prompt's last token stands.
        self._prompts: list[Dialogue | None] = [None] * count
        self._ends = np.zeros(count, np.int32)
        self._length = self._room(max(len(each.dialogue.ids) for each in waiting) + settings.segment)
        self._cache = call(empty_cache, policy.model, count, self._length)

    @property
    def busy(self) -> bool:
        """Whether a conversation is under way or waits."""
        return bool(self.waiting) or any(self.rows)

    def step(self) -> tuple[int, int]:
        """Fills free slots, appends what tools returned, decodes a segment. Returns the tokens that were chosen, and those for which there was room."""
        self._shrink()
        self._admit()
        self._append([row for row in self._alive() if self.cached[row] < len(self._ids(row)) - 1], fresh=False)
        return self._decode()

    def _alive(self) -> list[int]:
        return [row for row, each in enumerate(self.rows) if each is not None]

    def _ids(self, row: int) -> list[int]:
        return self.rows[row].dialogue.ids

    def _part(self, row: int) -> int:
        return row * self._parts // len(self.rows)

    # ---- the next conversations ----

    def _admit(self) -> None:
        """Gives free slots to those that wait. A prompt that stands in a row of the same part is copied from there, or stays where it is."""
        free = [row for row, each in enumerate(self.rows) if each is None]
        fresh: list[int] = []
        copies: dict[int, int] = {}  # from where to each row
        while free and self.waiting:
            opened = self.waiting[0].opened
            row = next((row for row in free if self._prompts[row] is opened), free[0])
            free.remove(row)
            holders = (other for other, held in enumerate(self._prompts) if held is opened)
            source = next((other for other in holders if self._part(other) == self._part(row)), None)
            if source is None:
                fresh.append(row)
            else:
                copies[row] = copies.get(source, source)
            self.rows[row], self._prompts[row], self.cached[row] = self.waiting.popleft(), opened, 0
        self._append(fresh, fresh=True)
        self._ends[fresh] = self.positions[fresh]
        self._copy([(source, row) for row, source in copies.items() if source != row])
        for row, source in copies.items():
            self._ends[row] = self.positions[row] = self._ends[source]
            self.cached[row] = len(self._ids(row)) - 1

    def _copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copies rows, each within its part."""
        size = max(len(self.rows) // self._parts // 8, 1)
        for pairs in self._by_part(copies, [row for _, row in copies], size):
            moves = np.stack([self._local([[pair[end] for pair in part] for part in pairs], size) for end in (0, 1)])
            self._cache = self._call(fork, self.policy.model, self._cache, *self._put(tuple(moves)))

    # ---- prompts and observations ----

    def _append(self, rows: Sequence[int], fresh: bool) -> None:
        """Puts all but the newest token of these rows into the cache, `fresh` ones from their beginning."""
        if not rows:
            return
        image_id = self.policy.host.chat.image_id
        news = {row: np.array(self._ids(row)[self.cached[row] : -1], np.int32) for row in rows}
        images = {row: self.rows[row].dialogue.images for row in rows}
        if not fresh:
            images = {row: images[row][-1:] if image_id in news[row] else [] for row in rows}
        every = [image for row in rows for image in images[row]]
        every += self._next_pages(every) if fresh else []
        encode(self.policy, every, self.settings.patches_at_once, self._features, self._call)
        self._make_room(max(len(self._ids(row)) for row in rows))
        width = round_up(max(map(len, news.values())), self.settings.lengths, 16)
        size = max(self.settings.tokens_at_once // width // self._parts, 1)
        for parts in self._by_part(rows, rows, size):
            chunk = self._chunk(parts, size, width, news, images)
            self._cache = self._call(
                extend, self.policy.model, fresh, self.policy.params, self._cache, self._put(chunk)
            )

    def _next_pages(self, images: Sequence[Patches]) -> list[Patches]:
        """Images of those that wait, as many as go through the tower beside these without a further call."""
        missing = self._features.missing(images)
        room, pages = -sum(len(image.frame) for image in missing) % self.settings.patches_at_once, []
        following = (image for each in self.waiting for image in each.opened.images)
        for image in self._features.missing([*missing, *following])[len(missing) :] if missing else []:
            room -= len(image.frame)
            if room < 0:
                break
            pages.append(image)
        return pages

    def _chunk(
        self,
        parts: Sequence[Sequence[int]],
        size: int,
        width: int,
        news: Mapping[int, Int[np.ndarray, 'T']],
        images: Mapping[int, Sequence[Patches]],
    ) -> Chunk:
        """The new tokens of up to `size` rows of each part, which then count as cached."""
        config, count = self.policy.model.config, self._parts * size
        chunk = Chunk(
            rows=self._local(parts, size),
            ids=np.zeros((count, width), np.int32),
            positions=np.zeros((3, count, width), np.int32),
            features=self.policy.model.no_features(count, width),
            feature_index=np.full((count, width), -1, np.int32),
            start=np.zeros(count, np.int32),
            lengths=np.zeros(count, np.int32),
        )
        for place, row in ((p * size + n, row) for p, part in enumerate(parts) for n, row in enumerate(part)):
            ids, n = news[row], len(news[row])
            chunk.ids[place, :n] = ids
            start = self.positions[row] if self.cached[row] else 0
            chunk.positions[:, place, :n], self.positions[row] = positions_of(ids, images[row], config, start)
            shown = np.flatnonzero(ids == config.image_token_id)
            chunk.feature_index[place, shown] = place * width + shown
            write_features(chunk.features, place, shown, images[row], self._features)
            chunk.start[place], chunk.lengths[place] = self.cached[row], n
            self.cached[row] += n
        return chunk

    def _by_part(self, items: Sequence[Any], rows: Sequence[int], size: int) -> Iterator[list[list[Any]]]:
        """Items, each of which belongs to a row, in runs of up to `size` for each part."""
        parts = [[] for _ in range(self._parts)]
        for item, row in zip(items, rows, strict=True):
            parts[self._part(row)].append(item)
        for start in range(0, max(map(len, parts)), size):
            yield [part[start : start + size] for part in parts]

    def _local(self, parts: Sequence[Sequence[int]], size: int) -> Int[np.ndarray, 'P n']:
        """Row numbers as counted in their part; what is left over is no row."""
        own = len(self.rows) // self._parts
        local = np.full((self._parts, size), own, np.int32)
        for number, part in enumerate(parts):
            local[number, : len(part)] = np.array(part, np.int32) - number * own
        return local

    # ---- a segment of decoding ----

    def _decode(self) -> tuple[int, int]:
        """Lets every row choose tokens, until it stops or the segment ends."""
        left = np.zeros(len(self.rows), np.int32)
        pending, numbers = np.zeros_like(left), np.zeros((2, len(left)), np.uint32)
        for row in self._alive():
            dialogue = self.rows[row].dialogue
            left[row], pending[row] = dialogue.tokens_left, dialogue.ids[-1]
            numbers[:, row] = zlib.crc32(dialogue.question_id.encode()), dialogue.sample
        self._make_room(int((self.cached + np.minimum(left, self.settings.segment)).max()))
        rows = self._put(Rows(pending, self.positions, self.cached, left, *numbers))
        ids, logprobs, self._cache = self._call(
            decode, self._program, self.policy.params, self._cache, rows, resting_at_end(left), self._sampling
        )
        ids, logprobs = np.asarray(ids), np.asarray(logprobs)
        counts = (ids >= 0).sum(axis=0, dtype=np.int32)
        self.cached += counts
        self.positions += counts
        for row in np.flatnonzero(counts):
            dialogue = self.rows[row].dialogue
            dialogue.take(ids[: counts[row], row].tolist(), logprobs[: counts[row], row].tolist())
            dialogue.advance()
            if dialogue.finish_reason is not None:
                self.rows[row] = None
        steps = counts.max() if self.settings.early_exit else self.settings.segment
        return int(counts.sum()), int(steps) * len(left)

    # ---- the cache's shape ----

    def _shrink(self) -> None:
        """Leaves finished rows out once few are alive and nobody waits. Sizes are few, so that few programs are compiled."""
        alive = self._alive()
        size = self._fitting(len(self.rows), len(alive) + len(self.waiting))
        if size == len(self.rows) or not alive:
            return
        spare = [row for row, each in enumerate(self.rows) if each is None]
        kept = np.array(sorted(alive + spare[: size - len(alive)]), np.int32)
        self.rows, self._prompts = ([each[row] for row in kept] for each in (self.rows, self._prompts))
        self.cached, self.positions, self._ends = (each[kept] for each in (self.cached, self.positions, self._ends))
        self._take(kept)

    def _fitting(self, most: int, needed: int) -> int:
        """The smallest number of slots that holds `needed`: the most, or a power of SHRINK less."""
        size = most
        while (less := size // SHRINK) >= max(needed, SMALLEST) and less % self._parts == 0:
            size = less
        return size

    def _make_room(self, tokens: int) -> None:
        length = self._room(tokens)
        if length > self._length:
            self._length = length
            self._take(np.arange(len(self.rows), dtype=np.int32))

    def _room(self, tokens: int) -> int:
        return round_up(tokens, self.settings.cache_lengths, 32)

    def _take(self, rows: Int[np.ndarray, 'C']) -> None:
        layers, self._cache = list(self._cache), ()  # nobody else holds the old layers, so each goes when it is copied
        self._cache = self._call(take_rows, self.policy.model, layers, rows, self._length)

    def _put(self, batch: Any) -> Any:
        return on_mesh(batch, self.policy.mesh)


def resting_at_end(left: Int[np.ndarray, 'B']) -> np.int32:
    """So many rows rest when a segment ends early; `left` are the tokens that each may still choose.

    Of one type, whatever the rows: for a number of Python's decoding would be compiled once more.
    """
    return np.int32(min((left == 0).sum() + max(len(left) // LOOK, 1), len(left)))
