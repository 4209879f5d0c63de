"""`mull train`: run a recipe's stages, or go on with a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mull.cli.terminal import note
from mull.errors import RecipeError

if TYPE_CHECKING:
    from mull.train.recipe import Recipe


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A .toml file, the name of one mull has, or your problems: a .py or .jsonl file.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option("--base", "-m", metavar="MODEL", help="The model to start from."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Default: runs/<name> in MULL_HOME."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="K=V", help="Override a value: stages.rl.steps=5."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="B", help="End cleanly after 20m, 1.5h or $2.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, and do nothing.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume although the recipe has changed.")
    ] = False,
) -> int:
    """Run a recipe's stages: pretraining, cold start, reinforcement, rejection, distillation.

    Ctrl-C stops with the state saved; --resume goes on, to the same result as a run never stopped.
    The folder of the result goes to stdout.
    """
    from mull.train.shipped import read_recipe

    loaded = read_recipe(recipe, changes or (), base)
    folder = _folder(out, loaded)
    if dry_run:
        return _dry_run(loaded)
    from mull.train.run import run_recipe

    ending = run_recipe(loaded, folder, resume=resume, allow_changes=allow_changes, budget=budget)
    again = _again(recipe, base, changes, folder)
    if ending.status == "interrupted":
        note(f"stopped, state saved; go on with: {again}")
        return 130
    if ending.status == "budget":
        note(f"the budget is spent; go on with a larger one: {again} --budget ...")
    print(ending.final or ending.folder)
    return 0


def _again(recipe: str, base: str | None, changes: list[str] | None, folder: Path) -> str:
    """The command that goes on with this run."""
    given = [recipe, *(["--base", base] if base else [])]
    for change in changes or ():
        given += ["--set", change]
    return shlex.join(["mull", "train", *given, "--out", str(folder), "--resume"])


def _folder(out: Path | None, recipe: Recipe) -> Path:
    from mull.weights import models_home

    if out is not None and out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file: give a folder as --out")
    return out or models_home().parent / "runs" / recipe.name


def _dry_run(recipe: Recipe) -> int:
    from mull.train.plan import describe, plan

    print(describe(plan(recipe)))
    return 0
