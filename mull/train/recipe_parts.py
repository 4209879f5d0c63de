"""What a recipe is made of beside its stages: model, tokenizer, tasks, data, optimiser, machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Momentum = Annotated[float, Field(ge=0.0, lt=1.0)]  # at 1 nothing new ever counts
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$")]
Budget = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(s|m|h)|\$\d+(\.\d+)?)$")]

# How a task's problem becomes text to learn from (see train/data/traces.py).
Form = Literal["chat", "worked", "guess", "skipped", "slips", "recheck", "malformed", "direct"]


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Lora(Table):
    """Low-rank adapters (arXiv 2106.09685) on the linear layers of those names; none named: on
    every projection of attention and MLP."""

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
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
        if not any(self.forms.values()):
            raise ValueError("every share of forms is 0; give at least one form a share")
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
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    momentum: Momentum = 0.95
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

    correct: Annotated[float, Field(gt=0)] = 1.0
    format: Annotated[float, Field(ge=0)] = 0.1
    language: Annotated[float, Field(ge=0)] = 0.0
    overlong: Annotated[float, Field(ge=0)] = 0.0
    overlong_tokens: Positive = 32


class Sampling(Table):
    """think_budget: after so many tokens of thinking the engine closes it, so that an answer comes;
    tokens that it writes are not learnt from."""

    temperature: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Positive = 256
    think_budget: Positive | None = None


class Machine(Table):
    """For the bill: what the machine draws, and what an hour of it and a kWh cost.

    tflop_per_s: its matrix products at best, for the plan of a run elsewhere; None: this machine,
    measured."""

    watts: Annotated[float, Field(ge=0)] = 30.0
    dollars_per_hour: Annotated[float, Field(ge=0)] = 0.0
    dollars_per_kwh: Annotated[float, Field(ge=0)] = 0.30
    tflop_per_s: Annotated[float, Field(gt=0)] | None = None
