"""Sets this package beside transformers on PyTorch: a conversation layer by layer, and one whole training step.

    python -m experiments.parity.record

Writes experiments/parity/results/parity.json: a minute on two cores; needs torch. The step: episodes that the quickstart's base policy has sampled (prompt, page,
call, crop, answer), their advantages, the policy loss, its gradient by every weight, the clipped AdamW step, and the weights after it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from jaxtyping import Float
from transformers import Qwen2_5_VLForConditionalGeneration

from configs.compare_torch import get_config
from experiments.arms import HERE
from experiments.tour.record import Group, quickstart_on_few_pages, sample_group
from rarl_jax.compare_torch.compare import compare
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.evaluation.results import source_commit
from rarl_jax.learner.batches import Buckets, micro_batches
from rarl_jax.learner.losses import Denominators, LossSettings
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, reinforcement
from rarl_jax.models.weights import tensors_of
from rarl_jax.runtime.files import write_json
from rarl_jax.settings import settings_from

OPTIMIZER = OptimizerSettings(learning_rate=1e-3, b2=0.99)
Tensors = dict[str, np.ndarray]  # by the hub's names


def main() -> None:
    settings = quickstart_on_few_pages()
    jax.config.update('jax_default_matmul_precision', 'highest')
    group = sample_group(settings)
    ours, theirs = our_step(group), torch_step(group, settings.model.path)
    write_json(
        HERE / 'parity' / 'results' / 'parity.json',
        {
            'commit': source_commit(),
            'layers': asdict(compare_layers()),
            'step': beside(ours, theirs),
            'episodes': len(group.episodes),
            'tokens': int(sum(episode.loss_mask.sum() for episode in group.episodes)),
        },
    )


def compare_layers() -> Any:
    """The comparison of `configs/compare_torch.py` on the quickstart's base policy."""
    with tempfile.TemporaryDirectory() as folder:
        config = get_config('smoke')
        config.greedy_tokens = 32
        return compare(settings_from(config.to_dict()), Path(folder))


def our_step(group: Group) -> dict[str, Any]:
    """Loss, gradients and weights after an update by this package's own updater, on packed rows as a run has them."""
    config = group.model.config
    optimizer = make_optimizer(OPTIMIZER, group.params, steps=1)
    learner = Learner.start(jax.tree.map(jax.numpy.copy, group.params), optimizer, None)
    updater = Updater(group.model, reinforcement(LossSettings()), optimizer, learner)
    [batch] = micro_batches(
        group.episodes, group.advantages, config, Buckets(), 0, group.mesh, pack=len(group.episodes)
    )
    tokens = float(sum(episode.loss_mask.sum() for episode in group.episodes))
    count = len(group.episodes)
    logprobs = np.asarray(updater.logprobs(learner.params, updater.base, batch))
    denominators = Denominators(np.float32(tokens), np.float32(count), np.float32(1))
    nothing = updater.nothing(learner.params, updater.metric_names(learner.params, batch, denominators))
    gradient, metrics = updater.accumulate(learner.params, updater.base, nothing, batch, denominators)
    gradient = dict(tensors_of(gradient, config))
    learner, _ = updater(learner, [batch], tokens, count)
    return {
        'loss': float(metrics['loss']),
        'logprobs': [row[: int(e.loss_mask.sum())] for row, e in zip(logprobs, group.episodes, strict=False)],
        'gradient': gradient,
        'weights': dict(tensors_of(learner.params, config)),
    }


def torch_step(group: Group, folder: str) -> dict[str, Any]:
    """The same step in PyTorch, an episode a forward pass: Qwen2.5-VL of transformers, the loss written out, AdamW of torch."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation='eager')
    weights = dict(hub_named(model.named_parameters()))
    optimizer = torch.optim.AdamW(
        weights.values(),
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        eps=OPTIMIZER.eps,
        weight_decay=0.0,
    )
    tokens = sum(int(episode.loss_mask.sum()) for episode in group.episodes)
    loss, logprobs = 0.0, []
    for episode, advantage in zip(group.episodes, group.advantages.tolist(), strict=True):
        logp = torch_logprobs(model, episode, group.model.config.image_token_id)
        ratio = torch.exp(logp - logp.detach())  # the first update on this batch: old is new
        share = -(advantage * ratio).sum() / tokens
        share.backward()
        loss, logprobs = loss + share.item(), [*logprobs, logp.detach().numpy()]
    gradient = {name: weight.grad.numpy().copy() for name, weight in weights.items()}
    torch.nn.utils.clip_grad_norm_(weights.values(), OPTIMIZER.max_grad_norm)
    optimizer.step()
    after = {name: weight.detach().numpy() for name, weight in weights.items()}
    return {'loss': loss, 'logprobs': logprobs, 'gradient': gradient, 'weights': after}


def torch_logprobs(model: torch.nn.Module, episode: Episode, image_id: int) -> torch.Tensor:
    """log p of every chosen token of an episode."""
    ids = torch.from_numpy(episode.ids.astype(np.int64))[None]
    logits = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == image_id).int(),
        pixel_values=torch.from_numpy(np.concatenate([image.pixels for image in episode.images])),
        image_grid_thw=torch.tensor([image.grid for image in episode.images]),
        use_cache=False,
    ).logits[0]
    chosen = torch.from_numpy(np.flatnonzero(episode.loss_mask))
    return torch.log_softmax(logits, -1)[chosen - 1, ids[0, chosen]]


def hub_named(named: Iterable[tuple[str, torch.nn.Parameter]]) -> Iterable[tuple[str, torch.nn.Parameter]]:
    """Parameters under the names of a published checkpoint."""
    for name, weight in named:
        yield name.replace('model.visual.', 'visual.').replace('model.language_model.', 'model.'), weight


# ---------------------------------------------------------------- side by side


def beside(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The differences: of the loss, of the log-probs, and of each weight's gradient and movement."""
    if missing := ours['gradient'].keys() ^ theirs['gradient'].keys():
        raise ValueError(f'Weights that only one side has: {sorted(missing)}.')
    return {
        'loss': [ours['loss'], theirs['loss']],
        'logprobs': float(max(np.abs(a - b).max() for a, b in zip(ours['logprobs'], theirs['logprobs'], strict=True))),
        'weights': {
            name: {
                'shape': list(ours['gradient'][name].shape),
                'gradient_norm': float(np.linalg.norm(theirs['gradient'][name])),
                'gradient': apart(ours['gradient'][name], theirs['gradient'][name]),
                'after': float(np.abs(ours['weights'][name] - theirs['weights'][name]).max()),
                'after_rms': float(np.sqrt(np.square(ours['weights'][name] - theirs['weights'][name]).mean())),
            }
            for name in ours['gradient']
        },
    }


def apart(ours: Float[np.ndarray, '...'], theirs: Float[np.ndarray, '...']) -> float:
    """|ours - theirs| / |theirs|, as Euclidean lengths."""
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


if __name__ == '__main__':
    main()
