"""Stage kinds: what `config.stage.NAME.kind` may be.

A kind is a module that ends with `STAGE = StageKind(settings class, function)`. Those of the core have short names; any other, such as the small
world's grounding or one of a user's own, is named by its import path:

    config.stage.eyes.kind = 'rarl_jax.small.grounding'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rarl_jax.runtime.plugins import load_plugin

KINDS = {'sft': 'rarl_jax.stages.sft', 'rl': 'rarl_jax.stages.rl', 'evaluate': 'rarl_jax.stages.evaluate'}


@dataclass(frozen=True)
class StageKind:
    """What a stage's module offers."""

    # A frozen dataclass with the field `kind`; of a stage that trains, a subclass of TrainingSettings.
    settings: type
    run: Callable[
        [Any, str, Any], None
    ]  # (Run, the stage's name, its settings); goes on from wherever the stage stands
    takes_adapter: bool = True  # False: it trains all weights, which a low-rank adapter leaves alone
    # (Run, its settings, Update, step of the run) -> Repeated: an update that was skipped, once more; None = it keeps none.
    repeat: Callable[[Any, Any, Any, int], Any] | None = None

    @property
    def trains(self) -> bool:
        """Whether the stage changes the policy."""
        return issubclass(self.settings, TrainingSettings)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What a run must know of every stage that changes the policy."""

    kind: str
    steps: int  # updates of the policy, each from a batch of its own
    # Begin with the policy that the run began with, not with the last stage's: a baseline beside it.
    from_start: bool = False
    save_every: int = 50  # steps
    # Steps in a row whose update may be skipped because a reward, the loss, the gradient or a weight is not finite; one more ends the run.
    most_skipped: int = 5

    def __post_init__(self):
        if self.steps < 1 or self.save_every < 1:
            raise ValueError(f'steps is {self.steps} and save_every {self.save_every}, expected at least 1 each.')
        self.check_least(most_skipped=0)

    def check_least(self, **bounds: int) -> None:
        """ValueError names the first setting that is below its bound."""
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ValueError(f'{name} is {getattr(self, name)}, expected at least {least}.')


def load_kind(kind: str) -> StageKind:
    """The kind of a name or an import path; ValueError where there is none."""
    return load_plugin(
        KINDS.get(kind, kind), 'STAGE', StageKind, f'The kind of a stage, if none of {", ".join(KINDS)},'
    )
