"""Tasks by name: families, reasoning-gym's datasets, a user's own file, or a mixture of those."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mull.errors import TaskError
from mull.tasks.families import FAMILIES
from mull.tasks.mixture import Mixture
from mull.tasks.task import Task

_GYM = "reasoning-gym:"
_FILES = (".py", ".jsonl")


def load_task(name: str, **settings: Any) -> Task:
    """The task of that name.

    name: a family (`multiplication`; settings `levels` and what its class takes),
    `reasoning-gym:chain_sum` (settings are the dataset's own), a path ending in .py or .jsonl, or
    `mixture` (setting `parts`: tables with `task`, `weight` and that task's settings).
    Raises TaskError on an unknown name or setting, naming the nearest valid one.
    """
    if name == "mixture":
        return _mixture(**settings)
    if name in FAMILIES:
        return build(name, FAMILIES[name], settings)
    if name.startswith(_GYM):
        from mull.tasks.gym import load_gym_task

        return load_gym_task(name.removeprefix(_GYM), settings)
    if name.endswith(_FILES):
        from mull.tasks.own import load_own_task

        return load_own_task(name, settings)
    raise TaskError(
        f"no task named {name!r}{nearest(name, [*FAMILIES, 'mixture'])}; tasks are families "
        f"({', '.join(FAMILIES)}), reasoning-gym:<dataset>, or a .py or .jsonl file"
    )


def build(name: str, make: Callable[..., Task], settings: Mapping[str, Any]) -> Task:
    """make(**settings), unknown settings and wrong types being TaskErrors."""
    known = list(inspect.signature(make).parameters)
    for setting in settings:
        if setting not in known:
            raise TaskError(
                f"task {name}: no setting {setting!r}{nearest(setting, known)}; "
                f"it takes {', '.join(known)}"
            )
    try:
        return make(**settings)
    except (TypeError, ValueError) as error:
        raise TaskError(f"task {name}: {error}") from error


def nearest(word: str, known: Sequence[str]) -> str:
    """`, did you mean 'x'?` or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def _mixture(parts: Sequence[Mapping[str, Any]] = (), **unknown: Any) -> Mixture:
    if unknown:
        raise TaskError(f"task mixture: no setting {next(iter(unknown))!r}; it takes parts")
    loaded = []
    for part in parts:
        settings = dict(part)
        name, weight = settings.pop("task", None), settings.pop("weight", 1.0)
        if not isinstance(name, str) or not isinstance(weight, int | float):
            raise TaskError(
                f"task mixture: a part needs `task` (a name), and weight a number: {part}"
            )
        loaded.append((load_task(name, **settings), float(weight)))
    return Mixture(loaded)
