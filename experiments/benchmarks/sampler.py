"""How fast tokens are decoded over a live KV cache, and how fast whole rollouts are.

    python -m experiments.benchmarks.sampler [--family=qwen3_vl] [--small]

decode    ours: the sampler's own programs, prompts into the cache and segments of greedy decoding, in as many threads as pays
          peer: transformers' generate (sdpa, greedy, KV cache) with the same weights' shapes, prompts and number of tokens, on as many threads
rollout   several turns with crops: the quickstart's questions, attempts, budgets and policy, see rollouts.py

Both sides take turns. Beside each ratio, the share of the machine's own limit, measured in the same run: of decoding, the bytes that a step must read
(weights and live cache) at the rate at which this machine copies; of rollouts, the arithmetic of all tokens and patches, none twice, at the rate of a
large matrix product. The last line is one JSON object; ratio > 1 means ours is better.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmarks import rollouts
from experiments.benchmarks.model import CONFIGS, RUNS, arguments, peer_model, seconds, shown, shrunk, told
from rarl_jax.models.interface import Config, build_model
from rarl_jax.models.params import abstract_params, init_params, join_maps, unstack
from rarl_jax.sampler.choice import SamplingMethod
from rarl_jax.sampler.programs import Chunk, Program, Rows, SamplingParams, decode, empty_cache, extend

PROMPT, SEGMENT = 128, 16
NOBODY = 2**31 - 1  # a token that is never chosen: no row stops


class Decoding(NamedTuple):
    """What is decoded of a size."""

    rows: int
    tokens: int  # each, behind the prompt
    streams: int  # large products use all cores from one thread
    goal: float


DECODED = {'10M': Decoding(32, 128, 2, 4.0), '150M': Decoding(8, 64, 1, 1.6)}


def our_run(config: Config, ids: np.ndarray, tokens: int, streams: int) -> Callable[[], object]:
    """Decodes `tokens` tokens behind every prompt, an equal share of the rows in each thread."""
    model = build_model(config)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    params = jax.jit(lambda params: join_maps(unstack(params), lambda maps: jnp.concatenate(maps, axis=-1)))(params)
    program = Program(model, SamplingMethod(greedy=True), (NOBODY,), SEGMENT, early_exit=False)
    banned, one = jnp.zeros(config.text.vocab_size, bool), jnp.float32(1)
    sampling = SamplingParams(jax.random.key(0), banned, one, one)

    def decode_rows(ids: np.ndarray) -> object:
        (rows, length), held = ids.shape, ids.shape[1] - 1  # the newest token is pending
        everyone, none = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
        positions = np.broadcast_to(np.arange(held, dtype=np.int32), (3, rows, held))
        index = np.full((rows, held), -1, np.int32)
        chunk = Chunk(everyone[None], ids[:, :-1], positions, model.no_features(rows, held), index, none, none + held)
        cache = extend(model, True, params, empty_cache(model, rows, length + tokens), chunk)
        pending = ids[:, -1]
        for start in range(held, held + tokens, SEGMENT):
            left = np.full(rows, min(SEGMENT, held + tokens - start), np.int32)
            state = Rows(pending, none + start, none + start, left, none.astype(np.uint32), none.astype(np.uint32))
            chosen, _, cache = decode(program, params, cache, state, np.int32(rows), sampling)
            pending = chosen[-1]
        return jax.block_until_ready(pending)

    threads = ThreadPoolExecutor(streams)
    return lambda: list(threads.map(decode_rows, np.split(ids, streams)))


def peer_run(config: Config, ids: np.ndarray, tokens: int) -> Callable[[], object]:
    model = peer_model(config).eval()
    prompt = torch.from_numpy(ids).long()
    settings = {'max_new_tokens': tokens, 'min_new_tokens': tokens, 'do_sample': False, 'pad_token_id': 0}

    def run():
        with torch.no_grad():
            return model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings)

    return run


def copy_rate() -> float:
    """Bytes a second that this machine reads when it copies more than its caches hold."""
    array = np.ones(1 << 25, np.float32)
    target = np.empty_like(array)
    return array.nbytes / statistics.median(seconds(lambda: np.copyto(target, array)) for _ in range(RUNS))


def bytes_of_step(config: Config, rows: int, held: float) -> float:
    """What one token for every row must read: the decoder's weights once, keys and values of `held` tokens a row; float32."""
    text = config.text
    weights = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(build_model(config))['text']))
    layer = 2 * text.num_kv_heads * text.head_dim * text.num_layers
    return 4 * (weights + rows * held * layer)


def compare(name: str, config: Config, decoding: Decoding) -> dict[str, object]:
    rows, tokens, streams, goal = decoding
    ids = np.random.default_rng(0).integers(10, 1000, (rows, PROMPT)).astype(np.int32)
    ours, peer = our_run(config, ids, tokens, streams), peer_run(config, ids, tokens)
    times = [(seconds(ours), seconds(peer)) for _ in range(RUNS + 1)][1:]
    ours_seconds, peer_seconds = (statistics.median(side) for side in zip(*times, strict=True))
    floor = tokens * bytes_of_step(config, rows, PROMPT + tokens / 2) / copy_rate()
    return {
        'case': f'decode, {name}, {rows} rows, {PROMPT} -> {PROMPT + tokens} tokens',
        'ours': round(rows * tokens / ours_seconds, 1),
        'peer': round(rows * tokens / peer_seconds, 1),
        'unit': 'tokens/s',
        'ratio': round(peer_seconds / ours_seconds, 2),
        'goal': goal,
        'share_of_byte_limit': round(floor / ours_seconds, 2),
        'runs': RUNS,
    }


def main() -> None:
    family, small = arguments(__doc__)
    cases = []
    for name, config in CONFIGS[family].items():
        decoding = DECODED[name]
        if small:
            config, decoding = shrunk(config), decoding._replace(rows=decoding.rows // 4, tokens=16)
        cases.append(shown(compare(name, config, decoding)))
    asked = {'questions': 4, 'runs': 1} if small else {'questions': 32, 'runs': RUNS}
    cases.append(shown(rollouts.compare(rollouts.QUICKSTARTS[family], **asked)))
    print(told('sampler', family, cases))


if __name__ == '__main__':
    main()
