"""The reward of an episode: Eq. 2 of RARL (arXiv 2511.06490), with every part weighted, gated and capped by settings.

    R      = w_acc R_acc + w_format R_format + R_tool - cost + w_overlong R_overlong
    R_tool = (c + g 1[R_acc > threshold]) * (w_count R_count + w_iou R_iou)

R_acc     in [0, 1]  the grade of the answer, handed in
R_format  0 or 1     see `is_well_formed`
R_count   0..cap     successful zooms; a failed call or a repeated box earns nothing
R_iou     in [0, 1]  zoom boxes matched one-to-one to the regions so that the summed IoU is largest, over max(#boxes, #regions):
                     spraying boxes earns nothing, and zooming into every region of a question with many is
cost      from 0 on  of calls, and of the image tokens of the crops that they showed
R_overlong -1 to 0   see `overlong_penalty`

The paper's reward is c = g = 1 without cost and R_overlong; its ablation c = 0. Only text that the policy wrote is read, never an observation (whose words hold tags).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from rarl_jax.conversation.boxes import iou
from rarl_jax.runtime.plugins import load_plugin

if TYPE_CHECKING:
    from input_pipeline.schema import Question
    from rarl_jax.conversation.dialogue import Episode
    from rarl_jax.conversation.protocol import Turn

_TAG = re.compile(r'</?(?:think|tool_call|answer)>')


@dataclass(frozen=True)
class RewardSettings:
    """The weights and switches of Eq. 2."""

    accuracy: float = 1.0  # weight of R_acc
    format: float = 1.0  # weight of R_format
    tool_count: float = 1.0  # weight of R_count inside R_tool
    tool_iou: float = 1.0  # weight of R_iou inside R_tool; 0 switches it off
    constant: float = 1.0  # c: the share of R_tool that is earned whatever the answer is
    gate: float = 1.0  # g: the share that is earned only by a right answer
    gate_threshold: float = 0.0  # R_acc must be larger than this to open the gate
    max_paid_zooms: int = 1  # cap of R_count, in zooms
    think: Literal['optional', 'required'] = 'optional'  # whether every turn must begin with <think>...</think>
    call_cost: float = 0.0  # taken off for each call, failed ones too
    crop_token_cost: float = 0.0  # taken off for each image token of a crop that was shown
    overlong_limit: int = 0  # tokens chosen by the policy from which on R_overlong is -1; 0 = length is not judged
    overlong_buffer: int = 0  # tokens before that limit over which R_overlong falls from 0
    overlong: float = 1.0  # weight of R_overlong
    # Rewards of a user's own, 'module:function': (Episode, Question) -> {part: value}. Each part is added to R as it is.
    extra: tuple[str, ...] = ()

    def __post_init__(self):
        numbers = [value for value in dataclasses.astuple(self) if isinstance(value, int | float)]
        if not np.isfinite(numbers).all() or self.max_paid_zooms < 0:
            raise ValueError(f'{self}: weights must be finite, max_paid_zooms 0 or more.')
        for name in ('call_cost', 'crop_token_cost', 'overlong', 'overlong_limit'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} is {getattr(self, name)}, expected 0 or more.')
        if not 0 <= self.overlong_buffer <= self.overlong_limit:
            raise ValueError(
                f'overlong_buffer is {self.overlong_buffer}, expected 0 to overlong_limit, {self.overlong_limit}.'
            )
        for path in self.extra:
            load_reward(path)

    def warm_start(self) -> RewardSettings:
        """The same settings with only format and tool_count, no gate and no cost: the stage that teaches the policy to call the tool at all."""
        only = {'accuracy': 0.0, 'tool_iou': 0.0, 'constant': 1.0, 'gate': 0.0, 'extra': ()}
        free = {'call_cost': 0.0, 'crop_token_cost': 0.0, 'overlong_limit': 0, 'overlong_buffer': 0}
        return dataclasses.replace(self, **only, **free)


@dataclass(frozen=True)
class Reward:
    """The reward of one episode."""

    total: float  # R, what the advantage is computed from
    # accuracy, format, tool_count, tool_iou: before weights, reported even where they weigh nothing; tool: R_tool; where they are asked for cost
    # and overlong; and those of settings.extra.
    parts: Mapping[str, float]
    judged: bool = True  # False: no verdict on the answer was reached, so that nothing can be learnt from the total


def reward(episode: Episode, question: Question, accuracy: float, settings: RewardSettings) -> Reward:
    """Eq. 2 for one finished episode. `accuracy` is its answer's grade in [0, 1]."""
    boxes = succeeded_boxes(episode)
    count = float(min(len(boxes), settings.max_paid_zooms))
    overlap = matched_iou(boxes, np.asarray(question.regions, np.float64).reshape(-1, 4))
    well_formed = float(is_well_formed(episode.turns, settings.think))
    gate = settings.constant + settings.gate * (accuracy > settings.gate_threshold)
    tool = gate * (settings.tool_count * count + settings.tool_iou * overlap)
    total = settings.accuracy * accuracy + settings.format * well_formed + tool
    parts = {'accuracy': accuracy, 'format': well_formed, 'tool_count': count, 'tool_iou': overlap, 'tool': tool}
    if settings.call_cost or settings.crop_token_cost:
        parts['cost'] = settings.call_cost * len(episode.zooms) + settings.crop_token_cost * crop_tokens(episode)
        total -= parts['cost']
    if settings.overlong_limit:
        chosen = int(episode.loss_mask.sum())
        parts['overlong'] = overlong_penalty(chosen, settings.overlong_limit, settings.overlong_buffer)
        total += settings.overlong * parts['overlong']
    for path in settings.extra:
        added = load_reward(path)(episode, question)
        if known := sorted(added.keys() & parts.keys()):
            raise ValueError(
                f'The reward {path} gives the parts {known}, which there are already: name them otherwise.'
            )
        parts |= added
        total += sum(added.values())
    return Reward(float(total), {name: float(value) for name, value in parts.items()})


