"""How fast the model runs: forward, prefill, forward + backward.

    python -m experiments.benchmarks.model [--family=qwen3_vl] [--small]

ours    this package, jitted, float32, layers unrolled
peer    transformers' model of the same family (sdpa), float32, on as many threads
Both sides have the same weights' shapes and the same conversation of a page and text, and take turns. On a GPU, further rows run two
published sizes with random weights in bf16 and tell the share of the device's peak (MFU); they have no peer.
The last line is one JSON object; ratio > 1 means ours is better.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jaxtyping import Array, Float
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from rarl_jax.models.images import Patches, PixelLimits, patchify
from rarl_jax.models.interface import FAMILIES, Cache, Config, Model, build_model
from rarl_jax.models.params import Params, abstract_params, count_params, init_params, unstack
from rarl_jax.models.positions import mrope_positions
from rarl_jax.models.qwen2_5_vl import config as qwen2_5_vl
from rarl_jax.models.qwen3_vl import config as qwen3_vl
from rarl_jax.models.vision_batch import VisionBatch, plan_vision

# Ours over peer, tokens a second; of the first family's larger size 1 in all.
GOALS = {'forward': 1.0, 'prefill': 1.0, 'forward + backward': 0.8}
MFU_GOALS = {'prefill': 0.55, 'training step': 0.50}
PEAK_FLOPS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}  # dense bf16, datasheets
PAGE = (224, 280)  # px: 80 image tokens
RUNS = 5

MARKS = (4, 5, 6, 7, 1, 2)  # token ids inside a small vocabulary
CONFIGS: dict[str, dict[str, Config]] = {  # by family and size
    'qwen2_5_vl': {
        '10M': qwen2_5_vl.Config(
            qwen2_5_vl.TextConfig(4096, 256, 896, 8, 8, 4, 32, 1e4, (4, 6, 6), 1e-6, True),
            qwen2_5_vl.VisionConfig(6, 192, 512, 6, 256, fullatt_block_indexes=(2, 5)),
            *MARKS,
        ),
        '150M': qwen2_5_vl.Config(
            qwen2_5_vl.TextConfig(32_000, 768, 2816, 12, 12, 4, 64, 1e4, (8, 12, 12), 1e-6, True),
            qwen2_5_vl.VisionConfig(8, 384, 1152, 6, 768, fullatt_block_indexes=(3, 7)),
            *MARKS,
        ),
    },
    'qwen3_vl': {
        '10M': qwen3_vl.Config(
            qwen3_vl.TextConfig(4096, 256, 896, 8, 8, 4, 32, 1e4, (6, 5, 5), 1e-6, True),
            qwen3_vl.VisionConfig(6, 192, 768, 6, 256, num_position_embeddings=256, deepstack_visual_indexes=(1, 3)),
            *MARKS,
        ),
        '150M': qwen3_vl.Config(
            qwen3_vl.TextConfig(32_000, 768, 2816, 12, 12, 4, 64, 1e4, (12, 10, 10), 1e-6, True),
            qwen3_vl.VisionConfig(
                8, 384, 1536, 6, 768, num_position_embeddings=576, deepstack_visual_indexes=(1, 3, 5)
            ),
            *MARKS,
        ),
    },
}
ON_GPU = {
    'qwen2_5_vl': ('3B', '7B'),
    'qwen3_vl': ('4B', '8B'),
}  # of the published sizes; the first one takes a step, too
SHRUNK = {  # of the towers, by family
    'qwen2_5_vl': {'depth': 2, 'fullatt_block_indexes': (1,)},
    'qwen3_vl': {'depth': 2, 'deepstack_visual_indexes': (0,)},
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Work:
    """A batch of conversations, each a page and text."""

    ids: np.ndarray  # [B, T]
    positions: np.ndarray  # [3, B, T]
    index: np.ndarray  # [B, T], rows of the features
    batch: VisionBatch


def make_work(config: Config, rows: int, length: int, size: tuple[int, int]) -> tuple[Work, list[Patches]]:
    rng = np.random.default_rng(0)
    limits = PixelLimits(28 * 28, size[0] * size[1])
    pages = [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(rows)]
    images = [patchify(page, limits, config.vision) for page in pages]
    merged = images[0].merged(config.vision.spatial_merge_size)
    words = rng.integers(10, 1000, (rows, length - merged - 2))
    marks = [config.vision_start_token_id, *[config.image_token_id] * merged, config.vision_end_token_id]
    ids = np.concatenate([np.tile(marks, (rows, 1)), words], axis=1)
    positions, _ = mrope_positions(ids[0], [images[0].grid], config.image_token_id, config.vision.spatial_merge_size)
    batch = plan_vision(images, config.vision)
    index = np.full(ids.shape, -1, np.int32)
    index[:, 1 : merged + 1] = np.arange(rows)[:, None] * batch.merged_slots.shape[1] + np.arange(merged)
    return Work(ids, np.tile(positions[:, None], (1, rows, 1)), index, batch), images


# ---- ours


def forward(model: Model, params: Params, work: Work) -> Float[Array, 'B T V']:
    return model.apply({'params': params}, work.ids, work.positions, work.index, work.batch)


def loss(params: Params, model: Model, work: Work) -> Float[Array, '']:
    logits = forward(model, params, work)[:, :-1]
    chosen = jnp.take_along_axis(logits, work.ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def prefill(model: Model, params: Params, work: Work) -> tuple[Float[Array, 'B V'], Cache]:
    """What a sampler does with a prompt: features, cache, logits of the last token."""
    apply = partial(model.apply, {'params': params})
    embeds = apply(work.ids, apply(work.batch, method='encode_images'), work.index, method='embed')
    hidden, cache = apply(model.init_cache(*work.ids.shape), embeds, work.positions, method='prefill')
    return apply(hidden[:, -1], method='logits'), cache


def our_runs(config: Config, work: Work) -> dict[str, Callable[[], object]]:
    model = build_model(config)
    params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
    sliced = jax.jit(unstack)(params)
    run_forward = jax.jit(lambda params, work: forward(model, params, work))
    run_prefill = jax.jit(lambda params, work: prefill(model, params, work))
    run_backward = jax.jit(jax.value_and_grad(lambda params, work: loss(params, model, work)))
    arguments = jax.device_put(work)
    return {
        'forward': lambda: jax.block_until_ready(run_forward(params, arguments)),
        'prefill': lambda: jax.block_until_ready(run_prefill(sliced, arguments)),
        'forward + backward': lambda: jax.block_until_ready(run_backward(params, arguments)),
    }


# ---- the peer


def peer_model(config: Config) -> PreTrainedModel:
    """The same sizes in transformers, with random weights in float32."""
    values = config.to_hf()
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(values.pop('model_type'), **values)).float()


def peer_runs(config: Config, work: Work, images: list[Patches]) -> dict[str, Callable[[], object]]:
    model = peer_model(config)
    ids = torch.from_numpy(work.ids)
    inputs = {
        'input_ids': ids,
        'attention_mask': torch.ones_like(ids),
        'mm_token_type_ids': (ids == config.image_token_id).int(),
        'pixel_values': torch.from_numpy(np.concatenate([image.pixels for image in images])),
        'image_grid_thw': torch.tensor([image.grid for image in images]),
    }

    def without_gradient(**more):
        with torch.no_grad():
            return model(**inputs, **more)

    def backward():
        model.zero_grad()
        model(**inputs, labels=ids, use_cache=False).loss.backward()

    return {
        'forward': lambda: without_gradient(use_cache=False),
        'prefill': lambda: without_gradient(use_cache=True, logits_to_keep=1),
        'forward + backward': backward,
    }


# ---- measuring


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(name: str, config: Config, rows: int, length: int, size: tuple[int, int]) -> Iterator[dict[str, object]]:
    """Tokens a second of both sides, which take turns; the first run of each, which compiles, does not count."""
    work, images = make_work(config, rows, length, size)
    ours, peer = our_runs(config, work), peer_runs(config, work, images)
    for case in ours:
        times = [(seconds(ours[case]), seconds(peer[case])) for _ in range(RUNS + 1)][1:]
        speed_ours, speed_peer = (work.ids.size / statistics.median(side) for side in zip(*times, strict=True))
        yield {
            'case': f'{case}, {count_params(build_model(config)) / 1e6:.0f} M parameters ({name}), {rows} x {length} tokens',
            'ours': round(speed_ours, 1),
            'peer': round(speed_peer, 1),
            'unit': 'tokens/s',
            'ratio': round(speed_ours / speed_peer, 3),
            'goal': 1.0 if (config.model_type, name) == ('qwen2_5_vl', '150M') else GOALS[case],
            'runs': RUNS,
        }


def flops(config: Config, work: Work) -> float:
    """Of one forward pass but its logits: 2 a weight and token (tables are looked up, not multiplied); attention over what is seen, of tokens the causal half."""
    params, (rows, length) = abstract_params(build_model(config)), work.ids.shape
    text, vision, patches = config.text, config.vision, int(work.batch.image_lengths.sum())
    decoder = work.ids.size * (2 * size(params['text']['layers']) + 2 * length * wide(text) * text.num_layers)
    full = len(getattr(vision, 'fullatt_block_indexes', range(vision.depth)))  # the others see a window
    seen = full * patches / rows + (vision.depth - full) * vision.window_patches
    return decoder + patches * (2 * patch_weights(config) + 4 * seen * vision.hidden_size)


def wide(text: TextConfig) -> int:
    """Numbers in a token's queries."""
    return text.num_heads * text.head_dim


