"""Which answers were asked for together, to be read side by side."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("messages", sa.Column("beside", sa.String(length=64)))
