"""Conversations on their way out: JSON with everything, Markdown of what one sees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, select

from mull.serve.store import attachments, conversations, messages, preferences, tables
from mull.serve.store.values import iso, now

FORMAT = 1


def as_json(db: Connection, owner: str, id: str) -> dict[str, Any]:
    """One conversation as an export that can be imported. ApiError 404."""
    return {"mull": FORMAT, "exported": iso(now()), "conversations": [_whole(db, owner, id)]}


def everything(db: Connection, owner: str) -> Iterator[tuple[str, Any]]:
    """The parts of an export of all an owner has, one conversation at a time: (name, value)."""
    yield "mull", FORMAT
    yield "exported", iso(now())
    yield "settings", preferences.read_settings(db, owner)
    yield "presets", preferences.list_presets(db, owner)
    mine = select(tables.conversations.c.id).where(tables.conversations.c.owner == owner)
    for id in list(db.scalars(mine.order_by(tables.conversations.c.created))):
        yield "conversation", _whole(db, owner, id)


def as_markdown(db: Connection, owner: str, id: str) -> str:
    """The branch that is shown, as a document."""
    conversation = conversations.get(db, owner, id)
    head = conversation["head"]
    parts = [f"# {conversation['title'] or 'Conversation'}"]
    if conversation["system"]:
        parts.append(f"**System:** {conversation['system']}")
    for row in messages.path(db, id, head) if head else ():
        if row.role == "user":
            parts.append("## You")
            files = attachments.texts_of(db, row.id)
            parts += [f"*File: {file.name} ({file.characters:,} characters)*" for file in files]
        else:
            parts.append(f"## {row.model or 'Assistant'}")
        if row.thinking.strip():
            inside = row.thinking.strip()
            parts.append(f"<details><summary>Thinking</summary>\n\n{inside}\n\n</details>")
        if row.text.strip():
            parts.append(row.text.strip())
        if row.state in ("stopped", "failed"):
            parts.append(f"*({row.state}{': ' + row.error if row.error else ''})*")
    return "\n\n".join(parts) + "\n"


def _whole(db: Connection, owner: str, id: str) -> dict[str, Any]:
    """With the text of its files. Sampled ids stay here: nobody may bring any in."""
    conversation = conversations.get(db, owner, id)
    texts = {
        row.id: row
        for message in conversation["messages"]
        if message["files"]
        for row in attachments.texts_of(db, message["id"])
    }
    for message in conversation["messages"]:
        message["files"] = [
            {**attachments.described(texts[file["id"]]), "text": texts[file["id"]].text}
            for file in message["files"]
        ]
    return conversation
