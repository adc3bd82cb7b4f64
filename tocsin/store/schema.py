"""
The tables, once for both databases.

On PostgreSQL all but ``error_logs`` live in the schema ``tocsin``; SQLite has no schemas, and an
engine for it drops the name. Times are UTC; on SQLite they are ISO-8601 text with microseconds and
ids are hyphenated text, so that any SQL tool can read them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

from tocsin import packing, semconv

SCHEMA = "tocsin"

BEFORE = "before"
"""The ``group_id`` of rows that stood in an early table when it was adopted, until they are grouped."""

REFUSED = "refused"
"""The ``group_id`` of rows of other programs that could not be grouped; they stay as they are."""


class UtcTime(TypeDecorator[datetime]):
    """An aware `datetime`: ``timestamptz`` on PostgreSQL, ISO-8601 text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(32) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone")
        value = value.astimezone(UTC)
        return value.isoformat(timespec="microseconds") if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        # Another program may have written anything into SQLite; a list shows its row all the same.
        return None if value is None else read_time(value) or _NO_TIME


_NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def read_time(value: object) -> datetime | None:
    """A time as the database has it: text of SQLite in any ISO form, or seconds; None where it is none."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float):
            seconds = value / 1000 if value > 1e11 else value  # JavaScript counts in milliseconds
            value = datetime.fromtimestamp(seconds, UTC)
        if isinstance(value, datetime):
            return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


class Id(TypeDecorator[str]):
    """A UUID, in Python always hyphenated text; a column of type ``uuid`` on PostgreSQL."""

    impl = Uuid(as_uuid=False)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(String(36) if dialect.name == "sqlite" else Uuid(as_uuid=False))


Json = JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


class Context(TypeDecorator[dict[str, Any]]):
    """What an error's context is: JSON, its frames packed where a stack's text says the same."""

    impl = Json
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if isinstance(value, dict) and isinstance(packed := value.get(semconv.FRAMES), str):
            value[semconv.FRAMES] = packing.unpack(packed)
        return value


_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER keys by itself

metadata = MetaData()


def _table(name: str, *parts: Any) -> Table:
    return Table(name, metadata, *parts, schema=SCHEMA)


def _few(name: str, column: str, *, where: str) -> Index:
    return Index(name, column, sqlite_where=text(where), postgresql_where=text(where))


# The defaults below are the early table's (see the first migration): other programs insert with the
# early columns alone, and go on working.
error_logs = Table(
    "error_logs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("timestamp", UtcTime, nullable=False),
    Column("severity", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("stack", Text),
    Column("context", Context),
    Column("environment", Text, nullable=False, server_default=text("'development'")),
    Column("resolved", Boolean, server_default=text("false")),
    Column("resolved_at", UtcTime),
    Column("created_at", UtcTime),
    Column("group_id", Text),
    Column("count", Integer, nullable=False, server_default=text("1")),
    Column("service", Text),
    Column("release", Text),
    Column("exception_type", Text),
    Column("trace_id", Text),
    Column("span_id", Text),
    Column("handled", Boolean),
    Column("mechanism", Text),
    Column("instance_id", Text),
    Index("idx_error_logs_timestamp", text("timestamp DESC"), text("id DESC")),
    Index("idx_error_logs_group", "group_id", text("timestamp DESC")),
    # What other programs have inserted a moment ago; as good as empty.
    Index(
        "idx_error_logs_untaken",
        "timestamp",
        sqlite_where=text("group_id IS NULL"),
        postgresql_where=text("group_id IS NULL"),
    ),
    Index("idx_error_logs_severity", "severity", text("timestamp DESC")),
    Index("idx_error_logs_category", "category", text("timestamp DESC")),
    # Every row is in one of these two: a list of what is resolved, and what a resolve has yet to mark.
    # SQLite takes an index only for a query in the same words, and has 1 for true.
    Index(
        "idx_error_logs_settled",
        text("timestamp DESC"),
        text("id DESC"),
        sqlite_where=text("resolved IS 1"),
        postgresql_where=text("resolved IS true"),
    ),
    Index(
        "idx_error_logs_unsettled",
        "group_id",
        "timestamp",
        sqlite_where=text("resolved IS NOT 1"),
        postgresql_where=text("resolved IS NOT true"),
    ),
)

error_groups = _table(
    "error_groups",
    Column("id", Text, primary_key=True),  # hash of fingerprint, service and environment
    Column("number", Integer, unique=True),
    Column("fingerprint", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("culprit", Text),
    Column("service", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("exception_type", Text),
    Column("severity", Text, nullable=False),
    Column("category", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("first_seen", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("count", BigInteger, nullable=False, server_default=text("0")),
    Column("users", Integer, nullable=False, server_default=text("0")),
    Column("resolved_at", UtcTime),
    Column("resolved_by", Text),
    Column("resolved_in_release", Text),
    Column("muted_until", UtcTime),
    Column("mute_until_count", BigInteger),
    Column("regressions", Integer, nullable=False, server_default=text("0")),
    Column("last_release", Text),
    Column("last_error_id", Id),  # the newest full error: what a message and a page show
    # The mark for alerts: set in the transaction that stores an error or an act, cleared in the
    # transaction that decides. `mark` keeps the strongest reason, see `groups.Mark`.
    Column("mark", Text),
    Column("marked_at", UtcTime),
    # Resolving is true at once for the group; its rows follow in chunks while this is set.
    Column("rows_pending", Boolean, nullable=False, server_default=text("false")),
    Index(
        "idx_error_groups_marked",
        "marked_at",
        sqlite_where=text("marked_at IS NOT NULL"),
        postgresql_where=text("marked_at IS NOT NULL"),
    ),
    Index("idx_error_groups_last_seen", text("last_seen DESC"), text("id DESC")),
    # The few groups that wait for something, which is looked for every few seconds.
    Index(
        "idx_error_groups_pending", "id", sqlite_where=text("rows_pending = 1"), postgresql_where=text("rows_pending")
    ),
    _few("idx_error_groups_muted", "id", where="status = 'muted'"),
    _few("idx_error_groups_regressed", "id", where="resolved_at IS NOT NULL AND status <> 'resolved'"),
)

error_counts = _table(
    "error_counts",
    Column("group_id", Text, primary_key=True),
    Column("hour", UtcTime, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

hourly_totals = _table(
    "hourly_totals",
    Column("hour", UtcTime, primary_key=True),
    Column("severity", Text, primary_key=True),
    Column("category", Text, primary_key=True),
    Column("service", Text, primary_key=True),
    Column("environment", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

alerts = _table(
    "alerts",
    Column("id", Id, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    Column("reason", Text, nullable=False),  # new, regressed, critical, unmuted, fold, test
    Column("group_id", Text),  #               None for a fold and for what is about tocsin itself
    Column("severity", Text, nullable=False),
    Column("service", Text),
    Column("environment", Text),
    Column("details", Json, nullable=False),  # what a message needs besides the group: a fold's groups
    Column("dedupe_key", Text, unique=True),  # two leaders for a moment still make one alert
    Index("idx_alerts_created", text("created_at DESC"), text("id DESC")),
    Index("idx_alerts_group", "group_id", text("created_at DESC")),
)

deliveries = _table(
    "deliveries",
    Column("id", Id, primary_key=True),
    Column("alert_id", Id, nullable=False),
    Column("channel", Text, nullable=False),  # telegram, email, webhook, console
    Column("target", Text, nullable=False),  #  a chat, an address
    Column("state", Text, nullable=False),  #   pending, sending, sent, failed
    Column("priority", Integer, nullable=False),  # severity's rank; higher goes first
    Column("created_at", UtcTime, nullable=False),
    Column("next_attempt_at", UtcTime, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("claimed_by", Text),
    Column("claimed_until", UtcTime),
    Column("fence", Integer, nullable=False, server_default=text("0")),  # grows with each claim
    Column("external_id", Text),  #             Telegram's message id
    Column("sent_at", UtcTime),
    Column("last_error", Text),
    Column("may_repeat", Boolean, nullable=False, server_default=text("false")),
    Column("edit_wanted_at", UtcTime),  #       the message no longer says how things stand; edit it then
    Column("edited_at", UtcTime),
    Column("log", Json, nullable=False),  #     the last attempts: [{at, outcome, error}]
    UniqueConstraint("alert_id", "channel", "target", name="uq_deliveries_alert_channel_target"),
    Index(
        "idx_deliveries_due",
        "next_attempt_at",
        sqlite_where=text("state IN ('pending', 'sending')"),
        postgresql_where=text("state IN ('pending', 'sending')"),
    ),
    Index(
        "idx_deliveries_edit",
        "edit_wanted_at",
        sqlite_where=text("edit_wanted_at IS NOT NULL"),
        postgresql_where=text("edit_wanted_at IS NOT NULL"),
    ),
    Index("idx_deliveries_sent", "channel", "target", "sent_at"),
    Index("idx_deliveries_edited", "channel", "target", "edited_at"),
)

channel_states = _table(
    "channel_states",
    Column("channel", Text, primary_key=True),
    Column("target", Text, primary_key=True),
    Column("paused_until", UtcTime),  #         it asked us to wait
    Column("parked_reason", Text),  #           it refused for good; nothing is sent until someone mends it
    Column("moved_to", Text),  #                a group became a supergroup: its new id
    Column("last_ok_at", UtcTime),
    Column("last_error_at", UtcTime),
    Column("last_error", Text),
)

_LIVING = text("ended_at IS NULL")
_SILENT = text("silent_error_id IS NOT NULL")

instances = _table(
    "instances",
    Column("id", Text, primary_key=True),
    Column("service", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("release", Text),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("last_seen", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("ended_how", Text),
    Column("python_version", Text),
    Column("memory_bytes", BigInteger),
    Column("active_requests", Integer),
    Column("is_shutting_down", Boolean, nullable=False, server_default=text("false")),
    Column("spool_bytes", BigInteger),
    Column("loop_lag_ms", Integer),
    Column("memory_limit_bytes", BigInteger),
    Column("memory_trend", BigInteger),
    Column("lost", BigInteger, nullable=False, server_default=text("0")),
    Column("beats_every_s", Double),  #  how often its row is made anew at the least; 0 or NULL: nobody promises that
    Column("silent_error_id", Id),  #    the error that tells of its silence; NULL while there is nothing to tell
    Index("idx_instances_living", "last_seen", postgresql_where=_LIVING, sqlite_where=_LIVING),
    Index("idx_instances_silent", "silent_error_id", postgresql_where=_SILENT, sqlite_where=_SILENT),
)

# What a service does in the end for a person: see `tocsin.store.jobs`.
jobs = _table(
    "jobs",
    Column("id", Id, primary_key=True),
    Column("number", Integer, unique=True),  #   what people say: job 7
    Column("status", Text, nullable=False),  #   failed, running, done, discarded
    Column("failed_at", UtcTime, nullable=False),
    Column("service", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("release", Text),
    Column("category", Text),
    Column("function", Text, nullable=False),
    Column("file", Text),
    Column("folder", Text),
    Column("arguments", Json, nullable=False),
    Column("changed", Json, nullable=False),  #  arguments that are not what they were: it cannot be run again
    Column("attempts", Json, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("exception_type", Text),
    Column("message", Text, nullable=False),
    Column("error_id", Id),
    Column("instance_id", Text),
    Column("acted_at", UtcTime),
    Column("acted_by", Text),
    Column("outcome", Text),  #                  what the last run again has come to
    Index("idx_jobs_failed", text("failed_at DESC"), text("id DESC")),
    _few("idx_jobs_waiting", "service", where="status IN ('failed', 'running')"),
)

beats = _table(
    "beats",
    Column("environment", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("service", Text),
    Column("every_s", Double, nullable=False),
    Column("grace_s", Double, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("last_at", UtcTime, nullable=False),  #  of the last sign of life, good or bad
    Column("last_ok_at", UtcTime),
    Column("due_at", UtcTime, nullable=False),  #   the next one is missing when this is over
    Column("is_ok", Boolean, nullable=False),
    Column("took_s", Double),
    Column("message", Text),
    Column("error_id", Id),  #                      the error that tells of what is wrong; None while all is well
    Column("told", Text),  #                        what it tells: missing, failed
    Column("told_at", UtcTime),  #                  … and of which sign of life: its `last_at`
    Index("idx_beats_due", "due_at"),
)

dependencies = _table(
    "dependencies",
    Column("instance_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("service", Text, nullable=False),
    Column("environment", Text, nullable=False),
    Column("is_away", Boolean, nullable=False),
    Column("is_optional", Boolean, nullable=False),
    Column("since", UtcTime, nullable=False),
    Column("problem", Text),
)

releases = _table(
    "releases",
    Column("service", Text, primary_key=True),
    Column("release", Text, primary_key=True),
    Column("first_seen", UtcTime, nullable=False),
)

audit = _table(
    "audit",
    Column("id", _Serial, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("actor", Text, nullable=False),  #   "@anna (17)", "cli: root", "token: full"
    Column("via", Text, nullable=False),  #     telegram, api, page, cli
    Column("action", Text, nullable=False),  #  resolve, log-in, refused, …
    Column("target", Text),  #                  "#42"
    Column("detail", Text),
    Column("allowed", Boolean, nullable=False),
    Index("idx_audit_target", "target", "id"),
    Index("idx_audit_actor", "actor", "at"),
)

leases = _table(
    "leases",
    Column("name", Text, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("term", BigInteger, nullable=False),
    Column("expires", Double, nullable=False),  # seconds since the epoch, by the database's clock
)

spool_progress = _table(
    "spool_progress",
    Column("segment", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),  # bytes of the segment that are stored
    Column("updated_at", UtcTime, nullable=False),
)

# What came by HTTP may come again: a retry, the spans that an error passed through, a batch sent twice.
received = _table(
    "received",
    Column("id", Id, primary_key=True),
    Column("received_at", UtcTime, nullable=False),
    Index("idx_received_at", "received_at"),
)

# What is said of errors that have not come yet: by another server, or from one that was killed.
held = _table(
    "held",
    Column("id", _Serial, primary_key=True),
    Column("error_id", Id, nullable=False),
    Column("content", Json, nullable=False),  # of a `model.Amendment` or of `model.Repeats`
    Column("held_at", UtcTime, nullable=False),
    Index("idx_held_error", "error_id"),
)

counters = _table(
    "counters",
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

credentials = _table(
    "credentials",
    Column("id", Text, primary_key=True),  #    SHA-256 of the secret, which is shown once and kept nowhere
    Column("kind", Text, nullable=False),  #    token, session, code (a log-in address, for one use)
    Column("rights", Text, nullable=False),  #  full, read, ingest
    Column("label", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
)
