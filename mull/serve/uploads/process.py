"""A process that reads one hostile file and can be killed: bounded time, memory and output."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mull.errors import RequestError

WORKER = "mull.serve.uploads.worker"
MEMORY_BYTES = 1 << 30
# One reader at a time: it may take a gigabyte.
_ONE = threading.Lock()


def read(kind: str, path: Path, *, seconds: float, max_bytes: int) -> Iterator[dict[str, Any]]:
    """The records that the worker tells of a file, as it tells them. kind: pdf or conversations.

    Raises RequestError with the worker's own words, or when a limit was reached.
    """
    with _ONE:
        process = subprocess.Popen(
            [sys.executable, "-I", "-m", WORKER, kind, str(path), str(MEMORY_BYTES), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            process.kill()

        clock = threading.Timer(seconds, end)
        clock.start()
        try:
            yield from _records(process, max_bytes, is_late)
        finally:
            clock.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _records(
    process: subprocess.Popen[bytes], max_bytes: int, is_late: threading.Event
) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    told = 0
    is_whole = False
    while line := process.stdout.readline(max_bytes - told + 1):
        told += len(line)
        if told > max_bytes:
            raise RequestError(
                f"the file holds more than {max_bytes // 2**20} MB of text: give a smaller one"
            )
        if not line.endswith(b"\n"):
            break
        record = json.loads(line)
        if "error" in record:
            raise RequestError(str(record["error"])[:300])
        if "end" in record:
            is_whole = True
            break
        yield record
    if not is_whole:
        what = "took too long" if is_late.is_set() else "needed too much memory, or is damaged"
        raise RequestError(f"reading the file {what}: give a smaller or simpler one")
