"""Writes answers into the store while they grow, and does not lose one that the disk refuses.

Its hooks are RunningAnswers': `grow` about once a second, `finish` before the last event is out. An
answer whose end cannot be written stays in memory and is tried again until it is there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mull.errors import StoreError
from mull.serve.store import messages
from mull.serve.store.database import Database
from mull.serve.store.messages import Growth

_RETRY_SECONDS = 2.0
_LAST_TRIES = 3
_log = logging.getLogger(__name__)


@dataclass
class _Unwritten:
    message: str
    growth: Growth
    ending: dict[str, Any] = field(default_factory=dict)


class AnswerWriter:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._unwritten: dict[str, _Unwritten] = {}
        self._lock = threading.Lock()
        self._retrying: threading.Thread | None = None
        self._closing = threading.Event()

    def holds(self, message: str) -> bool:
        """Whether only memory has the end of this answer just now."""
        return message in self._unwritten

    async def grow(self, message: str, growth: Growth) -> None:
        """A failure is no harm: the next time writes everything again."""
        try:
            await asyncio.to_thread(self._in_transaction, messages.grow, message, growth)
        except StoreError as error:
            _log.warning("an answer that grows could not be written: %s", error)

    async def finish(
        self, message: str, growth: Growth, ending: dict[str, Any]
    ) -> dict[str, Any] | None:
        """The message as it is stored; None where it is not: it was deleted, or, with a warning in
        the log, the database refuses it and it is tried again."""
        last = _Unwritten(message, growth, ending)
        try:
            return await asyncio.to_thread(self._write, last)
        except StoreError as error:
            _log.error("a finished answer could not be written yet: %s", error)
            with self._lock:
                self._unwritten[message] = last
                if self._retrying is None and not self._closing.is_set():
                    self._retrying = threading.Thread(target=self._retry, daemon=True)
                    self._retrying.start()
            return None

    def close(self) -> None:
        """Try what is left once more, and say what is lost if that fails."""
        self._closing.set()
        if self._retrying is not None:
            self._retrying.join()
        for _ in range(_LAST_TRIES):
            if self._write_what_is_left():
                return
            time.sleep(0.2)
        _log.error("%d answers could not be written and are lost", len(self._unwritten))

    def _retry(self) -> None:
        while not self._closing.wait(_RETRY_SECONDS):
            if self._write_what_is_left():
                with self._lock:
                    if not self._unwritten:
                        self._retrying = None
                        return

    def _write_what_is_left(self) -> bool:
        for last in list(self._unwritten.values()):
            try:
                self._write(last)
            except StoreError:
                return False
            with self._lock:
                self._unwritten.pop(last.message, None)
        return True

    def _write(self, last: _Unwritten) -> dict[str, Any] | None:
        with self._database.write() as db:
            return messages.finish(db, last.message, last.growth, **last.ending)

    def _in_transaction(self, act: Callable[..., None], *given: Any) -> None:
        with self._database.write() as db:
            act(db, *given)