def load_reward(path: str) -> Callable[[Episode, Question], Mapping[str, float]]:
    """The function of a path 'module:function'; ValueError where there is none."""
    module, _, name = path.partition(':')
    return load_plugin(module, name, Callable, "A reward's module")


def crop_tokens(episode: Episode) -> int:
    """Image tokens of the crops that an episode was shown."""
    return sum(zoom.tokens for zoom in episode.zooms)


def overlong_penalty(chosen: int, limit: int, buffer: int) -> float:
    """DAPO's soft punishment of length (arXiv 2503.14476, Eq. 13): 0 up to limit - buffer tokens, then straight down to -1 at the limit."""
    if chosen > limit:
        return -1.0
    return min(0.0, (limit - buffer - chosen) / max(buffer, 1))


# ---------------------------------------------------------------- boxes


def succeeded_boxes(episode: Episode) -> Float[np.ndarray, 'n 4']:
    """Boxes of the zooms that succeeded, in the order of their calls; original page pixels."""
    boxes = [zoom.box for zoom in episode.zooms if zoom.succeeded]
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def matched_iou(boxes: Float[np.ndarray, 'n 4'], regions: Float[np.ndarray, 'm 4']) -> float:
    """Summed IoU of the best one-to-one matching (Hungarian method), over max(n, m); 0 where either is empty."""
    if not len(boxes) or not len(regions):
        return 0.0
    overlaps = iou(boxes, regions)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return float(overlaps[rows, columns].sum() / max(len(boxes), len(regions)))


def zoom_ious(episode: Episode, question: Question) -> list[float]:
    """Of each successful zoom, in order, the IoU with the region that it overlaps most; what zoom/iou_first and zoom/iou_second average."""
    boxes, regions = succeeded_boxes(episode), np.asarray(question.regions, np.float64).reshape(-1, 4)
    if not len(boxes) or not len(regions):
        return [0.0] * len(boxes)
    return [float(best) for best in iou(boxes, regions).max(axis=1)]


# ---------------------------------------------------------------- format


def is_well_formed(turns: Sequence[Turn], think: Literal['optional', 'required'] = 'optional') -> bool:
    """Whether every turn keeps to the form that the prompt asks for.

    1. The tags think, tool_call and answer are opened and closed in turn, never nested, in every turn.
    2. A turn has at most one <think>...</think>, and begins with it; with think='required' every turn has it.
    3. Every turn but the last ends with its only <tool_call>...</tool_call>, JSON that names the tool and four numbers, and has no answer.
    4. The last turn ends with its only <answer>...</answer>, not empty, and has no call.

    Free text is allowed between the thought and the call or the answer. Whether a box lies on the page is no matter of form.
    """
    if not turns:
        return False
    *calls, last = turns
    return all(_ends_with(turn, 'tool_call', think) for turn in calls) and _ends_with(last, 'answer', think)


def _ends_with(turn: Turn, closing: Literal['tool_call', 'answer'], think: Literal['optional', 'required']) -> bool:
    """Whether a turn is an optional thought, free text, and then exactly one `closing` element with a usable body."""
    text, thought, act = turn.text.strip(), ['<think>', '</think>'], [f'<{closing}>', f'</{closing}>']
    tags = _TAG.findall(text)
    if tags not in ([thought + act] if think == 'required' else [act, thought + act]):
        return False
    if (tags[0] == '<think>' and not text.startswith('<think>')) or not text.endswith(act[1]):
        return False
    return bool(turn.answer) if closing == 'answer' else turn.call is not None and turn.call.status == 'ok'
