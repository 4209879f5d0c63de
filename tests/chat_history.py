"""Somebody's years of chats, written into the store at once."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert

from mull.serve.store import tables
from mull.serve.store.database import Database
from mull.serve.store.values import new_id, now

_MINUTE = 60_000_000
_QUESTION = "Question {turn} of chat {chat}: what is {turn} times {chat}?"
_ANSWER = "It is **{product}**.\n\n- {turn}\n- {chat}\n\n```python\nprint({turn} * {chat})\n```"


def fill_history(home: Path, *, conversations: int, messages: int, owner: str = "local") -> None:
    """So many conversations of so many messages each, in the database a server of this home uses;
    the server may be running."""
    database = Database(f"sqlite:///{home / 'chats.db'}")
    try:
        with database.write() as db:
            for chat in range(conversations):
                _add(db, owner, chat, messages, now() - (conversations - chat) * _MINUTE)
    finally:
        database.close()


def _add(db: Connection, owner: str, chat: int, count: int, moment: int) -> None:
    ids = [new_id() for _ in range(count)]
    conversation = new_id()
    rows = [
        {
            "id": id,
            "conversation": conversation,
            "parent": ids[turn - 1] if turn else None,
            "role": "assistant" if turn % 2 else "user",
            "text": (_ANSWER if turn % 2 else _QUESTION).format(
                turn=turn, chat=chat, product=turn * chat
            ),
            "thinking": "",
            "tool_calls": [],
            "state": "done",
            "created": moment + turn,
        }
        for turn, id in enumerate(ids)
    ]
    db.execute(
        insert(tables.conversations),
        {
            "id": conversation,
            "owner": owner,
            "title": f"Chat {chat}",
            "pinned": False,
            "settings": {},
            "head": ids[-1],
            "created": moment,
            "updated": moment + count,
        },
    )
    db.execute(insert(tables.messages), rows)
