"""Typed access to the metadata of one GGUF file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mull.errors import WeightsError


class Metadata:
    """Typed access to `{architecture}.KEY`, so that a wrong type is one readable error."""

    def __init__(self, values: Mapping[str, Any], architecture: str, path: Path) -> None:
        self.values, self.architecture, self.path = values, architecture, path

    def has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.values

    def wrong(self, key: str, wanted: str) -> WeightsError:
        found = repr(self.values.get(f"{self.architecture}.{key}", "absent"))[:60]
        return WeightsError(
            f"{self.path}: metadata {self.architecture}.{key} is {found}, but must be {wanted};"
            " convert the model again"
        )

    def integer(self, key: str, default: int | None = None, *, low: int = 0) -> int:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # written once per layer; mull's models are alike in every layer
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
            raise self.wrong(key, f"one integer from {low}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        if not math.isfinite(value):
            raise self.wrong(key, "finite")
        return shortest(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self.values.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
