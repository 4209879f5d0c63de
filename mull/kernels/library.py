"""Finds and loads the native library and says which instruction set is in use, or why none is."""

from __future__ import annotations

from typing import Any


def native_available() -> bool:
    return False


def describe() -> dict[str, Any]:
    return {"isa": "torch", "threads": 1, "reason": "not built"}
