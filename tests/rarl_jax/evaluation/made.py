"""Records made by hand for the tests of this folder."""

from input_pipeline.schema import Question, Task
from input_pipeline.tasks import metric_name
from rarl_jax.conversation.episodes import EpisodeRecord, ZoomRecord
from rarl_jax.evaluation.records import Decoding, Mode, Record, hash_question


def question(
    name: str = 'q0',
    task: Task = 'action_recognition',
    page: str = 'p0',
    choices: tuple[str, ...] = ('run', 'jump'),
    answer: str = 'run',
    regions: tuple[tuple[float, float, float, float], ...] = ((10, 20, 30, 60),),
) -> Question:
    return Question(
        name, page, task, 'recognition', f'What is in {name}?', choices, answer, regions, zoom_needed=True, split='test'
    )


def record(
    name: str,
    grades: list[float | None],
    page: str = 'p0',
    task: Task = 'action_recognition',
    mode: Mode = 'zoom',
    decoding: Decoding = 'greedy',
    ious: tuple[float | None, ...] = (),
    zoom_needed: bool = True,
    region_share: float | None = 0.01,
    said: str | None = 'run',
    choices: tuple[str, ...] = ('run', 'jump'),
    answer: str = 'run',
    doc_id: int = 0,
) -> Record:
    """A record whose attempts all made the same zooms; an IoU of None is a failed call."""
    zooms = tuple(
        ZoomRecord('bad_box' if iou is None else 'ok', None if iou is None else (1, 2, 3, 4), iou) for iou in ious
    )
    attempts = tuple(EpisodeRecord(said, grade, zooms, turns=1 + len(ious), finish_reason='answer') for grade in grades)
    metric = metric_name(task, choices)
    asked = f'What is in {name}?'
    return Record(
        doc_id,
        name,
        page,
        task,
        metric,
        mode,
        decoding,
        asked,
        choices,
        answer,
        zoom_needed,
        region_share,
        hash_question(question(name, task, page, choices, answer)),
        attempts,
    )
