"""The kinds of stages a recipe may have, each with the keys that do something there."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mull.train.recipe_parts import (
    Balance,
    Budget,
    DataSpec,
    ModelSpec,
    Name,
    Optimiser,
    Positive,
    Rewards,
    Sampling,
    Table,
)

# Of rollouts: the engine takes the likeliest token where it is lower than one in 100,000.
_LEAST_TEMPERATURE = 0.01
# What teaches nothing now may teach something later, and is not given up.
_MOST_FOCUS = 0.95


class StageBase(Table):
    """start: the stage whose result this one begins with; None: the one before; "model": the
    recipe's own model. budget: "20m" or "$2", ends the stage cleanly."""

    kind: str
    name: Name
    start: str | None = None
    budget: Budget | None = None


class TrainedStage(StageBase):
    """A stage that changes its model. precision: of the products; auto: bf16 where this machine
    multiplies bfloat16 itself, else fp32."""

    optimiser: Optimiser = Optimiser()
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    checkpointing: bool = False
    checkpoint_every: Positive = 100


class LearnStage(TrainedStage):
    """Learning from given text: pretrain learns every token, sft only what the assistant says.

    spread: the share of sequences that are read at positions with random gaps, so that more than
    the distances seen so far is met (arXiv 2305.16843). mtp_passes: the MTP module is applied so
    many times, after the first to its own output, as it is in drafting (FastMTP, arXiv 2509.18362).
    validate_every: steps between looks at held-out data; the state that did best there is the
    stage's result. learns: all, or the MTP module alone, which follows a model that RL has moved.
    balance: of the experts' load; the routers of a model with adapters, or where the MTP module
    learns alone, stand still.
    """

    data: Annotated[tuple[DataSpec, ...], Field(min_length=1)]
    steps: Positive | None = None
    epochs: Positive | None = None
    validate_every: Annotated[int, Field(ge=0)] = 0
    batch_tokens: Positive = 8192
    max_length: Annotated[int, Field(ge=2)] = 512
    mtp_weight: Annotated[float, Field(ge=0)] = 0.3
    mtp_passes: Annotated[int, Field(ge=1, le=8)] = 1
    learns: Literal["all", "mtp"] = "all"
    balance: Balance = Balance()
    spread: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _duration(self) -> LearnStage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs")
        if self.learns == "mtp" and not self.mtp_weight:
            raise ValueError('learns = "mtp" with mtp_weight = 0 learns nothing: give it a weight')
        if self.learns == "mtp" and self.validate_every:
            raise ValueError(
                'validate_every looks at the model, which learns = "mtp" leaves as it is: '
                "leave it out"
            )
        return self


class Pretrain(LearnStage):
    kind: Literal["pretrain"]


class Sft(LearnStage):
    kind: Literal["sft"]


class Rl(TrainedStage):
    """Reinforcement learning on checkable rewards.

    Every step asks `questions` questions with `group` answers each. staleness: rollouts may be made
    this many steps ahead. minibatches: updates made of one rollout. clip_low, clip_high: None: the
    algorithm's own (train/algorithms). importance_cap: c of the truncated importance weights
    min(pi_train / pi_rollout, c); gap_alarm: mean log-probability gap beyond which the log warns.
    resample: at most this many times as many questions are tried to replace groups that teach
    nothing. replay_routing: where weights move between a rollout and its updates, these take the
    experts that a pass of the trainer right after the rollout chose, not the engine's own choices.
    focus: how much oftener kinds of questions (a family's level) are asked that still
    teach something (train/focus).
    """

    kind: Literal["rl"]
    task: str
    algorithm: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "grpo"
    steps: Positive
    questions: Positive = 32
    group: Annotated[int, Field(ge=2, le=256)] = 8
    minibatches: Positive = 1
    batch_tokens: Positive = 16384
    sampling: Sampling = Sampling()
    rewards: Rewards = Rewards()
    clip_low: Annotated[float, Field(gt=0)] | None = None
    clip_high: Annotated[float, Field(gt=0)] | None = None
    kl: Annotated[float, Field(ge=0)] = 0.0
    reference_every: Annotated[int, Field(ge=0)] = 0
    truncated: Literal["mask", "penalise"] = "mask"
    resample: Annotated[float, Field(ge=1.0)] = 1.0
    focus: Annotated[float, Field(ge=0, le=_MOST_FOCUS)] = 0.0
    staleness: Annotated[int, Field(ge=0)] = 0
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    gap_alarm: Annotated[float, Field(gt=0)] = 0.1
    replay_routing: bool = True
    rollout_precision: Literal["fp32", "bf16", "q8", "q4"] = "fp32"

    @model_validator(mode="after")
    def _draws(self) -> Rl:
        """The trainer's probabilities must be those that the answers were drawn with."""
        if self.sampling.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"sampling.temperature is {self.sampling.temperature:g}, but rl learns from the "
                f"differences between drawn answers: set it to {_LEAST_TEMPERATURE} or more (1.0 "
                "is usual)"
            )
        if self.sampling.top_p < 1.0:
            raise ValueError(
                f"sampling.top_p is {self.sampling.top_p:g}, but what it cuts off the trainer's "
                "probabilities know nothing of: leave it out"
            )
        return self


class Reject(StageBase):
    """Rejection sampling: of `samples` answers to each question those are kept that are correct,
    readable and not too long; at most `keep` of a question, the shortest ones."""

    kind: Literal["reject"]
    task: str
    questions: Positive
    samples: Positive = 4
    keep: Positive = 1
    sampling: Sampling = Sampling()


class Distill(LearnStage):
    """From a teacher (a stage, a model mull loads, or the URL of an API) to this model.

    sft: learns the teacher's kept answers. on_policy: the student's own answers, reverse KL to the
    teacher at every token; local teachers of the same vocabulary only.
    """

    kind: Literal["distill"]
    data: tuple[DataSpec, ...] = ()
    teacher: str
    form: Literal["sft", "on_policy"] = "sft"
    task: str
    questions: Positive = 1000
    samples: Positive = 1
    sampling: Sampling = Sampling()
    student: ModelSpec | None = None

    @property
    def has_remote_teacher(self) -> bool:
        return self.teacher.startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _forms(self) -> Distill:
        if self.form == "sft":
            return self
        if self.steps is None:
            raise ValueError("on-policy distillation needs steps, not epochs")
        if self.has_remote_teacher:
            raise ValueError(
                "an API does not give the probabilities that on-policy distillation needs; "
                'use form = "sft"'
            )
        if 0 < self.sampling.temperature < _LEAST_TEMPERATURE:
            raise ValueError(
                f"sampling.temperature is {self.sampling.temperature:g}, at which nothing but the "
                f"likeliest token is left to compare: set it to {_LEAST_TEMPERATURE} or more, or "
                "to 0 for the student's likeliest answers"
            )
        for key in ("data", "spread", "validate_every"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} does nothing in on-policy distillation: leave it out")
        return self


class Evaluate(StageBase):
    """pass@1 over k samples of held-out problems, for every stage named (default: all before this
    one); no training. thinking off: the models answer at once, as the form "direct" teaches."""

    kind: Literal["eval"]
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    stages: tuple[str, ...] = ()
    problems: Positive = 1000
    k: Annotated[int, Field(ge=1, le=256)] = 1
    greedy: bool = True
    thinking: Literal["on", "off"] = "on"
    sampling: Sampling = Sampling()


Stage = Annotated[Pretrain | Sft | Rl | Reject | Distill | Evaluate, Field(discriminator="kind")]
