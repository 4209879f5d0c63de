"""The first tables, and the full-text index of the messages."""

import logging

import sqlalchemy as sa
from alembic import op
from sqlalchemy.exc import DBAPIError

revision = "0001"
down_revision = None

_log = logging.getLogger(__name__)

# A message is in the index once it no longer grows. The index has no copy of the text.
_SQLITE = (
    """CREATE VIRTUAL TABLE message_index USING fts5(
    text, content='messages', content_rowid='number', tokenize='trigram', detail=none)""",
    """CREATE TRIGGER message_added AFTER INSERT ON messages WHEN new.state <> 'running' BEGIN
    INSERT INTO message_index(rowid, text) VALUES (new.number, new.text); END""",
    """CREATE TRIGGER message_changed AFTER UPDATE OF text, state ON messages BEGIN
    INSERT INTO message_index(message_index, rowid, text)
        SELECT 'delete', old.number, old.text WHERE old.state <> 'running';
    INSERT INTO message_index(rowid, text)
        SELECT new.number, new.text WHERE new.state <> 'running'; END""",
    """CREATE TRIGGER message_removed AFTER DELETE ON messages WHEN old.state <> 'running' BEGIN
    INSERT INTO message_index(message_index, rowid, text)
        VALUES ('delete', old.number, old.text); END""",
)
_POSTGRESQL = (
    "CREATE EXTENSION IF NOT EXISTS pg_trgm",
    """CREATE INDEX message_index ON messages USING gin (text gin_trgm_ops)
    WHERE state <> 'running'""",
)


def upgrade() -> None:
    op.create_table(
        "chores",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "conversations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("folder", sa.Text()),
        sa.Column("model", sa.Text()),
        sa.Column("system", sa.Text()),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("head", sa.String(length=64)),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("updated", sa.BigInteger(), nullable=False),
        sa.Column("origin", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("conversations_by_age", "conversations", ["updated"])
    op.create_index("conversations_by_origin", "conversations", ["owner", "origin"], unique=True)
    op.create_index("conversations_in_order", "conversations", ["owner", "pinned", "updated", "id"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("characters", sa.BigInteger(), nullable=False),
        sa.Column("pages", sa.Integer()),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_files_owner"), "files", ["owner"])
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("ending", sa.String(length=8), nullable=False),
        sa.Column("is_admin", sa.Boolean(), nullable=False),
        sa.Column("rate_per_minute", sa.Integer()),
        sa.Column("budget_tokens", sa.BigInteger()),
        sa.Column("spent_tokens", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger()),
        sa.Column("last_used", sa.BigInteger()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("hash"),
    )
    op.create_index(op.f("ix_keys_owner"), "keys", ["owner"])
    op.create_table(
        "presets",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("system", sa.Text()),
        sa.Column("sampling", sa.Text(), nullable=False),
        sa.Column("thinking", sa.String(length=16)),
        sa.Column("think_budget", sa.Integer()),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_presets_owner"), "presets", ["owner"])
    op.create_table(
        "settings",
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("values", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
    op.create_table(
        "logins",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["key"], ["keys.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_index(op.f("ix_logins_key"), "logins", ["key"])
    op.create_table(
        "messages",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("conversation", sa.String(length=64), nullable=False),
        sa.Column("parent", sa.String(length=64)),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("thinking", sa.Text(), nullable=False),
        sa.Column("tool_calls", sa.Text(), nullable=False),
        sa.Column("token_ids", sa.LargeBinary()),
        sa.Column("model", sa.Text()),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("finish_reason", sa.String(length=64)),
        sa.Column("usage", sa.Text()),
        sa.Column("timing", sa.Text()),
        sa.Column("cost_usd", sa.Float()),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("response_id", sa.String(length=64)),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["parent"], ["messages.id"]),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_messages_parent"), "messages", ["parent"])
    op.create_index("messages_of_conversation", "messages", ["conversation", "state"])
    op.create_table(
        "tags",
        sa.Column("conversation", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["conversation"], ["conversations.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("conversation", "position"),
    )
    op.create_table(
        "message_files",
        sa.Column("message", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("file", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["file"], ["files.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["message"], ["messages.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message", "position"),
    )
    op.create_index(op.f("ix_message_files_file"), "message_files", ["file"])
    if op.get_bind().dialect.name == "sqlite":
        for statement in _SQLITE:
            op.execute(statement)
        return
    try:
        with op.get_bind().begin_nested():
            for statement in _POSTGRESQL:
                op.execute(statement)
    except DBAPIError as error:
        _log.warning("no pg_trgm, so searching reads every message: %s", error.orig)
