"""A run: its workdir, data, policy, checkpoints and metrics once; then its stages in order, resumable anywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from input_pipeline.build import BuildSettings, build
from input_pipeline.loader import named_twice
from input_pipeline.report import notices
from input_pipeline.synthetic.files import write_pages
from rarl_jax.compare_torch.compare import compare
from rarl_jax.conversation.dialogue import Host
from rarl_jax.evaluation.endpoint import endpoint_from_environment
from rarl_jax.evaluation.results import source_commit
from rarl_jax.evaluation.tables import load as load_results
from rarl_jax.evaluation.tables import side_by_side, to_markdown, to_rich
from rarl_jax.export.folder import differing, export
from rarl_jax.models.interface import read_config
from rarl_jax.models.lora import Adapted
from rarl_jax.policy import build_model, load_policy, open_chat, prepare_model, start_adapter
from rarl_jax.report.build import build_report
from rarl_jax.runtime import processes
from rarl_jax.runtime.checkpoints import Checkpoints
from rarl_jax.runtime.files import load_json, naming, write_json, write_whole
from rarl_jax.runtime.launches import note_launch
from rarl_jax.runtime.lock import FolderLock
from rarl_jax.runtime.metrics import CompileCounter, MetricsWriter
from rarl_jax.runtime.progress import Progress
from rarl_jax.runtime.sharding import cut_cpu, make_mesh
from rarl_jax.runtime.signals import Stopped, stop_on_signal
from rarl_jax.runtime.wandb_board import WandbBoard, wandb_problem
from rarl_jax.settings import CompareSettings, DataSettings, RunSettings, settings_from
from rarl_jax.stages.context import Run
from rarl_jax.stages.curriculum import mixture_of
from rarl_jax.stages.evaluate import EvaluateSettings, has_lost_results
from rarl_jax.stages.registry import load_kind
from rarl_jax.stages.repeat import repeat
from rarl_jax.stages.rl_settings import RlSettings
from rarl_jax.stages.sft import SftSettings

ROOT = Path(__file__).resolve().parent.parent
# Settings that change nothing of what a run computes: they may differ from those that a workdir was begun with.
PRESENTATION = re.compile(
    r'config\.(compare|keep_checkpoints|hang_factor|wandb\.[^.]+|stage\.[^.]+\.(save_every|show_every|most_skipped))'
)


def run(config: ConfigDict, workdir: Path, replay: Path | None = None) -> None:
    """Runs the stages of a config in `workdir`, going on where an earlier run of the same config stopped.

    With `replay`, a file that the run has kept of an update, it repeats that update instead and tells what it does.
    """
    settings = settings_from(config.to_dict())
    if replay is not None and not isinstance(settings, RunSettings):
        raise ValueError(
            '--replay repeats an update of a run, and this config is none: give the config of the run that kept it.'
        )
    if isinstance(settings, BuildSettings):
        build_data(settings)
        return
    if isinstance(settings, CompareSettings):
        with FolderLock(workdir):
            if compare(settings, workdir).verdict != 'agrees':
                sys.exit(1)
        return
    if replay is not None and not (workdir / 'config.json').is_file():
        raise ValueError(
            f'--replay needs the workdir of the run that kept the update, and {workdir} is none: give --workdir.'
        )
    check_inputs(settings)
    cut_cpu(settings.mesh)  # first: whoever asks for the number of processes has looked for the devices
    mesh = make_mesh(settings.mesh)
    lock = processes.first_before_others(lambda: take_workdir(workdir, config) if processes.is_first() else None)
    keep_compilations()
    with lock or nullcontext(), naming(workdir):
        if replay is not None:
            sys.exit(not repeat(open_run(settings, workdir, lock, mesh), replay))
        if processes.is_first():
            note_launch(workdir, 'began', source_commit())
        run = open_run(settings, workdir, lock, mesh)
        with stop_on_signal(run.signals):
            for name in settings.stages:
                stage = settings.stage[name]
                if run.is_due(name) or has_lost_results(run, name):
                    load_kind(stage.kind).run(run, name, stage)
            finish(run)


# ---------------------------------------------------------------- the beginning


def keep_compilations() -> None:
    """Compiled programs stay on disk for the next run, where the user's environment names no other place (JAX_COMPILATION_CACHE_DIR)."""
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
        jax.config.update('jax_compilation_cache_dir', str(cache / 'rarl_jax' / 'xla'))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def check_inputs(settings: RunSettings) -> None:
    """ValueError that names every folder and setting which the run needs and does not find: before anything is made."""
    model, data, problems = settings.model, settings.data, [wandb_problem(settings.wandb)]
    if model.path or model.fresh is None:
        problems.append(folder_problem('config.model.path', model.path, 'a Hugging Face folder of a policy'))
    if data.raw and not data.dir:
        problems.append(folder_problem('config.data.raw', data.raw, "pages in AI4VA's format"))
    elif data.dir or data.draw is None:
        problems.append(folder_problem('config.data.dir', data.dir, 'a data set made by configs/build_ai4va_fg.py'))
    for name in settings.stages:
        stage = settings.stage[name]
        if twice := named_twice(getattr(stage, 'tasks', ())):
            problems.append(f'config.stage.{name}.tasks names {twice} more than once: name it once.')
        if isinstance(stage, RlSettings):
            mixture_of(settings, name)
            if stage.held_out.every and not data.held_out:
                problems.append(
                    f'config.stage.{name}.held_out.every is {stage.held_out.every}, but config.data.held_out is 0: no page is held out; '
                    'give it a share.'
                )
        if isinstance(stage, SftSettings) and stage.taught:
            problems.append(taught_problem(settings, name, stage.taught))
        grades = isinstance(stage, RlSettings) and stage.judge.kind == 'endpoint'
        if grades or (isinstance(stage, EvaluateSettings) and stage.judge == 'endpoint'):
            try:
                endpoint_from_environment()
            except ValueError as error:
                problems.append(f'config.stage.{name}.judge: {error}')
    if found := [problem for problem in problems if problem]:
        raise ValueError('\n'.join(found))


