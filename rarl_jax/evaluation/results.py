"""results.json: what a set of answers amounts to, per task, with how sure we are.

    {stage, step, checkpoint, commit, prompt_hash, pixel_limits, seed, samples: {count, sha256}, ...,
     evaluations: {NAME: {mode, decoding, k, accuracy, tasks: {TASK: {n, accuracy, interval, zoom_iou_first, ..., by_form, by_zoom_needed, by_region_size}}}}}

NAME is the mode, with '@k' where k answers were sampled: 'zoom', 'blank_crop', 'zoom@8'. Everything is computed from samples.jsonl, whose count and
checksum are kept: a result can be made again from the answers alone, and is refused beside others.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rarl_jax.evaluation.records import Record, hash_text, to_json
from rarl_jax.evaluation.samples import SAMPLES, read_samples
from rarl_jax.evaluation.statistics import DRAWS, LEVEL, bootstrap_interval, pass_at_k
from rarl_jax.runtime import files

RESULTS = 'results.json'
ANEW = 'the same command makes it anew from the answers, and asks only for those that are missing'
HIT = 0.5  # IoU from which a zoom counts as a hit
REGION_EDGES = (0.005, 0.02, 0.08)  # shares of the page's area: a head, a figure, a panel among thirteen
REGION_SIZES = ('tiny', 'small', 'medium', 'large')

Measured = dict[str, Any]


@dataclass(frozen=True)
class Provenance:
    """What must be known to make the same numbers again."""

    stage: str
    step: int  # updates that the policy has had in the whole run
    checkpoint: str  # where its weights came from
    commit: str  # of this program, see source_commit
    prompt_hash: str  # of the system prompt with its tool schema
    pixel_limits: dict[str, tuple[int, int]]  # {'page': (min, max), 'crop': (min, max)} pixels an image is resized to
    seed: int  # of the sampling and of the bootstrap


def evaluation_name(record: Record) -> str:
    """'zoom' for greedy answers, 'zoom@8' for eight sampled ones."""
    return record.mode if record.decoding == 'greedy' else f'{record.mode}@{len(record.attempts)}'


def summarize(records: Iterable[Record], seed: int = 0) -> dict[str, Measured]:
    """The `evaluations` of results.json."""
    named = _split(records, evaluation_name)
    return {name: _summarize_one(group, seed) for name, group in named.items()}


def _summarize_one(records: Sequence[Record], seed: int) -> Measured:
    tasks = {task: _measure_task(group, seed) for task, group in sorted(_split(records, lambda r: r.task).items())}
    accuracies = [task['accuracy'] for task in tasks.values() if task['accuracy'] is not None]
    return {
        'mode': records[0].mode,
        'decoding': records[0].decoding,
        'k': len(records[0].attempts),
        # Mean of the tasks, so that a large one does not hide the others.
        'accuracy': sum(accuracies) / len(accuracies) if accuracies else None,
        'tasks': tasks,
    }


def _measure_task(records: Sequence[Record], seed: int) -> Measured:
    def parts(names: Sequence[str], name_of: Callable[[Record], str]) -> Measured:
        groups = _split(records, name_of)
        return {name: measure(groups[name], seed) for name in names if name in groups}

    return {
        'metric': '+'.join(sorted({record.metric for record in records})),
        **measure(records, seed),
        'by_form': parts(('choices', 'open'), lambda r: 'choices' if r.choices else 'open'),
        'by_zoom_needed': parts(('yes', 'no'), lambda r: 'yes' if r.zoom_needed else 'no'),
        'by_region_size': parts((*REGION_SIZES, 'none'), lambda r: region_size(r.region_share)),
    }


def region_size(share: float | None) -> str:
    """The class of a region that takes up `share` of its page; 'none' without one."""
    if share is None:
        return 'none'
    return REGION_SIZES[sum(share >= edge for edge in REGION_EDGES)]


def measure(records: Sequence[Record], seed: int) -> Measured:
    """Every number about a group of questions. Intervals resample pages; None stands where nothing was there to be averaged."""
    attempts = [attempt for record in records for attempt in record.attempts]
    judged = [record for record in records if record.score is not None]
    return {
        'n': len(records),
        'pages': len({record.page_id for record in records}),
        'unjudged': sum(attempt.grade is None for attempt in attempts),
        **_interval('accuracy', 'interval', [(record.score, record.page_id) for record in judged], seed),
        'exact': _mean([attempt.grade == 1 for attempt in attempts if attempt.grade is not None]),
        'pass_at': _pass_at(judged),
        'answered': _mean([attempt.prediction is not None for attempt in attempts]),
        **_measure_zooms(records, seed),
        'finish_reasons': dict(sorted(Counter(attempt.finish_reason for attempt in attempts).items())),
    }


def _measure_zooms(records: Sequence[Record], seed: int) -> Measured:
    attempts = [attempt for record in records for attempt in record.attempts]
    calls = [zoom.status for attempt in attempts for zoom in attempt.zooms]
    firsts, seconds = _nth_ious(records, 0), _nth_ious(records, 1)
    return {
        **_interval('zoom_iou_first', 'zoom_iou_first_interval', firsts, seed),
        **_interval('zoom_iou_second', 'zoom_iou_second_interval', seconds, seed),
        'zoom_hit_rate': _mean([overlap >= HIT for overlap, _ in firsts]),
        'zoom_rate': _mean([any(zoom.status == 'ok' for zoom in attempt.zooms) for attempt in attempts]),
        'refused_rate': _mean([any(zoom.status != 'ok' for zoom in attempt.zooms) for attempt in attempts]),
        'zoom_calls': len(calls) / len(attempts),
        'zoom_failed': _mean([status != 'ok' for status in calls]),
        'zoom_statuses': dict(sorted(Counter(calls).items())),
    }


def _nth_ious(records: Sequence[Record], nth: int) -> list[tuple[float, str]]:
    """IoU of each attempt's nth successful zoom, with its page; attempts with fewer are left out, and so are questions without a region."""
    found = []
    for record in records:
        ious = [[zoom.iou for zoom in attempt.zooms if zoom.iou is not None] for attempt in record.attempts]
        found += [(overlaps[nth], record.page_id) for overlaps in ious if len(overlaps) > nth]
    return found


