"""What is kept of a run among the committed results: small files, from which every figure of a notebook is made.

experiments/NAME/results/ARM-SEED/
    run.json            the arm, its seed and changes; commit, machine and times of the run
    metrics.csv         metrics.jsonl with a column a metric, numbers to 5 digits
    results.json        of every evaluation, by stage, as the run wrote it
    samples.jsonl.xz    every answer, one object a line, by stage
    episodes.jsonl      ten episodes with their rewards, and images/ with their pages and crops, small (the first seed alone)
"""

from __future__ import annotations

import dataclasses
import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from rarl_jax.conversation.episodes import RolloutRecord, read_rollouts
from rarl_jax.evaluation.results import RESULTS
from rarl_jax.evaluation.samples import SAMPLES
from rarl_jax.runtime import files
from rarl_jax.runtime.launches import LAUNCHES

RUN, METRICS, ANSWERS, EPISODES = 'run.json', 'metrics.csv', 'samples.jsonl.xz', 'episodes.jsonl'
STEPS_KEPT, EPISODES_A_STEP = 5, 2
PAGE_SIDE, CROP_SIDE, QUALITY = 448, 160, 60  # px of the longer side of a kept picture, and JPEG's quality


def collect(workdir: Path, folder: Path, about: dict[str, Any], with_episodes: bool) -> None:
    """Writes FOLDER from a finished run; `about` says which arm it is. What stood there before is replaced."""
    began, *_, finished = files.read(workdir / LAUNCHES)
    machine = {name: began[name] for name in ('devices', 'jax', 'commit')}
    rows = pd.DataFrame(files.read(workdir / 'metrics.jsonl'))
    files.write_whole(folder / METRICS, rows.to_csv(index=False, float_format='%.5g'))
    evaluations = sorted((workdir / 'eval').glob(f'*/{RESULTS}'))
    results = {path.parent.name: files.load_json(path) for path in evaluations}
    files.write_json(folder / 'results.json', results)
    write_answers(folder / ANSWERS, [path.with_name(SAMPLES) for path in evaluations])
    if with_episodes:
        keep_episodes(workdir / 'rollouts', folder)
    # Last: a folder with this file is whole.
    files.write_json(folder / RUN, {**about, **machine, 'began': began['time'], 'finished': finished['time']})


def write_answers(path: Path, samples: Sequence[Path]) -> None:
    """The lines of all evaluations, each with its stage. Compressed together: stages ask the same questions."""
    lines = [files.dump({'stage': each.parent.name, **row}) for each in samples for row in files.read(each)]
    with files.replacing(path) as temporary:
        temporary.write_bytes(lzma.compress(''.join(lines).encode(), preset=9))


def keep_episodes(rollouts: Path, folder: Path) -> None:
    """A few episodes of steps from the first to the last that the run has kept, with their pictures."""
    steps = sorted((read_rollouts(path) for path in rollouts.glob('*.jsonl')), key=lambda step: step[0].step)
    if not steps:
        return
    last = len(steps) - 1
    places = sorted({round(i * last / (STEPS_KEPT - 1)) for i in range(STEPS_KEPT)})
    kept = [record for place in places for record in steps[place][:EPISODES_A_STEP]]
    for record in kept:
        shrink(rollouts, folder, record.page_image, PAGE_SIDE)
        for zoom in record.zooms:
            if zoom.image:
                shrink(rollouts, folder, zoom.image, CROP_SIDE)
    files.write_whole(folder / EPISODES, ''.join(files.dump(asdict(record)) for record in kept))


def shrink(rollouts: Path, folder: Path, name: str, side: int) -> None:
    with Image.open(rollouts / name) as image, files.replacing(folder / name) as temporary:
        image.thumbnail((side, side))
        image.save(temporary, 'JPEG', quality=QUALITY, optimize=True)


def is_kept(folder: Path, about: dict[str, Any]) -> bool:
    """Whether a folder holds the whole results of this very run."""
    if not (folder / RUN).is_file():
        return False
    found = files.load_json(folder / RUN)
    return all(found.get(name) == json.loads(json.dumps(value)) for name, value in about.items())


def read_episodes(folder: Path) -> list[RolloutRecord]:
    """The kept episodes; the paths of their pictures are whole. None where the run kept none."""
    if not (folder / EPISODES).exists():
        return []
    return [_located(record, folder) for record in read_rollouts(folder / EPISODES)]


def _located(record: RolloutRecord, folder: Path) -> RolloutRecord:
    zooms = [dataclasses.replace(zoom, image=str(folder / zoom.image)) if zoom.image else zoom for zoom in record.zooms]
    return dataclasses.replace(record, page_image=str(folder / record.page_image), zooms=tuple(zooms))
