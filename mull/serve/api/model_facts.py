"""What is known of a model without loading it, read once for as long as its files stay."""

from __future__ import annotations

import functools
from typing import Any

from mull import weights
from mull.errors import MullError
from mull.text import ChatTemplate, Tokenizer
from mull.weights import catalog

_MOST_REMEMBERED = 200
_NOTHING: dict[str, Any] = {
    "thinks": None,
    "size_bytes": None,
    "parameters": None,
    "active_parameters": None,
    "licence": None,
    "context": None,
    "precision": None,
    "fits": None,
    "about": None,
}


class ModelFacts:
    """Facts in the page's form; to be used in threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], dict[str, Any]] = {}

    def of(self, source: str) -> dict[str, Any]:
        """source: a name of the store or the catalogue, or a path. A damaged model has an `about`
        that says so."""
        key = (source, _changed(source))
        if key not in self._known:
            if len(self._known) > _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = _read(source)
        known = self._known[key]
        if known["fits"] is None:
            return dict(known)
        return {**known, "fits": _fit(known["fits"], known["precision"])}


def _read(source: str) -> dict[str, Any]:
    try:
        described = weights.describe(source)
    except MullError as error:
        return {**_NOTHING, "about": str(error)}
    precision = described["auto"]["precision"]
    fits = next(row for row in described["fits"] if row["precision"] == precision)
    return {
        "thinks": _thinks(source, described),
        "size_bytes": described.get("bytes") or described.get("download_bytes"),
        "parameters": described["parameters"],
        "active_parameters": described["active_parameters"],
        "licence": described["licence"],
        "context": described["context"],
        "precision": precision,
        "fits": {"needs_bytes": fits["needed_bytes"]},
        "about": f"{described['architecture']}, {described['auto'].get('why') or precision}",
    }


def _fit(known: dict[str, Any], precision: str) -> dict[str, Any]:
    """Against the memory that is free now."""
    needs, available = known["needs_bytes"], weights.available_memory()
    why = None
    if needs > available:
        why = f"needs {needs / 1e9:.1f} GB in {precision}, {available / 1e9:.1f} GB are free"
    return {"ok": why is None, "needs_bytes": needs, "available_bytes": available, "why": why}


def _thinks(source: str, described: dict[str, Any]) -> bool | None:
    if not described.get("path"):
        template = described.get("template")
        return None if template is None else _template_thinks(template)
    try:
        opened = weights.OpenedModel(weights.resolve(source))
        tokenizer = Tokenizer.from_source(opened.tokenizer_source)
        return ChatTemplate.for_tokenizer(tokenizer, tokenizer.chat_template).thinks
    except MullError:
        return None


@functools.cache
def _template_thinks(name: str) -> bool | None:
    """Of a catalogue entry, which names its template."""
    kinds = [ChatTemplate]
    for kind in kinds:
        if kind.__dict__.get("name") == name:
            return kind.thinks
        kinds += kind.__subclasses__()
    return None


def _changed(source: str) -> int:
    try:
        return weights.resolve(source).path.stat().st_mtime_ns
    except (MullError, OSError):
        return 0 if catalog.find(source) else -1
