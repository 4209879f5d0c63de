"""The tables. A change here needs a migration beside it (`migrations/versions/`).

Times are microseconds since the epoch. Ids are random text; `number` of a message only gives the
order in which messages came, and is what SQLite's full-text index goes by.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

from mull.serve.store.values import StoredJson, StoredText, TokenIds

metadata = MetaData()
_Id = String(64)
_Number = BigInteger().with_variant(Integer(), "sqlite")

keys = Table(
    "keys",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False, index=True),
    Column("hash", String(64), nullable=False, unique=True),  # SHA-256 in hexadecimal
    Column("ending", String(8), nullable=False),  # of the key, for people to tell them apart
    Column("is_admin", Boolean, nullable=False),
    Column("rate_per_minute", Integer),
    Column("budget_tokens", BigInteger),
    Column("spent_tokens", BigInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("last_used", BigInteger),
)

logins = Table(
    "logins",
    metadata,
    Column("hash", String(64), primary_key=True),  # of the cookie's value
    Column("key", _Id, ForeignKey("keys.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("expires", BigInteger, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("title", StoredText, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("folder", StoredText),
    Column("model", StoredText),
    Column("system", StoredText),
    Column("settings", StoredJson, nullable=False),
    Column("head", _Id),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("origin", StoredText),  # where an imported one came from, so that it comes once
)
Index(
    "conversations_in_order",
    conversations.c.owner,
    conversations.c.pinned,
    conversations.c.updated,
    conversations.c.id,
)
Index("conversations_by_origin", conversations.c.owner, conversations.c.origin, unique=True)
Index("conversations_by_age", conversations.c.updated)

tags = Table(
    "tags",
    metadata,
    Column(
        "conversation", _Id, ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    ),
    Column("position", Integer, primary_key=True),
    Column("tag", StoredText, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True),
    Column("id", _Id, nullable=False, unique=True),
    Column("conversation", _Id, ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    Column("parent", _Id, ForeignKey("messages.id"), index=True),
    Column("role", String(16), nullable=False),
    Column("text", StoredText, nullable=False),
    Column("thinking", StoredText, nullable=False),
    Column("tool_calls", StoredJson, nullable=False),
    Column("token_ids", TokenIds),
    Column("model", StoredText),
    Column("state", String(16), nullable=False),
    Column("error", StoredText),
    Column("finish_reason", String(64)),
    Column("usage", StoredJson),
    Column("timing", StoredJson),
    Column("cost_usd", Float),
    Column("created", BigInteger, nullable=False),
    Column("response_id", _Id),
    Column("beside", _Id),  # the answer of another model that it was asked for together with
    sqlite_autoincrement=True,  # a number is never used twice: the index forgets late
)
Index("messages_of_conversation", messages.c.conversation, messages.c.state)

files = Table(
    "files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False, index=True),
    Column("name", StoredText, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("pages", Integer),
    Column("text", StoredText, nullable=False),
    Column("created", BigInteger, nullable=False),
)

message_files = Table(
    "message_files",
    metadata,
    Column("message", _Id, ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("file", _Id, ForeignKey("files.id", ondelete="CASCADE"), nullable=False, index=True),
)

presets = Table(
    "presets",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("owner", Text, nullable=False, index=True),
    Column("name", StoredText, nullable=False),
    Column("system", StoredText),
    Column("sampling", StoredJson, nullable=False),
    Column("thinking", String(16)),
    Column("think_budget", Integer),
    Column("created", BigInteger, nullable=False),
)

settings = Table(
    "settings",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("values", StoredJson, nullable=False),
)

# What a process that was killed would forget: a row means that deleted text may still lie in the
# full-text index.
chores = Table("chores", metadata, Column("name", String(32), primary_key=True))
