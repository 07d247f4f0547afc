"""A run's data set: one that was built before, or one built now from a raw folder, or from pages drawn now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from input_pipeline import synthetic_files
from input_pipeline.build import BuildSettings, build

if TYPE_CHECKING:
    from rarl_jax.settings import DataSettings


def prepare_data(settings: DataSettings, workdir: Path, seed: int) -> Path:
    """The folder of the run's data set; FileNotFoundError if it is named but not there."""
    if settings.dir:
        if not Path(settings.dir).is_dir():
            raise FileNotFoundError(
                f'config.data.dir is {settings.dir!r}, which is no folder: build one with configs/build_ai4va_fg.py.'
            )
        return Path(settings.dir)
    raw = Path(settings.raw) if settings.raw else workdir / 'data' / 'raw'
    if not settings.raw:
        synthetic_files.write_pages(raw, settings.draw, settings.pages, seed)
    out = workdir / 'data' / 'built'
    build(BuildSettings(raw=str(raw), out=str(out), tasks=settings.tasks, seed=seed))
    return out
