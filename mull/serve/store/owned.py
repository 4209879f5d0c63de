"""Whose conversation it is: the one place where that is asked."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from mull.serve.errors import ApiError
from mull.serve.store.tables import conversations
from mull.serve.store.values import now


def check(db: Connection, owner: str, id: str) -> Row[Any]:
    """Its row; ApiError 404 for one that is not there, or is somebody else's."""
    query = select(conversations).where(conversations.c.id == id, conversations.c.owner == owner)
    row = db.execute(query).first()
    if row is None:
        raise not_found(id)
    return row


def touch(db: Connection, id: str, **values: Any) -> None:
    """Something was said in it: it is the newest now."""
    changed = {"updated": now(), **values}
    db.execute(update(conversations).where(conversations.c.id == id).values(changed))


def not_found(id: str) -> ApiError:
    return ApiError(404, f"no conversation {id[:80]!r}")
