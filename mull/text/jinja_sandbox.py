"""Renders a Jinja chat template in a process of its own, with limits on time, memory and size.

The process is started at the first rendering, kept for the next ones, and killed when a template
exceeds its time. Nothing of it is shared with ours but two pipes.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

from ..errors import TextError

MAX_SOURCE_CHARS = 256_000
MAX_OUTPUT_CHARS = 16_000_000
_WORKER = Path(__file__).with_name("jinja_worker.py")


class JinjaSandbox:
    """One template source and the process that renders it. Safe to call from several threads."""

    def __init__(
        self,
        source: str,
        *,
        seconds: float = 10.0,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise TextError(
                f"the chat template is {len(source)} characters long, over {MAX_SOURCE_CHARS}; "
                "give a smaller one"
            )
        self._source = source
        self._seconds = seconds
        self._max_output_chars = max_output_chars
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()

    def render(self, variables: dict[str, Any]) -> str:
        """The rendered text; TextError when the template refuses, fails or exceeds a limit."""
        job = json.dumps(
            {
                "source": self._source,
                "variables": variables,
                "max_chars": self._max_output_chars,
            }
        )
        with self._lock:
            answer = self._ask(job)
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise TextError(f"the chat template refuses this: {_one_line(answer['refused'])}")
        raise TextError(f"the chat template cannot be rendered: {_one_line(answer['error'])}")

    def close(self) -> None:
        """Ends the process; the next rendering starts another."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _ask(self, job: str) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None
        watchdog = threading.Timer(self._seconds, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            # the write is under the clock too: a stuck process would not read a large job
            process.stdin.write(job + "\n")
            process.stdin.flush()
        except OSError:
            pass  # it died; the missing answer below says so
        line = self._answers.get()
        watchdog.cancel()
        if not line:
            self.close()
            return {"error": f"it took over {self._seconds:g} seconds or too much memory"}
        return dict(json.loads(line))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env={k: v for k, v in os.environ.items() if k in ("SYSTEMROOT", "PATH")},
            )
            self._answers = queue.SimpleQueue()
            threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
            weakref.finalize(self, _end, self._process)
        return self._process


def _read(process: subprocess.Popen[str], answers: "queue.SimpleQueue[str]") -> None:
    """Hands over each line; an empty one when the process has ended."""
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(OSError):
                pipe.close()


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:400]
