"""The database's shape through the versions of mull; brought up to date at every start.

A migration is a file in `versions/`, numbered; it never changes once it has been released.
"""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from mull.errors import StoreError

_ONE_AT_A_TIME = 0x6D756C6C  # of PostgreSQL's advisory locks, ours


def upgrade(engine: Engine, where: str) -> None:
    """Bring the database to this program's version; StoreError for one that is ahead of it."""
    scripts = ScriptDirectory(str(Path(__file__).parent))
    wanted = scripts.get_current_head()
    with engine.connect() as connection:
        if _version(connection) == wanted:
            return
    with engine.connect().execution_options(mull_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_ONE_AT_A_TIME})"))
        version = _version(connection)
        if version is not None and version not in _known(scripts):
            raise StoreError(
                f"{where} was made by a newer mull (version {version[:40]} of its tables): "
                "update mull, or give another database"
            )
        if version != wanted:
            _run(connection)


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known(scripts: ScriptDirectory) -> set[str]:
    return {script.revision for script in scripts.walk_revisions()}


def _run(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    # It says at every start which implementation it chose.
    logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
    command.upgrade(config, "head")
