"""How fast questions come with their pages decoded and cut into patches, and how fast and how lean a data set is built.

    python -m experiments.benchmarks.data [--small]

ours    Grain over ArrayRecord, decoding in threads, `patchify` on the consumer's thread
peer    torch DataLoader over the PNG files with as many worker processes as ours has threads, each running transformers' Pillow image processor
Both read the same questions in the same order (every epoch anew), and both start with cold caches in every run: a run is one epoch from a new
loader. Ours keeps decoded pages, which are asked about several times; the cases with one question a page show what is left without that.
The last line is one JSON object; ratio > 1 means ours is better. Building has no peer: its rows tell pages a second and peak memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from PIL import Image

from input_pipeline import dataset
from input_pipeline.build import BuildSettings, build
from input_pipeline.loader import LoaderSettings, load, read_questions
from input_pipeline.schema import Page, Question
from input_pipeline.synthetic import files as synthetic_files
from input_pipeline.synthetic import pages as synthetic
from rarl_jax.models.images import PixelLimits, patchify
from rarl_jax.models.interface import PRESETS

THREADS = 2
BATCH = 8
GOAL = 1.5  # questions a second, ours over peer
MEMORY_GOAL = 2048  # MB


@dataclass(frozen=True)
class Case:
    """A data set to read."""

    name: str
    pages: int
    questions: int  # a page
    size: tuple[int, int]  # px, width and height
    limits: PixelLimits  # of the page as the policy sees it


def make_data(folder: Path, case: Case) -> None:
    """Draws pages, enlarged and with the grain of a scan, and asks the same thing about each several times."""
    pages, questions = [], []
    rng = np.random.default_rng(0)
    for number in range(case.pages):
        path = folder / 'images' / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = synthetic.draw_page(0, number, synthetic.DrawSettings()).image
        save_scan(drawn.resize(case.size, Image.Resampling.BICUBIC), path, rng)
        pages.append(Page(str(number), str(path), *case.size, 'benchmark', 'benchmark', split='train'))
        questions += [_question(number, i) for i in range(case.questions)]
    dataset.write(folder / 'data', pages, questions)


def _question(page: int, i: int) -> Question:
    return Question(
        id=f'{page}/{i}',
        page_id=str(page),
        task='action_recognition',
        category='recognition',
        prompt='What is the character in panel 1 doing? Choices: running; sitting.',
        choices=('running', 'sitting'),
        answer='running',
        regions=((0.0, 0.0, 9.0, 9.0),),
        zoom_needed=True,
        split='train',
    )


def run_ours(folder: Path, case: Case, seed: int) -> float:
    """Questions a second over one epoch."""
    settings = LoaderSettings(batch_size=BATCH, epochs=1, seed=seed, threads=THREADS)
    vision = PRESETS['Qwen2.5-VL-7B'].vision
    start, seen = time.perf_counter(), 0
    for batch in load(folder / 'data', settings):
        seen += len([patchify(sample.image, case.limits, vision) for sample in batch])
    return seen / (time.perf_counter() - start)


class PageFiles:
    """The peer's data set: a page read and processed for every question; picklable, so that workers can take it."""

    def __init__(self, folder: Path, case: Case, order: list[str]):
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        size = {'shortest_edge': case.limits.min_pixels, 'longest_edge': case.limits.max_pixels}
        self.processor = Qwen2VLImageProcessorPil(size=size)
        self.files = [folder / 'images' / f'{page}.png' for page in order]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        with Image.open(self.files[index]) as image:
            return self.processor(images=[image.convert('RGB')], return_tensors='pt')


def run_peer(folder: Path, case: Case, seed: int) -> float:
    """Questions a second over one epoch."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    pages = [question.page_id for question in read_questions(folder / 'data', 'train')]
    order = np.random.default_rng(seed).permutation(len(pages))
    files = PageFiles(folder, case, [pages[i] for i in order])
    start, seen = time.perf_counter(), 0
    # Workers are forked where that is the default; ours does no work at that moment.
    for batch in DataLoader(files, batch_size=BATCH, num_workers=THREADS, collate_fn=list, prefetch_factor=2):
        seen += len(batch)
    return seen / (time.perf_counter() - start)


def compare(case: Case, runs: int) -> dict[str, object]:
    """Alternating runs of both over the same data."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, case)
        sides: dict[str, Callable[[Path, Case, int], float]] = {'ours': run_ours, 'peer': run_peer}
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for seed in range(runs):
            for side, run in sides.items():
                speeds[side].append(run(folder, case, seed))
    ours, peer = (statistics.median(speeds[side]) for side in sides)
    return _row(case.name, ours, peer, 'questions/s', GOAL, runs)


