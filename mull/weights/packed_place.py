"""Where packed files lie, and what they are made of; needs no torch.

Beside a model of the store (models/NAME/packed/), so that they go with it; for folders and .gguf
files elsewhere in (MULL_HOME)/packed/, a folder for each path.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

from mull.errors import WeightsError
from mull.weights import store
from mull.weights.files import ModelFiles

FOLDER = "packed"
_SOURCE = "source.json"  # in a folder of MULL_HOME/packed: the path it belongs to
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def packed_folder(files: ModelFiles) -> Path:
    """Where the packed files of a model lie or would lie."""
    home = store.models_home()
    if files.path.is_relative_to(home) and files.path != home:
        return home / files.path.relative_to(home).parts[0] / FOLDER
    key = hashlib.sha256(str(files.path.resolve()).encode("utf-8", "surrogateescape"))
    return home.parent / FOLDER / key.hexdigest()[:32]


def packed_bytes(files: ModelFiles) -> int:
    """Bytes its packed files take on disk."""
    folder = packed_folder(files)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def remove_packed(name_or_path: str) -> int:
    """Delete the packed files of a model outside the store; returns the bytes freed, 0 if none."""
    try:
        files = store.resolve(name_or_path)
    except WeightsError:
        return 0
    freed, folder = packed_bytes(files), packed_folder(files)
    if not freed or folder.is_relative_to(store.models_home()):
        return 0
    shutil.rmtree(folder)
    return freed


def source_of(files: ModelFiles) -> list[list[object]]:
    """What the packed numbers come from: names, sizes and times of the files that hold weights.

    Not the manifest's hashes, for the same file may also be named by its path; `resolve` has held
    a pulled model against them by now.
    """
    found: list[list[object]] = []
    for file in _weight_files(files):
        stat = file.stat()
        found.append([file.name, stat.st_size, stat.st_mtime_ns])
    return found


def _weight_files(files: ModelFiles) -> list[Path]:
    path = files.path
    if files.kind == "hf":
        return [path / "config.json", *sorted(path.glob("*.safetensors"))]
    if split := _SPLIT.search(path.name):
        stem = path.name[: split.start()]
        return [each for each in sorted(path.parent.glob("*.gguf")) if each.name.startswith(stem)]
    return [path]


def claim_folder(files: ModelFiles) -> None:
    """Note which path a folder of MULL_HOME/packed belongs to; delete those whose path is gone."""
    mine = packed_folder(files)
    _remove_orphans(mine)
    (mine / _SOURCE).write_text(json.dumps(str(files.path.resolve())), encoding="utf-8")


def _remove_orphans(mine: Path) -> None:
    """Delete what was packed of models outside the store that are there no more."""
    for folder in mine.parent.iterdir():
        try:
            source = Path(json.loads((folder / _SOURCE).read_text(encoding="utf-8")))
            if folder != mine and not source.exists():
                shutil.rmtree(folder)
        except (OSError, ValueError, TypeError):
            continue  # not one of ours, or somebody else is at it
