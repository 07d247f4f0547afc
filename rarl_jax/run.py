"""A run: its workdir, data, policy, checkpoints and metrics once; then its stages in order, resumable anywhere."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key
from ml_collections import ConfigDict
from rich.console import Console

from input_pipeline.build import BuildSettings
from rarl_jax import evaluate, grounding, rl, sft
from rarl_jax.chat import Chat
from rarl_jax.checkpoints import Checkpoints
from rarl_jax.data import build_data, prepare_data, prepare_model
from rarl_jax.episode import Host
from rarl_jax.evaluation.tables import load as load_results
from rarl_jax.evaluation.tables import side_by_side, to_markdown, to_rich
from rarl_jax.metrics import CompileCounter, MetricsWriter, Progress
from rarl_jax.qwen2_5_vl.config import Config
from rarl_jax.qwen2_5_vl.model import Qwen2_5_VL
from rarl_jax.qwen2_5_vl.params import Params, abstract_params, logical_axes
from rarl_jax.qwen2_5_vl.weights import load_params, save_params
from rarl_jax.settings import EvaluateSettings, ModelSettings, RunSettings, TrainingSettings, settings_from
from rarl_jax.sharding import constrain, make_mesh, param_shardings
from rarl_jax.signals import Stopped, stop_on_signal
from rarl_jax.update import Learner
from rarl_jax.viewer.build import build_report

TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'vocab.json',
    'merges.txt',
    'added_tokens.json',
    'special_tokens_map.json',
    'chat_template.jinja',
    'chat_template.json',
    'preprocessor_config.json',
    'processor_config.json',
    'video_preprocessor_config.json',
    'generation_config.json',
)


TRAIN = {'grounding': grounding.train, 'sft': sft.train, 'rl': rl.train}


def run(config: ConfigDict, workdir: Path) -> None:
    """Runs the stages of a config in `workdir`, going on where an earlier run of the same config stopped."""
    settings = settings_from(config.to_dict())
    if isinstance(settings, BuildSettings):
        build_data(settings)
        return
    claim(workdir, config)
    keep_compilations()
    with stop_on_signal() as signals:
        this = open_run(settings, workdir, signals)
        for name in settings.stages:
            stage = settings.stage[name]
            if isinstance(stage, EvaluateSettings):
                if this.is_due(name):
                    evaluate.evaluate(this, name, stage)
            elif this.place(name) >= this.done:
                TRAIN[stage.kind](this, name, stage)
        finish(this)


# ---------------------------------------------------------------- what the stages share


@dataclass
class Run:
    """What the stages share. Only `params`, `done` and `saved` change while it runs."""

    settings: RunSettings
    workdir: Path
    data_dir: Path  # a built data set
    model_dir: Path  # the Hugging Face folder that the run started from
    mesh: Mesh  # the devices, as config.mesh arranges them
    model: Qwen2_5_VL
    host: Host  # the words and sizes of a conversation
    params: Params  # the policy as it stands
    metrics: MetricsWriter
    checkpoints: Checkpoints
    compiles: CompileCounter
    console: Console
    signals: list[str]  # names of the signals that asked the run to stop
    done: int = 0  # training stages finished
    saved: dict[str, Any] | None = None  # the newest checkpoint's description, until its stage has begun again

    @property
    def training(self) -> list[str]:
        """Names of the stages that change the policy, in order."""
        return [name for name in self.settings.stages if not isinstance(self.settings.stage[name], EvaluateSettings)]

    @property
    def processes(self) -> tuple[int, int]:
        return jax.process_index(), jax.process_count()

    def is_due(self, name: str) -> bool:
        """Whether the policy stands where an evaluation wants it: a resumed run is past those of earlier stages."""
        before = self.settings.stages[: self.settings.stages.index(name)]
        return self.saved is None and self.done == sum(stage in self.training for stage in before)

    def place(self, name: str) -> int:
        return self.training.index(name)

    def key(self, name: str, step: int) -> Key[Array, '']:
        """The random key of one step of one stage."""
        return jax.random.fold_in(
            jax.random.fold_in(jax.random.key(self.settings.seed), zlib.crc32(name.encode())), step
        )

    def global_step(self, name: str, step: int = 0) -> int:
        """Updates of the policy up to `step` of a stage, over all stages; an evaluation counts those before it."""
        before = self.settings.stages[: self.settings.stages.index(name)]
        return step + sum(self.settings.stage[other].steps for other in before if other in self.training)

    def policy_name(self, name: str) -> str:
        """Which policy stands when a stage begins: the folder it came from, and the updates since."""
        return f'{self.model_dir.name}+{self.global_step(name)}'

    def initial_params(self) -> Params:
        """The weights that the run began with."""
        return load_policy(self.model_dir, self.model, self.mesh)

    # ---- what training stages call

    def begin(
        self, name: str, optimizer: optax.GradientTransformation, batches: Iterator[Any], extra: Params | None = None
    ) -> Learner:
        """The learner at the start of a stage, or where the newest checkpoint left it; `extra` are params that the stage needs for itself."""
        params = self.params | (extra or {})
        learner = Learner(params, optimizer.init(params), 0, batches)
        if self.saved is not None and self.saved['stage'] == name and not self.saved['finished']:
            arrays = self.checkpoints.restore({'params': learner.params, 'opt_state': learner.opt_state})
            learner = dataclasses.replace(learner, **arrays, step=self.saved['step'])
            batches.set_state(self.saved['data'])
        self.saved = None
        self.metrics.forget_after(self.global_step(name, learner.step))
        return learner

    def after_step(self, name: str, learner: Learner, metrics: dict[str, float], stage: TrainingSettings) -> None:
        """Writes a step's metrics, saves when it is time, and leaves if the user has asked for it."""
        self.params = {name: learner.params[name] for name in self.params}
        finished = learner.step == stage.steps
        self.metrics.write(self.global_step(name, learner.step), name, metrics | {'compiles': self.compiles.take()})
        if finished:
            self.done += 1
        if finished or self.signals or learner.step % stage.save_every == 0:
            self.save(name, learner, finished)
        if not finished:
            self.leave_if_asked()

    def save(self, name: str, learner: Learner, finished: bool) -> None:
        """A checkpoint from which every further step comes out the same."""
        description = {
            'stage': name,
            'step': learner.step,
            'finished': finished,
            'done': self.done,
            'data': learner.batches.get_state(),
            'seed': self.settings.seed,
        }
        arrays = {'params': learner.params, 'opt_state': learner.opt_state}
        self.checkpoints.save(self.global_step(name, learner.step), arrays, description)

    def leave_if_asked(self) -> None:
        if self.signals:
            self.checkpoints.wait()
            raise Stopped(f'Stopped by {self.signals[0]}; everything is saved. Run the same command again to go on.')

    def progress(self, name: str, total: int, done: int = 0) -> Progress:
        return Progress(self.console, name, total, done)


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
    console = Console()
    data_dir = prepare_data(settings.data, workdir, settings.seed, console)
    folder = prepare_model(settings.model, data_dir, workdir, settings.seed)
    mesh = make_mesh(settings.mesh)
    model = build_model(settings.model, folder, mesh)
    chat = Chat.from_folder(folder)
    checkpoints = Checkpoints(workdir / 'checkpoints', settings.keep_checkpoints)
    saved = checkpoints.latest()
    this = Run(
        settings=settings,
        workdir=workdir,
        data_dir=data_dir,
        model_dir=folder,
        model=model,
        host=Host(chat, model.config.vision, settings.model.page, settings.model.crop, settings.sampler.tool),
        mesh=mesh,
        params=load_policy(folder, model, mesh),
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


def build_model(settings: ModelSettings, folder: Path, mesh: Mesh) -> Qwen2_5_VL:
    return Qwen2_5_VL(
        Config.from_folder(folder),
        dtype=jnp.dtype(settings.dtype),
        param_dtype=jnp.dtype(settings.param_dtype),
        scan=settings.scan_layers,
        remat=settings.remat,
        attention=settings.attention,
        constrain=constrain(mesh),
    )


def load_policy(folder: Path, model: Qwen2_5_VL, mesh: Mesh) -> Params:
    """A folder's weights, each where the mesh wants it."""
    shardings = param_shardings(abstract_params(model.config), logical_axes(model.config), mesh)
    return load_params(folder, model.config, model.param_dtype, shardings)


# ---------------------------------------------------------------- the end


def finish(this: Run) -> None:
    """Exports the policy, sets the evaluations side by side, and writes the report."""
    this.checkpoints.wait()
    export(this.workdir / 'export', this)
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
    this.console.print(f'Report: {page}\nPolicy: {this.workdir / "export"} (a Hugging Face folder)')


def export(folder: Path, this: Run) -> None:
    """The policy as a Hugging Face folder that transformers loads, with tokenizer, processor and chat template."""
    save_params(folder, this.params, this.model.config)
    for name in TOKENIZER_FILES:
        if (source := this.model_dir / name).is_file():
            shutil.copyfile(source, folder / name)
