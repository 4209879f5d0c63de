"""`mull show`: everything known of a model before it is loaded, pulled or not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mull.cli.options import JsonOption, ModelArgument
from mull.cli.progress import progress_bar
from mull.cli.terminal import in_gb, note, print_json, print_table
from mull.errors import WeightsError


def show(
    model: ModelArgument,
    as_json: JsonOption = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every file and compare with the manifest.")
    ] = False,
) -> None:
    """Describe a model and say what fits.

    Size, parameters, architecture, context, cache bytes per token, licence, template, hashes; also
    for a name of the catalogue that is not pulled yet.
    """
    from mull import weights

    if verify:
        with progress_bar(f"Hashing {model}", in_bytes=True) as progress:
            damaged = weights.verify(model, progress)
        if damaged:
            raise WeightsError(
                f"{model}: {damaged[0]} is not what was pulled ({len(damaged)} such files): "
                f"mull pull {model} fetches it again"
            )
        note(f"{model}: every file is what the manifest says")
    facts = weights.describe(model)
    if as_json:
        print_json(facts)
    else:
        print_table(("", ""), _lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if name == "fits":
            for fit in value:
                yield f"at {fit['precision']}", _fit_in_words(fit)
        elif name == "auto":
            yield "precision auto", f"{value['precision']}: {value['why']}"
        elif name == "files":
            for file in value:
                yield "file", f"{file['path']}, {in_gb(file['bytes'])}, SHA-256 {file['sha256']}"
        elif value or name != "sampling":
            yield name.replace("_", " "), _in_words(name, value)


def _fit_in_words(fit: dict[str, Any]) -> str:
    verdict = (
        f"fits, with a context of up to {fit['largest_context']:,} tokens"
        if fit["fits"]
        else "does not fit"
    )
    return (
        f"weights {in_gb(fit['weight_bytes'])}, in all {in_gb(fit['needed_bytes'])} "
        f"of {in_gb(fit['available_bytes'])}: {verdict}"
    )


def _in_words(name: str, value: Any) -> str:
    if value is None:
        return "not stated"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("bytes", "download_bytes", "packed_bytes") and isinstance(value, int):
        return in_gb(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_in_words(key, item)}" for key, item in value.items())
    return str(value)