def taught_problem(settings: RunSettings, name: str, source: str) -> str | None:
    """Why a stage cannot learn the conversations of `source`, and what to do; None where it can."""
    key = f'config.stage.{name}.taught'
    if source not in settings.stages[: settings.stages.index(name)]:
        return (
            None if Path(source).is_file() else f'{key} is {source!r}, which is neither a file nor a stage before it.'
        )
    stage = settings.stage[source]
    if isinstance(stage, EvaluateSettings) and stage.split == 'train':
        return None
    return f'{key} is {source!r}, which does not evaluate the train split: what is taught must not be what is measured.'


def folder_problem(key: str, given: str, what: str) -> str | None:
    """Why a setting names no folder, and what to do; None where it names one."""
    if not given:
        return f'{key} is empty: give {what}, --{key}=DIR.'
    path = Path(given)
    if path.is_dir():
        return None
    told = f'{key} is {given!r}, which is {"a file and no folder" if path.is_file() else "no folder"}'
    if not path.is_absolute() and (ROOT / path).is_dir():
        return f'{told} in {Path.cwd()}, but one in {ROOT}: run the command there, or give the whole path.'
    return f'{told}{"" if path.is_absolute() else f" in {Path.cwd()}"}: give {what}.'


def take_workdir(workdir: Path, config: ConfigDict) -> FolderLock:
    """Makes the workdir this process's own, and this config's. ValueError if it is another process's, another run's or no run's at all."""
    found = sorted(path.name for path in workdir.iterdir()) if workdir.is_dir() else []
    strange = [name for name in found if name not in ('.lock', '.config.json.partial')]
    if strange and not (workdir / 'config.json').is_file():  # asked last: another launch may be writing it
        raise ValueError(
            f'{workdir} is no workdir of a run: it holds {strange[0]!r}, but no config.json; give another --workdir.'
        )
    lock = FolderLock(workdir)
    try:
        check_config(workdir, config)
    except BaseException:
        lock.close()
        raise
    return lock


def check_config(workdir: Path, config: ConfigDict) -> None:
    """Writes config.json, or checks that the one there is the same but for what only concerns how a run is kept and shown.

    ValueError names the settings that differ.
    """
    path, resolved = workdir / 'config.json', json.loads(config.to_json())
    if path.is_file():
        before = load_json(path, fix='put back the copy that the run wrote, or give another --workdir')
        differs = sorted(differences(before, resolved))
        if binding := [name for name in differs if not PRESENTATION.fullmatch(name)]:
            shown = ', '.join(binding[:5]) + (', ...' if len(binding) > 5 else '')
            raise ValueError(
                f'{workdir} belongs to a run with other settings ({shown}): give another --workdir, or remove that one.'
            )
        if not differs:
            return
    write_json(path, resolved)


