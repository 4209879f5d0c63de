"""Pull from a hub: list once, fix the revision and hashes, then fetch file by file, resumably.

The listing and the requests go through huggingface_hub; its own download functions are not used,
because since version 2 they throw a half-fetched file away when the process ends.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from mull.errors import MullError, WeightsError
from mull.weights.catalog import HubSource
from mull.weights.hub_plan import (
    Plan,
    PlannedFile,
    list_repository,
    plan_of_repair,
    read_plan,
    without_password,
)
from mull.weights.manifest import FileRecord, record_file, sha256_of, write_json
from mull.weights.order import Fetched, Order, Repair, in_gb, require_space
from mull.weights.store import plan_of

_PART_SUFFIX = ".part"
_READ_BYTES = 1 << 20


def fetch_from_hub(order: Order, partial: Path, repair: Repair | None) -> Fetched:
    """Fetch what is missing of a repository into `partial`; every file is checked when whole."""
    source = order.source
    assert isinstance(source, HubSource)
    plan_path = plan_of(order.name)
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    with _readable_hub_errors(source, endpoint):
        if repair is not None:
            plan = plan_of_repair(source, repair)
        else:
            plan = read_plan(plan_path, source) or _first_plan(order, source, partial, endpoint)
            write_json(plan_path, asdict(plan))
        missing = plan.size - _bytes_present(plan, partial)
        order.tell(
            f"{source.repository} at {plan.revision[:12]}: {len(plan.files)} files, "
            f"{in_gb(plan.size)}" + (f", {in_gb(missing)} to go" if missing < plan.size else "")
        )
        require_space(partial, missing, order.name)
        records, before = [], 0
        for file in plan.files:
            records.append(_fetch_file(order, plan, file, partial, endpoint, before))
            before += file.size
            if file.path == "config.json" and not order.config:
                order.tell_what_it_needs(_config_of(partial / file.path))
    return Fetched(tuple(records), plan.revision, plan.licence)


def _first_plan(order: Order, source: HubSource, partial: Path, endpoint: str) -> Plan:
    require_space(partial, order.download_bytes or 0, order.name)  # what the catalogue knows
    return list_repository(source, endpoint)


def _config_of(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # the loader will say what is wrong with it
        return {}
    return values if isinstance(values, dict) else {}


def _bytes_present(plan: Plan, partial: Path) -> int:
    present = 0
    for file in plan.files:
        for path in (partial / file.path, partial / (file.path + _PART_SUFFIX)):
            if path.is_file():
                present += min(path.stat().st_size, file.size)
                break
    return present


def _fetch_file(
    order: Order, plan: Plan, file: PlannedFile, partial: Path, endpoint: str, before: int
) -> FileRecord:
    target, part = partial / file.path, partial / (file.path + _PART_SUFFIX)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and _mismatch(target, file) is None:
        return record_file(partial, file.path, sha256=file.sha256)
    target.unlink(missing_ok=True)
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    _download(order, plan, file, part, endpoint, before)
    if (found := _mismatch(part, file)) is not None:
        part.unlink()
        raise WeightsError(
            f"{file.path} of {plan.repository} is not the file of revision {plan.revision[:12]} "
            f"({found}): refused and deleted; pull again, "
            f"or `mull rm {order.name}` to forget this revision"
        )
    record = record_file(partial, file.path + _PART_SUFFIX, sha256=file.sha256)
    part.replace(target)
    return FileRecord(file.path, record.size, record.sha256, record.mtime_ns)


def _mismatch(path: Path, file: PlannedFile) -> str | None:
    """What is wrong with a file, or None. Reads it whole."""
    if path.stat().st_size != file.size:
        return f"{path.stat().st_size} bytes, expected {file.size}"
    if file.sha256 is not None:
        found = sha256_of(path)
        return None if found == file.sha256 else f"SHA-256 {found}, expected {file.sha256}"
    if file.git_sha1 is not None:
        # git names a blob by the SHA-1 of this header and its content
        digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
        found = digest.hexdigest()
        return None if found == file.git_sha1 else f"git hash {found}, expected {file.git_sha1}"
    return None


class _Sink:
    """The file that huggingface_hub writes to: counts, reports, and stops a server without end."""

    def __init__(self, stream: IO[bytes], file: PlannedFile, before: int, total: int, order: Order):
        self.stream, self.file, self.before, self.total = stream, file, before, total
        self.order = order

    def write(self, piece: bytes) -> int:
        if self.stream.tell() + len(piece) > self.file.size:
            raise WeightsError(
                f"{self.file.path} is longer than the {self.file.size} bytes listed: refused"
            )
        written = self.stream.write(piece)
        if self.order.progress is not None:
            self.order.progress(self.before + self.stream.tell(), self.total)
        return written

    def tell(self) -> int:
        return self.stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def truncate(self, size: int | None = None) -> int:
        return self.stream.truncate(size)


def _download(
    order: Order, plan: Plan, file: PlannedFile, part: Path, endpoint: str, before: int
) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers, tqdm

    url = hf_hub_url(plan.repository, file.path, revision=plan.revision, endpoint=endpoint)
    headers = build_hf_headers(library_name="mull") | {"Accept-Encoding": "identity"}
    no_bar: Any = functools.partial(tqdm, disable=True)
    with part.open("ab") as stream, _retries_told(order, file):
        sink: Any = _Sink(stream, file, before, plan.size, order)
        http_get(
            url,
            sink,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=file.size,
            tqdm_class=no_bar,
        )


@contextmanager
def _retries_told(order: Order, file: PlannedFile) -> Iterator[None]:
    """Turn the library's warnings about a lost connection into one line for our caller."""

    def tell(record: logging.LogRecord) -> bool:
        if "resume" in record.getMessage():
            order.tell(f"connection lost in {file.path}: going on where it stopped")
        return False

    logger = logging.getLogger("huggingface_hub.file_download")
    logger.addFilter(tell)
    try:
        yield
    finally:
        logger.removeFilter(tell)


@contextmanager
def _readable_hub_errors(source: HubSource, endpoint: str) -> Iterator[None]:
    from huggingface_hub import errors

    where = f"{source.repository} on {without_password(endpoint)}"
    try:
        yield
    except MullError:
        raise
    except errors.GatedRepoError as error:
        raise WeightsError(
            f"{where} asks you to accept its licence: do so on its page, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{where} has no revision {source.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"no repository {where}, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise WeightsError(f"cannot reach {where}: HF_HUB_OFFLINE is set") from error
    except Exception as error:
        # The library passes its HTTP client's errors on, and that client changes between versions;
        # an error of the disk carries an errno and is told by our caller.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        said = without_password(str(error))
        reason = (said.splitlines() or [""])[0].strip() or type(error).__name__
        raise WeightsError(
            f"cannot fetch {where}: {reason[:200]}; what has arrived is kept, pull again to go on"
        ) from error
