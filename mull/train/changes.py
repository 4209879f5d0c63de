"""Which keys differ between two recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of what was changed, added or removed, sorted; stages go by their own names.

    `stages.rl.steps` differs in value; `stages.rl` is in one of them only; `stages` alone means
    another order. Other lists count as one value.
    """
    return sorted(set(_differences(old, new, "")))


def _differences(old: Any, new: Any, where: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            found
            for key in {**old, **new}
            for found in (
                _differences(old[key], new[key], _joined(where, key))
                if key in old and key in new
                else [_joined(where, key)]
            )
        ]
    if (old_named := _by_name(old)) is not None and (new_named := _by_name(new)) is not None:
        found = _differences(old_named, new_named, where)
        common = [name for name in new_named if name in old_named]
        if common != [name for name in old_named if name in new_named]:
            found.append(where)
        return found
    return [] if _text(old) == _text(new) else [where]


def _by_name(value: Any) -> dict[str, Any] | None:
    """A list of tables with names of their own, by name; None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return None
    if not all(isinstance(each, Mapping) and isinstance(each.get("name"), str) for each in value):
        return None
    named = {each["name"]: each for each in value}
    return named if len(named) == len(value) else None


def _joined(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