def differences(before: Any, after: Any, path: str = 'config') -> Iterator[str]:
    """Dotted names of what is not equal in two nested dicts."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from differences(before.get(key), after.get(key), f'{path}.{key}')
    elif before != after:
        yield path


def open_run(settings: RunSettings, workdir: Path, lock: FolderLock | None, mesh: Mesh) -> Run:
    """Everything that is made once; the policy and `done` as the newest checkpoint has them."""
    console = Console(quiet=not processes.is_first(), markup=False)
    data_dir = processes.first_before_others(lambda: prepare_data(settings.data, workdir, settings.seed, console))
    folder = processes.first_before_others(lambda: prepare_model(settings.model, data_dir, workdir, settings.seed))
    model = build_model(settings.model, read_config(folder), mesh)
    chat, page, crop = open_chat(folder, model.config), settings.model.page, settings.model.crop
    host = Host(chat, model.config.vision, page, crop, settings.conversation.tool)
    if other := differing(folder, host, settings.conversation.budget):
        console.print(f'{folder} was trained with another {", ".join(other)} (its rarl.json) than this run has.')
    params, adapted = load_policy(folder, model, mesh, settings.mesh.rules), None
    if (lora := settings.model.lora) is not None:
        adapted = Adapted(params, lora)
        params = start_adapter(jax.random.key(settings.seed), model.config, lora, mesh, settings.mesh.rules)
    checkpoints = Checkpoints(workdir / 'checkpoints', settings.keep_checkpoints)
    saved = checkpoints.latest()
    board = WandbBoard(settings.wandb, workdir) if settings.wandb.project and processes.is_first() else None
    run = Run(
        settings=settings,
        workdir=workdir,
        lock=lock,
        data_dir=data_dir,
        model_dir=folder,
        model=model,
        host=host,
        mesh=mesh,
        params=params,
        adapted=adapted,
        metrics=MetricsWriter(workdir, board),
        checkpoints=checkpoints,
        compiles=CompileCounter(),
        console=console,
        done=saved['done'] if saved else 0,
        taken=saved['taken'] if saved else {},
        saved=saved if saved and not saved['finished'] else None,
    )
    if saved:
        run.params = checkpoints.restore({'params': run.params}, saved['policy'])['params']
        checkpoints.keep(**saved['kept'])
        console.print(f'Going on after {saved["step"]} steps of stage {saved["stage"]}.')
        if lacking := run.metrics.lacking(run.global_step(saved['stage'], saved['step']), run.training):
            console.print(
                f'metrics.jsonl lacks {lacking} of the steps so far, which somebody has cut: its curves will have gaps.'
            )
    return run


# ---------------------------------------------------------------- the end


def finish(run: Run) -> None:
    """Exports the policy if the run has trained it, and tells how it went."""
    run.checkpoints.wait()
    run.check_workdir()
    if run.training:
        export(run.workdir / 'export', run)
    if processes.is_first():
        write_reports(run)


def write_reports(run: Run) -> None:
    """Sets the evaluations side by side and writes the report."""
    results = [
        each
        for item in run.settings.compare
        for each in load_results(run.workdir / 'eval' / item.partition(':')[0], item.partition(':')[2] or None)
    ]
    if results:
        table = side_by_side(results)
        run.console.print(to_rich(table))
        write_whole(run.workdir / 'results.md', to_markdown(table))
    run.metrics.close()
    note_launch(run.workdir, 'finished', source_commit())
    page = build_report([run.workdir])
    run.console.print(f'Report: {page}')
    if run.training:
        run.console.print(f'Policy: {run.workdir / "export"} (a Hugging Face folder)')


def build_data(settings: BuildSettings) -> None:
    """Builds a data set, and says what it lacks and where its report lies.

    Raises ValueError if the config does not say from what and where to, Stopped at a signal.
    """
    if empty := [f'config.data.{name}' for name in ('raw', 'out') if not getattr(settings, name)]:
        raise ValueError('\n'.join(f'{key} is empty: give a folder, --{key}=DIR.' for key in empty))
    try:
        with FolderLock(Path(settings.out).absolute(), beside=True), naming(Path(settings.out)):
            report = build(settings)
    except Stopped as stopped:
        raise Stopped(f'{settings.out} was not made. {stopped}', stopped.name) from None
    for notice in notices(report):
        print(notice)
    print(f'Data set: {settings.out}, report: {settings.out}/report/index.html')


def prepare_data(settings: DataSettings, workdir: Path, seed: int, console: Console) -> Path:
    """The folder of the run's data set, which is built where config.data names none."""
    if settings.dir:
        return Path(settings.dir)
    raw, out = Path(settings.raw) if settings.raw else workdir / 'data' / 'raw', workdir / 'data' / 'built'
    if not out.is_dir():  # whole, as a build is moved there when it is done, and of this config, as the workdir is
        if not settings.raw:
            with Progress(console, 'drawing pages', sum(settings.pages.values())) as bar:
                write_pages(raw, settings.draw, settings.pages, seed, progress=lambda n: bar.advance(n))
        read = {'check_images': bool(settings.raw)}  # what was drawn is whole
        build(BuildSettings(raw=str(raw), out=str(out), read=read, tasks=settings.tasks, seed=seed, examples=1))
    if not settings.raw:
        shutil.rmtree(raw, ignore_errors=True)  # the data set holds every page; also where a killed run has left it
    return out
