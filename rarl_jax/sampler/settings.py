"""What a rollout needs to be told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerSettings:
    """Fixed for a run."""

    top_p: float = 1.0  # choose among the likeliest tokens that together have this much probability
    top_k: int = 0  # choose among so many likeliest tokens; 0 = all
    rows: int = (
        0  # episodes that a process decodes together, whole groups; 0 = all. Their KV cache must fit its devices
    )
    segment: int = 16  # decode steps between two looks of the host at the rows
    early_exit: bool = True  # leave a segment when every row has stopped: free on a CPU, a sync a step on a GPU
    patches_at_once: int = 1024  # patches that the vision tower takes in one call: so few stay in a CPU's cache; a GPU wants 64 times as many
    lengths: tuple[int, ...] = ()  # padded tokens of prompts and observations; () = four sizes an octave
    cache_lengths: tuple[int, ...] = ()  # tokens that the KV cache has room for; () = four sizes an octave

    def __post_init__(self):
        if not 0 < self.top_p <= 1:
            raise ValueError(f'sampler.top_p is {self.top_p}, expected more than 0 and at most 1; 1 switches it off.')
        if self.top_k < 0 or self.rows < 0 or self.segment < 1 or self.patches_at_once < 1:
            raise ValueError(
                f'sampler: top_k is {self.top_k}, rows {self.rows}, segment {self.segment}, patches_at_once {self.patches_at_once}; '
                'the first two must be 0 or more, the others positive.'
            )


@dataclass(frozen=True)
class Sampling:
    """May differ from one rollout to the next."""

    samples: int = 1  # G, episodes a question
    temperature: float = 1.0  # divides the logits; ignored when greedy, whose log-probs are at temperature 1
    greedy: bool = False  # always the likeliest token

    def __post_init__(self):
        if self.samples < 1 or not self.temperature > 0:
            raise ValueError(
                f'Sampling: {self.samples} samples at temperature {self.temperature}; both must be positive, greedy=True takes the likeliest token.'
            )
        if self.greedy and self.samples > 1:
            raise ValueError(f'Sampling: {self.samples} greedy samples would be equal; ask for one, or sample.')
