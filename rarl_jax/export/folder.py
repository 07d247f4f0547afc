"""The policy of a run as a Hugging Face folder: what transformers and servers need to show and ask what the policy was trained on.

Boxes are pixels of the page as resized, and crops have limits of their own: shown otherwise, the same weights point elsewhere.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarl_jax.conversation import boxes, chat, protocol
from rarl_jax.conversation.dialogue import Budget, Host
from rarl_jax.models.adapter_files import save_adapter
from rarl_jax.models.images import processor_settings
from rarl_jax.models.lora import merge
from rarl_jax.models.weights import save_params
from rarl_jax.runtime import processes
from rarl_jax.runtime.files import load_json, write_json, write_whole

if TYPE_CHECKING:
    from rarl_jax.stages.context import Run

TOLD = 'rarl.json'
COPIED = (
    *('tokenizer.json', 'tokenizer_config.json', 'vocab.json', 'merges.txt', 'added_tokens.json'),
    *('special_tokens_map.json', 'video_preprocessor_config.json'),
)
KEPT = (
    'image_processor_type',
    'processor_class',
    'image_mean',
    'image_std',
)  # of a processor's settings, as they were given
HERE = Path(__file__).parent


def export(folder: Path, run: Run) -> None:
    """Writes weights, tokenizer, processor, chat template, rarl.json and how to use them; an adapter by itself in `adapter`.

    Every process of a multi-host run calls it; the first one writes.
    """
    weights, config = run.params, run.model.config
    if run.adapted is not None:
        save_adapter(folder / 'adapter', run.params, config, run.adapted.lora, str(run.model_dir))
        weights = merge(run.adapted.base, run.params, run.adapted.lora)
    save_params(folder, weights, config)
    if processes.is_first():
        write_words(folder, run.model_dir, run.host, run.settings.conversation.budget, config.text.vocab_size)


def write_words(folder: Path, source: Path, host: Host, budget: Budget, rows: int) -> None:
    """All of the export but config.json and weights; what `source` holds beside them is copied, less what the training has changed.

    `rows` of the embedding table: those beyond the tokenizer's are never chosen either.
    """
    banned = [*host.chat.banned_ids, *range(host.chat.vocab_size, rows)]
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    write_whole(folder / 'chat_template.jinja', chat.read_template(source))
    for name in ('preprocessor_config.json', 'processor_config.json'):
        if (source / name).is_file() or name == 'preprocessor_config.json':
            given = load_json(source / name) if (source / name).is_file() else {}
            write_json(folder / name, _with_limits(name, given, host))
    write_json(folder / 'generation_config.json', _generation(source, host, banned))
    write_json(folder / TOLD, {**describe(host, budget), 'banned_ids': banned})
    shutil.copyfile(HERE / 'ask.py', folder / 'ask.py')
    readme = (HERE / 'README.md').read_text(encoding='utf-8')
    write_whole(folder / 'README.md', readme.replace('IMAGES', str(host.tool.max_crops + 1)))


def describe(host: Host, budget: Budget) -> dict[str, Any]:
    """What rarl.json says: the words and numbers of a conversation, for whoever holds one without this package."""
    frame = host.tool.box_frame
    return {
        'system': host.system_text(),
        'system_without_tool': host.system_text(offers_tool=False),
        'question': protocol.user_text('{question}', frame, ('{width}', '{height}')),
        'observation': list(protocol.OBSERVATION),
        'failures': protocol.FAILURE_WORDS,
        'answer_too_early': protocol.ANSWER_TOO_EARLY,
        'tool': {
            **dataclasses.asdict(host.tool),
            'name': host.tool.name,
            'schema': host.tool.schema(),
            'max_aspect': boxes.MAX_ASPECT,
        },
        'page': dataclasses.asdict(host.page),
        'crop': dataclasses.asdict(host.crop),
        # The sides of a picture become multiples of it, px.
        'side': host.vision.merged_side,
        'stop': protocol.CALL_CLOSE,
        'stop_ids': list(host.chat.stop_ids),
        'budget': dataclasses.asdict(budget),
    }


def differing(folder: Path, host: Host, budget: Budget) -> list[str]:
    """What an exported folder says otherwise than this run; [] for one that says nothing."""
    path = folder / TOLD
    if not path.is_file():
        return []
    told, ours = load_json(path), describe(host, budget)
    return [name for name in ('system', 'question', 'page', 'crop') if told.get(name) != ours[name]]


def _with_limits(name: str, given: dict[str, Any], host: Host) -> dict[str, Any]:
    """A processor's settings with the limits of pages, wherever its versions look for them."""
    if name == 'processor_config.json':  # where it holds an image processor, transformers reads that one
        inner = given.get('image_processor')
        return {**given, 'image_processor': _with_limits('', inner, host)} if isinstance(inner, dict) else given
    ours = processor_settings(host.page, host.vision)
    kept = {name: given.get(name, ours[name]) for name in KEPT}
    return {**given, **ours, **kept}


def _generation(source: Path, host: Host, banned: list[int]) -> dict[str, Any]:
    """Greedy, with nothing that bends the distribution which was trained; a turn ends at a call."""
    path = source / 'generation_config.json'
    given = load_json(path) if path.is_file() else {}
    ends = given.get('eos_token_id')
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return {
        'do_sample': False,
        'temperature': 1.0,
        'top_p': 1.0,
        'repetition_penalty': 1.0,
        'eos_token_id': list(dict.fromkeys([*host.chat.stop_ids, *ends])),
        'pad_token_id': given.get('pad_token_id', banned[0]),
        'suppress_tokens': banned,
    }
