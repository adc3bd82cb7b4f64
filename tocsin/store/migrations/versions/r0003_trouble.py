"""
What a service tells besides errors: jobs that failed, heartbeats of cron jobs, dependencies that are away.

And how an instance is: how long its loop kept others waiting, how much memory it may have.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tocsin.store.schema import SCHEMA, Id, Json, UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the columns."""
    schema = SCHEMA if op.get_bind().dialect.name == "postgresql" else None
    for column in (
        sa.Column("loop_lag_ms", sa.Integer()),
        sa.Column("memory_limit_bytes", sa.BigInteger()),
        sa.Column("memory_trend", sa.BigInteger()),
        sa.Column("beats_every_s", sa.Double()),
        sa.Column("silent_error_id", Id()),
    ):
        op.add_column("instances", column, schema=schema)
    for name, column_name, which in (
        ("idx_instances_living", "last_seen", "ended_at IS NULL"),
        ("idx_instances_silent", "silent_error_id", "silent_error_id IS NOT NULL"),
    ):
        where = sa.text(which)
        op.create_index(name, "instances", [column_name], schema=schema, postgresql_where=where, sqlite_where=where)
    op.create_table(
        "jobs",
        sa.Column("id", Id(), nullable=False),
        sa.Column("number", sa.Integer()),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("failed_at", UtcTime(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("release", sa.Text()),
        sa.Column("category", sa.Text()),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("file", sa.Text()),
        sa.Column("folder", sa.Text()),
        sa.Column("arguments", Json, nullable=False),
        sa.Column("changed", Json, nullable=False),
        sa.Column("attempts", Json, nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("exception_type", sa.Text()),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("error_id", Id()),
        sa.Column("instance_id", sa.Text()),
        sa.Column("acted_at", UtcTime()),
        sa.Column("acted_by", sa.Text()),
        sa.Column("outcome", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
        schema=schema,
    )
    op.create_index("idx_jobs_failed", "jobs", [sa.text("failed_at DESC"), sa.text("id DESC")], schema=schema)
    waiting = sa.text("status IN ('failed', 'running')")
    op.create_index(
        "idx_jobs_waiting", "jobs", ["service"], schema=schema, postgresql_where=waiting, sqlite_where=waiting
    )
    op.create_table(
        "beats",
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("service", sa.Text()),
        sa.Column("every_s", sa.Double(), nullable=False),
        sa.Column("grace_s", sa.Double(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("last_at", UtcTime(), nullable=False),
        sa.Column("last_ok_at", UtcTime()),
        sa.Column("due_at", UtcTime(), nullable=False),
        sa.Column("is_ok", sa.Boolean(), nullable=False),
        sa.Column("took_s", sa.Double()),
        sa.Column("message", sa.Text()),
        sa.Column("error_id", Id()),
        sa.Column("told", sa.Text()),
        sa.Column("told_at", UtcTime()),
        sa.PrimaryKeyConstraint("environment", "name"),
        schema=schema,
    )
    op.create_index("idx_beats_due", "beats", ["due_at"], schema=schema)
    op.create_table(
        "dependencies",
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("is_away", sa.Boolean(), nullable=False),
        sa.Column("is_optional", sa.Boolean(), nullable=False),
        sa.Column("since", UtcTime(), nullable=False),
        sa.Column("problem", sa.Text()),
        sa.PrimaryKeyConstraint("instance_id", "name"),
        schema=schema,
    )
