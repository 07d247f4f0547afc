"""A stage of supervised learning: pages with their questions, conversations made from annotations or read, one update; and again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import jax
import numpy as np
import optax

from input_pipeline.loader import PageSample, load_pages, prepare_ahead, read_questions
from input_pipeline.schema import Task
from input_pipeline.traces import KINDS, Conversation, Kind, TraceSettings, make_conversation
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.replay import replay
from rarl_jax.learner.batches import Batch, Buckets, micro_batches
from rarl_jax.learner.kept import Update
from rarl_jax.learner.optim import OptimizerSettings, make_optimizer
from rarl_jax.learner.update import Learner, Updater, chosen_logprobs, imitation
from rarl_jax.runtime import processes
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import StageKind, TrainingSettings
from rarl_jax.stages.repeat import Repeated, repeat_update, restore_learner
from rarl_jax.stages.taught import read_taught
from rarl_jax.stages.training import Training


@dataclass(frozen=True, kw_only=True)
class SftSettings(TrainingSettings):
    """A stage of supervised learning on conversations."""

    kind: str = 'sft'
    pages: int  # pages a step, one conversation about each
    traces: TraceSettings  # which conversations are made from annotations
    # Those of a file in their place, or the answers of an earlier stage of evaluation, by its name: see stages/taught.py; '' = they are made.
    taught: str = ''
    optimizer: OptimizerSettings
    tasks: tuple[Task, ...]
    buckets: Buckets = field(default_factory=Buckets)  # sizes that batches are padded to
    crops_a_page: int = 4  # conversations about each page where they show a crop alone
    micro_batch: int = 0  # conversations in a pass of each device of data x fsdp; 0 = the whole batch in one

    def __post_init__(self):
        super().__post_init__()
        self.check_least(pages=1, crops_a_page=1, micro_batch=0)


def train(run: Run, name: str, stage: SftSettings) -> None:
    """Trains the run's policy for `stage.steps` updates, from wherever the stage stands."""
    training = Training(run, name, stage)
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps)
    count = processes.share(stage.pages, f'config.stage.{name}.pages')
    if stage.taught:
        taught = read_taught(run, stage.taught)
        talk, loading = partial(recite, run, taught), replace(run.loading(count, stage.tasks), ids=frozenset(taught))
    else:
        talk, loading = partial(converse, run, answer_spaces(run, stage), stage), run.loading(count, stage.tasks)
    pages = load_pages(run.data_dir, loading, *run.processes)
    batches = prepare_ahead(pages, talk, run.data_seed(name))
    learner = training.begin(optimizer, iter(batches))
    updater = make_updater(run, stage, optimizer, learner)
    with training.progress(learner.step) as bar:
        while learner.step < stage.steps:
            clock = training.clock()
            kind, episodes = next(learner.batches)
            clock.lap('traces')
            tokens = processes.total(sum(int(e.loss_mask.sum()) for e in episodes))
            unweighted = np.zeros(len(episodes), np.float32)
            update = Update(episodes, unweighted, None, tokens, processes.total(len(episodes)))
            cut = partial(batches_of, run, stage, update)
            learner, metrics = updater(learner, cut(), update.tokens, update.sequences)
            metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
            if metrics['optimizer/skipped']:
                own = chosen_logprobs(updater, learner.params, cut(), episodes)
                training.keep(learner.step + 1, update, metrics, own)
            learner = learner.next_step()
            clock.lap('update')
            metrics |= {f'loss/{kind}': metrics['loss']}
            metrics |= clock.metrics(processes.total(sum(len(e.ids) for e in episodes)))
            training.after_step(learner, metrics)
            bar.advance(loss=metrics['loss'])


def make_updater(run: Run, stage: SftSettings, optimizer: optax.GradientTransformation, learner: Learner) -> Updater:
    return Updater(run.model, imitation, optimizer, learner, run.adapted, frozen=stage.optimizer.frozen)


def batches_of(run: Run, stage: SftSettings, update: Update) -> Iterator[Batch]:
    """The micro-batches of an update."""
    episodes, unweighted = update.episodes, update.advantages
    return micro_batches(episodes, unweighted, run.model.config, stage.buckets, stage.micro_batch, run.mesh)


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
    for page, draw in zip(pages, processes.spawn(rng, len(pages)), strict=True):
        for _ in range(stage.crops_a_page if kind == 'crop' else 1):
            conversation = make_conversation(page.questions, page.image.size, answers, settings, draw)
            episodes.append(replay(conversation, page.image, run.host, run.settings.conversation.budget, len(episodes)))
    return kind, episodes


def recite(
    run: Run, taught: Mapping[str, Sequence[Conversation]], pages: Sequence[PageSample], rng: np.random.Generator
) -> tuple[str, list[Episode]]:
    """The episodes of a step: of each page one of the conversations about it."""
    episodes = []
    for page, draw in zip(pages, processes.spawn(rng, len(pages)), strict=True):
        told = [conversation for question in page.questions for conversation in taught[question.id]]
        conversation = told[draw.integers(len(told))]
        episodes.append(replay(conversation, page.image, run.host, run.settings.conversation.budget, len(episodes)))
    return 'taught', episodes


def only(settings: TraceSettings, kind: Kind) -> TraceSettings:
    """The settings with no other kind of conversation."""
    return replace(settings, **{each: float(each == kind) for each in KINDS})


def answer_spaces(run: Run, stage: SftSettings) -> dict[Task, list[str]]:
    """All answers of each task in the training split, from which guesses are drawn."""
    spaces: dict[Task, set[str]] = {task: set() for task in stage.tasks}
    for question in read_questions(run.data_dir, 'train'):
        if question.task in spaces:
            spaces[question.task].add(question.answer)
    return {task: sorted(space) for task, space in spaces.items()}


def repeat(run: Run, stage: SftSettings, update: Update, step: int) -> Repeated:
    """An update that was skipped, from the checkpoint of a step of the run."""
    optimizer = make_optimizer(stage.optimizer, run.params, stage.steps)
    learner = restore_learner(run, optimizer, step)
    updater = make_updater(run, stage, optimizer, learner)
    return repeat_update(updater, learner, partial(batches_of, run, stage, update), update)


STAGE = StageKind(SftSettings, train, repeat=repeat)
