"""Reading a recipe from its TOML file, with overrides.

Whatever is unknown, impossible or contradictory is refused before any work, naming the key and the
nearest valid one.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mull.errors import RecipeError
from mull.train.recipe import Recipe
from mull.train.recipe_parts import (
    Balance,
    DataSpec,
    FamilySpec,
    Lora,
    Machine,
    ModelSpec,
    Optimiser,
    Rewards,
    Sampling,
    TaskSpec,
    TokenizerSpec,
)
from mull.train.recipe_stages import Stage


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file, with `a.b=c` overrides (stages by name: `stages.rl.steps=5`).

    Files are meant relative to the recipe. Raises RecipeError, one line.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _override(values, override)
    return parse_recipe(values, where=str(path), folder=path.parent)


def parse_recipe(values: dict[str, Any], *, where: str, folder: Path) -> Recipe:
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first_problem(error, values)}") from None
    return _with_files(recipe, where, folder)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override}: write it as key=value, such as stages.rl.steps=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.split(".")
    place: Any = values
    for part in path:
        if isinstance(place, list):
            place = next((each for each in place if each.get("name") == part), None)
        else:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if place is None:
            raise RecipeError(f"--set {override}: there is no {part!r} in the recipe")
    if not isinstance(place, dict):
        raise RecipeError(f"--set {override}: {path[-1]!r} is not a table")
    place[last] = value


def _first_problem(error: ValidationError, values: dict[str, Any]) -> str:
    problem = error.errors(include_url=False)[0]
    where = _place(problem["loc"], values)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        unknown = str(problem["loc"][-1])
        close = difflib.get_close_matches(unknown, sorted(_all_keys()), 1)
        mend = f"; did you mean {close[0]!r}?" if close else ""
        return f"unknown key {where}{mend}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    given = problem.get("input")
    shown = (
        ""
        if isinstance(given, dict | list | tuple)
        else f" (it is {json.dumps(given, default=str)[:60]})"
    )
    return f"{where}: {message}{shown}" if where else message


def _place(location: Sequence[int | str], values: Any) -> str:
    """`stages.rl.steps` for ("stages", 2, "rl", "steps"): stages by name, without union tags."""
    parts: list[str] = []
    for part in location:
        if isinstance(part, int):
            values = values[part] if isinstance(values, list) and part < len(values) else {}
            name = values.get("name") if isinstance(values, dict) else None
            parts.append(str(name) if name else str(part))
        elif isinstance(values, dict) and values.get("kind") == part:
            continue
        else:
            parts.append(str(part))
            values = values.get(part, {}) if isinstance(values, dict) else {}
    return ".".join(parts)


def _all_keys() -> set[str]:
    tables: list[type[BaseModel]] = [
        Recipe, ModelSpec, Lora, TokenizerSpec, TaskSpec, FamilySpec, DataSpec, Optimiser,
        Balance, Rewards, Sampling, Machine, *get_args(get_args(Stage)[0]),
    ]  # fmt: skip
    return {key for table in tables for key in table.model_fields}


def _with_files(recipe: Recipe, where: str, folder: Path) -> Recipe:
    """Every file named, made absolute; RecipeError for one that is not there."""

    def found(path: Path, key: str) -> Path:
        full = (folder / path).resolve()
        if not full.is_file():
            raise RecipeError(f"{where}: {key} names {path}, but there is no such file")
        return full

    tasks = {
        name: task if task.file is None
        else task.model_copy(update={"file": found(task.file, f"tasks.{name}.file")})
        for name, task in recipe.tasks.items()
    }  # fmt: skip
    stages = []
    for stage in recipe.stages:
        data = tuple(
            source.model_copy(
                update={
                    kind: tuple(found(p, f"stages.{stage.name}.data.{kind}") for p in paths)
                    for kind in ("text", "chat", "parquet")
                    if (paths := getattr(source, kind))
                }
            )
            for source in getattr(stage, "data", ())
        )
        stages.append(stage.model_copy(update={"data": data}) if data else stage)
    return recipe.model_copy(update={"tasks": tasks, "stages": tuple(stages)})
