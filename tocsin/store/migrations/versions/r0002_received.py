"""What came by HTTP and may come again: ids, kept for a day, apart from the rows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tocsin.store.schema import SCHEMA, Id, UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and close it to the public."""
    is_postgres = op.get_bind().dialect.name == "postgresql"
    schema = SCHEMA if is_postgres else None
    op.create_table(
        "received",
        sa.Column("id", Id(), nullable=False),
        sa.Column("received_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        schema=schema,
    )
    op.create_index("idx_received_at", "received", ["received_at"], schema=schema)
    if is_postgres:
        op.execute(f"ALTER TABLE {SCHEMA}.received ENABLE ROW LEVEL SECURITY")
        for role in op.get_bind().scalars(
            sa.text("SELECT rolname FROM pg_roles WHERE rolname IN ('anon', 'authenticated')")
        ):
            op.execute(f"REVOKE ALL ON {SCHEMA}.received FROM {role}")
