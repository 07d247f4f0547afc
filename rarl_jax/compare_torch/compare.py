"""Compares a folder's policy here with the same in transformers, layer by layer."""

from __future__ import annotations

import gc
from pathlib import Path

import jax
from rich.console import Console

from rarl_jax.compare_torch import ours
from rarl_jax.compare_torch.report import Report, compare_sides, summary, to_table, write_json
from rarl_jax.compare_torch.talk import Side, Talk, make_talk
from rarl_jax.models.interface import Config, read_config
from rarl_jax.settings import CompareSettings

RESULT = 'comparison.json'


def compare(settings: CompareSettings, workdir: Path) -> Report:
    """Prints the table and writes WORKDIR/comparison.json.

    The reference goes first and is gone before our weights are loaded: the machine holds one copy of the weights at a time.

    Raises:
        FileNotFoundError: model.path or reference is no folder.
        ValueError: torch is not installed, or a folder cannot be read.
    """
    console, folder = Console(markup=False), _folder('model.path', settings.model.path)
    reference_folder = _folder('reference', settings.reference) if settings.reference else folder
    config = read_config(folder)
    talk = make_talk(folder, config, settings)
    console.print(f'{len(talk.ids)} tokens, 2 images; transformers reads {reference_folder} ...')
    theirs, versions = _reference(reference_folder, config, talk, settings)
    gc.collect()  # transformers' modules hold each other
    console.print(f'rarl_jax reads {folder} ...')
    mine = ours.run(folder, config, talk, settings.model.dtype, {name: g.tokens for name, g in theirs.greedy.items()})
    report = Report(
        folder=str(folder),
        reference=str(reference_folder),
        dtype=settings.model.dtype,
        tolerance=settings.tolerance,
        versions=f'jax {jax.__version__}, {versions}',
        rows=tuple(compare_sides(mine, theirs, settings.tolerance)),
    )
    write_json(workdir / RESULT, report)
    console.print(to_table(report))
    console.print(f'{summary(report)}\nWritten to {workdir / RESULT}', highlight=False)
    return report


def _folder(name: str, given: str) -> Path:
    if not Path(given).is_dir() or not given:
        raise FileNotFoundError(
            f'config.{name} is {given!r}, which is no folder: give a Hugging Face folder of a policy.'
        )
    return Path(given)


def _reference(folder: Path, config: Config, talk: Talk, settings: CompareSettings) -> tuple[Side, str]:
    """What the reference makes of it, and its versions. Imported here: no other config needs torch."""
    try:
        from rarl_jax.compare_torch import reference
    except ModuleNotFoundError as error:
        raise ValueError(
            f'configs/compare_torch.py needs PyTorch ({error}): python -m pip install torch; its CPU build will do.'
        ) from error
    (blocks, layers), (known_blocks, known_layers) = (
        (each.vision.depth, each.text.num_layers) for each in (read_config(folder), config)
    )
    if (blocks, layers) != (known_blocks, known_layers):
        raise ValueError(
            f'{folder} has {blocks} vision blocks and {layers} decoder layers, but config.model.path has {known_blocks} and '
            f'{known_layers}: give folders of one size.'
        )
    try:
        return reference.run(folder, config, talk, settings), reference.VERSIONS
    except OSError as error:  # what transformers raises for a file that is missing or damaged
        raise ValueError(f'transformers cannot read {folder}: {error}') from error
