"""What a GPU gives: kernels beside XLA's, decoding, prefill and updates beside the device's limits, the sampler beside the trainer, the quickstart.

    python -m experiments.benchmarks.gpu [--small] [--parts tests decode ...]

Under ten minutes on one H100. Every part is a process with a time limit of its own, so that what fails or hangs loses only itself:

    tests        pytest -m gpu: prefill, extend, decode and a packed update by cuDNN equal XLA's, at the head sizes of the 3B; FlashAttention-3 over the
                 cache where it is installed
    decode       random 3B and 7B in bfloat16 over a cache of 2k and 8k: share of the byte limit; FlashAttention-3 at batch 64
    generate     the same at batch 64 beside transformers' generate
    train        prefill; an update of all weights of the 3B and of an adapter of the 7B at 4k tokens: share of the device's peak, bytes at the height
                 beside those that the compiler plans, which is what --preflight tells
    agreement    log-probs of the sampler against the trainer's, on tokens that the sampler chose
    quickstart   the whole of it, in minutes

`--small` runs the same code at toy sizes on whatever device there is. The last line is one JSON object; ratio > 1 means ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.benchmarks.model import CONFIGS, RUNS, seconds, shrunk
from rarl_jax.learner.batches import Batch
from rarl_jax.learner.losses import Denominators
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, imitation, policy_logprobs
from rarl_jax.models.flash import PACKAGE
from rarl_jax.models.interface import PRESETS, Config, Model, build_model
from rarl_jax.models.lora import Adapted, LoraConfig, init_adapter
from rarl_jax.models.params import Params, abstract_params, init_params, unstack
from rarl_jax.runtime.sharding import MeshSettings, make_mesh, replicated
from rarl_jax.sampler.choice import SamplingMethod
from rarl_jax.sampler.programs import Program, Rows, SamplingParams, decode, empty_cache

LIMITS = {'tests': 80, 'decode': 110, 'generate': 90, 'train': 130, 'agreement': 50, 'quickstart': 140}  # seconds
PEAK_FLOPS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}  # dense bf16, datasheets
TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
SEGMENT = 16
Case = dict[str, Any]


# ---------------------------------------------------------------- parts


def tests(small: bool) -> Iterator[Case]:
    """The kernels' tests; where there is no GPU they are only collected."""
    command = [sys.executable, '-m', 'pytest', '-m', 'gpu', '-n', '0', '-q', 'tests/rarl_jax/models/test_gpu.py']
    command += ['--collect-only'] if small else []
    done = subprocess.run(command, capture_output=True, text=True)
    note = last_words(done.stdout or done.stderr)
    yield case('kernels equal XLA', float(done.returncode == 0), 'passed', goal=1.0, note=note)


def decoding(small: bool) -> Iterator[Case]:
    """Tokens a second for every batch and context, and the share of the rate at which the device copies."""
    rate = copy_rate(small)
    for size in ('3B', '7B'):
        model, params = random_policy(size, small)
        sliced = jax.jit(unstack, donate_argnums=0)(params)
        kinds = [(model.attention, batch) for batch in ((1, 2) if small else (1, 8, 64))]
        kinds += [('fa3', 64)] if model.attention == 'cudnn' and find_spec(PACKAGE) else []
        for kind, batch in kinds:
            for context in (64,) if small else (2048, 8192):
                run = decode_run(model.clone(attention=kind), sliced, batch, context)
                spent = typical(run) / SEGMENT
                share = decode_bytes(model.config, batch, context, jnp.dtype(model.dtype).itemsize) / rate / spent
                name = f'decode, {size}, batch {batch}, context {context}, {kind}'
                yield case(name, batch / spent, 'tokens/s', share_of_byte_limit=round(share, 3), goal_of_share=0.7)
        del sliced, params


def beside_generate(small: bool) -> Iterator[Case]:
    """Tokens a second beside transformers' generate, from the same prompts' length."""
    batch, context = (2, 64) if small else (64, 2048)
    for size in ('3B', '7B'):
        model, params = random_policy(size, small)
        sliced = jax.jit(unstack, donate_argnums=0)(params)
        ours = typical(decode_run(model, sliced, batch, context)) / SEGMENT
        del sliced, params
        peer = generate_seconds(size, small, batch, context)
        yield case(f'decode beside generate, {size}, batch {batch}', batch / ours, 'tokens/s', batch / peer, goal=5.0)


