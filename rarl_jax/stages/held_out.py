"""A small measurement inside a stage of GRPO: greedy answers about the training pages that no stage learns from. Test pages are never asked about."""

from __future__ import annotations

from collections import defaultdict

import jax
import numpy as np

from input_pipeline.loader import LoaderSettings, SampleSource
from rarl_jax.models.params import Params
from rarl_jax.runtime import processes
from rarl_jax.sampler.weights import Policy
from rarl_jax.stages.context import Run
from rarl_jax.stages.evaluate import EvaluateSettings, answer
from rarl_jax.stages.rl_settings import RlSettings


class HeldOut:
    """The questions, the same for every policy of a stage."""

    def __init__(self, run: Run, stage: RlSettings):
        settings = stage.held_out
        self._run, self._every = run, settings.every
        self._asking = EvaluateSettings(tasks=stage.tasks, questions=settings.questions, modes=(settings.mode,))
        loading = LoaderSettings(
            tasks=stage.tasks,
            per_task=settings.questions or None,
            held_out=run.settings.data.held_out,
            only_held_out=True,
            seed=run.settings.seed,
        )
        self._source = SampleSource(run.data_dir, loading) if settings.every else ()

    def is_due(self, step: int) -> bool:
        """Whether the policy after so many steps is to be measured."""
        return self._every > 0 and step % self._every == 0

    def measure(self, params: Params) -> dict[str, float]:
        """held_out/score (the mean over tasks), held_out/score/TASK, and how the policy zoomed; `params` are what is trained."""
        run, (mode,) = self._run, self._asking.modes
        policy = Policy.of(run.model, run.weights(params), run.host, run.mesh)
        mine = range(jax.process_index(), len(self._source), jax.process_count())
        rows = []
        for start in range(0, len(mine), self._asking.batch_size):
            places = mine[start : start + self._asking.batch_size]
            for record in answer(run, policy, mode, self._asking, places, [self._source[i] for i in places]):
                ious = [zoom.iou for zoom in record.attempts[0].zooms if zoom.status == 'ok' and zoom.iou is not None]
                rows.append([record.doc_id, record.task, record.score, bool(ious), *ious[:1]])
        scores, zoomed, first = defaultdict(list), [], []
        for _, task, score, has_zoomed, *iou in sorted(processes.joined(rows)):
            scores[task].append(score)
            zoomed.append(has_zoomed)
            first += iou
        by_task = {f'held_out/score/{task}': float(np.mean(each)) for task, each in scores.items()}
        told = {
            'held_out/score': float(np.mean([*by_task.values()])),
            'held_out/zoom_rate': float(np.mean(zoomed)),
            'held_out/iou_first': float(np.mean(first or [0.0])),
        }
        return by_task | told
