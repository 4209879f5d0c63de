"""The store of a running server: the database, what is done beside requests, and its end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import AbstractContextManager, asynccontextmanager, suppress

from fastapi import FastAPI, Request
from sqlalchemy import Connection, select

from mull.errors import StoreError
from mull.serve.settings import Settings
from mull.serve.store import attachments, conversations, erasing, messages
from mull.serve.store.answer_writer import AnswerWriter
from mull.serve.store.database import Database
from mull.serve.store.tables import conversations as conversation_table
from mull.serve.store.values import now

_ERASE_SECONDS = 2.0  # that a delete waits
_ERASE_AGAIN_SECONDS = 1.0
_CHORE_SECONDS = 3600.0
_DAY = 24 * 3600 * 1_000_000
_log = logging.getLogger(__name__)


class Store:
    """Conversations and what belongs to them. Its functions lie beside this file and take an open
    connection: `with store.read() as db: conversations.page(db, owner)`. To be used in threads."""

    def __init__(self, database: Database, *, retention_days: float | None = None) -> None:
        self.database = database
        self.retention_days = retention_days
        self.writer = AnswerWriter(database)
        self._eraser = ThreadPoolExecutor(1, thread_name_prefix="mull-eraser")
        self._is_closing = threading.Event()

    @classmethod
    def open(cls, settings: Settings) -> Store:
        """Raises StoreError with one line where that cannot be."""
        return cls(Database(settings.database_url), retention_days=settings.retention_days)

    def read(self) -> AbstractContextManager[Connection]:
        return self.database.read()

    def write(self) -> AbstractContextManager[Connection]:
        return self.database.write()

    def recover(self) -> None:
        """At a start: what a process that was killed left half done."""
        with self.write() as db:
            stopped = messages.stop_orphans(db)
        if stopped:
            _log.warning(
                "%d answers were cut off when mull last ended; their text is kept", stopped
            )
        self.do_chores()

    def erase(self) -> None:
        """After a delete: wait for its last traces to go, at most a moment; then it goes on by
        itself, and even after a kill."""
        with suppress(NotYet):
            self._start_erasing().result(_ERASE_SECONDS)

    def do_chores(self) -> None:
        """What retention, and uploads that were never sent, leave to be deleted."""
        with self.write() as db:
            forgotten = attachments.remove_unsent(db)
            if self.retention_days is not None:
                oldest = round(max(0, now() - self.retention_days * _DAY))
                old = conversation_table.c.updated < oldest
                conversations.remove(db, select(conversation_table.c.id).where(old))
            elif forgotten:
                erasing.note(db)
        self._start_erasing()

    def close(self) -> None:
        """Finish what is being written and erased, and close the database."""
        self.writer.close()
        self._is_closing.set()
        self._eraser.shutdown(wait=True)
        self.database.close()

    def _start_erasing(self) -> Future[None]:
        return self._eraser.submit(self._erase)

    def _erase(self) -> None:
        try:
            while not erasing.erase(self.database):  # somebody still reads what was deleted
                if self._is_closing.wait(_ERASE_AGAIN_SECONDS):
                    return
        except StoreError as error:
            _log.warning("what was deleted is not erased from the disk yet: %s", error)


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[None]:
    """The store, as long as the app runs."""
    settings = app.state.serving.settings
    store = await asyncio.to_thread(Store.open, settings)
    app.state.store = store
    try:
        await asyncio.to_thread(store.recover)
        chores = asyncio.create_task(_keep_tidy(store))
        try:
            yield
        finally:
            chores.cancel()
            with suppress(asyncio.CancelledError):
                await chores
    finally:
        await asyncio.to_thread(store.close)


async def _keep_tidy(store: Store) -> None:
    while True:
        await asyncio.sleep(_CHORE_SECONDS)
        try:
            await asyncio.to_thread(store.do_chores)
        except StoreError as error:
            _log.warning("the hourly tidying was left out: %s", error)


def the_store(request: Request) -> Store:
    """For routes: `store: Store = Depends(the_store)`."""
    store = request.app.state.store
    assert isinstance(store, Store)
    return store
