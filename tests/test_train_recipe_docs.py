"""docs/recipes.md names every key, kind, form and family there is, and every recipe that ships."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from mull.tasks.families import FAMILIES
from mull.train.recipe_file import load_recipe
from mull.train.recipe_parts import Form, Table
from mull.train.recipe_stages import Rl

PAGE = (Path(__file__).parent.parent / "docs/recipes.md").read_text()
NAMED = set(re.findall(r"[\w.-]+", " ".join(re.findall(r"`([^`\n]+)`", PAGE))))


def _tables() -> list[type[Table]]:
    found, waiting = [], [Table]
    while waiting:
        for table in waiting.pop().__subclasses__():
            found.append(table)
            waiting.append(table)
    return found


def test_every_key_is_on_the_page():
    keys = {key for table in _tables() for key in table.model_fields}
    assert sorted(keys - NAMED) == []


def test_every_kind_form_algorithm_and_family_is_on_the_page():
    kinds = {get_args(table.model_fields["kind"].annotation)[0] for table in _kinds()}
    words = kinds | set(get_args(Form)) | set(FAMILIES)
    words |= set(get_args(Rl.model_fields["algorithm"].annotation))
    assert sorted(words - NAMED) == []


def test_every_recipe_that_ships_is_on_the_page():
    shipped = {path.stem for path in (Path(__file__).parent.parent / "recipes").glob("*.toml")}
    assert sorted(shipped - NAMED) == []


def test_the_example_is_a_recipe(tmp_path: Path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(example)
    assert [stage.kind for stage in load_recipe(path).stages] == ["sft", "rl", "eval"]


def _kinds() -> list[type[Table]]:
    return [t for t in _tables() if get_args(getattr(t.model_fields.get("kind"), "annotation", 0))]
