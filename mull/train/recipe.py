"""A recipe: everything about one reproducible run, as pydantic models (read by recipe_file.py)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from mull.train.recipe_parts import Budget, Machine, ModelSpec, Name, Table, TaskSpec, TokenizerSpec
from mull.train.recipe_stages import Distill, Reject, Stage

OWN = "model"  # the recipe's own model, among the names of stages


class Recipe(Table):
    name: Name
    about: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    model: ModelSpec
    tokenizer: TokenizerSpec = TokenizerSpec()
    tasks: dict[str, TaskSpec] = Field(default_factory=dict)
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    machine: Machine = Machine()
    budget: Budget | None = None

    @model_validator(mode="after")
    def _references(self) -> Recipe:
        seen = [OWN]
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


def start_of(recipe: Recipe, name: str) -> str:
    """The name of what the stage of that name begins with: another stage, or OWN."""
    names = [stage.name for stage in recipe.stages]
    index = names.index(name)
    return recipe.stages[index].start or (names[index - 1] if index else OWN)


def spec_of(recipe: Recipe, name: str) -> ModelSpec:
    """Of the recipe's own model, or of the one that a stage works on: a student's, or of what its
    row of stages began with."""
    if name == OWN:
        return recipe.model
    stage = next(stage for stage in recipe.stages if stage.name == name)
    if isinstance(stage, Distill) and stage.student is not None:
        return stage.student
    return spec_of(recipe, start_of(recipe, name))


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        close = difflib.get_close_matches(name, names, 1)
        mend = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(names) or '-'}"
        raise ValueError(f"{where} names {name!r}, which is not there; {mend}")
