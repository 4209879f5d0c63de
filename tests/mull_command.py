"""Running the real `mull` command in tests: as a process, and on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mull.cli import main

MULL = str(Path(sys.executable).parent / "mull")
_CONTROL = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


def run_mull(
    *arguments: str, stdin: str = "", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished process of one command; stdin is a pipe holding `stdin`."""
    return subprocess.run(
        [MULL, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        check=False,
    )


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """run_mull without the second or more that a process takes to begin: for what is refused."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def make_store(gguf: Path, home: Path) -> Path:
    """Turn `home` into a MULL_HOME of its own that holds the model (hard links: no copy), fresh
    from a pull: nothing packed."""

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)
        return target

    shutil.copytree(
        gguf.parent,
        home / "models" / gguf.parent.name,
        copy_function=link,
        ignore=shutil.ignore_patterns("packed"),
    )
    return home


class Terminal:
    """A `mull` command on a pseudo-terminal: send keys, wait for text."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.raw = ""
        self._seen = 0
        # prompt_toolkit otherwise asks the terminal where its cursor is, and nobody answers.
        settings = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "100"}
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update(settings)
            os.environ.update(env or {})
            # As a shell script's background job begins: Ctrl-C must work all the same.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.execv(MULL, [MULL, *arguments])

    def send(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def wait_for(self, text: str, timeout: float = 300) -> str:
        """Wait until `text` shows after what was waited for before; returns what came with it."""
        deadline = time.monotonic() + timeout
        while True:
            shown = _CONTROL.sub("", self.raw)
            found = shown.find(text, self._seen)
            if found >= 0:
                start, self._seen = self._seen, found + len(text)
                return shown[start : self._seen]
            assert time.monotonic() < deadline, f"no {text!r} in {shown[self._seen :]!r}"
            if not self._read(1.0):
                raise AssertionError(f"the command ended without {text!r}: {shown[self._seen :]!r}")

    def _read(self, timeout: float) -> bool:
        """Read what there is; False at the end of the program."""
        if not select.select([self._fd], [], [], timeout)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how Linux says that the other side has closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)

    def exit_code(self, timeout: float = 300) -> int:
        """Wait for the end of the program."""
        deadline = time.monotonic() + timeout
        while self._read(0.2):
            assert time.monotonic() < deadline, f"still running: {self.raw[-500:]!r}"
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
