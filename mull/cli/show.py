"""`mull show`: everything known of a model before it is loaded, pulled or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mull.cli.options import JsonOption, ModelArgument
from mull.cli.terminal import in_gb, one_line, print_json, print_table


def show(model: ModelArgument, as_json: JsonOption = False) -> None:
    """Describe a model and say what fits.

    Size, parameters, architecture, context, cache bytes per token, licence, template, hashes; also
    for a name of the catalogue that is not pulled yet.
    """
    from mull import weights

    facts = weights.describe(model)
    if as_json:
        print_json(facts)
    else:
        print_table(("", ""), _lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        label = name.removesuffix("_bytes").replace("_", " ")
        if isinstance(value, dict):
            for inner, shown in value.items():
                yield f"{label} {inner}", _in_words(name, shown)
        elif isinstance(value, list):
            for item in value:
                yield label, _in_words(name, item)
        else:
            yield label, _in_words(name, value)


def _in_words(name: str, value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return in_gb(value) if name.endswith("_bytes") or name == "bytes" else f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(key, item)}" for key, item in value.items())
    return one_line(str(value))
