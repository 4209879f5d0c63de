"""`mull models`: what is in the store, and what can be pulled by a short name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mull.cli.options import JsonOption
from mull.cli.terminal import in_gb, print_json, print_table

if TYPE_CHECKING:
    from mull.weights import CatalogEntry, ModelFiles


def models(as_json: JsonOption = False) -> None:
    """List the models here and those to pull."""
    from mull import weights

    pulled = weights.list_models()
    here = {files.name for files in pulled}
    known = [entry for entry in weights.load_catalog().values() if entry.name not in here]
    rows = [_pulled_row(files) for files in pulled] + [_catalogue_row(entry) for entry in known]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("NAME", "STATE", "SIZE", "FORMAT", "LICENCE"),
        [
            (
                row["name"],
                _state(row),
                _size_in_words(row),
                row["format"],
                row["licence"] or "not stated",
            )
            for row in rows
        ],
    )


def _state(row: dict[str, Any]) -> str:
    if row["is_shipped"]:
        return "comes with mull"
    return "pulled" if row["is_pulled"] else "not pulled"


def _size_in_words(row: dict[str, Any]) -> str:
    packed = f" + {in_gb(row['packed_bytes'])} packed" if row["packed_bytes"] else ""
    return in_gb(row["bytes"]) + packed


def _pulled_row(files: ModelFiles) -> dict[str, Any]:
    from mull.weights import is_shipped, packed_bytes
    from mull.weights.packed_place import packed_folder

    manifest, packed = files.manifest or {}, packed_bytes(files)
    holds_packed = packed_folder(files).is_relative_to(files.path)
    return {
        "name": files.name,
        "is_pulled": True,
        "is_shipped": is_shipped(files),
        "bytes": _bytes_of(files.path) - (packed if holds_packed else 0),
        "packed_bytes": packed,
        "format": files.kind,
        "licence": manifest.get("licence"),
        "path": str(files.path),
    }


def _catalogue_row(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "is_pulled": False,
        "is_shipped": False,
        "bytes": entry.download_bytes,
        "packed_bytes": 0,
        "format": "gguf" if hasattr(entry.source, "package") else "hf",
        "licence": entry.licence,
        "path": None,
    }


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