def _interval(name: str, interval_name: str, rows: Sequence[tuple[float, str]], seed: int) -> Measured:
    if not rows:
        return {name: None, interval_name: None}
    values, pages = zip(*rows, strict=True)
    interval = bootstrap_interval(values, pages, seed)
    return {name: interval.mean, interval_name: [interval.low, interval.high]}


def _pass_at(records: Sequence[Record]) -> dict[str, float]:
    """Chance that one of 1, 2, 4, ... attempts is wholly right; the largest k is the number of attempts."""
    attempts = min((len(record.attempts) for record in records), default=0)
    ks = sorted({2**i for i in range(attempts.bit_length())} | {attempts}) if attempts else []
    rights = [(sum(attempt.grade == 1 for attempt in record.attempts), len(record.attempts)) for record in records]
    return {str(k): sum(pass_at_k(right, n, k) for right, n in rights) / len(rights) for k in ks}


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _split(records: Iterable[Record], name_of: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(name_of(record), []).append(record)
    return groups


# ---------------------------------------------------------------- the file


def write_results(folder: Path, provenance: Provenance, records: Sequence[Record]) -> dict[str, Any]:
    """Summarizes the records, which are those of FOLDER/samples.jsonl, into FOLDER/results.json, at once, and returns its content."""
    results = {
        **asdict(provenance),
        'samples': _identify(records),
        'statistics': {
            'level': LEVEL,
            'bootstrap_draws': DRAWS,
            'resampled': 'pages',
            'hit_iou': HIT,
            'region_size_edges': list(REGION_EDGES),
        },
        'evaluations': summarize(records, provenance.seed),
    }
    files.write_json(folder / RESULTS, results)
    return results


def read_results(folder: Path) -> tuple[dict[str, Any], list[Record]]:
    """FOLDER/results.json and the answers that it was made from; FileNotFoundError or ValueError, in one sentence, where they do not belong together."""
    path = folder / RESULTS
    if not path.exists():
        raise FileNotFoundError(
            f'{path} was not found: run the same command again; a stage that cannot be evaluated any more is left out by --config.compare.'
        )
    results = files.load_json(path, fix=f'delete it: {ANEW}')
    if not (folder / SAMPLES).exists():
        raise FileNotFoundError(f'{folder / SAMPLES} was not found, which {path} was made from: delete {path}: {ANEW}.')
    records = read_samples(folder)
    check_results(folder, results, records)
    return results, records


def check_results(folder: Path, results: dict[str, Any], records: Sequence[Record]) -> None:
    """ValueError where the results were made from other answers than `records`."""
    known, found = results.get('samples'), _identify(records)
    if known != found:
        raise ValueError(
            f'{folder / SAMPLES} holds {len(records)} answers, and not those that {folder / RESULTS} was made from '
            f'({known["count"] if known else "by an earlier version"}): delete {folder / RESULTS}: {ANEW}.'
        )


def _identify(records: Sequence[Record]) -> dict[str, Any]:
    """How many answers there are, and a hash of all that they hold."""
    return {'count': len(records), 'sha256': hash_text(''.join(files.dump(to_json(record)) for record in records))}


def source_commit(folder: Path = Path(__file__).parent) -> str:
    """The commit of the program in `folder`, with '-dirty' where tracked files differ from it; 'unknown' outside a repository.

    Results that experiments keep in the repository do not count: a run that writes them would else make the next one's program another.
    """
    described = _git(folder, 'describe', '--always', '--abbrev=12', '--exclude=*')
    changed = _git(folder, 'diff', '--name-only', 'HEAD', '--', ':(top)', ':(top,exclude,glob)experiments/*/results/**')
    if described is None or changed is None:
        return 'unknown'
    return f'{described}-dirty' if changed else described


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, without its line end; None where it fails."""
    try:
        done = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