def training(small: bool) -> Iterator[Case]:
    """Prefill and the two updates."""
    length = 128 if small else 4096
    for size, lora in (('3B', None), ('7B', LoraConfig(rank=64, alpha=64.0, targets=TARGETS))):
        model, params = random_policy(size, small)
        flops = decoder_flops(model.config, length)
        forward = jax.jit(partial(prefill, model))
        ids = np.random.default_rng(0).integers(10, 1000, (1, length)).astype(np.int32)
        yield share_of_peak(f'prefill, {size}, {length} tokens', lambda: forward(params, ids), flops, 0.55)  # noqa: B023
        # Of a frozen matrix no gradient is taken: two passes for three.
        yield update_case(size, model, params, lora, ids, flops * (3 if lora is None else 2))


def agreement(small: bool) -> Iterator[Case]:
    """Mean |difference| of log-probs, and k3 between the two."""
    model, params = random_policy('3B', small)
    batch, prompt = (2, 16) if small else (16, 512)
    sliced = jax.jit(unstack)(params)
    ids, logprobs = sample_tokens(model, sliced, batch, prompt)
    chosen = ids.shape[1] - prompt
    places = np.tile(np.arange(prompt, prompt + chosen), (batch, 1))
    learned = text_batch(model, ids, places)
    trainer = model.clone(scan=True, remat='attention')
    own, _ = jax.jit(lambda params, learned: policy_logprobs(trainer, params, learned, 1.0, 1024))(params, learned)
    gap = np.asarray(logprobs - own, np.float64)
    yield case('sampler against trainer, mean |difference|', float(np.abs(gap).mean()), 'nats')
    yield case('sampler against trainer, KL', float((np.expm1(-gap) + gap).mean()), 'nats', goal=0.001)


def quickstart(small: bool) -> Iterator[Case]:
    """Drawing, building, evaluations and training."""
    name = 'configs/quickstart.py' + (':smoke' if small else '')
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'rarl_jax.main', f'--config={name}', f'--workdir={folder}/run']
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        spent = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(last_words(done.stderr))
    yield case('quickstart', spent / 60, 'minutes')


PARTS: dict[str, Callable[[bool], Iterator[Case]]] = {
    'tests': tests,
    'decode': decoding,
    'generate': beside_generate,
    'train': training,
    'agreement': agreement,
    'quickstart': quickstart,
}


# ---------------------------------------------------------------- what the parts share


def random_policy(size: str, small: bool) -> tuple[Model, Params]:
    """In bfloat16, layers stacked."""
    config = shrunk(CONFIGS['qwen2_5_vl']['10M']) if small else PRESETS[f'Qwen2.5-VL-{size}']
    kind = 'cudnn' if jax.default_backend() == 'gpu' and not small else 'xla'
    model = build_model(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention=kind)
    return model, jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)


def typical(run: Callable[[], Any]) -> float:
    jax.block_until_ready(run())
    return statistics.median(seconds(lambda: jax.block_until_ready(run())) for _ in range(RUNS))


def case(name: str, ours: float, unit: str, peer: float | None = None, goal: float | None = None, **more: Any) -> Case:
    ratio = None if peer is None else round(ours / peer, 2)
    return {'case': name, 'ours': ours, 'peer': peer, 'unit': unit, 'ratio': ratio, 'goal': goal, 'runs': RUNS, **more}


def copy_rate(small: bool) -> float:
    """Bytes a second that the device reads and writes."""
    array = jnp.ones(1 << (22 if small else 30), jnp.bfloat16)
    added = jax.jit(lambda x: x + 1)
    return 2 * array.nbytes / typical(lambda: added(array))


def program(model: Model) -> Program:
    return Program(model, SamplingMethod(), (2**31 - 1,), SEGMENT, early_exit=False)


def sampling(model: Model) -> SamplingParams:
    one = jnp.float32(1)
    return SamplingParams(jax.random.key(0), jnp.zeros(model.config.text.vocab_size, bool), one, one)


def rows_at(pending: Any, held: int) -> Rows:
    """All rows with `held` tokens in the cache."""
    none = np.zeros(len(pending), np.int32)
    numbers = np.arange(len(pending), dtype=np.uint32)
    return Rows(pending, none + held, none + held, none + SEGMENT, numbers, numbers)


