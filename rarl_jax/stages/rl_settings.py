"""What a stage of GRPO can be told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from input_pipeline.schema import Task
from rarl_jax.conversation.dialogue import Budget, FinishReason
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.advantages import Estimator
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.stages.ends import AdaptiveEnd, Collapse
from rarl_jax.stages.registry import TrainingSettings


@dataclass(frozen=True)
class StageBudget:
    """What a stage bounds otherwise than the run does."""

    max_turns: int = 0  # turns of the policy; 0 = as config.conversation.budget has it, as below
    turn_tokens: int = 0  # tokens that the policy may choose in a turn
    total_tokens: int = 0  # tokens of the whole conversation, prompt and images included

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 0:
                raise ValueError(f'budget.{name} is {value}, expected 0 or more.')

    def over(self, budget: Budget) -> Budget:
        """The run's budget with what the stage bounds."""
        return dataclasses.replace(budget, **{name: n for name, n in dataclasses.asdict(self).items() if n})


@dataclass(frozen=True)
class JudgeSettings:
    """Who grades open answers of JUDGED tasks while the policy learns."""

    # metric: as the task's own metric has it; endpoint: a model that the environment names, as in an evaluation.
    kind: Literal['metric', 'endpoint'] = 'metric'
    timeout: float = 60.0  # seconds for a reply
    attempts: int = 3  # tries of a question before its episode is left out
    concurrency: int = 32  # questions under way at once
    # Share of a step's asked answers that may lack a verdict; beyond it the run stops.
    most_missing: float = 0.5

    def __post_init__(self):
        if not 0 <= self.most_missing < 1:
            raise ValueError(f'judge.most_missing is {self.most_missing}, expected a share below 1.')
        for name in ('timeout', 'attempts', 'concurrency'):
            if not 0 < getattr(self, name) < float('inf'):
                raise ValueError(f'judge.{name} is {getattr(self, name)}, expected a number above 0.')


@dataclass(frozen=True)
class HeldOutSettings:
    """Greedy answers to questions about the training pages that config.data.held_out keeps from all stages."""

    every: int = 0  # steps; 0 = never
    questions: int = 32  # of each of the stage's tasks; 0 = all
    mode: Literal['zoom', 'direct'] = 'zoom'
    take_best: bool = False  # the stage hands on the policy with the best score, not its last; both stay on disk anyway

    def __post_init__(self):
        for name in ('every', 'questions'):
            if getattr(self, name) < 0:
                raise ValueError(f'held_out.{name} is {getattr(self, name)}, expected 0 or more.')


@dataclass(frozen=True, kw_only=True)
class RlSettings(TrainingSettings):
    """A stage of GRPO."""

    kind: str = 'rl'
    questions: int  # questions a step
    group_size: int  # episodes a question
    tasks: tuple[Task, ...]
    task_weights: tuple[
        float, ...
    ] = ()  # of the tasks, in their order: their shares of the questions; () = every question alike
    replay: float = 0.0  # share of the questions that are of the tasks of earlier stages
    reward: RewardSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    buckets: Buckets = field(default_factory=Buckets)  # sizes that batches are padded to
    offer_tool: bool = True  # False = plain RL: the policy answers from the page alone
    temperature: float = 1.0
    advantage: Estimator = 'grpo'
    # Episodes that ended so are left out of the loss, such as 'turn_limit'.
    masked_endings: tuple[FinishReason, ...] = ()
    # DAPO's dynamic sampling: batches of further questions, at most, that a step answers to replace groups without variance; 0 = these stay.
    refills: int = 0
    adaptive_end: AdaptiveEnd = field(default_factory=AdaptiveEnd)  # ends it early when what it teaches has come
    collapse: Collapse = field(default_factory=Collapse)  # ends it early when the policy collapses
    held_out: HeldOutSettings = field(default_factory=HeldOutSettings)
    budget: StageBudget = field(default_factory=StageBudget)
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    # Updates of a step: its groups are cut into so many mini-batches, so many times. One of each is strictly on-policy: the ratio of the policy that
    # learns to the one that sampled is 1, and the loss's clips have nothing to cut.
    mini_batches: int = 1
    epochs: int = 1
    # Mean |p(trainer) / p(sampler) - 1| of the chosen tokens before an update; a wider gap ends the run.
    most_gap: float = 0.5
    micro_batch: int = 0  # episodes in a pass of each device of data x fsdp; 0 = the whole mini-batch in one
    # Episodes of a group that share a row, and their prompt, in an update: pays where prompts are longer than answers.
    pack: int = 1
    save_every: int = 20  # steps
    show_every: int = 10  # steps between the episodes that are kept for the report

    def __post_init__(self):
        super().__post_init__()
        self.check_least(questions=1, group_size=1, pack=1, mini_batches=1, epochs=1, show_every=1, refills=0)
        if not self.most_gap > 0:
            raise ValueError(f'most_gap is {self.most_gap}, expected a positive number.')
        if self.micro_batch < 0 or not 0 < self.temperature < float('inf'):
            raise ValueError(
                f'micro_batch is {self.micro_batch} and temperature {self.temperature}, expected 0 or more and a positive number.'
            )
        if self.task_weights and (len(self.task_weights) != len(self.tasks) or min(self.task_weights) <= 0):
            raise ValueError(
                f'task_weights is {self.task_weights}, expected a positive number for each of the {len(self.tasks)} tasks, or ().'
            )
        if not 0 <= self.replay < 1:
            raise ValueError(f'replay is {self.replay}, expected a share below 1.')
        if self.questions % self.mini_batches:
            raise ValueError(
                f'mini_batches is {self.mini_batches}, expected a number that divides questions, {self.questions}.'
            )
        if self.group_size % self.pack:
            raise ValueError(
                f'pack is {self.pack}, expected a number that divides group_size, {self.group_size}: episodes of one group share a row.'
            )
        if self.micro_batch % self.pack:
            raise ValueError(
                f'micro_batch is {self.micro_batch}, expected a multiple of the {self.pack} of a row (pack).'
            )

    @property
    def updates(self) -> int:
        """Updates of the policy in a step."""
        return self.mini_batches * self.epochs
