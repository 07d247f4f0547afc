"""A stage of supervised learning: pages with their questions, conversations made from annotations, one update; and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from input_pipeline.loader import PageSample, load_pages, prepare_ahead, read_questions
from input_pipeline.schema import Task
from input_pipeline.traces import KINDS, Kind, TraceSettings, make_conversation
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.replay import replay
from rarl_jax.learner.batches import Buckets, micro_batches
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Updater, imitation
from rarl_jax.runtime import processes
from rarl_jax.runtime.clock import Clock
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import StageKind, TrainingSettings
from rarl_jax.stages.training import Training


@dataclass(frozen=True, kw_only=True)
class SftSettings(TrainingSettings):
    """A stage of supervised learning on conversations made from annotations."""

    kind: str = 'sft'
    pages: int  # pages a step, one conversation about each
    traces: TraceSettings
    optimizer: OptimizerSettings
    tasks: tuple[Task, ...]
    buckets: Buckets = field(default_factory=Buckets)  # sizes that batches are padded to
    crops_a_page: int = 4  # conversations about each page where they show a crop alone
    micro_batch: int = 0  # conversations a device pass; 0 = the whole batch

    def __post_init__(self):
        super().__post_init__()
        self.check_least(pages=1, crops_a_page=1, micro_batch=0)


def train(run: Run, name: str, stage: SftSettings) -> None:
    """Trains the run's policy for `stage.steps` updates, from wherever the stage stands."""
    training = Training(run, name, stage)
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps)
    count = processes.share(stage.pages, f'config.stage.{name}.pages')
    talk = partial(converse, run, answer_spaces(run, stage), stage)
    pages = load_pages(run.data_dir, run.loading(count, stage.tasks), *run.processes)
    batches = prepare_ahead(pages, talk, run.data_seed(name))
    learner = training.begin(optimizer, iter(batches))
    updater = Updater(run.model, imitation, optimizer, learner, run.adapted, frozen=stage.optimizer.frozen)
    with training.progress(learner.step) as bar:
        while learner.step < stage.steps:
            clock = Clock()
            kind, episodes = next(learner.batches)
            clock.lap('traces')
            unweighted = np.zeros(len(episodes), np.float32)
            cut = micro_batches(episodes, unweighted, run.model.config, stage.buckets, stage.micro_batch, run.mesh)
            tokens = processes.total(sum(int(e.loss_mask.sum()) for e in episodes))
            learner, metrics = updater(learner, cut, tokens, processes.total(len(episodes)))
            metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
            learner = learner.next_step()
            clock.lap('update')
            metrics |= {f'loss/{kind}': metrics['loss']}
            metrics |= clock.metrics(processes.total(sum(len(e.ids) for e in episodes)))
            training.after_step(learner, metrics)
            bar.advance(loss=metrics['loss'])


def converse(
    run: Run,
    answers: Mapping[Task, Sequence[str]],
    stage: SftSettings,
    pages: Sequence[PageSample],
    rng: np.random.Generator,
) -> tuple[Kind, list[Episode]]:
    """The episodes of a step: conversations of one kind, so that their lengths are alike and little is padded.

    All processes draw the same kind; what is drawn for a page depends on the page's place in the batch of all processes alone.
    """
    weights = np.array([getattr(stage.traces, kind) for kind in KINDS])
    kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
    settings = only(stage.traces, kind)
    episodes = []
    seed = int(rng.integers(1 << 32))
    for number, page in enumerate(pages):
        draw = np.random.default_rng([seed, number * jax.process_count() + jax.process_index()])
        for _ in range(stage.crops_a_page if kind == 'crop' else 1):
            conversation = make_conversation(page.questions, page.image.size, answers, settings, draw)
            episodes.append(replay(conversation, page.image, run.host, run.settings.conversation.budget, len(episodes)))
    return kind, episodes


def only(settings: TraceSettings, kind: Kind) -> TraceSettings:
    """The settings with no other kind of conversation."""
    return dataclasses.replace(settings, **{each: float(each == kind) for each in KINDS})


def answer_spaces(run: Run, stage: SftSettings) -> dict[Task, list[str]]:
    """All answers of each task in the training split, from which guesses are drawn."""
    spaces: dict[Task, set[str]] = {task: set() for task in stage.tasks}
    for question in read_questions(run.data_dir, 'train'):
        if question.task in spaces:
            spaces[question.task].add(question.answer)
    return {task: sorted(space) for task, space in spaces.items()}


STAGE = StageKind(SftSettings, train)