def decode_run(model: Model, sliced: Params, batch: int, context: int) -> Callable[[], Any]:
    """A segment of decoding behind `context` tokens; what the cache holds costs what any tokens cost."""
    held, drawn = [empty_cache(model, batch, context + SEGMENT)], sampling(model)
    rows = jax.device_put(rows_at(np.full(batch, 10, np.int32), context))

    def run():
        ids, _, held[0] = decode(program(model), sliced, held[0], rows, np.int32(batch), drawn)
        return ids

    return run


def sample_tokens(model: Model, sliced: Params, batch: int, prompt: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of random tokens and a segment that the sampler adds: ids [B, T], log-probs of what it chose."""
    ids = np.random.default_rng(0).integers(10, 1000, (batch, prompt)).astype(np.int32)
    positions = np.broadcast_to(np.arange(prompt, dtype=np.int32), (3, batch, prompt))
    apply = partial(model.apply, {'params': sliced})

    def fill(ids):
        return apply(
            model.init_cache(batch, prompt + SEGMENT), apply(ids, method='embed'), positions, method='prefill'
        )[1]

    rows = rows_at(ids[:, -1], prompt - 1)
    chosen, logprobs, _ = decode(program(model), sliced, jax.jit(fill)(ids), rows, np.int32(batch), sampling(model))
    return np.concatenate([ids, np.asarray(chosen).T], axis=1), np.asarray(logprobs).T


def decode_bytes(config: Config, rows: int, held: float, width: int) -> float:
    """What a step must read: the decoder's weights once, keys and values of `held` tokens a row."""
    text = config.text
    weights = sum(x.size for x in jax.tree.leaves(abstract_params(build_model(config))['text']))
    table = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size  # of which a step reads a few rows
    return width * (weights - table + rows * held * 2 * text.num_kv_heads * text.head_dim * text.num_layers)


def generate_seconds(size: str, small: bool, batch: int, context: int) -> float:
    """A token for every row by transformers' generate, sdpa and a KV cache."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = shrunk(CONFIGS['qwen2_5_vl']['10M']) if small else PRESETS[f'Qwen2.5-VL-{size}']
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig(**config.to_hf())).eval()
    prompt = torch.randint(10, 1000, (batch, context), device=device)

    def run(tokens: int) -> None:
        settings = {'max_new_tokens': tokens, 'min_new_tokens': tokens, 'do_sample': False, 'pad_token_id': 0}
        with torch.no_grad():
            model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **settings).cpu()

    run(1)
    return (seconds(lambda: run(1 + 2 * SEGMENT)) - seconds(lambda: run(1))) / (2 * SEGMENT)


def prefill(model: Model, params: Params, ids: np.ndarray) -> Any:
    """Of rows of text, and the logits of their last tokens."""
    apply, positions = (
        partial(model.apply, {'params': params}),
        np.broadcast_to(np.arange(ids.shape[1]), (3, *ids.shape)),
    )
    hidden, cache = apply(model.init_cache(*ids.shape), apply(ids, method='embed'), positions, method='prefill')
    return apply(hidden[:, -1], method='logits'), cache


def text_batch(model: Model, ids: np.ndarray, places: np.ndarray) -> Batch:
    """Rows of text, the tokens at `places` chosen."""
    shape = places.shape
    return Batch(
        ids=ids,
        positions=np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), (3, *ids.shape)),
        feature_index=np.full(ids.shape, -1, np.int32),
        segments=None,
        images=model.no_features(1, 1),
        source=(places - 1).astype(np.int32),
        targets=np.take_along_axis(ids, places, axis=1),
        scored=np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape),
        mask=np.ones(shape, np.float32),
        sample_logprobs=np.zeros(shape, np.float32),
        advantages=np.zeros(len(ids), np.float32),
    )


def update_case(
    size: str, model: Model, params: Params, lora: LoraConfig | None, ids: np.ndarray, flops: float
) -> Case:
    """A micro-batch's gradient and the optimizer's step, the tower frozen, every token chosen."""
    mesh, trainer = make_mesh(MeshSettings()), model.clone(scan=True, remat='attention')
    params = on_all(mesh, params)
    adapted, trained, frozen = None, params, ('vision',)
    if lora is not None:
        fresh = jax.jit(partial(init_adapter, config=model.config, lora=lora))
        adapted, trained, frozen = Adapted(params, lora), on_all(mesh, fresh(jax.random.key(0))), ()
    optimizer = make_optimizer(OptimizerSettings(1e-6, frozen=frozen), trained, 100)
    held = [Learner.start(trained, optimizer, None)]
    updater = Updater(trainer, imitation, optimizer, held[0], adapted, frozen=frozen)
    batch = text_batch(model, ids, np.arange(1, ids.shape[1])[None])
    planned = planned_bytes(updater, held[0], batch)

    def run():
        held[0], metrics = updater(held[0], [batch], float(batch.mask.sum()), 1)
        return metrics

    what = 'all weights' if lora is None else f'adapter of rank {lora.rank}'
    told = share_of_peak(f'update of {what}, {size}, {ids.shape[1]} tokens', run, flops, 0.5)
    peak = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
    return told | {'peak_bytes': peak, 'planned_bytes': planned}


def on_all(mesh: Mesh, params: Params) -> Params:
    """A copy on every device."""
    return jax.device_put(params, jax.tree.map(lambda x: replicated(mesh, x.ndim), params))


def planned_bytes(updater: Updater, learner: Learner, batch: Batch) -> int:
    """At the height of an update: weights, moments, the sum of gradients, and the temporaries of a micro-batch."""
    one = np.float32(1)
    denominators = Denominators(one, one, one)
    total = updater.nothing(learner.params, updater.metric_names(learner.params, batch, denominators))
    compiled = updater.accumulate.lower(learner.params, updater.base, total, batch, denominators).compile()
    held = sum(x.nbytes for x in jax.tree.leaves((learner.params, learner.opt_state, updater.base, total)))
    return held + compiled.memory_analysis().temp_size_in_bytes


def decoder_flops(config: Config, length: int) -> float:
    """Of a forward pass of one row: 2 a weight and token, the head for every token, attention over the causal half."""
    text = config.text
    layers = sum(x.size for x in jax.tree.leaves(abstract_params(build_model(config))['text']['layers']))
    head = text.vocab_size * text.hidden_size
    return 2 * length * (layers + head + text.num_layers * length * text.num_heads * text.head_dim)


def share_of_peak(name: str, run: Callable[[], Any], flops: float, goal: float) -> Case:
    peak = next((value for key, value in PEAK_FLOPS.items() if key in jax.devices()[0].device_kind), None)
    rate = flops / typical(run)
    return case(name, rate / peak if peak else rate, 'MFU' if peak else 'FLOP/s', goal=goal if peak else None)


# ---------------------------------------------------------------- the parent


def run_part(part: str, small: bool) -> dict[str, Any]:
    """The part's cases from a process of its own, or why there are none."""
    command = [sys.executable, '-m', 'experiments.benchmarks.gpu', '--part', part, *(['--small'] if small else [])]
    environment = os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # torch wants memory, too
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as running:
        try:
            output, errors = running.communicate(timeout=LIMITS[part])
            lost = last_words(errors) if running.returncode else None
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # with what the part itself has started
            output, _ = running.communicate()
            lost = f'not done within {LIMITS[part]} s'
    told = {'cases': lines_of(output)} | ({'lost': f'{part}: {lost}'} if lost else {})
    print(f'{part}, {time.perf_counter() - start:.0f} s: {json.dumps(told)}', file=sys.stderr, flush=True)
    return told


def last_words(text: str) -> str:
    """The last two lines."""
    return ' / '.join(text.strip().splitlines()[-2:]) or 'no word'


def lines_of(output: str) -> list[Case]:
    """The cases that a part has printed, one a line."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='toy sizes, on whatever device there is')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='which; all')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        for told in PARTS[given.part](given.small):
            print(json.dumps(told), flush=True)
        return
    parts = [run_part(part, given.small) for part in given.parts]
    machine = f'{platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}'
    lost = [part['lost'] for part in parts if 'lost' in part]
    cases = [each for part in parts for each in part['cases']]
    print(json.dumps({'name': 'gpu', 'machine': machine, 'cases': cases, 'lost': lost}))


if __name__ == '__main__':
    main()
