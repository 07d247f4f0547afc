"""Numbers of the RARL paper (arXiv 2511.06490) on AI4VA-FG with Qwen2.5-VL-7B-Instruct, as far as they were published.

They stand beside ours for orientation: the paper's questions, splits and class lists were not released, so no significance can be computed between them.
"""

from __future__ import annotations

from dataclasses import dataclass

from input_pipeline.schema import Task


@dataclass(frozen=True)
class Published:
    """What the paper says of one task."""

    # Accuracy of the untrained model, 0 to 1.
    zero_shot: float | None = None
    # The same with the right region cut out for it.
    oracle_zoom: float | None = None
    # What RARL adds to zero shot, in points / 100; for action recognition the paper says "up to".
    rarl_gain: float | None = None
    # Of RARL's zooms; for action recognition the paper says "above".
    zoom_iou: float | None = None


PUBLISHED: dict[Task, Published] = {
    'action_recognition': Published(zero_shot=0.4354, oracle_zoom=0.5578, rarl_gain=0.327, zoom_iou=0.85),
    'depth_comparison': Published(zero_shot=0.4951, oracle_zoom=0.5434, rarl_gain=0.073),
    'panel_understanding': Published(zoom_iou=0.565),
}


@dataclass(frozen=True)
class Line:
    """One published result as a table shows it; '' where a number was not given."""

    name: str
    score: str = ''  # percent
    gain: str = ''  # points to zero shot
    zoom_iou: str = ''


def lines(task: str) -> list[Line]:
    """What the paper says of a task, a line for each of its settings; empty where it gives nothing."""
    known = PUBLISHED.get(task, Published())
    up_to, above = ('up to ', '> ') if task == 'action_recognition' else ('', '')
    gain = '' if known.rarl_gain is None else f'{up_to}{100 * known.rarl_gain:+.1f}'
    overlap = '' if known.zoom_iou is None else f'{above}{known.zoom_iou:g}'
    zero_shot = [] if known.zero_shot is None else [Line('paper: zero-shot', f'{100 * known.zero_shot:.1f}')]
    oracle = [] if known.oracle_zoom is None else [Line('paper: oracle zoom', f'{100 * known.oracle_zoom:.1f}')]
    return zero_shot + oracle + ([Line('paper: RARL', '', gain, overlap)] if gain or overlap else [])
