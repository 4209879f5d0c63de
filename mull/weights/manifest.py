"""The manifest of a pulled model: where it came from and the SHA-256 of every file.

It is written last, so a folder with a manifest is complete. Loading compares sizes and times;
pulling and `weights.verify` compare hashes.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mull.errors import WeightsError

MANIFEST_NAME = "manifest.json"
Progress = Callable[[int, int], None]
_READ_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class FileRecord:
    """One file of a model. `path` is relative, with forward slashes; time in ns since the epoch."""

    path: str
    size: int
    sha256: str
    mtime_ns: int = 0


@dataclass(frozen=True)
class Manifest:
    """What was pulled, from where, when; `revision` is the commit (hub) or version (package)."""

    name: str
    source: dict[str, Any]
    revision: str | None
    licence: str | None
    pulled_at: str
    files: tuple[FileRecord, ...] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"files": [asdict(record) for record in self.files]}

    def by_path(self) -> dict[str, FileRecord]:
        return {record.path: record for record in self.files}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def check_relative(path: str) -> str:
    """Refuse a file name that could leave its folder on any platform; return it unchanged."""
    steps = any(part in ("", ".", "..") for part in path.split("/"))
    # a backslash or colon is an ordinary letter here, but a folder, drive or stream on Windows
    if steps or "\\" in path or ":" in path or not path.isprintable():
        raise WeightsError(f"unsafe file name {path!r}: it would leave the model's folder; refused")
    return path


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    total, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def record_file(folder: Path, path: str, *, sha256: str | None = None) -> FileRecord:
    """The record of a file as it lies on disk; hashes it unless the hash is already known."""
    file = folder / path
    stat = file.stat()
    return FileRecord(path, stat.st_size, sha256 or sha256_of(file), stat.st_mtime_ns)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write atomically: whole on disk or not at all."""
    write_json(folder / MANIFEST_NAME, manifest.to_dict())


def write_json(path: Path, value: Any) -> None:
    scratch = path.with_name(path.name + ".new")
    with scratch.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, None where there is none, WeightsError where it is damaged."""
    path = folder / MANIFEST_NAME
    try:
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("too large")
        return _from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise WeightsError(
            f"manifest {path} is damaged ({error}): remove the folder and pull the model again"
        ) from error


def _from_dict(raw: dict[str, Any]) -> Manifest:
    records = []
    for item in raw["files"]:
        path, size, sha256 = check_relative(item["path"]), item["size"], item["sha256"]
        if not (isinstance(size, int) and isinstance(sha256, str)):
            raise TypeError(f"size and sha256 of {path}")
        records.append(FileRecord(path, size, sha256, int(item.get("mtime_ns", 0))))
    if not isinstance(raw["name"], str) or not isinstance(raw["source"], dict):
        raise TypeError("name and source")
    return Manifest(
        name=raw["name"],
        source=raw["source"],
        revision=raw.get("revision"),
        licence=raw.get("licence"),
        pulled_at=str(raw.get("pulled_at", "")),
        files=tuple(records),
    )


def damaged_files(
    folder: Path, records: Iterable[FileRecord], progress: Progress | None = None
) -> list[str]:
    """Paths that are absent or whose SHA-256 is not the recorded one. Reads every byte."""
    records = list(records)
    total, before, bad = sum(record.size for record in records), 0, []
    for record in records:
        file = folder / record.path
        is_whole = file.is_file() and file.stat().st_size == record.size
        if not is_whole or sha256_of(file, _shifted(progress, before, total)) != record.sha256:
            bad.append(record.path)
        before += record.size
    return bad


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _size: progress(before + done, total)


def check_unchanged(folder: Path, manifest: Manifest) -> None:
    """Cheap check before a load: sizes and times; a file whose time moved is hashed again."""
    moved = []
    for record in manifest.files:
        try:
            stat = (folder / record.path).stat()
        except OSError as error:
            raise _changed(manifest.name, folder / record.path, "is missing") from error
        if stat.st_size != record.size:
            raise _changed(manifest.name, folder / record.path, "has changed its size")
        if stat.st_mtime_ns != record.mtime_ns:
            moved.append(record)
    for record in moved:
        if sha256_of(folder / record.path) != record.sha256:
            raise _changed(manifest.name, folder / record.path, "has a wrong hash")
    if moved:
        with contextlib.suppress(OSError):  # a store on a read-only disk is hashed every time
            write_manifest(folder, with_current_times(folder, manifest))


def with_current_times(folder: Path, manifest: Manifest) -> Manifest:
    records = tuple(
        replace(record, mtime_ns=(folder / record.path).stat().st_mtime_ns)
        for record in manifest.files
    )
    return replace(manifest, files=records)


def _changed(name: str, path: Path, how: str) -> WeightsError:
    return WeightsError(f"{path} {how} since it was pulled: run `mull pull {name}` to mend it")
