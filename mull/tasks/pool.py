"""Verifiers in processes that can be killed, so that no answer can hang or crash a training run.

Workers are started once and reused. They get answers in batches and report each verdict with one
byte; the clock runs per answer. Who hangs or dies on an answer is replaced, that answer counts as
VERIFIER_FAILED, and the rest of its batch goes to the successor.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mull.errors import TaskError
from mull.tasks.task import Problem, Verdict

# What goes through the pipes. To a worker: the length of a pickle, the pickle. From it, one byte
# each: LOADED once per job, then its verdicts.
LENGTH = struct.Struct("<Q")
LOADED = b"L"
BYTE_OF = {
    Verdict.CORRECT: b"c",
    Verdict.WRONG: b"w",
    Verdict.UNPARSABLE: b"u",
    Verdict.TRUNCATED: b"t",
    Verdict.VERIFIER_FAILED: b"f",
}
_VERDICT_OF = {byte[0]: verdict for verdict, byte in BYTE_OF.items()}
_MAX_BATCH = 256
# Batches per worker, so that a slow batch leaves the others something to do.
_BATCHES_PER_WORKER = 4
_LOAD_TIMEOUT_S = 60.0
# A worker that dies before its first answer may have been killed while it was idle.
_LOAD_ATTEMPTS = 2
_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class TaskSpec:
    """What load_task needs to build a task again in another process."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


Item = tuple[TaskSpec | str, Problem, str]


class VerifierPool:
    """workers: processes. timeout_s: how long one answer may take. Use it in a `with`, or close it.

    Safe to call from several threads; they take turns.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0) -> None:
        if workers < 1 or not timeout_s > 0:
            raise TaskError("a verifier pool needs at least one worker and a timeout above 0")
        self.timeout_s = timeout_s
        self._workers = [_WorkerProcess() for _ in range(workers)]
        self._lock = threading.Lock()

    def verify_all(self, items: Sequence[Item]) -> list[Verdict]:
        """The verdict of each item, in order. item: (task, problem, text after the thinking)."""
        with self._lock:
            return _Run(self._workers, items, self.timeout_s).finish()

    def close(self) -> None:
        """End all workers; a later call starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.kill()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Batch:
    """Indices of items that one worker has in hand; done of them are judged."""

    indices: list[int]
    attempts: int = 0
    done: int = 0
    is_loaded: bool = False
    deadline: float = 0.0


class _Run:
    """One call of verify_all."""

    def __init__(
        self, workers: list[_WorkerProcess], items: Sequence[Item], timeout_s: float
    ) -> None:
        self.items = items
        self.keys = _Keys()
        self.timeout_s = timeout_s
        self.verdicts = [Verdict.VERIFIER_FAILED] * len(items)
        size = len(items) // (len(workers) * _BATCHES_PER_WORKER) + 1
        size = min(size, _MAX_BATCH)
        everything = range(len(items))
        self.waiting = deque(
            _Batch(list(everything[start : start + size])) for start in range(0, len(items), size)
        )
        self.idle = list(workers)
        self.busy: dict[_WorkerProcess, _Batch] = {}

    def finish(self) -> list[Verdict]:
        with selectors.DefaultSelector() as selector:
            try:
                while self.waiting or self.busy:
                    while self.waiting and self.idle:
                        self.send(selector, self.idle.pop(), self.waiting.popleft())
                    self.receive(selector)
            finally:  # interrupted: what is still in a pipe belongs to nobody
                for worker in self.busy:
                    worker.kill()
        return self.verdicts

    def send(self, selector: selectors.BaseSelector, worker: _WorkerProcess, batch: _Batch) -> None:
        specs, items = {}, []
        for index in batch.indices:
            task, problem, text = self.items[index]
            key, name, settings = self.keys.of(task)
            specs[key] = (name, settings)
            items.append((key, problem, text))
        self.busy[worker] = batch  # from here on: half a job in its pipe makes it useless
        worker.send((specs, items))
        batch.attempts += 1
        batch.deadline = time.monotonic() + _LOAD_TIMEOUT_S
        selector.register(worker.verdicts_fd, selectors.EVENT_READ, worker)

    def receive(self, selector: selectors.BaseSelector) -> None:
        nearest = min(batch.deadline for batch in self.busy.values())
        for key, _ in selector.select(max(0.0, nearest - time.monotonic())):
            worker = key.data
            received = os.read(worker.verdicts_fd, 1 << 16)
            if received:
                self.take(worker, received)
            if not received or self.is_finished(worker):
                self.release(selector, worker, is_lost=not received)
        now = time.monotonic()
        for worker in [worker for worker, batch in self.busy.items() if batch.deadline <= now]:
            self.release(selector, worker, is_lost=True)

    def take(self, worker: _WorkerProcess, received: bytes) -> None:
        batch = self.busy[worker]
        batch.deadline = time.monotonic() + self.timeout_s
        if not batch.is_loaded:
            batch.is_loaded = received.startswith(LOADED)
            received = received[1:]
        for byte in received:
            self.verdicts[batch.indices[batch.done]] = _VERDICT_OF[byte]
            batch.done += 1

    def is_finished(self, worker: _WorkerProcess) -> bool:
        batch = self.busy[worker]
        return batch.is_loaded and batch.done == len(batch.indices)

    def release(
        self, selector: selectors.BaseSelector, worker: _WorkerProcess, *, is_lost: bool
    ) -> None:
        """The worker is free, or lost with the answer it was at; what it had not begun is put back
        in front, and so is all, once, if it was lost while loading."""
        selector.unregister(worker.verdicts_fd)
        batch = self.busy.pop(worker)
        if is_lost:
            worker.kill()
            if batch.is_loaded:
                if rest := batch.indices[batch.done + 1 :]:
                    self.waiting.appendleft(_Batch(rest))
            elif batch.attempts < _LOAD_ATTEMPTS:
                self.waiting.appendleft(batch)
        self.idle.append(worker)


class _Keys:
    """A short key per task: items share few TaskSpecs, so each is written out once."""

    def __init__(self) -> None:
        self._known: dict[int | str, tuple[str, str, dict[str, Any]]] = {}
        self._kept: list[TaskSpec] = []  # an id is unique only while its object lives

    def of(self, task: TaskSpec | str) -> tuple[str, str, dict[str, Any]]:
        known = task if isinstance(task, str) else id(task)
        if known not in self._known:
            spec = TaskSpec(task) if isinstance(task, str) else task
            self._kept.append(spec)
            settings = dict(spec.settings)
            key = f"{spec.name} {json.dumps(settings, sort_keys=True, default=repr)}"
            self._known[known] = (key, spec.name, settings)
        return self._known[known]


class _WorkerProcess:
    """One worker process, started when it is first needed and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, job: object) -> None:
        payload = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
        for _ in range(2):
            if self._process is None or self._process.poll() is not None:
                self.kill()
                self._process = _start()
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(LENGTH.pack(len(payload)) + payload)
                self._process.stdin.flush()
                return
            except BrokenPipeError:  # it died while it was idle
                self.kill()
        raise TaskError("the verifier's process does not start; see its message above")

    @property
    def verdicts_fd(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def kill(self) -> None:
        """End the process and whatever it started; its pipes are closed."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _start() -> subprocess.Popen[bytes]:
    # A fresh interpreter: a fork would copy locks of torch's threads, and torch is not needed here.
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "mull.tasks.worker", str(_MEMORY_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
