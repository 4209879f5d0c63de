"""Recipes by name: those that come with mull, or a file, or a file of one's own problems."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import mull
from mull.errors import RecipeError, TaskError
from mull.tasks import load_task
from mull.train.recipe import Recipe
from mull.train.recipe_file import load_recipe

_TASK_FILES = (".py", ".jsonl")
# For a task of one's own whose problems come with steps, and for one that has answers only.
_WITH_STEPS, _WITHOUT_STEPS = "own-task", "own-answers"


def read_recipe(name: str, changes: Sequence[str] = (), base: str | None = None) -> Recipe:
    """The recipe of that name or file, or one for the problems in a .py or .jsonl file.

    base: the model to start from, instead of the recipe's own. Raises RecipeError, TaskError.
    """
    overrides = [] if base is None else [f"model.base={json.dumps(base, ensure_ascii=False)}"]
    if not name.endswith(_TASK_FILES):
        return load_recipe(find_recipe(name), [*overrides, *changes])
    task = Path(name).expanduser().resolve()
    recipe = find_recipe(_WITH_STEPS if _has_steps(task) else _WITHOUT_STEPS)
    overrides += [
        f"tasks.own.file={json.dumps(str(task), ensure_ascii=False)}",
        f"name={json.dumps(_run_name(task))}",
    ]
    return load_recipe(recipe, [*overrides, *changes])


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one (`nano`, `recipes/nano.toml`).
    Raises RecipeError."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped_recipes()
    short = name.removeprefix("recipes/").removesuffix(".toml")
    if short in known:
        return known[short]
    close = difflib.get_close_matches(short, known, 1)
    mend = f"did you mean {close[0]!r}?" if close else f"mull comes with {', '.join(known)}"
    raise RecipeError(f"{name}: no such file, and no recipe of that name; {mend}")


def shipped_recipes() -> dict[str, Path]:
    """By name: in the installed package, or beside it in a clone."""
    room = Path(mull.__file__).parent
    for folder in (room / "recipes", room.parent / "recipes"):
        if found := {file.stem: file for file in sorted(folder.glob("*.toml"))}:
            return found
    return {}


def _has_steps(task: Path) -> bool:
    problems = list(islice(load_task(str(task)).problems("train", 0), 1))
    if not problems:
        raise TaskError(f"{task}: there are no problems to train on; add questions and answers")
    return problems[0].steps is not None


def _run_name(task: Path) -> str:
    """The file's name as a recipe may be called."""
    kept = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in task.stem)
    return kept.strip("-")[:64] or _WITH_STEPS