def patch_weights(config: Config) -> float:
    """What the tower multiplies a patch by: its frames are one, mergers take a merged token each, and a table of positions is looked up."""
    parts = {name: size(part) for name, part in abstract_params(build_model(config))['vision'].items()}
    mergers = sum(count for name, count in parts.items() if name.startswith(('merger', 'deepstack')))
    patch = parts['patch'] / config.vision.temporal_patch_size
    return patch + parts['blocks'] + mergers / config.vision.merge_unit


def size(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))


def share_of_peak(name: str, run: Callable[[], object], work_flops: float) -> dict[str, object]:
    kind = jax.devices()[0].device_kind
    peak = next((value for key, value in PEAK_FLOPS.items() if key in kind), None)
    if peak is None:
        raise ValueError(f'device {kind}: its peak is not in PEAK_FLOPS; add it from the datasheet.')
    run()
    share = work_flops / peak / statistics.median(seconds(run) for _ in range(RUNS))
    goal = next(goal for case, goal in MFU_GOALS.items() if case in name)
    return {
        'case': name,
        'ours': round(share, 4),
        'peer': None,
        'unit': 'MFU',
        'ratio': None,
        'goal': goal,
        'runs': RUNS,
    }


def on_gpu(family: str, rows: int, length: int, page: tuple[int, int]) -> Iterator[dict[str, object]]:
    """Prefill of two sizes, a whole AdamW step of the smaller one; all state in bf16, so that one device holds it."""
    for name in ON_GPU[family]:
        config = FAMILIES[family].presets[name]
        model = build_model(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, attention='cudnn')
        params = jax.jit(init_params, static_argnums=1)(jax.random.key(0), model)
        work, _ = make_work(config, rows, length, page)
        held = jax.device_put(work)
        if name == ON_GPU[family][0]:
            yield training_step(name, model.clone(scan=True, remat='attention'), params, work)
        sliced = jax.jit(unstack, donate_argnums=0)(params)
        run = jax.jit(lambda params, work, model=model: prefill(model, params, work))
        yield share_of_peak(
            f'prefill, {name}, {rows} x {length} tokens',
            lambda run=run, sliced=sliced, held=held: jax.block_until_ready(run(sliced, held)),
            flops(config, work),
        )


