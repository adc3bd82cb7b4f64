"""
What came by HTTP and may come again: ids, kept for a day, apart from the rows; what comes before its error.

And what another program has inserted into ``error_logs`` is found at once.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context, op

from tocsin.store.adopt import is_large
from tocsin.store.schema import BEFORE, SCHEMA, Id, Json, UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the index."""
    connection = op.get_bind()
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    op.create_table(
        "received",
        sa.Column("id", Id(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_index("idx_received_at", "received", ["received_at"], schema=schema)
    op.create_table(
        "held",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("error_id", Id(), nullable=False),
        sa.Column("content", Json, nullable=False),
        sa.Column("held_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_index("idx_held_error", "held", ["error_id"], schema=schema)
    if context.config.attributes["found"] is not None:
        # The first release did not tell rows of before from those of other programs: none of them rings.
        op.execute(f"UPDATE error_logs SET group_id = '{BEFORE}' WHERE group_id IS NULL")  # noqa: S608
    if not is_large(connection):  # else it is built beside the writers
        only = sa.text("group_id IS NULL")
        op.create_index("idx_error_logs_untaken", "error_logs", ["timestamp"], postgresql_where=only, sqlite_where=only)
