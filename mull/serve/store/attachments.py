"""Files people gave along with their questions: their text, and which messages have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, delete, exists, insert, select

from mull.serve.errors import ApiError
from mull.serve.store import erasing
from mull.serve.store.tables import files, message_files, messages
from mull.serve.store.values import iso, new_id, now

_UNSENT_MICROSECONDS = 24 * 3600 * 1_000_000
_WITHOUT_TEXT = [column for column in files.columns if column.name != "text"]


def add(db: Connection, owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """values: name, kind, bytes, pages, text."""
    id = new_id()
    row = {**values, "id": id, "owner": owner, "characters": len(values["text"]), "created": now()}
    db.execute(insert(files).values(row))
    return described(get(db, owner, id))


def get(db: Connection, owner: str, id: str) -> Row[Any]:
    """Its row, text and all; ApiError 404."""
    row = db.execute(select(files).where(files.c.id == id, files.c.owner == owner)).first()
    if row is None:
        raise ApiError(404, f"no file {id[:80]!r}")
    return row


def described(row: Row[Any]) -> dict[str, Any]:
    """As the page has it, without the text."""
    described = {
        "id": row.id,
        "name": row.name,
        "kind": row.kind,
        "bytes": row.bytes,
        "characters": row.characters,
        "created": iso(row.created),
    }
    return described if row.pages is None else described | {"pages": row.pages}


def check_owned(db: Connection, owner: str, ids: Sequence[str]) -> list[Row[Any]]:
    """Their rows in this order; ApiError 404 for the first that is not the owner's."""
    query = select(files).where(files.c.owner == owner, files.c.id.in_(ids))
    found = {row.id: row for row in db.execute(query)}
    for id in ids:
        if id not in found:
            raise ApiError(404, f"no file {id[:80]!r}: it may have been deleted; give it again")
    return [found[id] for id in ids]


def attach(db: Connection, message: str, ids: Sequence[str]) -> None:
    rows = [
        {"message": message, "position": position, "file": id}
        for position, id in enumerate(dict.fromkeys(ids))
    ]
    if rows:
        db.execute(insert(message_files), rows)


def of_messages(db: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """For messages: id, name, kind and characters of each file they have."""
    return _by_message(db, _links().where(message_files.c.message.in_(ids)))


def of_conversation(db: Connection, id: str) -> dict[str, list[dict[str, Any]]]:
    query = _links().join(messages, messages.c.id == message_files.c.message)
    return _by_message(db, query.where(messages.c.conversation == id))


def texts_of(db: Connection, message: str) -> list[Row[Any]]:
    """Name and text of the files of one message."""
    query = select(files).join(message_files, message_files.c.file == files.c.id)
    query = query.where(message_files.c.message == message).order_by(message_files.c.position)
    return list(db.execute(query))


def remove(db: Connection, owner: str, id: str) -> None:
    """ApiError 409 for one that a message has: that message would no longer be what was asked."""
    get(db, owner, id)
    if db.scalar(select(exists().where(message_files.c.file == id))):
        raise ApiError(409, "this file belongs to a message: delete the conversation instead")
    db.execute(delete(files).where(files.c.id == id))
    erasing.note(db)


def remove_unused(db: Connection, ids: Sequence[str]) -> None:
    """Those of these that no message has."""
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        db.execute(delete(files).where(files.c.id.in_(some), _is_unused()))


def remove_unsent(db: Connection) -> int:
    """Files that have been waiting for a day to be sent with a message; how many they were."""
    old = files.c.created < now() - _UNSENT_MICROSECONDS
    return db.execute(delete(files).where(old, _is_unused())).rowcount


def _is_unused() -> Any:
    return ~exists().where(message_files.c.file == files.c.id)


def _links() -> Select[Any]:
    return (
        select(message_files.c.message, *_WITHOUT_TEXT)
        .join(files, files.c.id == message_files.c.file)
        .order_by(message_files.c.message, message_files.c.position)
    )


def _by_message(db: Connection, query: Select[Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in db.execute(query):
        described = {"id": row.id, "name": row.name, "kind": row.kind, "characters": row.characters}
        found.setdefault(row.message, []).append(described)
    return found
