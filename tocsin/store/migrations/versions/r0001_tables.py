"""
All tables, as the first release has them.

An ``error_logs`` that is there already, of the early writers, is adopted: its rows stay as they are,
what is missing is added, and the old INSERT goes on working.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import context, op

from tocsin.store.adopt import is_large
from tocsin.store.schema import BEFORE, SCHEMA, Id, Json, UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_LOGS = "error_logs"
# Of the same names as ours, but without what puts their rows in order.
_REPLACED = ("idx_error_logs_timestamp", "idx_error_logs_severity", "idx_error_logs_category")
_SEVERITIES = "severity IN ('low', 'medium', 'high', 'critical')"

# A UUIDv4 in SQLite's own functions, and its clock in the form of UtcTime.
_SQLITE_ID = (
    "(lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-' || "
    "substr('89ab', abs(random() % 4) + 1, 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))))"
)
_SQLITE_NOW = "(strftime('%Y-%m-%dT%H:%M:%f', 'now') || '000+00:00')"


def upgrade() -> None:
    """Make the tables; the lock on a table that others write to is taken last, and held for a moment."""
    connection = op.get_bind()
    say: Callable[[str], None] = context.config.attributes["say"]
    _create_groups()
    _create_counts()
    _create_alerts()
    _create_the_rest()
    op.execute(f"INSERT INTO {_named('counters')} (name, value) VALUES ('group_number', 0)")  # noqa: S608
    if not sa.inspect(connection).has_table(_LOGS):
        _create_logs(_LOGS)
    elif _is_postgres():
        say(f"adopting the table {_LOGS} that is there")
        _adopt_on_postgres()
    else:
        say(f"adopting the table {_LOGS} that is there")
        _adopt_on_sqlite()
    if not is_large(connection):  # else they are built beside the writers
        _index_logs()
    if _is_postgres():
        _compress_stacks()


def _is_postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _named(table: str) -> str:
    return f"{SCHEMA}.{table}" if _is_postgres() else table


def _table(name: str, *parts: Any) -> None:
    op.create_table(name, *parts, schema=SCHEMA if _is_postgres() else None)


def _index(name: str, table: str, columns: list[Any], where: str | None = None) -> None:
    only = sa.text(where) if where else None
    schema = SCHEMA if _is_postgres() else None
    op.create_index(name, table, columns, schema=schema, postgresql_where=only, sqlite_where=only)


def _log_columns() -> list[sa.Column[Any]]:
    """The early columns, with the defaults that let others insert with these alone; then ours."""
    make_id, now = ("gen_random_uuid()", "now()") if _is_postgres() else (_SQLITE_ID, _SQLITE_NOW)
    return [
        sa.Column("id", Id(), nullable=False, server_default=sa.text(make_id)),
        sa.Column("timestamp", UtcTime(), nullable=False, server_default=sa.text(now)),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("stack", sa.Text()),
        sa.Column("context", Json, server_default=sa.text("'{}'")),
        sa.Column("environment", sa.Text(), nullable=False, server_default=sa.text("'development'")),
        sa.Column("resolved", sa.Boolean(), server_default=sa.text("false")),
        sa.Column("resolved_at", UtcTime()),
        sa.Column("created_at", UtcTime(), server_default=sa.text(now)),
        sa.Column("group_id", sa.Text()),
        sa.Column("count", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("service", sa.Text()),
        sa.Column("release", sa.Text()),
        sa.Column("exception_type", sa.Text()),
        sa.Column("trace_id", sa.Text()),
        sa.Column("span_id", sa.Text()),
        sa.Column("handled", sa.Boolean()),
        sa.Column("mechanism", sa.Text()),
        sa.Column("instance_id", sa.Text()),
    ]


def _create_logs(name: str) -> None:
    op.create_table(
        name,
        *_log_columns(),
        sa.PrimaryKeyConstraint("id", name="error_logs_pkey"),
        sa.CheckConstraint(_SEVERITIES, name="error_logs_severity_check"),
    )


def _index_logs() -> None:
    newest_first: list[Any] = [sa.text("timestamp DESC"), sa.text("id DESC")]
    true = "true" if _is_postgres() else "1"
    wanted: tuple[tuple[str, list[Any], str | None], ...] = (
        ("idx_error_logs_timestamp", newest_first, None),
        ("idx_error_logs_group", ["group_id", sa.text("timestamp DESC")], None),
        ("idx_error_logs_severity", ["severity", sa.text("timestamp DESC")], None),
        ("idx_error_logs_category", ["category", sa.text("timestamp DESC")], None),
        ("idx_error_logs_settled", newest_first, f"resolved IS {true}"),
        ("idx_error_logs_unsettled", ["group_id", "timestamp"], f"resolved IS NOT {true}"),
    )
    for name, columns, where in wanted:
        only = sa.text(where) if where else None
        op.create_index(name, _LOGS, columns, postgresql_where=only, sqlite_where=only)


def _adopt_on_postgres() -> None:
    """
    Add what is missing; no row is rewritten, since constant defaults cost PostgreSQL nothing.

    Rows that stand there read ``group_id`` as the default it is added with, which is then taken away:
    what is inserted from now on has none.
    """
    connection = op.get_bind()
    columns = {column["name"]: column for column in sa.inspect(connection).get_columns(_LOGS)}
    checks = connection.scalars(
        sa.text(
            "SELECT conname FROM pg_constraint c"
            " JOIN pg_attribute a ON a.attrelid = c.conrelid AND c.conkey = ARRAY[a.attnum]"
            " WHERE c.contype = 'c' AND c.conrelid = 'error_logs'::regclass AND a.attname = 'category'"
        )
    ).all()
    for column in _log_columns():
        if column.name not in columns:
            column.server_default = sa.DefaultClause(BEFORE) if column.name == "group_id" else column.server_default
            op.add_column(_LOGS, column)
        elif column.server_default is not None and columns[column.name]["default"] is None:
            op.alter_column(_LOGS, column.name, server_default=column.server_default.arg)  # type: ignore[attr-defined]
    op.alter_column(_LOGS, "group_id", server_default=None)
    for name in checks:
        op.drop_constraint(name, _LOGS)
    if not is_large(connection):
        for name in _REPLACED:
            op.execute(f"DROP INDEX IF EXISTS {name}")


def _adopt_on_sqlite() -> None:
    """SQLite can change neither a CHECK nor a default: the rows move into a new table of the same name."""
    connection = op.get_bind()
    ours = {column.name for column in _log_columns()}
    columns = sa.inspect(connection).get_columns(_LOGS)
    indexes = connection.scalars(
        sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'error_logs' AND sql IS NOT NULL")
    ).all()
    _create_logs("tocsin_adopted")
    for column in columns:
        if column["name"] not in ours:
            op.add_column("tocsin_adopted", sa.Column(column["name"], column["type"]))
    names = ", ".join(f'"{column["name"]}"' for column in columns)
    grouped = "" if any(column["name"] == "group_id" for column in columns) else ", group_id"
    before = grouped and f", '{BEFORE}'"
    op.execute(
        f"INSERT INTO tocsin_adopted ({names}{grouped}) SELECT {names}{before} FROM {_LOGS}"  # noqa: S608
    )
    op.drop_table(_LOGS)
    op.rename_table("tocsin_adopted", _LOGS)
    for statement in indexes:
        if not any(name in statement for name in _REPLACED):
            connection.exec_driver_sql(statement)


def _create_groups() -> None:
    _table(
        "error_groups",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer()),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("culprit", sa.Text()),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("exception_type", sa.Text()),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("first_seen", UtcTime(), nullable=False),
        sa.Column("last_seen", UtcTime(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.Column("users", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("resolved_at", UtcTime()),
        sa.Column("resolved_by", sa.Text()),
        sa.Column("resolved_in_release", sa.Text()),
        sa.Column("muted_until", UtcTime()),
        sa.Column("mute_until_count", sa.BigInteger()),
        sa.Column("regressions", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("last_release", sa.Text()),
        sa.Column("last_error_id", Id()),
        sa.Column("mark", sa.Text()),
        sa.Column("marked_at", UtcTime()),
        sa.Column("rows_pending", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("number"),
    )
    _index("idx_error_groups_marked", "error_groups", ["marked_at"], "marked_at IS NOT NULL")
    _index("idx_error_groups_last_seen", "error_groups", [sa.text("last_seen DESC"), sa.text("id DESC")])
    _index("idx_error_groups_pending", "error_groups", ["id"], "rows_pending" if _is_postgres() else "rows_pending = 1")
    _index("idx_error_groups_muted", "error_groups", ["id"], "status = 'muted'")
    _index("idx_error_groups_regressed", "error_groups", ["id"], "resolved_at IS NOT NULL AND status <> 'resolved'")


def _create_counts() -> None:
    _table(
        "error_counts",
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("hour", UtcTime(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("group_id", "hour"),
    )
    _table(
        "hourly_totals",
        sa.Column("hour", UtcTime(), nullable=False),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", "severity", "category", "service", "environment"),
    )


def _create_alerts() -> None:
    _table(
        "alerts",
        sa.Column("id", Id(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("group_id", sa.Text()),
        sa.Column("severity", sa.Text(), nullable=False),
        sa.Column("service", sa.Text()),
        sa.Column("environment", sa.Text()),
        sa.Column("details", Json, nullable=False),
        sa.Column("dedupe_key", sa.Text()),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dedupe_key"),
    )
    _index("idx_alerts_created", "alerts", [sa.text("created_at DESC"), sa.text("id DESC")])
    _index("idx_alerts_group", "alerts", ["group_id", sa.text("created_at DESC")])
    _table(
        "deliveries",
        sa.Column("id", Id(), nullable=False),
        sa.Column("alert_id", Id(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("next_attempt_at", UtcTime(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("claimed_by", sa.Text()),
        sa.Column("claimed_until", UtcTime()),
        sa.Column("fence", sa.Integer(), nullable=False, server_default=sa.text("0")),
        sa.Column("external_id", sa.Text()),
        sa.Column("sent_at", UtcTime()),
        sa.Column("last_error", sa.Text()),
        sa.Column("may_repeat", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("edit_wanted_at", UtcTime()),
        sa.Column("edited_at", UtcTime()),
        sa.Column("log", Json, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("alert_id", "channel", "target", name="uq_deliveries_alert_channel_target"),
    )
    _index("idx_deliveries_due", "deliveries", ["next_attempt_at"], "state IN ('pending', 'sending')")
    _index("idx_deliveries_edit", "deliveries", ["edit_wanted_at"], "edit_wanted_at IS NOT NULL")
    _index("idx_deliveries_sent", "deliveries", ["channel", "target", "sent_at"])
    _index("idx_deliveries_edited", "deliveries", ["channel", "target", "edited_at"])
    _table(
        "channel_states",
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("paused_until", UtcTime()),
        sa.Column("parked_reason", sa.Text()),
        sa.Column("moved_to", sa.Text()),
        sa.Column("last_ok_at", UtcTime()),
        sa.Column("last_error_at", UtcTime()),
        sa.Column("last_error", sa.Text()),
        sa.PrimaryKeyConstraint("channel", "target"),
    )


def _create_the_rest() -> None:
    _table(
        "instances",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("release", sa.Text()),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=False),
        sa.Column("last_seen", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime()),
        sa.Column("ended_how", sa.Text()),
        sa.Column("python_version", sa.Text()),
        sa.Column("memory_bytes", sa.BigInteger()),
        sa.Column("active_requests", sa.Integer()),
        sa.Column("is_shutting_down", sa.Boolean(), nullable=False, server_default=sa.text("false")),
        sa.Column("spool_bytes", sa.BigInteger()),
        sa.Column("lost", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("id"),
    )
    _table(
        "releases",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("release", sa.Text(), nullable=False),
        sa.Column("first_seen", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("service", "release"),
    )
    _table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text()),
        sa.Column("detail", sa.Text()),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _index("idx_audit_target", "audit", ["target", "id"])
    _index("idx_audit_actor", "audit", ["actor", "at"])
    _table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    _table(
        "spool_progress",
        sa.Column("segment", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("segment"),
    )
    _table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    _table(
        "credentials",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("rights", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime()),
        sa.Column("last_used_at", UtcTime()),
        sa.PrimaryKeyConstraint("id"),
    )


def _compress_stacks() -> None:
    """lz4, where the server was built with it: several times faster than the default, for text like this."""
    has_lz4 = "SELECT 'lz4' = ANY(enumvals) FROM pg_settings WHERE name = 'default_toast_compression'"
    if op.get_bind().scalar(sa.text(has_lz4)):
        op.execute(f"ALTER TABLE {_LOGS} ALTER COLUMN stack SET COMPRESSION lz4")
