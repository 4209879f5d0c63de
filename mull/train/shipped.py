"""Recipes by name: those that come with mull, or a file."""

from __future__ import annotations

import difflib
from pathlib import Path

import mull
from mull.errors import RecipeError


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises RecipeError."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped_recipes()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, 1)
    mend = f"did you mean {close[0]!r}?" if close else f"mull comes with {', '.join(known)}"
    raise RecipeError(f"{name}: no such file, and no recipe of that name; {mend}")


def shipped_recipes() -> dict[str, Path]:
    """By name: in the installed package, or beside it in a clone."""
    room = Path(mull.__file__).parent
    for folder in (room / "recipes", room.parent / "recipes"):
        if found := {file.stem: file for file in sorted(folder.glob("*.toml"))}:
            return found
    return {}
