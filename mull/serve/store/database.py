"""The database behind the store: SQLite in one file, or PostgreSQL by URL.

Short transactions in threads: `with database.read() as connection` or `.write()`. What the database
refuses becomes a StoreError with one line that says what to do.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from mull.errors import StoreBusyError, StoreError, StoreFullError
from mull.serve.store import migrations
from mull.weights import models_home

BUSY_SECONDS = 5.0
_WRITES = "mull_writes"
_FULL = ("disk is full", "no space left", "disk i/o error", "disk full")
_BUSY = ("locked", "busy", "lock timeout", "too many clients", "too many connections")
_GONE = ("connection", "server closed", "could not connect", "terminating", "shutting down")


class Database:
    """An engine, ready: migrated, and set up as the store needs it. Safe in several threads."""

    def __init__(self, url: str | None = None, *, busy_seconds: float = BUSY_SECONDS) -> None:
        """url: SQLAlchemy's form; None is chats.db in MULL_HOME. Raises StoreError where it cannot
        be opened, or was made by a newer mull."""
        self.url = _checked(url)
        self.busy_seconds = busy_seconds
        # SQLite has one writer at a time: ours queue here, which is fairer than its polling.
        self._writing = threading.Lock()
        if self.is_sqlite:
            _make_private(self.path)
        self.engine = self._engine()
        try:
            with told(self.where):
                migrations.upgrade(self.engine, self.where)
        except BaseException:
            self.engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    @property
    def path(self) -> Path:
        """The file of a SQLite database."""
        return Path(str(self.url.database))

    @property
    def where(self) -> str:
        """For messages: the file, or the server's address without its password."""
        return str(self.path) if self.is_sqlite else self.url.render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads, on one state of the database."""
        with told(self.where), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that writes: all of it, or nothing. Raises StoreBusyError, StoreFullError,
        StoreError."""
        if not self._writing.acquire(timeout=self.busy_seconds):
            raise StoreBusyError(f"{self.where} is busy: try again")
        try:
            with told(self.where), self.engine.connect() as connection:
                connection = connection.execution_options(**{_WRITES: True})
                with connection.begin():
                    yield connection
        finally:
            self._writing.release()

    def close(self) -> None:
        self.engine.dispose()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _engine(self) -> Engine:
        if not self.is_sqlite:
            connect = {"connect_timeout": 10, "options": f"-c lock_timeout={self._milliseconds}"}
            return create_engine(
                self.url,
                pool_pre_ping=True,
                pool_size=8,
                max_overflow=8,
                connect_args=connect,
                hide_parameters=True,  # errors are logged, and what people wrote must not be
            )
        engine = create_engine(
            self.url,
            pool_size=8,
            max_overflow=40,
            connect_args={"timeout": self.busy_seconds},
            hide_parameters=True,
        )
        event.listen(engine, "connect", self._set_up)
        event.listen(engine, "begin", _begin)
        return engine

    @property
    def _milliseconds(self) -> int:
        return round(self.busy_seconds * 1000)

    def _set_up(self, raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # we say BEGIN ourselves: see `_begin`
        cursor = raw.cursor()
        cursor.execute(f"PRAGMA busy_timeout={self._milliseconds}")
        self._keep_a_log(cursor)
        for pragma in (
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            "temp_store=MEMORY",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def _keep_a_log(self, cursor: sqlite3.Cursor) -> None:
        """Write-ahead logging. While another process writes into a file that has none yet, SQLite
        refuses at once, and does not wait as it does elsewhere."""
        end = time.monotonic() + self.busy_seconds
        while True:
            try:
                cursor.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if time.monotonic() > end or "locked" not in str(error):
                    raise
                time.sleep(0.01)


def _begin(connection: Connection) -> None:
    # A transaction that first reads and then writes could find that another has written meanwhile,
    # which no waiting mends; so writers say from the start what they are.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def told(where: str) -> Iterator[None]:
    """Turn what the database says into a line that tells what to do."""
    try:
        yield
    except PoolTimeoutError as error:
        raise StoreBusyError(f"{where} is busy: try again") from error
    except DBAPIError as error:
        raise _as_store_error(where, error) from error


def _as_store_error(where: str, error: DBAPIError) -> StoreError:
    said = " ".join(str(error.orig).split())[:300]
    low = said.lower()
    if any(word in low for word in _FULL):
        return StoreFullError(
            f"{where} cannot be written ({said}): free some space; what was there is whole"
        )
    if any(word in low for word in _BUSY):
        return StoreBusyError(f"{where} is locked by another program: try again, or close it")
    if "readonly" in low or "read-only" in low:
        return StoreError(f"{where} is read-only: make it and its folder writable")
    if "malformed" in low or "not a database" in low:
        return StoreError(
            f"{where} is damaged ({said}): move it away, or put a backup in its place"
        )
    if error.connection_invalidated or any(word in low for word in _GONE):
        return StoreBusyError(f"{where} cannot be reached ({said}): is the database running?")
    return StoreError(f"{where}: {said}")


def _checked(url: str | None) -> URL:
    if url is None:
        return URL.create("sqlite", database=str(models_home().parent / "chats.db"))
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        backend = ""
    if backend == "postgresql":
        # psycopg 3 is the driver we install and test with
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed
    raise StoreError(
        "the database must be sqlite:////absolute/path.db or postgresql://user@host/name"
    )


def _make_private(path: Path) -> None:
    """Conversations are readable by their owner only; SQLite's other files follow this one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened ({error.strerror}): make it and its folder writable"
        ) from None


def checkpoint(database: Database) -> bool:
    """Empty SQLite's write-ahead log, so that nothing deleted lies in it; False while somebody
    still reads an older state."""
    if not database.is_sqlite:
        return True
    with told(database.where), database.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        busy, _pages, _done = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
