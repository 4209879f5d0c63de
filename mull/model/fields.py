"""Typed, bounded reading of an untrusted config.json: every refusal is a ModelError of one line.

The bounds are far above any published model; they keep a hostile file from asking for too much.
"""

import math
from collections.abc import Mapping
from typing import Any

from mull.errors import ModelError, shown


class Fields:
    """A JSON object whose missing (or null) entries fall back to a family's defaults."""

    def __init__(
        self, values: Mapping[str, Any], defaults: Mapping[str, object], where: str = "config.json"
    ) -> None:
        self._values = values
        self._defaults = defaults
        self._where = where

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str, default: object = None) -> Any:
        value = self._values.get(name)
        if value is None:
            value = self._defaults.get(name)
        return default if value is None else value

    def written(self, name: str) -> Any:
        """The entry as it stands, a null included; the default only where it was left out."""
        return self._values[name] if name in self._values else self._defaults.get(name)

    def fail(self, name: str, value: object, wanted: str) -> ModelError:
        return ModelError(
            f"{self._where}: {name} is {shown(value)}, but must be {wanted}; correct this field"
        )

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise ModelError(
                f"{self._where}: {name} is missing; add it as an integer from {low} to {high}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            raise ModelError(
                f"{self._where}: {name} is missing; add it as a number from {low:g} to {high:g}"
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or not math.isfinite(value):
            raise self.fail(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, value, "true or false")
        return value

    def choice(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self.fail(name, value, "one of " + ", ".join(known))
        return value
