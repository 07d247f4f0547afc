"""What a rollout needs to be told: how the devices decode, and how tokens are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from rarl_jax.sampler.choice import SamplingMethod


@dataclass(frozen=True)
class SamplerSettings:
    """How a process decodes; it changes no token. Fixed for a run."""

    # Conversations that a process holds at a time, its slots: one that ends makes room for the next; 0 = all. Their KV cache must fit its devices.
    rows: int = 0
    # 1 = rows are split over the process's devices. More = so many threads, each with its share of the rows, on the first device alone: what the host
    # does for one, device and host do beside it for the others. A CPU, whose small programs run on one core, wants as many as it has cores.
    streams: int = 1
    segment: int = 16  # decode steps between two looks of the host at the rows
    early_exit: bool = True  # leave a segment when some rows have stopped: free on a CPU, a sync a step on a GPU
    # Tokens of prompts and observations that the decoder takes in one call, padding among them; a GPU wants 16 times as many.
    tokens_at_once: int = 512
    # Patches that the vision tower takes in one call: so few stay in a CPU's cache; a GPU wants 64 times as many.
    patches_at_once: int = 1024
    lengths: tuple[int, ...] = ()  # padded tokens of prompts and observations; () = four sizes an octave
    cache_lengths: tuple[int, ...] = ()  # tokens that the KV cache has room for; () = four sizes an octave

    def __post_init__(self):
        counts = (self.streams, self.segment, self.tokens_at_once, self.patches_at_once)
        if self.rows < 0 or min(*counts, *self.lengths, *self.cache_lengths) < 1:
            raise ValueError(f'{self}: rows must be 0 or more, all other numbers at least 1.')
        if 0 < self.rows < self.streams:
            raise ValueError(f'{self}: rows must be 0, or at least one for each of the streams.')


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; may differ from one rollout to the next.

    Greedy takes the likeliest token. Otherwise the logits are divided by `temperature`, all but the `top_k` likeliest tokens are left
    out, then all but the likeliest that together have `top_p` of the probability, and one of the rest is drawn. The log-prob that is
    recorded is that of the whole distribution at that temperature (at 1 when greedy): a policy gradient from truncated samples would
    be biased, so RL leaves top_k and top_p off.
    """

    samples: int = 1  # G, episodes a question
    temperature: float = 1.0
    greedy: bool = False
    top_p: float = 1.0  # 1 = off
    top_k: int = 0  # 0 = off

    def __post_init__(self):
        if self.samples < 1 or not self.temperature > 0:
            raise ValueError(
                f'Sampling: {self.samples} samples at temperature {self.temperature}; both must be positive, greedy=True takes the likeliest token.'
            )
        if self.greedy and self.samples > 1:
            raise ValueError(f'Sampling: {self.samples} greedy samples would be equal; ask for one, or sample.')
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                f'Sampling: top_p is {self.top_p}, expected more than 0 and at most 1, and top_k {self.top_k}, expected 0 or more.'
            )

    @property
    def method(self) -> SamplingMethod:
        return SamplingMethod(self.greedy, self.top_k, self.top_p < 1)