def build_once(pages: int, factor: int) -> tuple[float, float]:
    """(pages a second, peak memory in MB) of a build in a process of its own, from drawn pages enlarged by `factor`."""
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / 'raw'
        synthetic_files.write_pages(raw, synthetic.DrawSettings(), {'train': pages}, 0, processes=1)
        enlarge(raw, factor)
        context = multiprocessing.get_context('spawn')
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_build_and_tell, args=(str(raw), str(Path(name) / 'out'), send))
        process.start()
        told = receive.recv()
        process.join()
    return pages / told[0], told[1]


def enlarge(raw: Path, factor: int) -> None:
    """Makes pages and their annotations `factor` times larger, with the grain of a scan."""
    rng = np.random.default_rng(0)
    for path in (raw / 'images').iterdir():
        with Image.open(path) as image:
            size = (image.width * factor, image.height * factor)
            save_scan(image.convert('RGB').resize(size, Image.Resampling.BICUBIC), path, rng)
    for path in raw.glob('*-annotations.json'):
        coco = json.loads(path.read_text())
        for image in coco['images']:
            image.update(width=image['width'] * factor, height=image['height'] * factor)
        for annotation in coco['annotations']:
            annotation['bbox'] = [v * factor for v in annotation['bbox']]
        path.write_text(json.dumps(coco))


def save_scan(image: Image.Image, path: Path, rng: np.random.Generator) -> None:
    """Saves with grain: a clean enlargement would compress, and so decode, better than any scan."""
    grain = rng.integers(-4, 5, (image.height, image.width, 1), np.int16)
    Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(path, 'PNG')


def _build_and_tell(raw: str, out: str, send: Connection) -> None:
    start = time.perf_counter()
    build(BuildSettings(raw=raw, out=out, keep_source_split=False))
    seconds = time.perf_counter() - start
    # The kernel's high-water mark of this process alone; getrusage would count the parent's memory in.
    peak = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    send.send((seconds, int(peak.split()[1]) / 1024))


def _row(case: str, ours: float, peer: float | None, unit: str, goal: float | None, runs: int) -> dict[str, object]:
    ratio = None if peer is None else round(ours / peer, 3)
    return {
        'case': case,
        'ours': round(ours, 2),
        'peer': peer if peer is None else round(peer, 2),
        'unit': unit,
        'ratio': ratio,
        'goal': goal,
        'runs': runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--small', action='store_true', help='the same cases shrunk, under a minute')
    small = parser.parse_args().small
    scan = (800, 1100) if small else (2150, 3000)
    scans = f'scans of {scan[0]} x {scan[1]} px, seen at 1 megapixel'
    cases = [
        Case(
            'drawn pages of 672 x 896 px, seen whole, 6 questions a page',
            5 if small else 100,
            6,
            (672, 896),
            PixelLimits(3136, 672 * 896),
        ),
        Case(f'{scans}, 4 questions a page', 4 if small else 24, 4, scan, PixelLimits(3136, 1_003_520)),
        Case(f'{scans}, 1 question a page', 12 if small else 48, 1, scan, PixelLimits(3136, 1_003_520)),
    ]
    rows = [compare(case, 5) for case in cases]
    pages, factor = (12, 1) if small else (300, 3)
    speed, peak = build_once(pages, factor)
    rows.append(_row(f'building {pages} pages of {672 * factor} x {896 * factor} px', speed, None, 'pages/s', None, 1))
    rows.append(_row(f'peak memory of building {pages} pages', peak, None, 'MB', MEMORY_GOAL, 1))
    machine = f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}'
    print(json.dumps({'name': 'data', 'machine': machine, 'cases': rows}))


if __name__ == '__main__':
    main()
