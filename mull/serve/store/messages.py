"""Messages: a tree in each conversation, written as it grows.

An edit of a question and a second answer are siblings: they have the same parent. What was sampled
(token ids) is kept beside the text, so that a chat goes on with what the cache already holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from mull.serve.errors import ApiError
from mull.serve.store import attachments, owned
from mull.serve.store.tables import conversations, messages
from mull.serve.store.values import iso, new_id, now

TITLE_CHARACTERS = 60
MAX_DEPTH = 10_000
_SHOWN = [column for column in messages.columns if column.name != "token_ids"]


@dataclass(frozen=True)
class Growth:
    """What an answer has come to so far."""

    text: str
    thinking: str
    tool_calls: list[dict[str, Any]]
    token_ids: list[int] | None


def add_question(
    db: Connection,
    owner: str,
    conversation: str,
    *,
    parent: str | None,
    text: str,
    files: Sequence[str] = (),
) -> dict[str, Any]:
    """A user's message; it becomes the head, and names a conversation that has no title yet."""
    row = owned.check(db, owner, conversation)
    if parent is not None:
        check_in(db, conversation, parent)
    attached = attachments.check_owned(db, owner, files)
    id = _insert(db, conversation=conversation, parent=parent, role="user", text=text, state="done")
    attachments.attach(db, id, files)
    title = row.title or first_line(text) or (attached[0].name if attached else "")
    owned.touch(db, conversation, head=id, title=title)
    return get(db, id)


def start_answer(
    db: Connection,
    conversation: str,
    *,
    parent: str,
    beside: str | None = None,
    model: str,
    response_id: str,
) -> dict[str, Any]:
    """An assistant's message that is about to grow; it becomes the head, unless it is to be
    compared with the one `beside` it."""
    id = _insert(
        db,
        conversation=conversation,
        parent=parent,
        role="assistant",
        text="",
        state="running",
        model=model,
        response_id=response_id,
        beside=beside,
    )
    owned.touch(db, conversation, **({} if beside else {"head": id}))
    return get(db, id)


def continue_answer(
    db: Connection, conversation: str, id: str, *, model: str, response_id: str
) -> dict[str, Any]:
    """The answer that was there grows on; it becomes the head. ApiError 409 where it does so
    already."""
    if check_in(db, conversation, id).state == "running":
        raise ApiError(409, "this answer is still running: stop it first, or wait")
    again = {"state": "running", "error": None, "finish_reason": None}
    _set(db, id, {**again, "model": model, "response_id": response_id})
    owned.touch(db, conversation, head=id)
    return get(db, id)


def grow(db: Connection, id: str, growth: Growth) -> None:
    """Write what there is; `running` also where another process took it for one that was killed."""
    _set(db, id, {**vars(growth), "state": "running"})


def finish(db: Connection, id: str, growth: Growth, **ending: Any) -> dict[str, Any] | None:
    """The end of an answer. ending: state, error, finish_reason, usage, timing, cost_usd. None
    where its conversation was deleted meanwhile."""
    row = db.execute(select(messages.c.conversation).where(messages.c.id == id)).first()
    if row is None:
        return None
    _set(db, id, {**vars(growth), **ending})
    owned.touch(db, row.conversation)
    return get(db, id)


def stop_orphans(db: Connection) -> int:
    """Answers of a process that was killed stop with the text they had; how many there were."""
    orphaned = update(messages).where(messages.c.state == "running").values(state="stopped")
    return db.execute(orphaned).rowcount


def response_ids(db: Connection, owner: str, conversation: str | None = None) -> list[str]:
    """Of the answers of one conversation, or of all of an owner's."""
    query = (
        select(messages.c.response_id)
        .join(conversations, conversations.c.id == messages.c.conversation)
        .where(conversations.c.owner == owner, messages.c.response_id.is_not(None))
    )
    if conversation is not None:
        query = query.where(conversations.c.id == conversation)
    return [id for id in db.scalars(query) if id is not None]


def get(db: Connection, id: str) -> dict[str, Any]:
    row = db.execute(select(*_SHOWN).where(messages.c.id == id)).one()
    return as_json(row, attachments.of_messages(db, [id]).get(id, []))


def check_in(db: Connection, conversation: str, id: str) -> Row[Any]:
    """A message's row; ApiError 404 where the conversation has no such message."""
    query = select(*_SHOWN).where(messages.c.id == id, messages.c.conversation == conversation)
    row = db.execute(query).first()
    if row is None:
        raise ApiError(404, f"no message {id[:80]!r} in this conversation")
    return row


def tree(db: Connection, conversation: str) -> list[dict[str, Any]]:
    """All messages, parents before children."""
    query = select(*_SHOWN).where(messages.c.conversation == conversation)
    rows = db.execute(query.order_by(messages.c.number)).all()
    files = attachments.of_conversation(db, conversation)
    return [as_json(row, files.get(row.id, [])) for row in rows]


def path(db: Connection, conversation: str, id: str) -> list[Row[Any]]:
    """From the first message down to this one, with token ids. ApiError 404; 400 for a way so long
    that no model could be asked for its end."""
    check_in(db, conversation, id)
    links = select(messages.c.id, messages.c.parent).where(messages.c.conversation == conversation)
    parents = {row.id: row.parent for row in db.execute(links)}
    ids: list[str] = []
    step: str | None = id
    while step is not None:
        if len(ids) == MAX_DEPTH:
            raise ApiError(400, f"more than {MAX_DEPTH:,} messages lead here: begin a new chat")
        ids.append(step)
        step = parents.get(step)
    rows: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), 500):
        query = select(messages).where(messages.c.id.in_(ids[start : start + 500]))
        rows |= {row.id: row for row in db.execute(query)}
    return [rows[each] for each in reversed(ids)]


def as_json(row: Row[Any], files: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "parent": row.parent,
        "role": row.role,
        "text": row.text,
        "thinking": row.thinking,
        "tool_calls": row.tool_calls,
        "files": files,
        "model": row.model,
        "state": row.state,
        "error": row.error,
        "finish_reason": row.finish_reason,
        "usage": row.usage,
        "timing": row.timing,
        "cost_usd": row.cost_usd,
        "created": iso(row.created),
        "response_id": row.response_id,
        "beside": row.beside,
    }


def first_line(text: str) -> str:
    """A title out of a question."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) <= TITLE_CHARACTERS:
        return line
    return line[: TITLE_CHARACTERS - 1].rstrip() + "…"


def _insert(db: Connection, **values: Any) -> str:
    id = new_id()
    defaults: Mapping[str, Any] = {"thinking": "", "tool_calls": [], "created": now()}
    db.execute(insert(messages).values({**defaults, "id": id, **values}))
    return id


def _set(db: Connection, id: str, values: Mapping[str, Any]) -> None:
    db.execute(update(messages).where(messages.c.id == id).values(dict(values)))
