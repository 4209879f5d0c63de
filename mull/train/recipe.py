"""A recipe: everything about one reproducible run, as pydantic models (read by recipe_file.py)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$")]
Budget = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(s|m|h)|\$\d+(\.\d+)?)$")]

# Of rollouts: the engine takes the likeliest token where it is lower than one in 100,000.
_LEAST_TEMPERATURE = 0.01

# How a task's problem becomes text to learn from (see train/data/traces.py).
Form = Literal["chat", "worked", "guess", "skipped", "slips", "recheck", "malformed", "direct"]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lora(Table):
    """Low-rank adapters (arXiv 2106.09685) on the linear layers of those names; none named: on
    every projection of attention and MLP."""

    rank: Positive = 16
    alpha: float = 32.0
    layers: tuple[str, ...] = ()


class ModelSpec(Table):
    """`base`, any model mull loads, or a fresh one whose sizes follow from `depth`.

    sizes: fields of config.json, for what the dial should not decide.
    """

    base: str | None = None
    depth: Annotated[int, Field(ge=1, le=128)] | None = None
    architecture: Literal["deepseek", "dense"] = "deepseek"
    experts: bool = True
    mtp: bool = True
    context: Positive = 1024
    sizes: dict[str, Any] = {}
    lora: Lora | None = None

    @model_validator(mode="after")
    def _either(self) -> ModelSpec:
        if (self.base is None) == (self.depth is None):
            raise ValueError("give either base (a model to start from) or depth (a fresh one)")
        if self.base is None and self.lora is not None:
            raise ValueError("lora needs a base model: a fresh one is trained whole")
        return self


class TokenizerSpec(Table):
    """Of a fresh model: byte-level BPE trained on the recipe's own data, or another model's.

    digits: every digit is a token of its own, so that arithmetic can be learnt.
    """

    vocabulary: Annotated[int, Field(ge=270, le=262144)] = 512
    digits: bool = True
    like: str | None = None


class FamilySpec(Table):
    """weight: share of problems beside the other families. levels: lowest and highest."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    levels: tuple[int, int] | None = None
    settings: dict[str, Any] = {}


class TaskSpec(Table):
    """A mixture of families (of mull.tasks, `reasoning-gym:NAME`), or a file of your own: Python
    with problems and a verifier, or JSONL with questions and answers."""

    families: dict[str, FamilySpec] = {}
    file: Path | None = None

    @model_validator(mode="after")
    def _either(self) -> TaskSpec:
        if bool(self.families) == (self.file is not None):
            raise ValueError("give either families or a file")
        return self


class DataSpec(Table):
    """One source of text; exactly one of text, chat, parquet, task and stage.

    text: files of plain text. chat: JSONL of {"messages": [...]}. parquet: files, with the column.
    task: traces made from that task's problems, in these forms by share. stage: what a reject
    stage kept. weight: share of tokens beside the other sources.
    """

    text: tuple[Path, ...] = ()
    chat: tuple[Path, ...] = ()
    parquet: tuple[Path, ...] = ()
    column: str = "text"
    task: str | None = None
    forms: dict[Form, Share] = {"chat": 1.0}
    stage: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _one(self) -> DataSpec:
        given = [bool(self.text), bool(self.chat), bool(self.parquet)]
        if sum([*given, self.task is not None, self.stage is not None]) != 1:
            raise ValueError("give exactly one of text, chat, parquet, task and stage")
        return self


