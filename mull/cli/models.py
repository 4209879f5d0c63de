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
                "pulled" if row["is_pulled"] else "not pulled",
                in_gb(row["bytes"]),
                row["format"],
                row["licence"] or "not stated",
            )
            for row in rows
        ],
    )


def _pulled_row(files: ModelFiles) -> dict[str, Any]:
    from mull.weights import packed_bytes

    manifest = files.manifest or {}
    return {
        "name": files.name,
        "is_pulled": True,
        "bytes": _bytes_of(files.path) + (packed_bytes(files) if files.kind == "gguf" else 0),
        "format": files.kind,
        "licence": manifest.get("licence"),
        "path": str(files.path),
    }


def _catalogue_row(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "is_pulled": False,
        "bytes": entry.download_bytes,
        "format": "gguf" if hasattr(entry.source, "package") else "hf",
        "licence": entry.licence,
        "path": None,
    }


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
