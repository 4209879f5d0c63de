"""Search in titles and texts, in every script: one interface over two kinds of index.

A query is words that must all occur, or "words in quotes" that occur as they are. SQLite's index
holds every three characters in a row, so it finds Korean and Chinese; what it proposes is checked
here, and shorter words are looked for by reading. PostgreSQL does the same with pg_trgm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, or_, select, text
from sqlalchemy.sql.elements import ColumnElement

from mull.serve.store.tables import conversations, messages

MAX_QUERY = 200
_MAX_WORDS = 16
_MAX_CONVERSATIONS = 2000
_BEFORE, _AFTER = 60, 140
_GRAM = 3

# The index goes through newer messages first, and stops when we do.
_INDEXED = text(
    """SELECT m.id, m.conversation, m.text FROM message_index AS i
    CROSS JOIN messages AS m ON m.number = i.rowid
    CROSS JOIN conversations AS c ON c.id = m.conversation AND c.owner = :owner
    WHERE message_index MATCH :grams ORDER BY i.rowid DESC"""
)


@dataclass(frozen=True)
class Query:
    words: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def parse(cls, typed: str) -> Query:
        found = re.findall(r'"([^"]+)"|([^\s"]+)', typed[:MAX_QUERY].replace("\0", " "))
        parts = ((quoted or word).strip() for quoted, word in found)
        words = tuple(dict.fromkeys(part for part in parts if part))[:_MAX_WORDS]
        return cls(words, tuple(re.compile(re.escape(word), re.IGNORECASE) for word in words))

    def matches(self, text: str) -> bool:
        return bool(self.words) and all(pattern.search(text) for pattern in self.patterns)

    def snippet(self, text: str) -> tuple[str, list[list[int]]]:
        """The place of the first match, and where in it the words are, as JavaScript counts."""
        first = min((m.start() for p in self.patterns if (m := p.search(text))), default=0)
        start = max(0, first - _BEFORE)
        end = min(len(text), first + _AFTER)
        shown = ("…" if start else "") + text[start:end] + ("…" if end < len(text) else "")
        spans = sorted({m.span() for p in self.patterns for m in p.finditer(shown)})
        return shown, [[_utf16(shown[:a]), _utf16(shown[:b])] for a, b in spans]


def find(db: Connection, owner: str, typed: str, limit: int) -> list[dict[str, Any]]:
    """Titles first, then messages, each newest first."""
    query = Query.parse(typed)
    hits: list[dict[str, Any]] = []
    for row in _titles(db, owner):
        if len(hits) < limit and query.matches(row.title):
            hits.append(_hit(query, row.id, row.title, None, row.title))
    found: list[Any] = []
    for row in _messages(db, owner, query):
        if len(hits) + len(found) >= limit:
            break
        found.append(row)
    named = {row.id: row.title for row in _titles(db, owner)} if found else {}
    hits += [_hit(query, m.conversation, named[m.conversation], m.id, m.text) for m in found]
    return hits


def conversations_with(db: Connection, owner: str, typed: str) -> list[str]:
    """Ids of the conversations that have it in their title or in a message."""
    query = Query.parse(typed)
    ids = {row.id: None for row in _titles(db, owner) if query.matches(row.title)}
    for row in _messages(db, owner, query):
        if len(ids) >= _MAX_CONVERSATIONS:
            break
        ids[row.conversation] = None
    return list(ids)


def _titles(db: Connection, owner: str) -> Sequence[Any]:
    query = select(conversations.c.id, conversations.c.title)
    newest = conversations.c.updated.desc()
    return db.execute(query.where(conversations.c.owner == owner).order_by(newest)).all()


def _messages(db: Connection, owner: str, query: Query) -> Iterator[Any]:
    """Newest first: id, conversation, text."""
    if not query.words:
        return
    grams = _grams(query.words)
    if db.dialect.name == "sqlite" and grams:
        rows = db.execute(_INDEXED, {"owner": owner, "grams": grams})
    else:
        reading = (
            select(messages.c.id, messages.c.conversation, messages.c.text)
            .join(conversations, conversations.c.id == messages.c.conversation)
            .where(conversations.c.owner == owner, messages.c.state != "running")
            .where(and_(*(_contains(word, db.dialect.name) for word in query.words)))
            .order_by(messages.c.number.desc())
        )
        rows = db.execution_options(stream_results=True).execute(reading)
    with rows:
        for row in rows:
            if query.matches(row.text):
                yield row


def _grams(words: Sequence[str]) -> str:
    """The words' three-character pieces as the index's query language has them."""
    grams = [word[i : i + _GRAM] for word in words for i in range(len(word) - _GRAM + 1)]
    return " AND ".join('"' + gram.replace('"', '""') + '"' for gram in dict.fromkeys(grams))


def _contains(word: str, dialect: str) -> ColumnElement[bool]:
    pattern = "%" + re.sub(r"([%_\\])", r"\\\1", word) + "%"
    if dialect == "postgresql":
        return messages.c.text.ilike(pattern, escape="\\")
    # SQLite's LIKE knows upper and lower case of ASCII only.
    forms = dict.fromkeys((pattern, pattern.lower(), pattern.upper()))
    return or_(*(messages.c.text.like(form, escape="\\") for form in forms))


def _hit(query: Query, conversation: str, title: str, message: str | None, text: str) -> Any:
    snippet, ranges = query.snippet(text)
    return {
        "conversation": conversation,
        "title": title,
        "message": message,
        "snippet": snippet,
        "ranges": ranges,
    }


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2
