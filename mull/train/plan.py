"""What a recipe takes, before any of it is done: sizes, arithmetic, memory, time and money.

Time is FLOPs over this machine's measured peak at the utilisation that a step of such a model
reaches, and sampled tokens over a rate that follows from the same peak: an estimate, to a factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mull import weights
from mull.errors import WeightsError
from mull.model import ModelConfig
from mull.text import Tokenizer
from mull.train.bill import Bill
from mull.train.check import answering, check
from mull.train.figures import count, dollars, duration, energy
from mull.train.flops import step_flops
from mull.train.peak import Peak, settled
from mull.train.recipe import OWN, Recipe, spec_of
from mull.train.recipe_parts import ModelSpec
from mull.train.recipe_stages import (
    Distill,
    Evaluate,
    LearnStage,
    Reject,
    Rl,
    StageBase,
    TrainedStage,
)
from mull.train.sizes import fresh_config
from mull.train.stages.evaluate import evaluated
from mull.train.stages.learn import pass_tokens

# Shares of the peak of matrix products that were measured: the update's, and of decoding many
# answers at once, where a token of a tiny model costs its bookkeeping before all.
_UPDATE_SHARE, _ROLLOUT_SHARE = 0.4, 0.45
_SAMPLED_TOKEN_SECONDS = 25e-6
# Answers are seldom as long as they may be, questions hardly ever.
_MEAN_ANSWER_SHARE, _QUESTION_TOKENS = 0.5, 32
# Numbers a layer keeps for its backward pass, per token and unit of width (measured), and the
# bytes of one: in bfloat16 half of them are narrow.
_KEPT_PER_WIDTH = 34
_KEPT_BYTES = {"fp32": 4, "bf16": 3}
_RUNNING = 512
# Of a layer: four of attention, three of the MLP.
_PROJECTIONS = 7


@dataclass(frozen=True)
class StageCost:
    """tokens: learnt from; sampled: at most half of the room; flops: of learning and sampling."""

    name: str
    kind: str
    tokens: int
    sampled: int
    learn_flops: float
    sample_flops: float
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes at the fullest moment: of updates, or of rollouts beside the model. standing: of what
    is not trained and is there all the time, the reference policy or the teacher."""

    weights: int
    standing: int
    optimiser: int
    activations: int
    cache: int

    @property
    def total(self) -> int:
        held = self.weights + self.standing + self.optimiser
        return held + max(self.activations, self.cache)


@dataclass(frozen=True)
class Plan:
    name: str
    parameters: int
    active: int
    stages: list[StageCost]
    memory: Memory
    available: int
    seconds: float
    joules: float
    dollars: float
    is_here: bool = True


def plan(recipe: Recipe, peak: Peak | None = None) -> Plan:
    """Raises RecipeError for sizes no model can have, WeightsError for a base that is not there."""
    check(recipe)
    stated = recipe.machine.tflop_per_s
    peak = peak or Peak(None if stated is None else stated * 1e3)
    config = model_config(recipe, recipe.model)
    costs = [_cost(recipe, stage, peak) for stage in recipe.stages]
    bill = Bill(recipe.machine)
    for cost in costs:
        bill.add(cost.name, seconds=cost.seconds)
    line = bill.line()
    total, active = config.parameter_count(mtp=True)
    return Plan(
        recipe.name,
        total,
        active,
        costs,
        memory_of(recipe),
        weights.available_memory(),
        line["seconds"],
        line["joules"],
        line["dollars"],
        is_here=stated is None,
    )


def model_config(recipe: Recipe, spec: ModelSpec) -> ModelConfig:
    """Of a base, or of a fresh model with as many tokens as its tokenizer is to have."""
    if spec.base is not None:
        return _base_config(spec.base)
    like = recipe.model.base or recipe.tokenizer.like
    if like is None:
        return fresh_config(spec, recipe.tokenizer.vocabulary, bos=0, eos=1)
    source = weights.tokenizer_source(weights.resolve(like))
    return fresh_config(spec, Tokenizer.from_source(source).vocab_size, bos=0, eos=1)


def _base_config(base: str) -> ModelConfig:
    """Of a model that is here, or whose shape the catalogue knows."""
    try:
        return weights.load_config(weights.resolve(base))
    except WeightsError:
        known = weights.load_catalog().get(base.lower())
        if known is None or not known.config:
            raise
        return ModelConfig.from_dict(known.config)


