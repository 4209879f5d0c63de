"""Deleted means gone: the full-text index forgets, and the write-ahead log is emptied.

Deleting rows leaves their traces in older parts of SQLite's index until those are merged. That is
done right after a delete, in short transactions; a note in the database outlives a kill in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, text

from mull.serve.store.database import Database, checkpoint, told
from mull.serve.store.tables import chores
from mull.serve.store.values import new_id

_PAGES_AT_ONCE = 2000  # of the index: some tenths of a second
_CHECKPOINT_TRIES = 40
_TABLES = ("messages", "conversations", "files", "message_files", "tags", "presets", "settings")


def note(db: Connection) -> None:
    """In the transaction that deletes: there is something to erase."""
    db.execute(insert(chores).values(name=new_id()))


def erase(database: Database) -> bool:
    """Do what was noted; False where somebody still reads what was deleted: try again later."""
    with database.read() as db:
        notes = list(db.scalars(select(chores.c.name)))
    if not notes:
        return True
    if not database.is_sqlite:
        _vacuum(database)
    else:
        _merge_index(database)
        if not _empty_log(database):
            return False
    _forget(database, notes)
    return True


def _merge_index(database: Database) -> None:
    pages = -_PAGES_AT_ONCE  # below zero: begin to make one of all parts
    merging = True
    while merging:
        with database.write() as db:
            raw = db.connection.driver_connection
            assert raw is not None
            before = raw.total_changes
            db.exec_driver_sql(
                "INSERT INTO message_index(message_index, rank) VALUES ('merge', ?)", (pages,)
            )
            merging = raw.total_changes - before >= 2
        pages = _PAGES_AT_ONCE


def _empty_log(database: Database) -> bool:
    for _ in range(_CHECKPOINT_TRIES):
        if checkpoint(database):
            return True
        time.sleep(0.05)
    return False


def _vacuum(database: Database) -> None:
    """PostgreSQL frees the rows' space; its own log and backups are its keeper's."""
    with told(database.where), database.engine.connect() as connection:
        free = connection.execution_options(isolation_level="AUTOCOMMIT")
        for table in _TABLES:
            free.execute(text(f"VACUUM {table}"))


def _forget(database: Database, notes: Sequence[str]) -> None:
    with database.write() as db:
        for name in notes:
            db.execute(delete(chores).where(chores.c.name == name))
