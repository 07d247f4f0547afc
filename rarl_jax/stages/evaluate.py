"""A stage that answers held-out questions: direct, with the policy's own zooms, with the right region shown, or with crops that show nothing of use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline.loader import LoaderSettings, Sample, SampleSource, read_questions
from input_pipeline.schema import Question, Task
from input_pipeline.tasks import grade
from rarl_jax.conversation.controls import CropControl
from rarl_jax.conversation.dialogue import Episode
from rarl_jax.conversation.opening import open_dialogues
from rarl_jax.evaluation.endpoint import EndpointJudge, endpoint_from_environment
from rarl_jax.evaluation.exports import write_exports
from rarl_jax.evaluation.judge import ExactJudge, Judge, TokenF1Judge, judge_records
from rarl_jax.evaluation.records import Mode, Record, from_json, hash_text, make_record, to_json
from rarl_jax.evaluation.results import RESULTS, Provenance, read_results, source_commit, write_results
from rarl_jax.evaluation.samples import SampleFile, rewrite_samples
from rarl_jax.models.params import Params
from rarl_jax.runtime import processes
from rarl_jax.sampler.engine import rollout
from rarl_jax.sampler.settings import Sampling
from rarl_jax.sampler.weights import Policy
from rarl_jax.stages.context import Run
from rarl_jax.stages.registry import StageKind


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """A stage that answers held-out questions."""

    kind: str = 'evaluate'
    tasks: tuple[Task, ...]
    questions: int  # questions a task; 0 = all of the split
    modes: tuple[Mode, ...] = ('zoom',)
    split: Literal['train', 'validation', 'test'] = 'test'
    samples: int = 1  # attempts a question; 1 = greedy
    temperature: float = 1.0  # where there are several attempts, as top_p and top_k
    top_p: float = 1.0  # draw from the likeliest tokens that together have this much probability
    top_k: int = 0  # draw from so many likeliest tokens; 0 = all
    batch_size: int = 64  # questions answered together
    # Of open answers; an endpoint is named by the environment.
    judge: Literal['none', 'exact', 'token_f1', 'endpoint'] = 'none'

    def __post_init__(self):
        if self.questions < 0 or min(self.samples, self.batch_size) < 1 or not 0 < self.temperature < float('inf'):
            raise ValueError(
                f'An evaluation has questions {self.questions}, samples {self.samples}, batch_size {self.batch_size} and temperature '
                f'{self.temperature}: expected 0 or more, 1 or more twice, and a positive number.'
            )
        if not self.tasks or not self.modes:
            raise ValueError('An evaluation has no task or no mode: name at least one of each.')
        sampling_of(self)


def sampling_of(stage: EvaluateSettings) -> Sampling:
    return Sampling(stage.samples, stage.temperature, stage.samples == 1, stage.top_p, stage.top_k)


CROPS: dict[Mode, CropControl] = {
    'direct': 'real',  # never shown: the prompt offers no tool
    'zoom': 'real',
    'oracle_zoom': 'oracle',
    'blank_crop': 'blank',
    'shuffled_crop': 'shuffled',
}


def evaluate(run: Run, name: str, stage: EvaluateSettings) -> None:
    """Writes DIR/eval/NAME/{samples.jsonl, results.json, exports/}; a question answered before is not asked again."""
    folder = run.workdir / 'eval' / name
    judge = make_judge(run, stage)  # before hours of answering, lest they end at a judge that nobody has named
    questions, sources = held_out(run, stage)
    for notice in notices(stage, questions, run.host.tool.max_crops):
        run.console.print(notice, markup=False)
    with processes.first_before_others(lambda: open_samples(folder, identity(run, name, stage))) as file:
        answer_missing(run, name, stage, file, questions, sources)
        records = file.records
    if not processes.is_first() or not records:
        return
    if judge is not None:
        records = judge_records(records, judge)
        if lacking := sum(each.grade is None for record in records for each in record.attempts):
            run.console.print(
                f'{lacking} answers have no verdict of the judge; they are counted, and no part of a score.'
            )
        rewrite_samples(folder, records)
    results = write_results(folder, provenance(run, name), records)
    write_exports(folder / 'exports', records, read_questions(run.data_dir, stage.split))
    run.metrics.write(run.global_step(name), name, headline(results))


def open_samples(folder: Path, known: dict) -> SampleFile:
    """The answers so far. ValueError where they are another policy's, or not those that the results beside them were made from."""
    if processes.is_first() and (folder / RESULTS).exists():
        read_results(folder)
    return SampleFile(folder, known, writes=processes.is_first())


def answer_missing(
    run: Run, name: str, stage: EvaluateSettings, file: SampleFile, questions: Sequence[Question], sources: SampleSource
) -> None:
    """Lets the policy answer, mode by mode, what has no answer yet; says so where it cannot, as the policy has changed."""
    todo = {mode: file.missing(questions, mode, decoding(stage)) for mode in stage.modes}
    missing, total = sum(map(len, todo.values())), len(questions) * len(stage.modes)
    params = params_at(run, name) if missing else None
    if missing and params is None:
        run.console.print(
            f'{name} lacks {missing} of {total} answers, and the policy that gave them has been trained on: its results are of the others.'
        )
    if params is None:
        return
    policy = Policy.of(run.model, run.weights(params), run.host, run.mesh)
    with run.progress(name, total, total - missing) as bar:
        for mode, rest in todo.items():
            for start in range(0, len(rest), stage.batch_size):
                batch = rest[start : start + stage.batch_size]
                doc_ids = [doc_id for doc_id, _ in batch[jax.process_index() :: jax.process_count()]]
                records = answer(run, policy, mode, stage, doc_ids, [sources[doc_id] for doc_id in doc_ids])
                file.add(map(from_json, processes.joined(map(to_json, records))))
                bar.advance(len(batch))
                run.leave_if_asked()


