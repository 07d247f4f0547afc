"""The reference's side of a comparison: transformers on PyTorch, on the CPU. The only module of the package that needs torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rarl_jax.compare_torch.talk import Greedy, Side, Talk
from rarl_jax.conversation.chat import IMAGE_PAD
from rarl_jax.models.images import PixelLimits
from rarl_jax.models.interface import Config
from rarl_jax.settings import CompareSettings

Inputs = dict[str, torch.Tensor]
VERSIONS = f'torch {torch.__version__}, transformers {transformers.__version__}'


@torch.no_grad()
def run(folder: Path, config: Config, talk: Talk, settings: CompareSettings) -> Side:
    """Loads the folder and shows it the conversation.

    The model is fed the ids and pixels of the talk, so that a tokenizer or processor that differs does not hide what the model does; the positions
    are its own.
    """
    limits = (settings.model.page, settings.model.crop)
    images = [processed(folder, image, limit) for image, limit in zip(talk.pictures, limits, strict=True)]
    ids = template_ids(folder, talk, [int(np.prod(grid)) // config.vision.merge_unit for _, grid in images])
    dtype = getattr(torch, settings.model.dtype)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    whole = inputs(talk, config, len(talk.ids), 2)
    states = full_pass(model, whole)
    positions, _ = model.model.get_rope_index(
        whole['input_ids'], whole['mm_token_type_ids'], image_grid_thw=whole['image_grid_thw']
    )
    prompts = {'greedy, first turn': inputs(talk, config, talk.first, 1), 'greedy, after the crop': whole}
    greedy = {name: generate(model, prompt, talk, settings.greedy_tokens) for name, prompt in prompts.items()}
    return Side(ids, tuple(pixels for pixels, _ in images), positions[:, 0].numpy(), states, greedy)


def processed(
    folder: Path, image: Image.Image, limits: PixelLimits
) -> tuple[Float[np.ndarray, 'P X'], Int[np.ndarray, '3']]:
    """Patches and grid of the folder's own image processor (its Pillow version; the usual one needs torchvision), but for the limits."""
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    size = {'shortest_edge': limits.min_pixels, 'longest_edge': limits.max_pixels}
    out = processor(image, size=size, return_tensors='np')
    return out['pixel_values'], out['image_grid_thw'][0]


def template_ids(folder: Path, talk: Talk, merged: list[int]) -> Int[np.ndarray, 'T']:
    """The conversation by the folder's tokenizer and template; each image's one token is repeated, as the processor does it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = tokenizer.apply_chat_template(talk.messages, tokenize=False, add_generation_prompt=True).split(IMAGE_PAD)
    text = parts[0] + ''.join(IMAGE_PAD * count + part for count, part in zip(merged, parts[1:], strict=True))
    return np.array(tokenizer.encode(text, add_special_tokens=False))


def inputs(talk: Talk, config: Config, tokens: int, images: int) -> Inputs:
    """The first tokens and images; without mm_token_type_ids the reference would silently use positions of one axis."""
    ids = torch.from_numpy(talk.ids[:tokens])[None]
    return {
        'input_ids': ids,
        'attention_mask': torch.ones_like(ids),
        'mm_token_type_ids': (ids == config.image_token_id).int(),
        'pixel_values': torch.from_numpy(np.concatenate([image.pixels for image in talk.images[:images]])),
        'image_grid_thw': torch.tensor([image.grid for image in talk.images[:images]]),
    }


def full_pass(model: PreTrainedModel, whole: Inputs) -> dict[str, Float[np.ndarray, 'R D']]:
    """The output of every vision block, of the mergers, of every decoder layer, and the logits."""
    states: dict[str, np.ndarray] = {}

    def watch(module: torch.nn.Module, name: str, pick: Callable) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_hook(lambda _, given, out: states.update({name: pick(out).float().numpy()}))

    visual, layers = model.model.visual, model.model.language_model.layers
    hooks = [watch(block, f'vision block {n}', lambda out: out) for n, block in enumerate(visual.blocks)]
    hooks.append(watch(visual, 'merger', lambda out: out.pooler_output))
    mergers = getattr(visual, 'deepstack_merger_list', ())
    hooks += [watch(merger, f'DeepStack merger {n}', lambda out: out) for n, merger in enumerate(mergers)]
    hooks += [watch(layer, f'decoder layer {n}', lambda out: out[0]) for n, layer in enumerate(layers)]
    logits = model(**whole, use_cache=False).logits[0].float().numpy()
    for hook in hooks:
        hook.remove()
    return states | {'logits': logits}


def generate(model: PreTrainedModel, prompt: Inputs, talk: Talk, tokens: int) -> Greedy:
    """So many likeliest tokens, whatever the policy would stop at."""
    out = model.generate(
        **prompt,
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=list(talk.banned),
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = out.sequences[0, prompt['input_ids'].shape[1] :]
    return Greedy(written.numpy(), torch.cat(out.logits).float().numpy())
