"""Pulls begun on the page: each in a thread, with progress to read, and an end when asked for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from mull import weights
from mull.errors import MullError
from mull.serve.errors import ApiError
from mull.weights import catalog, store

_TELL_SECONDS = 0.25
_MOST_AT_ONCE = 2


class Pulls:
    """Lives in the server's asyncio loop. states: what each pull of this server has come to."""

    def __init__(self, pull: Callable[..., Any] = weights.pull) -> None:
        self.states: dict[str, dict[str, Any]] = {}
        self._pull = pull
        self._cancelled: dict[str, threading.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_closing = False

    def start(self, name: str) -> dict[str, Any]:
        """Begin; the state of one that is running already. ApiError 400 for what is no name."""
        name = _checked(name)
        if name not in self._tasks:
            if len(self._tasks) >= _MOST_AT_ONCE:
                raise ApiError(409, f"{_MOST_AT_ONCE} pulls are running: wait for one to end")
            self.states[name] = {"state": "running", "done_bytes": 0, "total_bytes": None}
            self.states[name] |= {"error": None, "line": None}
            self._cancelled[name] = threading.Event()
            self._tasks[name] = asyncio.create_task(self._run(name))
        return self.states[name]

    def cancel(self, name: str) -> dict[str, Any]:
        """Ends at the next piece that arrives; what came so far is kept for the next pull."""
        state = self.state(name)
        if name in self._cancelled:
            self._cancelled[name].set()
        return state

    def state(self, name: str) -> dict[str, Any]:
        if name not in self.states:
            raise ApiError(404, f"no pull of {name[:80]!r} was begun here")
        return self.states[name]

    async def follow(self, name: str, *, keep_alive: float) -> AsyncIterator[dict[str, Any] | None]:
        """Its state whenever that changes, to the end; None when it has not for so long."""
        told: dict[str, Any] | None = None
        quiet = time.monotonic()
        while True:
            state = dict(self.state(name))
            if state != told:
                told, quiet = state, time.monotonic()
                yield state
            elif time.monotonic() - quiet > keep_alive:
                quiet = time.monotonic()
                yield None
            if state["state"] != "running" or self._is_closing:
                return
            await asyncio.sleep(_TELL_SECONDS)

    async def close(self) -> None:
        self._is_closing = True
        for event in self._cancelled.values():
            event.set()
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=5)

    async def _run(self, name: str) -> None:
        state, cancelled = self.states[name], self._cancelled[name]

        def progress(done: int, total: int) -> None:
            if cancelled.is_set():
                raise _CancelledError
            state["done_bytes"], state["total_bytes"] = done, total

        def say(line: str) -> None:
            state["line"] = line

        try:
            await asyncio.to_thread(self._pull, name, progress=progress, say=say)
            state["state"] = "done"
        except _CancelledError:
            state["state"] = "cancelled"
        except MullError as error:
            state |= {"state": "failed", "error": str(error)}
        except Exception as error:
            state |= {"state": "failed", "error": f"the pull failed ({type(error).__name__})"}
            raise
        finally:
            del self._tasks[name], self._cancelled[name]


class _CancelledError(Exception):
    pass


def _checked(name: str) -> str:
    """A name of the catalogue, of the store, or of a hub; never a path of this machine."""
    if (entry := catalog.find(name)) is not None:
        return entry.name
    is_here = store.is_name(name) and store.folder_of(name).is_dir()
    if is_here or (store.is_name(name) and "/" in name and not store.typed_path(name).exists()):
        return name
    raise ApiError(400, f"{name[:80]!r} is no model to pull: give a name of the list, or ORG/REPO")
