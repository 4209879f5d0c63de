"""Conversations on their way in, in mull's own form (other exports were brought into it before)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, insert, or_, select

from mull.serve.store import conversations
from mull.serve.store.tables import conversations as conversation_table
from mull.serve.store.tables import files as file_table
from mull.serve.store.tables import message_files
from mull.serve.store.tables import messages as message_table
from mull.serve.store.values import from_iso, new_id, now, storable

_MAX_MESSAGES = 50_000
_Text = Annotated[str, Field(max_length=16_000_000)]
_Short = Annotated[str, Field(max_length=1000)]
_Time = Annotated[str, Field(max_length=64)]
_Table = Annotated[dict[str, Any], Field(max_length=64)]


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)


class _File(_Form):
    name: _Short
    kind: Annotated[str, Field(max_length=16)] = "text"
    bytes: Annotated[int, Field(ge=0, lt=2**63)] = 0
    pages: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    text: _Text = ""


class _Message(_Form):
    id: _Short
    parent: _Short | None = None
    role: Literal["user", "assistant"]
    text: _Text = ""
    thinking: _Text = ""
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=128)] = Field(default_factory=list)
    files: Annotated[list[_File], Field(max_length=64)] = Field(default_factory=list)
    model: _Short | None = None
    state: Literal["done", "running", "stopped", "failed"] = "done"
    error: _Short | None = None
    finish_reason: Annotated[str, Field(max_length=64)] | None = None
    usage: _Table | None = None
    timing: _Table | None = None
    cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    created: _Time | None = None
    beside: _Short | None = None


class _Conversation(_Form):
    id: _Short | None = None
    origin: _Short | None = None
    title: _Short = ""
    pinned: bool = False
    folder: Annotated[str, Field(max_length=100)] | None = None
    tags: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=32)] = Field(
        default_factory=list
    )
    model: _Short | None = None
    system: _Text | None = None
    settings: _Table = Field(default_factory=dict)
    head: _Short | None = None
    created: _Time | None = None
    updated: _Time | None = None
    messages: Annotated[list[_Message], Field(max_length=_MAX_MESSAGES)]


class UnfitError(Exception):
    """Why a conversation was left out, in a few words."""


def add(db: Connection, owner: str, raw: dict[str, Any]) -> int:
    """Store one conversation under new ids; returns how many messages it has. Raises UnfitError for
    one that is damaged, or here already."""
    try:
        given = _Conversation.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UnfitError(f"{place}: {first['msg']}"[:200]) from None
    origin = storable(given.origin or f"mull:{given.id or new_id()}")
    _refuse_if_here(db, owner, origin, given.id)
    id, ids, moment = new_id(), _new_ids(given.messages), now()
    created = _time(given.created, moment)
    db.execute(
        insert(conversation_table).values(
            {
                "id": id,
                "owner": owner,
                "title": given.title,
                "pinned": given.pinned,
                "folder": given.folder,
                "model": given.model,
                "system": given.system,
                "settings": given.settings,
                "head": ids.get(given.head or ""),
                "created": created,
                "updated": _time(given.updated, created),
                "origin": origin,
            }
        )
    )
    conversations.set_tags(db, id, given.tags)
    if given.messages:
        rows = [_row(message, id, ids, created) for message in given.messages]
        db.execute(insert(message_table), rows)
    _add_files(db, owner, given.messages, ids)
    return len(given.messages)


def _refuse_if_here(db: Connection, owner: str, origin: str, id: str | None) -> None:
    same = or_(conversation_table.c.origin == origin, conversation_table.c.id == storable(id or ""))
    query = select(conversation_table.c.id).where(conversation_table.c.owner == owner, same)
    if db.execute(query).first() is not None:
        raise UnfitError("it is here already")


def _new_ids(listed: list[_Message]) -> dict[str, str]:
    """New ids by old ones, where every parent comes before its children."""
    ids: dict[str, str] = {}
    for message in listed:
        if message.id in ids:
            raise UnfitError(f"two messages have the id {message.id[:80]!r}")
        if message.parent is not None and message.parent not in ids:
            raise UnfitError(
                f"message {message.id[:80]!r} comes before its parent, or that is missing"
            )
        ids[message.id] = new_id()
    return ids


def _row(message: _Message, conversation: str, ids: dict[str, str], moment: int) -> dict[str, Any]:
    return {
        "id": ids[message.id],
        "conversation": conversation,
        "parent": None if message.parent is None else ids[message.parent],
        "role": message.role,
        "text": message.text,
        "thinking": message.thinking,
        "tool_calls": message.tool_calls,
        "model": message.model,
        "state": "stopped" if message.state == "running" else message.state,
        "error": message.error,
        "finish_reason": message.finish_reason,
        "usage": message.usage,
        "timing": message.timing,
        "cost_usd": message.cost_usd,
        "beside": ids.get(message.beside or ""),
        "created": _time(message.created, moment),
    }


def _add_files(db: Connection, owner: str, listed: list[_Message], ids: dict[str, str]) -> None:
    moment = now()
    for message in listed:
        for position, file in enumerate(message.files):
            id = new_id()
            values = {**vars(file), "id": id, "owner": owner, "created": moment}
            values["characters"] = len(file.text)
            db.execute(insert(file_table).values(values))
            link = {"message": ids[message.id], "position": position, "file": id}
            db.execute(insert(message_files).values(link))


def _time(text: str | None, otherwise: int) -> int:
    found = None if text is None else from_iso(text)
    # Before 1970 or beyond the year 9999 nobody chatted with a model.
    return found if found is not None and 0 <= found < 253_402_300_800_000_000 else otherwise
