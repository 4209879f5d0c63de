"""Conversations: the list, one with all its messages, changes, and an end that leaves nothing.

Functions over an open connection; every one of them sees what belongs to `owner` alone. JSON in and
out is the page's (docs/api.md).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, delete, exists, func, insert, or_, select
from sqlalchemy import update as sql_update

from mull.serve.errors import ApiError
from mull.serve.store import attachments, erasing, messages, owned, search
from mull.serve.store.tables import conversations, files, message_files, tags
from mull.serve.store.tables import messages as message_table
from mull.serve.store.values import iso, new_id, now

MAX_TAGS = 32


def page(
    db: Connection,
    owner: str,
    *,
    q: str | None = None,
    folder: str | None = None,
    tag: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> dict[str, Any]:
    """Pinned ones first, then by age of the last message. q: in titles and texts."""
    order = (conversations.c.pinned, conversations.c.updated, conversations.c.id)
    query = _items().where(conversations.c.owner == owner)
    if q is not None and q.strip():
        query = query.where(conversations.c.id.in_(search.conversations_with(db, owner, q)))
    if folder is not None:
        query = query.where(conversations.c.folder == folder)
    if tag is not None:
        tagged = select(tags.c.conversation).where(tags.c.tag == tag)
        query = query.where(conversations.c.id.in_(tagged))
    if cursor is not None:
        query = query.where(_after(_read_cursor(cursor)))
    rows = db.execute(query.order_by(*(column.desc() for column in order)).limit(limit + 1)).all()
    shown = rows[:limit]
    following = _cursor(shown[-1]) if len(rows) > limit else None
    return {"items": _as_items(db, shown), "next": following}


def get(db: Connection, owner: str, id: str) -> dict[str, Any]:
    """One with all its messages, parents before children. ApiError 404."""
    row = _item_row(db, owner, id)
    return {
        **_as_items(db, [row])[0],
        "system": row.system,
        "settings": row.settings,
        "head": row.head,
        "messages": messages.tree(db, id),
    }


def item(db: Connection, owner: str, id: str) -> dict[str, Any]:
    """The same without messages, as lists have it."""
    return _as_items(db, [_item_row(db, owner, id)])[0]


def create(db: Connection, owner: str, values: Mapping[str, Any]) -> str:
    """values: title, model, system, settings, folder, tags, as far as given. Returns the id."""
    id, moment = new_id(), now()
    row = {
        "id": id,
        "owner": owner,
        "title": values.get("title") or "",
        "pinned": False,
        "folder": values.get("folder"),
        "model": values.get("model"),
        "system": values.get("system"),
        "settings": values.get("settings") or {},
        "created": moment,
        "updated": moment,
    }
    db.execute(insert(conversations).values(row))
    set_tags(db, id, values.get("tags") or ())
    return id


def change(db: Connection, owner: str, id: str, values: Mapping[str, Any]) -> None:
    """Set title, pinned, folder, tags, head, system, settings, model. None of it makes it newer."""
    owned.check(db, owner, id)
    given = dict(values)
    if (listed := given.pop("tags", None)) is not None:
        set_tags(db, id, listed)
    if (head := given.get("head")) is not None:
        messages.check_in(db, id, head)
    if given:
        db.execute(sql_update(conversations).where(conversations.c.id == id).values(given))


def remove(db: Connection, ids: Sequence[str] | Select[Any]) -> None:
    """Rows, index, and files that no other message has. `Store.erase` ends the last traces."""
    belongs = message_table.c.conversation.in_(ids)
    used = (
        select(message_files.c.file)
        .join(message_table, message_table.c.id == message_files.c.message)
        .where(belongs)
    )
    orphaned = list(db.scalars(used.distinct()))
    db.execute(delete(message_table).where(belongs))
    attachments.remove_unused(db, orphaned)
    db.execute(delete(conversations).where(conversations.c.id.in_(ids)))
    erasing.note(db)


def remove_one(db: Connection, owner: str, id: str) -> None:
    owned.check(db, owner, id)
    remove(db, [id])


def remove_all(db: Connection, owner: str) -> None:
    """Every conversation of an owner, and every file."""
    remove(db, select(conversations.c.id).where(conversations.c.owner == owner))
    db.execute(delete(files).where(files.c.owner == owner))


def _items() -> Select[Any]:
    of_this = message_table.c.conversation == conversations.c.id
    count = select(func.count()).where(of_this).scalar_subquery()
    running = exists().where(of_this, message_table.c.state == "running")
    return select(conversations, count.label("message_count"), running.label("running"))


def _item_row(db: Connection, owner: str, id: str) -> Row[Any]:
    query = _items().where(conversations.c.id == id, conversations.c.owner == owner)
    row = db.execute(query).first()
    if row is None:
        raise owned.not_found(id)
    return row


def _as_items(db: Connection, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    listed = tags_of(db, [row.id for row in rows])
    return [
        {
            "id": row.id,
            "title": row.title,
            "pinned": row.pinned,
            "folder": row.folder,
            "tags": listed.get(row.id, []),
            "model": row.model,
            "created": iso(row.created),
            "updated": iso(row.updated),
            "message_count": row.message_count,
            "running": bool(row.running),
        }
        for row in rows
    ]


def tags_of(db: Connection, ids: Sequence[str]) -> dict[str, list[str]]:
    query = select(tags).where(tags.c.conversation.in_(ids)).order_by(tags.c.position)
    found: dict[str, list[str]] = {}
    for row in db.execute(query):
        found.setdefault(row.conversation, []).append(row.tag)
    return found


def set_tags(db: Connection, id: str, listed: Iterable[str]) -> None:
    db.execute(delete(tags).where(tags.c.conversation == id))
    rows = [
        {"conversation": id, "position": position, "tag": tag}
        for position, tag in enumerate(dict.fromkeys(listed))
    ]
    if rows:
        db.execute(insert(tags), rows)


def _cursor(row: Row[Any]) -> str:
    place = json.dumps([row.pinned, row.updated, row.id]).encode()
    return base64.urlsafe_b64encode(place).decode()


def _read_cursor(cursor: str) -> tuple[bool, int, str]:
    try:
        pinned, updated, id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pinned = updated = id = None
    is_time = type(updated) is int and 0 <= updated < 2**63
    if not (isinstance(pinned, bool) and is_time and isinstance(id, str)) or "\0" in id:
        raise ApiError(400, "cursor: give what `next` of the page before said", param="cursor")
    return pinned, updated, id


def _after(place: tuple[bool, int, str]) -> Any:
    pinned, updated, id = place
    older = or_(
        conversations.c.updated < updated,
        and_(conversations.c.updated == updated, conversations.c.id < id),
    )
    within = and_(conversations.c.pinned == pinned, older)
    return or_(within, conversations.c.pinned.is_(False)) if pinned else within
