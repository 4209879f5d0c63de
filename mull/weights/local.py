"""Pull from a path: take a folder or a .gguf file of this machine into the store.

Files are hard-linked where the disk allows (no space, no time; a later change of the original is
noticed by size, time and hash), and copied elsewhere.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mull.errors import WeightsError
from mull.weights.catalog import PathSource
from mull.weights.manifest import record_file
from mull.weights.order import Fetched, Order, Repair, gguf_model, is_folder_file, require_space


def fetch_from_path(order: Order, partial: Path, repair: Repair | None) -> Fetched:
    """Link or copy the model's files into `partial`, hashing each."""
    source = order.source
    assert isinstance(source, PathSource)
    folder = source.path if source.path.is_dir() else source.path.parent
    names = list(repair.paths) if repair is not None else _names(source.path)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise WeightsError(f"{folder / missing[0]} is no longer there: give the path again")
    originals = [(folder / name).resolve() for name in names]
    apart = [file for file in originals if file.stat().st_dev != partial.stat().st_dev]
    require_space(partial, sum(file.stat().st_size for file in apart), order.name)
    total, done, records = sum(file.stat().st_size for file in originals), 0, []
    for name, original in zip(names, originals, strict=True):
        _link_or_copy(original, partial / name)
        records.append(record_file(partial, name))
        done += original.stat().st_size
        if order.progress is not None:
            order.progress(done, total)
    return Fetched(tuple(records), None)


def _names(path: Path) -> list[str]:
    if path.is_file():
        model = gguf_model(path.name)
        parts = sorted(file.name for file in path.parent.glob("*.gguf"))
        return [name for name in parts if gguf_model(name) == model]
    names = sorted(file.name for file in path.iterdir() if is_folder_file(file.name))
    if not any(name.endswith(".safetensors") for name in names):
        raise WeightsError(f"{path} holds no .safetensors file; mull reads no other weights there")
    return names


def _link_or_copy(original: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(original, target)
    except OSError:  # another disk, or a file system or owner that allows no links
        shutil.copyfile(original, target)
