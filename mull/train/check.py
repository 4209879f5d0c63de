"""What a recipe is refused for before any work is done: by itself, and for what is not here, its
models and problems in every split that a stage asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from mull import weights
from mull.errors import RecipeError, TaskError, WeightsError
from mull.tasks.task import Split, Task
from mull.text import Tokenizer
from mull.train.bill import Budget
from mull.train.lora import meant
from mull.train.models import refuse_teacher
from mull.train.problems import Tasks
from mull.train.recipe import OWN, Recipe, spec_of
from mull.train.recipe_parts import Lora, ModelSpec
from mull.train.recipe_stages import Distill, Evaluate, LearnStage, Reject, Rl, StageBase
from mull.train.sizes import fresh_config
from mull.train.stages.evaluate import evaluated


def check(recipe: Recipe) -> None:
    """Refuses what could never work anywhere. Raises RecipeError."""
    for where, spec in _specs(recipe):
        if spec.base is None:
            _check_sizes(where, spec, recipe.tokenizer.vocabulary)
    for stage in recipe.stages:
        if stage.budget is not None:
            Budget.parse(stage.budget).check(recipe.machine)
        _check_lengths(recipe, stage)
    if recipe.budget is not None:
        Budget.parse(recipe.budget).check(recipe.machine)


def check_here(recipe: Recipe, tasks: Tasks) -> None:
    """Refuses what a stage would come to a stop at here: RecipeError, TaskError, WeightsError."""
    names = {OWN, *(stage.name for stage in recipe.stages)}
    for where, spec in _specs(recipe):
        if spec.base is not None:
            _check_base(where, spec.base, spec.lora)
    for stage in recipe.stages:
        if isinstance(stage, Distill) and stage.teacher not in names:
            _check_teacher(stage)
        if isinstance(stage, Distill) and stage.form == "on_policy":
            _check_vocabulary(recipe, stage)
        if isinstance(stage, LearnStage) and stage.learns == "mtp":
            _check_mtp(stage, spec_of(recipe, stage.name))
        for task, split in _asked(stage):
            _check_problems(stage, tasks.parts(task), split)


def _specs(recipe: Recipe) -> Iterator[tuple[str, ModelSpec]]:
    """All models that the recipe describes, and where it does."""
    yield "model", recipe.model
    for stage in recipe.stages:
        if isinstance(stage, Distill) and stage.student is not None:
            yield f"stages.{stage.name}.student", stage.student


def answering(recipe: Recipe, stage: StageBase) -> list[str]:
    """The models that answer in a stage: stages, the recipe's own, or a teacher from elsewhere."""
    if isinstance(stage, Evaluate):
        return evaluated(recipe, stage)
    if isinstance(stage, Distill) and stage.form == "sft":
        return [stage.teacher]
    return [stage.name] if isinstance(stage, Distill | Reject | Rl) else []


def _asked(stage: StageBase) -> Iterator[tuple[str, Split]]:
    """The tasks whose problems a stage takes, and the splits it takes them from."""
    if isinstance(stage, Evaluate):
        yield from ((task, "test") for task in stage.tasks)
    elif task := getattr(stage, "task", None):
        yield task, "train"
    for source in getattr(stage, "data", ()):
        if source.task is not None:
            yield source.task, "train"
            if isinstance(stage, LearnStage) and stage.validate_every:
                yield source.task, "validation"


def _check_lengths(recipe: Recipe, stage: StageBase) -> None:
    """A fresh model's context is the recipe's own: what cannot fit is known now."""
    spec = spec_of(recipe, stage.name)
    if isinstance(stage, LearnStage) and spec.base is None and stage.max_length > spec.context:
        raise RecipeError(
            f"stage {stage.name}: max_length is {stage.max_length}, but the model's context is "
            f"{spec.context}; lower it, or raise {_whose(recipe, spec)}.context"
        )
    sampling = getattr(stage, "sampling", None)
    names = {OWN, *(each.name for each in recipe.stages)}
    for spec in (spec_of(recipe, name) for name in answering(recipe, stage) if name in names):
        if sampling is not None and spec.base is None and sampling.max_tokens >= spec.context:
            raise RecipeError(
                f"stage {stage.name}: sampling.max_tokens is {sampling.max_tokens}, but question "
                f"and answer share the model's context of {spec.context}; lower it, or raise "
                f"{_whose(recipe, spec)}.context"
            )


def _check_sizes(where: str, spec: ModelSpec, vocabulary: int) -> None:
    try:
        fresh_config(spec, vocabulary, bos=0, eos=1)
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from None


def _check_base(where: str, base: str, lora: Lora | None) -> None:
    files = weights.resolve(base)
    if lora is None:
        return
    model = weights.empty_model(weights.load_config(files), mtp=weights.holds_mtp(files))
    try:
        meant(model, lora)
    except RecipeError as error:
        raise RecipeError(f"{where}.{error}") from None


def _whose(recipe: Recipe, spec: ModelSpec) -> str:
    return "model" if spec is recipe.model else "student"


def _check_problems(stage: StageBase, parts: Sequence[Task], split: Split) -> None:
    for part in parts:
        try:
            found = next(part.problems(split, 0), None)
        except TaskError as error:
            raise TaskError(f"stage {stage.name}: {error}") from error
        if found is None:
            raise TaskError(f"stage {stage.name}: {part.name} has no problems of the {split} split")


def _check_teacher(stage: Distill) -> None:
    where = f"stage {stage.name}: teacher {stage.teacher!r}"
    if not stage.has_remote_teacher:
        try:
            weights.resolve(stage.teacher)
        except WeightsError as error:
            raise RecipeError(f"{where} is no stage, and no model here: {error}") from None
        return
    try:
        url = urlsplit(stage.teacher)
        is_address = bool(url.hostname) and url.port != 0 and not set(stage.teacher) & set(" \t")
    except ValueError:
        is_address = False
    if not is_address:
        raise RecipeError(f"{where} is no address; write it as https://host/v1#model")


def _check_vocabulary(recipe: Recipe, stage: Distill) -> None:
    """Where both are known by now: a tokenizer that is yet to be made is looked at then."""
    names = {OWN, *(each.name for each in recipe.stages)}
    own = recipe.model.base or recipe.tokenizer.like
    teacher, student = (
        (spec_of(recipe, name).base or own) if name in names else name
        for name in (stage.teacher, stage.name)
    )
    if teacher is not None and student is not None and teacher != student:
        refuse_teacher(stage, _tokenizer_of(teacher), _tokenizer_of(student))


def _tokenizer_of(model: str) -> Tokenizer:
    return Tokenizer.from_source(weights.tokenizer_source(weights.resolve(model)))


def _check_mtp(stage: LearnStage, spec: ModelSpec) -> None:
    if spec.base is not None:
        has_mtp = weights.holds_mtp(weights.resolve(spec.base))
    else:
        has_mtp = spec.architecture == "deepseek" and spec.mtp
    if not has_mtp:
        raise RecipeError(
            f'stage {stage.name}: learns is "mtp", but its model has no multi-token prediction; '
            "leave the stage out, or take a model with such a module"
        )
