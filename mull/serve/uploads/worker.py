"""Run as a program of its own: reads one file, says its records as lines of JSON.

    python -m mull.serve.uploads.worker KIND PATH MEMORY_BYTES SECONDS

It imports nothing of mull but its neighbours here, so it starts quickly and has little to lose.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mull.errors import RequestError

_PARENT_CHECK_SECONDS = 0.5


def main() -> None:
    kind, path, memory, seconds = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace", newline="\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is not ours
    _limit(int(memory), float(seconds))
    _end_with_parent()
    logging.disable()
    try:
        for record in _records(kind, Path(path)):
            out.write(json.dumps(record) + "\n")
        last: dict[str, Any] = {"end": True}
    except (MemoryError, RecursionError):
        last = {"error": "the file needs too much memory to be read: give a smaller one"}
    except RequestError as error:
        last = {"error": str(error)}
    except Exception as error:  # a parser met what its makers did not think of
        last = {"error": f"the file is damaged ({type(error).__name__})"}
    with contextlib.suppress(OSError):
        out.write(json.dumps(last) + "\n")
        out.flush()
    os._exit(0)


def _records(kind: str, path: Path) -> Iterator[dict[str, Any]]:
    if kind == "pdf":
        from mull.serve.uploads.pdf import pages

        return pages(path)
    from mull.serve.uploads.exports import conversations

    return conversations(path)


def _limit(memory: int, seconds: float) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; the parent's clock still holds
        return
    limits = {"RLIMIT_AS": memory, "RLIMIT_CPU": int(seconds) + 1, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
