"""The process in which verifiers run: started by VerifierPool with `python -m`, never imported.

Jobs come in as pickles (from our own parent), one byte a verdict goes out as soon as it is known,
so that the parent knows which answer a verifier hangs on or dies of, and never has to read
anything that a verifier could have shaped.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import time
import traceback
from typing import BinaryIO

from mull.tasks.pool import BYTE_OF, LENGTH, LOADED
from mull.tasks.registry import load_task
from mull.tasks.task import Task, Verdict

_PARENT_CHECK_S = 1.0


class Worker:
    """Answers the jobs of one pipe. A job is (task keys with name and settings, items)."""

    def __init__(self, jobs: BinaryIO, verdicts_fd: int) -> None:
        self.jobs = jobs
        self.verdicts_fd = verdicts_fd
        self.tasks: dict[str, Task | None] = {}
        self.complained: set[str] = set()

    def run(self) -> None:
        while len(header := self.jobs.read(LENGTH.size)) == LENGTH.size:
            (length,) = LENGTH.unpack(header)
            specs, items = pickle.loads(self.jobs.read(length))
            for key, (name, settings) in specs.items():
                if key not in self.tasks:
                    self.tasks[key] = self.load(key, name, settings)
            os.write(self.verdicts_fd, LOADED)
            for key, problem, text in items:
                os.write(self.verdicts_fd, BYTE_OF[self.verdict(key, problem, text)])

    def load(self, key: str, name: str, settings: dict) -> Task | None:
        try:
            return load_task(name, **settings)
        except Exception:
            self.complain(key)
            return None

    def verdict(self, key: str, problem: object, text: str) -> Verdict:
        task = self.tasks[key]
        if task is None:
            return Verdict.VERIFIER_FAILED
        try:
            return Verdict(task.verify(problem, text))  # type: ignore[arg-type]
        except Exception:
            self.complain(key)
            return Verdict.VERIFIER_FAILED

    def complain(self, key: str) -> None:
        """Show the first failure of each task to whoever wrote it; more would drown the log."""
        if key not in self.complained:
            self.complained.add(key)
            traceback.print_exc(limit=-4)


def limit_resources(memory_bytes: int) -> None:
    """A verifier that eats memory gets MemoryError, not the machine."""
    try:
        import resource
    except ImportError:  # no such limits on Windows; the parent's clock still holds
        return
    for name, limit in (("RLIMIT_AS", memory_bytes), ("RLIMIT_CORE", 0)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (limit, limit))


def end_with_parent() -> None:
    """A verifier in an endless loop must not outlive a killed parent."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    # The pipes are ours alone: what a verifier prints goes to stderr, what it reads is empty.
    jobs, verdicts_fd = os.fdopen(os.dup(0), "rb"), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    limit_resources(int(sys.argv[1]))
    end_with_parent()
    Worker(jobs, verdicts_fd).run()
    os._exit(0)  # threads of a verifier must not keep the process


if __name__ == "__main__":
    main()