def memory_of(recipe: Recipe) -> Memory:
    """Of the largest of everything, whichever stage that is in."""
    worked_on = [(stage, _config_of(recipe, stage.name)) for stage in recipe.stages]
    answers = [(stage, config) for stage in recipe.stages for config in _answering(recipe, stage)]
    return Memory(
        weights=max(_whole_bytes(config) for _, config in [*worked_on, *answers]),
        standing=max(_standing_bytes(recipe, stage) for stage in recipe.stages),
        # The gradient, and AdamW's two moments.
        optimiser=max(
            4 * 3 * _trained(spec_of(recipe, stage.name), config) for stage, config in worked_on
        ),
        activations=max(_activation_bytes(stage, config) for stage, config in worked_on),
        cache=max((_rollout_bytes(stage, config) for stage, config in answers), default=0),
    )


def describe(plan: Plan) -> str:
    """For people: what `--dry-run` prints."""
    memory = plan.memory
    machine = "this machine" if plan.is_here else "the machine that the recipe states"
    lines = [
        f"{plan.name}: {count(plan.parameters)} parameters, {count(plan.active)} active per token",
        "",
        f"{'stage':<16}{'kind':<10}{'learnt':>10}{'sampled':>10}{'FLOPs':>10}  time",
        *(
            f"{cost.name:<16}{cost.kind:<10}{count(cost.tokens):>10}{count(cost.sampled):>10}"
            f"{count(cost.learn_flops + cost.sample_flops):>10}  {duration(cost.seconds)}"
            for cost in plan.stages
        ),
        "",
        f"memory: {_gb(memory.total)} at most (weights {_gb(memory.weights)}, reference or "
        f"teacher {_gb(memory.standing)}, optimiser {_gb(memory.optimiser)}, activations "
        f"{_gb(memory.activations)}, rollouts {_gb(memory.cache)}); free here: "
        f"{_gb(plan.available)}",
        f"time: about {duration(plan.seconds)} on {machine}, to a factor of two",
        f"bill: {energy(plan.joules)}, {dollars(plan.dollars)}",
    ]
    return "\n".join(lines)


def _cost(recipe: Recipe, stage: StageBase, peak: Peak) -> StageCost:
    tokens, sampled = _learnt(recipe, stage), _sampled(recipe, stage)
    length = _length(stage)
    learn = _learning_flops(recipe, stage, tokens)
    configs = _answering(recipe, stage)
    if not configs:
        sampled = 0  # none, or elsewhere and on another bill
    sample = sum(_sampling_flops(config, sampled, length) / len(configs) for config in configs)
    seconds = 0.0
    if isinstance(stage, TrainedStage):
        seconds = learn / (peak.gflop_per_s(stage.precision) * 1e9 * _UPDATE_SHARE)
    narrow = getattr(stage, "rollout_precision", "fp32") != "fp32"
    rate = peak.gflop_per_s("bf16" if narrow else "fp32") * 1e9
    seconds += sample / (rate * _ROLLOUT_SHARE)
    if peak.stated is None:
        seconds += sampled * _SAMPLED_TOKEN_SECONDS
    return StageCost(stage.name, stage.kind, tokens, sampled, learn, sample, seconds)


def _config_of(recipe: Recipe, name: str) -> ModelConfig:
    """Of a stage's model, of the recipe's own, or of any that mull loads."""
    if name == OWN or name in (stage.name for stage in recipe.stages):
        return model_config(recipe, spec_of(recipe, name))
    return _base_config(name)


def _answering(recipe: Recipe, stage: StageBase) -> list[ModelConfig]:
    """Of the models that answer here."""
    return [_config_of(recipe, name) for name in answering(recipe, stage) if "://" not in name]


def _learning_flops(recipe: Recipe, stage: StageBase, tokens: int) -> float:
    if not tokens:
        return 0.0
    config, length = _config_of(recipe, stage.name), _length(stage)
    passes = _mtp_passes(stage, config)
    one = step_flops(
        config,
        [length],
        length,
        mtp_targets=length if passes else 0,
        mtp_passes=passes,
        frozen=spec_of(recipe, stage.name).lora is not None,
        only_mtp=isinstance(stage, LearnStage) and stage.learns == "mtp",
    )
    return one * tokens / length


def _mtp_passes(stage: StageBase, config: ModelConfig) -> int:
    """How often a step applies the MTP module, 0 where it does not learn."""
    if not isinstance(stage, LearnStage) or not config.num_nextn_predict_layers:
        return 0
    return stage.mtp_passes if stage.mtp_weight else 0


def _sampling_flops(config: ModelConfig, tokens: int, length: int) -> float:
    """Of so many tokens in sequences of that length: a third of learning everything."""
    return step_flops(config, [length], length) * tokens / length / 3


