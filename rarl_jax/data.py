"""What a run starts from: a data set and a policy's folder, named by the config or made now inside the workdir."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from input_pipeline.build import BuildSettings, build
from input_pipeline.loader import read_questions
from input_pipeline.report import notices
from input_pipeline.synthetic_files import write_pages
from rarl_jax.chat import CHAT_TEMPLATE, fixed_strings
from rarl_jax.metrics import Progress
from rarl_jax.qwen2_5_vl.small import write_small_folder
from rarl_jax.signals import Stopped

if TYPE_CHECKING:
    from rich.console import Console

    from rarl_jax.settings import DataSettings, ModelSettings


def build_data(settings: BuildSettings) -> None:
    """Builds a data set, and says what it lacks and where its report lies.

    Raises ValueError if the config does not say from what and where to, Stopped at Ctrl-C.
    """
    for name in ('raw', 'out'):
        if not getattr(settings, name):
            raise ValueError(f'config.data.{name} is empty: give a folder, --config.data.{name}=DIR.')
    try:
        report = build(settings)
    except KeyboardInterrupt:
        raise Stopped(f'Stopped; {settings.out} was not made. Run the same command again to build it.') from None
    for notice in notices(report):
        print(notice)
    print(f'Data set: {settings.out}, report: {settings.out}/report/index.html')


def prepare_data(settings: DataSettings, workdir: Path, seed: int, console: Console) -> Path:
    """The folder of the run's data set; FileNotFoundError if it is named but not there."""
    if settings.dir:
        if not Path(settings.dir).is_dir():
            raise FileNotFoundError(
                f'config.data.dir is {settings.dir!r}, which is no folder: build one with configs/build_ai4va_fg.py.'
            )
        return Path(settings.dir)
    raw, out = Path(settings.raw) if settings.raw else workdir / 'data' / 'raw', workdir / 'data' / 'built'
    if (
        out.is_dir()
    ):  # whole, and of this config: a build is moved there when it is done, and the workdir is claimed by one config
        return out
    if not settings.raw:
        with Progress(console, 'drawing pages', sum(settings.pages.values())) as bar:
            write_pages(raw, settings.draw, settings.pages, seed, progress=lambda n: bar.advance(n))
    build(BuildSettings(raw=str(raw), out=str(out), tasks=settings.tasks, seed=seed, examples=1))
    return out


def prepare_model(settings: ModelSettings, data_dir: Path, workdir: Path, seed: int) -> Path:
    """The folder of the policy that the run starts from; FileNotFoundError if it is named but not there.

    With an empty path a small one with random weights is made; each answer of the data set is one token of its tokenizer.
    """
    if settings.path:
        if not Path(settings.path).is_dir():
            raise FileNotFoundError(
                f'config.model.path is {settings.path!r}, which is no folder: give a Hugging Face folder of Qwen2.5-VL.'
            )
        return Path(settings.path)
    folder = workdir / 'init'
    if not (folder / 'model.safetensors').is_file():
        questions = read_questions(data_dir, 'train')
        answers = sorted({question.answer for question in questions})
        write_small_folder(
            folder,
            corpus=[question.prompt for question in questions],
            phrases=(*fixed_strings(), *answers),
            chat_template=CHAT_TEMPLATE,
            shape=settings.small,
            page_pixels=(settings.page.min_pixels, settings.page.max_pixels),
            seed=seed,
        )
    return folder
