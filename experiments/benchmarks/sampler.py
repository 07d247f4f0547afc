"""How fast tokens are decoded over a live KV cache.

    python -m experiments.benchmarks.sampler [--small]

ours    the sampler's own programs: a prompt's prefill, its cache taken to a longer one, segments of greedy decoding
peer    transformers' generate (sdpa, greedy, KV cache) with the same weights' shapes, prompts and number of tokens, on as many threads
Both sides take turns. Beside each ratio, the share of the machine's own limit: the bytes that a step must read (weights and live cache) at the
rate at which this machine copies, measured in the same run. The last line is one JSON object; ratio > 1 means ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from experiments.benchmarks.model import CONFIGS, RUNS, seconds, shrunk
from rarl_jax.models.interface import Config, build_model
from rarl_jax.models.params import abstract_params, init_params, unstack
from rarl_jax.runtime.sharding import MeshSettings, make_mesh
from rarl_jax.sampler.choice import SamplingMethod
from rarl_jax.sampler.programs import Chunk, Program, SamplingParams, decode, first_tokens, prefill, take_rows

GOALS = {'10M': 4.0, '150M': 1.6}
ROWS, PROMPT, TOKENS, SEGMENT = {'10M': 32, '150M': 8}, 128, {'10M': 128, '150M': 64}, 16
NOBODY = 2**31 - 1  # a token that is never chosen: no row stops


def our_run(config: Config, ids: np.ndarray, tokens: int) -> Callable[[], object]:
    """Decodes `tokens` tokens behind every prompt."""
    model, mesh = build_model(config), make_mesh(MeshSettings())
    params = jax.jit(unstack)(jax.jit(init_params, static_argnums=1)(jax.random.key(0), model))
    rows, length = ids.shape
    program = Program(model, SamplingMethod(greedy=True), (NOBODY,), SEGMENT, early_exit=False)
    sampling = SamplingParams(
        jax.random.split(jax.random.key(0), rows),
        jnp.zeros(config.text.vocab_size, bool),
        jnp.float32(1),
        jnp.float32(1),
    )
    positions = np.broadcast_to(np.arange(length), (3, rows, length))
    start = np.zeros(rows, np.int32)
    chunk = Chunk(ids, positions, np.full(ids.shape, -1, np.int32), start, start + length)
    features = jnp.zeros((1, 1, config.text.hidden_size))
    everyone = np.arange(rows, dtype=np.int32)

    def run():
        hidden, cache = prefill(model, params, features, chunk)
        cache = take_rows(model, list(cache), everyone, length + tokens, mesh)
        pending, _ = first_tokens(program, params, hidden, everyone, start + length, sampling)
        for held in range(length, length + tokens - 1, SEGMENT):
            left = np.full(rows, min(SEGMENT, length + tokens - 1 - held), np.int32)
            chosen, _, cache = decode(program, params, cache, pending, start + held, start + held, left, sampling)
            pending = chosen[-1]
        return jax.block_until_ready(pending)

    return run


def peer_run(config: Config, ids: np.ndarray, tokens: int) -> Callable[[], object]:
    model = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig(**config.to_hf())).float().eval()
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


def compare(name: str, config: Config, rows: int, tokens: int) -> dict[str, object]:
    ids = np.random.default_rng(0).integers(10, 1000, (rows, PROMPT)).astype(np.int32)
    ours, peer = our_run(config, ids, tokens), peer_run(config, ids, tokens)
    times = [(seconds(ours), seconds(peer)) for _ in range(RUNS + 1)][1:]
    ours_seconds, peer_seconds = (statistics.median(side) for side in zip(*times, strict=True))
    floor = tokens * bytes_of_step(config, rows, PROMPT + tokens / 2) / copy_rate()
    return {
        'case': f'decode, {name}, {rows} rows, {PROMPT} -> {PROMPT + tokens} tokens',
        'ours': round(rows * tokens / ours_seconds, 1),
        'peer': round(rows * tokens / peer_seconds, 1),
        'unit': 'tokens/s',
        'ratio': round(peer_seconds / ours_seconds, 2),
        'goal': GOALS[name],
        'share_of_byte_limit': round(floor / ours_seconds, 2),
        'runs': RUNS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='the same cases shrunk, under a minute')
    small = parser.parse_args().small
    torch.set_num_threads(os.cpu_count())
    cases = [
        compare(
            name, shrunk(config) if small else config, ROWS[name] // (4 if small else 1), 16 if small else TOKENS[name]
        )
        for name, config in CONFIGS.items()
    ]
    machine = f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}'
    print(json.dumps({'name': 'sampler', 'machine': machine, 'cases': cases}))


if __name__ == '__main__':
    main()