def has_lost_results(run: Run, name: str) -> bool:
    """Whether an evaluation that the run is past has no results.json any more: it is made anew, from its answers and those that can be asked again."""
    stages = run.settings.stages
    before = sum(stage in run.training for stage in stages[: stages.index(name)])
    is_past = run.done >= before and not run.is_due(name) and isinstance(run.settings.stage[name], EvaluateSettings)
    return is_past and processes.gather(not (run.workdir / 'eval' / name / RESULTS).exists())[0]


def params_at(run: Run, name: str) -> Params | None:
    """What is trained as it was at the stage; None where it has been trained on since."""
    if run.is_due(name):
        return run.params
    stages = run.settings.stages
    before = set(run.training).intersection(stages[: stages.index(name)])
    return None if before else run.initial_trainable()


def held_out(run: Run, stage: EvaluateSettings) -> tuple[list[Question], SampleSource]:
    """The stage's questions, the same in every run of a seed, and their samples by place."""
    source = SampleSource(
        run.data_dir,
        LoaderSettings(split=stage.split, tasks=stage.tasks, per_task=stage.questions or None, seed=run.settings.seed),
    )
    return [source.question(i)[1] for i in range(len(source))], source


def answer(
    run: Run, policy: Policy, mode: Mode, stage: EvaluateSettings, doc_ids: Sequence[int], samples: Sequence[Sample]
) -> list[Record]:
    """Lets the policy answer this process's questions of a batch in one mode; there may be none."""
    if not samples:
        return []
    dialogues = open_dialogues(
        run.host, run.settings.conversation.budget, samples, offers_tool=mode != 'direct', crop=CROPS[mode]
    )
    episodes = rollout(policy, dialogues, run.settings.sampler, sampling_of(stage), run.key('evaluate', 0))
    by_question: dict[int, list[Episode]] = {}
    for episode in episodes:
        by_question.setdefault(episode.group, []).append(episode)
    records = []
    for group, attempts in by_question.items():
        question = samples[group].question
        if not all(np.isfinite(episode.sample_logprobs).all() for episode in attempts):
            raise ValueError(
                f'The policy answers question {question.id!r} with log-probs that are not finite: {bad_weights(policy)}; evaluate another checkpoint.'
            )
        said = [episode.answer for episode in attempts]
        grades = [grade(question.task, question.answer, words, question.choices) for words in said]
        records.append(make_record(doc_ids[group], question, attempts, said, grades, mode, decoding(stage)))
    return records


def bad_weights(policy: Policy) -> str:
    """Names the first weight that holds NaN or infinity."""
    for path, weight in jax.tree_util.tree_leaves_with_path(policy.params):
        if jnp.issubdtype(weight.dtype, jnp.inexact) and not jnp.isfinite(weight).all():
            return f'{jax.tree_util.keystr(path, simple=True, separator=".")} holds NaN or infinity'
    return 'every weight is finite, so that a sum overflows'


def make_judge(run: Run, stage: EvaluateSettings) -> Judge | None:
    """The stage's judge of open answers; ValueError where the environment does not name its endpoint."""
    if stage.judge == 'endpoint':
        return EndpointJudge(endpoint_from_environment(), run.workdir / 'judge_cache.jsonl')
    return {'none': None, 'exact': ExactJudge(), 'token_f1': TokenF1Judge()}[stage.judge]


def notices(stage: EvaluateSettings, questions: Sequence[Question], max_crops: int) -> list[str]:
    """What a reader of the results should know: tasks that are not asked, and regions that oracle_zoom cannot show."""
    told = []
    asked = {question.task for question in questions}
    if absent := [task for task in stage.tasks if task not in asked]:
        told.append(
            f'No question of {", ".join(absent)} in the {stage.split} split; report.json of the data set says why.'
        )
    more = sum(len(question.regions) > max_crops for question in questions)
    if 'oracle_zoom' in stage.modes and more:
        told.append(
            f'{more} questions have more than {max_crops} regions: oracle_zoom shows the first {max_crops} of them; '
            'raise config.conversation.tool.max_crops, and the budget, to show all.'
        )
    return told


def decoding(stage: EvaluateSettings) -> str:
    return 'greedy' if stage.samples == 1 else 'sampled'


def provenance(run: Run, name: str) -> Provenance:
    host = run.host
    limits = {name: (limit.min_pixels, limit.max_pixels) for name, limit in (('page', host.page), ('crop', host.crop))}
    return Provenance(
        stage=name,
        step=run.global_step(name),
        checkpoint=run.policy_name(name),
        commit=source_commit(),
        prompt_hash=hash_text(host.system_text()),
        pixel_limits=limits,
        seed=run.settings.seed,
    )


def identity(run: Run, name: str, stage: EvaluateSettings) -> dict:
    """What the answers depend on: a folder of answers begun under another identity is refused."""
    known = asdict(provenance(run, name))
    kept = {key: known[key] for key in ('checkpoint', 'prompt_hash', 'pixel_limits', 'seed')}
    return kept | {'samples': stage.samples, 'temperature': stage.temperature}


def headline(results: dict) -> dict[str, float]:
    """The numbers that go into metrics.jsonl."""
    return {
        f'eval/{mode}/{figure}/{task}': found[figure]
        for mode, evaluation in results['evaluations'].items()
        for task, found in evaluation['tasks'].items()
        for figure in ('accuracy', 'zoom_iou_first', 'zoom_rate')
        if found[figure] is not None
    }


STAGE = StageKind(EvaluateSettings, evaluate)