def _learnt(recipe: Recipe, stage: StageBase) -> int:
    if isinstance(stage, LearnStage):
        if stage.steps is not None:
            return stage.steps * stage.batch_tokens
        return (stage.epochs or 1) * _tokens_of(recipe, stage)
    if isinstance(stage, Rl):
        return stage.steps * stage.questions * stage.group * _episode(stage.sampling.max_tokens)
    return 0


def _tokens_of(recipe: Recipe, stage: LearnStage) -> int:
    """Of one epoch: what a stage before keeps, at most, and four bytes of a file a token."""
    total = 0
    stages = {each.name: each for each in recipe.stages}
    for source in stage.data:
        paths = (*source.text, *source.chat, *source.parquet)
        total += sum(path.stat().st_size for path in paths) // 4
        kept = stages.get(source.stage or "")
        if isinstance(kept, Reject):
            total += kept.questions * kept.keep * _episode(kept.sampling.max_tokens)
    if isinstance(stage, Distill):
        total += stage.questions * stage.samples * _episode(stage.sampling.max_tokens)
    return total


def _sampled(recipe: Recipe, stage: StageBase) -> int:
    if isinstance(stage, Rl):
        return int(stage.steps * stage.questions * stage.group * _answer(stage.sampling.max_tokens))
    if isinstance(stage, Reject):
        return int(stage.questions * stage.samples * _answer(stage.sampling.max_tokens))
    if isinstance(stage, Distill):
        if stage.form == "on_policy":
            return (stage.steps or 0) * stage.batch_tokens
        return int(stage.questions * stage.samples * _answer(stage.sampling.max_tokens))
    if isinstance(stage, Evaluate):
        asked = len(evaluated(recipe, stage)) * len(stage.tasks) * stage.problems
        return int(asked * (stage.k + stage.greedy) * _answer(stage.sampling.max_tokens))
    return 0


def _answer(max_tokens: int) -> int:
    return math.ceil(max_tokens * _MEAN_ANSWER_SHARE)


def _episode(max_tokens: int) -> int:
    return _QUESTION_TOKENS + _answer(max_tokens)


def _length(stage: StageBase) -> int:
    if isinstance(stage, LearnStage):
        return stage.max_length
    sampling = getattr(stage, "sampling", None)
    return _episode(sampling.max_tokens) if sampling is not None else 1


def _standing_bytes(recipe: Recipe, stage: StageBase) -> int:
    """In float32, as everything that is trained: a reference is a copy without MTP."""
    if isinstance(stage, Rl) and stage.kl:
        return 4 * _config_of(recipe, stage.name).parameter_count(mtp=False)[0]
    if isinstance(stage, Distill) and stage.form == "on_policy":
        return _whole_bytes(_config_of(recipe, stage.teacher))
    return 0


def _whole_bytes(config: ModelConfig) -> int:
    return 4 * config.parameter_count(mtp=True)[0]


def _activation_bytes(stage: StageBase, config: ModelConfig) -> int:
    """Kept between forward and backward of the stage's largest pass."""
    if not isinstance(stage, TrainedStage):
        return 0
    layers = config.num_hidden_layers + _mtp_passes(stage, config)
    per_token = layers * _KEPT_PER_WIDTH
    if stage.checkpointing:
        per_token = layers + _KEPT_PER_WIDTH
    width = config.hidden_size * _KEPT_BYTES[settled(stage.precision)]
    return _pass_tokens(stage) * per_token * width


def _pass_tokens(stage: StageBase) -> int:
    if isinstance(stage, Rl):
        answers = math.ceil(stage.questions * stage.group / stage.minibatches)
        return min(stage.batch_tokens, answers * (_QUESTION_TOKENS + stage.sampling.max_tokens))
    if isinstance(stage, LearnStage):
        return pass_tokens(stage.batch_tokens)
    return 0


def _rollout_bytes(stage: StageBase, config: ModelConfig) -> int:
    """The weights as the engine has them, and the keys of all answers at once."""
    sampling = getattr(stage, "sampling", None)
    assert sampling is not None  # the stage asks
    running = stage.questions * stage.group if isinstance(stage, Rl) else _RUNNING
    tokens = min(running, _RUNNING) * (_QUESTION_TOKENS + sampling.max_tokens)
    per_token = config.num_hidden_layers * config.cache_values_per_layer * 4
    return int(tokens * per_token) + _whole_bytes(config)


def _trained(spec: ModelSpec, config: ModelConfig) -> int:
    if spec.lora is None:
        return config.parameter_count(mtp=True)[0]
    width = config.hidden_size
    layers = len(spec.lora.layers) or _PROJECTIONS
    return config.num_hidden_layers * layers * spec.lora.rank * 2 * width * 2


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.1f} MB"
