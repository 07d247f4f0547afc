"""What a stage of GRPO can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from input_pipeline.schema import Task
from rarl_jax.conversation.rewards import RewardSettings
from rarl_jax.learner.advantages import Estimator
from rarl_jax.learner.batches import Buckets
from rarl_jax.learner.losses import LossSettings
from rarl_jax.learner.optim import OptimizerSettings
from rarl_jax.stages.registry import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class RlSettings(TrainingSettings):
    """A stage of GRPO."""

    kind: str = 'rl'
    questions: int  # questions a step
    group_size: int  # episodes a question
    tasks: tuple[Task, ...]
    reward: RewardSettings
    optimizer: OptimizerSettings
    loss: LossSettings
    buckets: Buckets = field(default_factory=Buckets)  # sizes that batches are padded to
    offer_tool: bool = True  # False = plain RL: the policy answers from the page alone
    temperature: float = 1.0
    advantage: Estimator = 'grpo'
    drop_cut_off: bool = False  # leave episodes that a budget ended out of the loss
    # Updates of a step: its groups are cut into so many mini-batches, so many times. One of each is strictly on-policy: the ratio of the policy that
    # learns to the one that sampled is 1, and the loss's clips have nothing to cut.
    mini_batches: int = 1
    epochs: int = 1
    micro_batch: int = 0  # episodes a device pass; 0 = the whole mini-batch
    # Episodes of a group that share a row, and their prompt, in an update: pays where prompts are longer than answers.
    pack: int = 1
    save_every: int = 20  # steps
    show_every: int = 10  # steps between the episodes that are kept for the report

    def __post_init__(self):
        super().__post_init__()
        self.check_least(questions=1, group_size=1, pack=1, mini_batches=1, epochs=1, show_every=1)
        if self.micro_batch < 0 or not 0 < self.temperature < float('inf'):
            raise ValueError(
                f'micro_batch is {self.micro_batch} and temperature {self.temperature}, expected 0 or more and a positive number.'
            )
        if self.questions % self.mini_batches:
            raise ValueError(
                f'mini_batches is {self.mini_batches}, expected a number that divides questions, {self.questions}.'
            )
        if self.group_size % self.pack:
            raise ValueError(
                f'pack is {self.pack}, expected a number that divides group_size, {self.group_size}: episodes of one group share a row.'
            )

    @property
    def updates(self) -> int:
        """Updates of the policy in a step."""
        return self.mini_batches * self.epochs