def training_step(name: str, model: Model, params: Params, work: Work) -> dict[str, object]:
    """Forward, backward and update; the head's share counts, as every token has a loss."""
    optimizer, held = optax.adamw(1e-6), jax.device_put(work)

    def update(state, work):
        params, moments = state
        gradient = jax.grad(loss)(params, model, work)
        change, moments = optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, change), moments

    step = jax.jit(update, donate_argnums=0)
    state = [(jax.tree.map(jnp.copy, params), optimizer.init(params))]

    def run():
        state[0] = jax.block_until_ready(step(state[0], held))

    head = 2 * work.ids.size * model.config.text.hidden_size * model.config.text.vocab_size
    rows, length = work.ids.shape
    return share_of_peak(
        f'training step, {name}, {rows} x {length} tokens', run, 3 * (flops(model.config, work) + head)
    )


def main() -> None:
    family, small = arguments(__doc__)
    rows, length, page = (1, 96, (112, 140)) if small else (2, 256, PAGE)
    cases = [
        shown(case)
        for name, config in CONFIGS[family].items()
        for case in compare(name, shrunk(config) if small else config, rows, length, page)
    ]
    if jax.default_backend() == 'gpu':
        cases += map(shown, on_gpu(family, *((2, 1024, PAGE) if small else (4, 4096, (1008, 1008)))))
    print(told('model', family, cases))


def arguments(description: str | None) -> tuple[str, bool]:
    """The family, and whether its cases are shrunk; torch gets all cores."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--family', choices=CONFIGS, default='qwen2_5_vl')
    parser.add_argument('--small', action='store_true', help='the same cases shrunk, under a minute')
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    return given.family, given.small


def shown(case: dict[str, object]) -> dict[str, object]:
    """The case, which whoever waits sees at once."""
    print(json.dumps(case), file=sys.stderr, flush=True)
    return case


def told(name: str, family: str, cases: list[dict[str, object]]) -> str:
    """The last line: what was measured, and where."""
    machine = f'{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}'
    name += '' if family == 'qwen2_5_vl' else f', {FAMILIES[family].name}'
    return json.dumps({'name': name, 'machine': machine, 'cases': cases})


def shrunk(config: Config) -> Config:
    return dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, num_layers=2, vocab_size=4096),
        vision=dataclasses.replace(config.vision, **SHRUNK[config.model_type]),
    )


if __name__ == '__main__':
    main()