class Optimiser(Table):
    """adamw for everything, or muon for matrices with adamw for the rest (embeddings, norms).

    learning_rate is the matrices' (of muon) or everybody's (of adamw); adamw_learning_rate the
    rest's beside muon. Warm-up is linear; `decay` is the part of the steps at the end over which
    the rate falls to `final` of its height, by schedule.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    adamw_learning_rate: Annotated[float, Field(gt=0)] = 4e-3
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0
    warmup: Annotated[int, Field(ge=0)] = 10
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    decay: Share = 0.0
    final: Share = 0.0

    @model_validator(mode="after")
    def _falls(self) -> Optimiser:
        if not self.decay and (self.schedule == "cosine" or self.final):
            raise ValueError(
                "the rate does not fall without decay, the part of the steps over which it does "
                "(1.0: all of them); give it, or leave out schedule and final"
            )
        if self.decay and self.schedule == "constant":
            raise ValueError('decay does nothing beside schedule = "constant": leave out one')
        return self


class Balance(Table):
    """rate: how far a step moves an expert's selection bias (V3 report, section 2.1.2: 0.001, and
    0 at the end of training). sequence_weight: of the complementary loss within each sequence (its
    eq. 17 to 20; the report's is 1e-4)."""

    rate: Annotated[float, Field(ge=0)] = 0.001
    sequence_weight: Annotated[float, Field(ge=0)] = 0.0


class Rewards(Table):
    """correct is earned for a correct answer; format only together with it (an additive reward for
    form alone is gamed). language: times the share of the thinking's words in the question's
    script, of every answer that came to an end. overlong: at most this penalty, growing over the
    last `overlong_tokens` of the room (DAPO eq. 13)."""

    correct: float = 1.0
    format: float = 0.1
    language: float = 0.0
    overlong: float = 0.0
    overlong_tokens: Positive = 32


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
    learns: all, or the MTP module alone, which follows a model that RL has moved. balance: of the
    experts' load; the routers of a model with adapters, or where the MTP module learns alone, stand
    still.
    """

    data: Annotated[tuple[DataSpec, ...], Field(min_length=1)]
    steps: Positive | None = None
    epochs: Positive | None = None
    validate_every: Annotated[int, Field(ge=0)] = 0
    batch_tokens: Positive = 8192
    max_length: Positive = 512
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


class Sampling(Table):
    """think_budget: after so many tokens of thinking the engine closes it, so that an answer comes;
    tokens that it writes are not learnt from."""

    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Positive = 256
    think_budget: Positive | None = None


class Rl(TrainedStage):
    """Reinforcement learning on checkable rewards.

    Every step asks `questions` questions with `group` answers each. staleness: rollouts may be made
    this many steps ahead. minibatches: updates made of one rollout. clip_low, clip_high: None: the
    algorithm's own (train/algorithms). importance_cap: c of the truncated importance weights
    min(pi_train / pi_rollout, c); gap_alarm: mean log-probability gap beyond which the log warns.
    resample: at most this many times as many questions are tried to replace groups that teach
    nothing.
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
    staleness: Annotated[int, Field(ge=0)] = 0
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    gap_alarm: float = 0.1
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


class Machine(Table):
    """For the bill: what the machine draws, and what an hour of it and a kWh cost.

    tflop_per_s: its matrix products at best, for the plan of a run elsewhere; None: this machine,
    measured."""

    watts: Annotated[float, Field(ge=0)] = 30.0
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.0
    dollars_per_kwh: Annotated[float, Field(ge=0)] = 0.30
    tflop_per_s: Annotated[float, Field(gt=0)] | None = None


class Recipe(Table):
    name: Name
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    model: ModelSpec
    tokenizer: TokenizerSpec = TokenizerSpec()
    tasks: dict[str, TaskSpec] = {}
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    machine: Machine = Machine()
    budget: Budget | None = None

    @model_validator(mode="after")
    def _references(self) -> Recipe:
        seen = ["model"]
        keeping: list[str] = []
        for stage in self.stages:
            where = f"stage {stage.name}"
            if stage.name in seen:
                raise ValueError(f"{where}: the name is taken; every stage has one of its own")
            if stage.start is not None:
                _known(stage.start, seen, f"{where}: start")
            tasks = [getattr(stage, "task", None), *getattr(stage, "tasks", ())]
            data = getattr(stage, "data", ())
            for task in [*tasks, *(source.task for source in data)]:
                if task is not None:
                    _known(task, list(self.tasks), f"{where}: task")
            for source in data:
                if source.stage is not None:
                    _known(source.stage, seen[1:], f"{where}: data.stage")
                    if source.stage not in keeping:
                        raise ValueError(
                            f"{where}: data.stage names {source.stage!r}, which keeps no answers; "
                            f"those before it that do: {', '.join(keeping) or '-'}"
                        )
            for name in getattr(stage, "stages", ()):
                _known(name, seen, f"{where}: stages")
            teacher = getattr(stage, "teacher", None)
            if teacher not in seen and teacher in [each.name for each in self.stages]:
                raise ValueError(f"{where}: teacher names {teacher!r}, which is no stage before it")
            if isinstance(stage, Reject) or (isinstance(stage, Distill) and stage.form == "sft"):
                keeping.append(stage.name)
            seen.append(stage.name)
        return self


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        mend = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names) or '-'}"
        raise ValueError(f"{where} names {name!r}, which is not there; {mend}")
