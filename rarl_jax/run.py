"""A run: its workdir, data, policy, checkpoints and metrics once; then its stages in order, resumable anywhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from input_pipeline.build import BuildSettings, build
from input_pipeline.report import notices
from input_pipeline.synthetic.files import write_pages
from rarl_jax.compare_torch.compare import compare
from rarl_jax.conversation.chat import Chat
from rarl_jax.conversation.dialogue import Host
from rarl_jax.evaluation.tables import load as load_results
from rarl_jax.evaluation.tables import side_by_side, to_markdown, to_rich
from rarl_jax.models.interface import Config
from rarl_jax.models.lora import Adapted
from rarl_jax.policy import build_model, export, load_policy, prepare_model, start_adapter
from rarl_jax.report.build import build_report
from rarl_jax.runtime import processes
from rarl_jax.runtime.checkpoints import Checkpoints
from rarl_jax.runtime.metrics import CompileCounter, MetricsWriter
from rarl_jax.runtime.progress import Progress
from rarl_jax.runtime.sharding import cut_cpu, make_mesh
from rarl_jax.runtime.signals import Stopped, stop_on_signal
from rarl_jax.settings import CompareSettings, DataSettings, RunSettings, settings_from
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import load_kind


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of a config in `workdir`, going on where an earlier run of the same config stopped."""
    settings = settings_from(config.to_dict())
    if isinstance(settings, BuildSettings):
        build_data(settings)
        return
    if isinstance(settings, CompareSettings):
        if compare(settings, workdir).verdict != 'agrees':
            sys.exit(1)
        return
    cut_cpu(settings.mesh)  # first: whoever asks for the number of processes has looked for the devices
    processes.first_before_others(lambda: claim(workdir, config))
    keep_compilations()
    with stop_on_signal() as signals:
        this = open_run(settings, workdir, signals)
        for name in settings.stages:
            stage = settings.stage[name]
            if this.is_due(name):
                load_kind(stage.kind).run(this, name, stage)
        finish(this)


# ---------------------------------------------------------------- the beginning


def keep_compilations() -> None:
    """Compiled programs stay on disk for the next run, where the user's environment names no other place (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
        jax.config.update('jax_compilation_cache_dir', str(cache / 'rarl_jax' / 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir this config's own: writes config.json, or checks that the one there is the same.

    ValueError names the settings that differ.
    """
    path = workdir / 'config.json'
    resolved = json.loads(config.to_json())
    if path.is_file():
        before = json.loads(path.read_text())
        if differs := sorted(differences(before, resolved)):
            shown = ', '.join(differs[:5]) + (', ...' if len(differs) > 5 else '')
            raise ValueError(
                f'{workdir} belongs to a run with other settings ({shown}): give another --workdir, or remove that one.'
            )
        return
    workdir.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.tmp').write_text(json.dumps(resolved, indent=1))
    path.with_suffix('.tmp').rename(path)


def differences(before: Any, after: Any, path: str = 'config') -> Iterator[str]:
    """Dotted names of what is not equal in two nested dicts."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from differences(before.get(key), after.get(key), f'{path}.{key}')
    elif before != after:
        yield path


def open_run(settings: RunSettings, workdir: Path, signals: list[str]) -> Run:
    """Everything that is made once; the policy and `done` as the newest checkpoint has them."""
    console = Console(quiet=not processes.is_first())
    data_dir = processes.first_before_others(lambda: prepare_data(settings.data, workdir, settings.seed, console))
    folder = processes.first_before_others(lambda: prepare_model(settings.model, data_dir, workdir, settings.seed))
    mesh = make_mesh(settings.mesh)
    model = build_model(settings.model, Config.from_folder(folder), mesh)
    params, adapted = load_policy(folder, model, mesh, settings.mesh.rules), None
    if (lora := settings.model.lora) is not None:
        adapted = Adapted(params, lora)
        params = start_adapter(jax.random.key(settings.seed), model.config, lora, mesh, settings.mesh.rules)
    chat = Chat.from_folder(folder)
    checkpoints = Checkpoints(workdir / 'checkpoints', settings.keep_checkpoints)
    saved = checkpoints.latest()
    this = Run(
        settings=settings,
        workdir=workdir,
        data_dir=data_dir,
        model_dir=folder,
        model=model,
        host=Host(chat, model.config.vision, settings.model.page, settings.model.crop, settings.conversation.tool),
        mesh=mesh,
        params=params,
        adapted=adapted,
        metrics=MetricsWriter(workdir),
        checkpoints=checkpoints,
        compiles=CompileCounter(),
        console=console,
        signals=signals,
        done=saved['done'] if saved else 0,
        saved=saved if saved and not saved['finished'] else None,
    )
    if saved:
        this.params = checkpoints.restore({'params': this.params})['params']
        console.print(f'Going on after {saved["step"]} steps of stage {saved["stage"]}.')
    return this


# ---------------------------------------------------------------- the end


def finish(this: Run) -> None:
    """Exports the policy if the run has trained it, and tells how it went."""
    this.checkpoints.wait()
    if this.training:
        export(this.workdir / 'export', this)
    if processes.is_first():
        tell(this)


def tell(this: Run) -> None:
    """Sets the evaluations side by side and writes the report."""
    results = [
        each
        for item in this.settings.compare
        for each in load_results(this.workdir / 'eval' / item.partition(':')[0], item.partition(':')[2] or None)
    ]
    if results:
        table = side_by_side(results)
        this.console.print(to_rich(table))
        (this.workdir / 'results.md').write_text(to_markdown(table))
    this.metrics.close()
    page = build_report([this.workdir])
    this.console.print(f'Report: {page}')
    if this.training:
        this.console.print(f'Policy: {this.workdir / "export"} (a Hugging Face folder)')


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
