"""Lists, statistics and charts say the same on both databases."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, event

from tests.conftest import NOW, ErrorFactory
from tocsin.failures import BadInput, NotFound
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Batch, ErrorRecord, Instance, Severity
from tocsin.store import Store, errors, groups, open_store, queries

HOUR = timedelta(hours=1)


async def put(store: Store, now: datetime, *entries: ErrorRecord) -> None:
    await store.write(errors.write_batch, Batch(entries=list(entries)), now)


async def messages(store: Store, **filters: object) -> list[str]:
    rows, _ = await store.read(queries.list_errors, **filters)  # type: ignore[arg-type]
    return [row["message"] for row in rows]


async def test_errors_come_newest_first(store: Store, error: ErrorFactory, now: datetime) -> None:
    """However they arrive."""
    await put(
        store,
        now,
        error(message="second", timestamp=now - HOUR),
        error(message="first", timestamp=now),
        error(message="third", timestamp=now - 2 * HOUR),
    )

    assert await messages(store) == ["first", "second", "third"]


async def test_a_page_continues_where_the_one_before_ended(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Also among errors of one moment, and while new ones arrive."""
    await put(store, now, *(error(message=str(number)) for number in range(7)))

    first, following = await store.read(queries.list_errors, limit=3)
    await put(store, now, error(message="late", timestamp=now + HOUR))
    second, following = await store.read(queries.list_errors, limit=3, before=following)
    third, end = await store.read(queries.list_errors, limit=3, before=following)

    assert [row["message"] for row in first + second + third] == ["6", "5", "4", "3", "2", "1", "0"]
    assert end is None


@pytest.mark.parametrize("damage", ["x", "", "é", "AAAA", "%00"])
async def test_a_damaged_cursor_is_refused_by_name(
    store: Store, error: ErrorFactory, now: datetime, damage: str
) -> None:
    """A wrong page would be worse than none."""
    await put(store, now, error(), error())
    _, following = await store.read(queries.list_errors, limit=1)
    assert following

    with pytest.raises(BadInput, match="before"):
        await store.read(queries.list_errors, before=damage + following[1:])


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"category": "database"}, ["a"]),
        ({"severity": "critical"}, ["a"]),
        ({"service": "worker"}, ["b"]),
        ({"environment": "staging"}, ["c 100%"]),
        ({"q": "C 100%"}, ["c 100%"]),
        ({"q": "0_"}, []),
        ({"category": "database", "severity": "low"}, []),
        ({"group": 1}, ["a"]),
        ({"group": 99}, []),
        ({"q": "'; drop table error_logs; --"}, []),
    ],
)
async def test_every_filter_takes_effect(
    store: Store, error: ErrorFactory, now: datetime, filters: dict[str, object], found: list[str]
) -> None:
    """A text to look for is taken literally, in upper and lower case."""
    await put(store, now, error("A", message="a", category="database", severity=Severity.CRITICAL))
    await put(store, now, error("B", message="b", service="worker"))
    await put(store, now, error("C", message="c 100%", environment="staging"))

    assert await messages(store, **filters) == found


@pytest.mark.parametrize("q", ["ошибка", "ОШИБКА СЕТИ"])
async def test_a_text_is_found_in_upper_and_lower_case_of_any_alphabet(
    q: str, sqlite_url: str, error: ErrorFactory, now: datetime
) -> None:
    """SQLite folds A to Z by itself; PostgreSQL does as the locale of its database says."""
    store = open_store(sqlite_url)
    await put(store, now, error(message="Ошибка сети", title="Ошибка сети"), error("B", message="other", title="B"))

    found, _ = await store.read(groups.list_groups, q=q)

    assert await messages(store, q=q) == ["Ошибка сети"]
    assert [group.title for group in found] == ["Ошибка сети"]
    await store.close()


async def test_since_includes_its_moment(store: Store, error: ErrorFactory, now: datetime) -> None:
    await put(store, now, error(message="at"), error(message="before", timestamp=now - timedelta(microseconds=1)))

    assert await messages(store, since=now) == ["at"]


async def test_a_resolved_group_shows_in_its_rows_at_once(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Before the rows themselves have followed; what came after the resolve is not resolved."""
    await put(store, now, error(message="old"))
    await store.write(groups.act, 1, Trigger.RESOLVE, by="anna", via="api", now=now + HOUR)
    await put(store, now, error(message="new", timestamp=now + 2 * HOUR))

    assert await messages(store, resolved=True) == ["old"]
    assert await messages(store, resolved=False) == ["new"]
    (row,), _ = await store.read(queries.list_errors, resolved=True)
    assert row["resolved"] is True
    assert row["resolved_at"] == now + HOUR


async def test_a_reopened_group_shows_in_its_rows_at_once(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Also when the rows were marked as resolved and are not yet marked otherwise."""
    await put(store, now, error())
    await store.write(groups.act, 1, Trigger.RESOLVE, by="anna", via="api", now=now)
    await store.write(groups.settle_rows)
    await store.write(groups.act, 1, Trigger.REOPEN, by="anna", via="api", now=now)

    (row,), _ = await store.read(queries.list_errors, resolved=False)

    assert (row["resolved"], row["resolved_at"]) == (False, None)


async def test_a_row_has_the_columns_of_the_table_and_its_groups_number(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    entry = error(context={"user_id": "u7", "nested": {"list": [1, None]}}, trace_id="ab" * 16, count=3)
    await put(store, now, entry)

    row = await store.read(queries.get_error, entry.id)

    assert row["id"] == entry.id
    assert row["timestamp"] == now
    assert row["context"] == {"user_id": "u7", "nested": {"list": [1, None]}}
    assert (row["count"], row["trace_id"], row["group"], row["resolved"]) == (3, "ab" * 16, 1, False)


@pytest.mark.parametrize("error_id", ["", "x", "0190d0c0-0000-7000-8000-000000000000", "1; drop table", "\x00"])
async def test_what_is_no_error_is_not_found(store: Store, error_id: str) -> None:
    """The same answer for no id and for an unknown one, on both databases."""
    with pytest.raises(NotFound):
        await store.read(queries.get_error, error_id)


async def test_statistics_add_up(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Every hour that the period touches is there, with zeros."""
    await put(
        store,
        now,
        error("A", severity=Severity.CRITICAL, category="database", count=40),
        error("B", timestamp=now - 3 * HOUR),
        error("C", timestamp=now - 30 * HOUR, service="worker"),
    )

    found = await store.read(queries.stats, 24, now)

    assert found.total == 41
    assert found.by_severity == {"critical": 40, "high": 1}
    assert found.by_category == {"database": 40, "unknown": 1}
    assert found.by_service == {"shop": 41}
    assert len(found.by_hour) == 25
    counts = {hour: sum(by_severity.values()) for hour, by_severity in found.by_hour}
    assert counts[queries.floor_hour(now)] == 40
    assert counts[queries.floor_hour(now) - 3 * HOUR] == 1
    assert sum(counts.values()) == found.total
    assert found.unresolved == 42


async def test_statistics_may_be_of_one_service(store: Store, error: ErrorFactory, now: datetime) -> None:
    await put(store, now, error("A"), error("B", service="worker", count=2))

    found = await store.read(queries.stats, 1, now, service="worker")

    assert (found.total, found.unresolved) == (2, 2)


async def test_unresolved_counts_what_came_after_a_resolve(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A group that came back has only its later errors open."""
    await put(store, now, error("A", count=5))
    await put(store, now, error("B"))
    await store.write(groups.act, 1, Trigger.RESOLVE, by="anna", via="api", now=now + HOUR)
    before = await store.read(queries.unresolved)

    await put(store, now, error("A", timestamp=now + 2 * HOUR, count=2))

    assert before == 1
    assert await store.read(queries.unresolved) == 3


@pytest.mark.parametrize(
    ("work", "index"),
    [
        (lambda connection: queries.list_errors(connection, severity="critical"), "idx_error_logs_severity"),
        (lambda connection: queries.list_errors(connection, category="amocrm"), "idx_error_logs_category"),
        (lambda connection: queries.list_errors(connection, resolved=True), "idx_error_logs_settled"),
        (queries.unresolved, "idx_error_groups_regressed"),
        (groups.settle_rows, "idx_error_groups_pending"),
        (lambda connection: groups.expire_mutes(connection, NOW), "idx_error_groups_muted"),
        (lambda connection: groups.is_work_waiting(connection, NOW), "idx_error_groups_pending"),
    ],
)
def test_a_question_reads_no_whole_table(work: Callable[[Connection], Any], index: str, sqlite_url: str) -> None:
    """SQLite takes a partial index only for a query in the same words; a million rows would tell."""
    store = open_store(sqlite_url)
    statements: list[tuple[str, Any]] = []

    def plans(connection: Connection) -> str:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append((args[2], args[3])))
        work(connection)
        return "\n".join(
            row[3]
            for statement, parameters in list(statements)
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        )

    assert index in store.write_now(plans)
    store.close_now()


async def test_recent_gives_the_newest_and_how_many(store: Store, error: ErrorFactory, now: datetime) -> None:
    await put(store, now, error(message="newest", count=3), error(timestamp=now - 2 * HOUR))

    found = await store.read(queries.recent, now - HOUR)

    assert found.count == 3
    assert found.last is not None
    assert found.last["message"] == "newest"
    assert (await store.read(queries.recent, now + HOUR)) == queries.Recent(count=0, last=None)


async def test_a_sparkline_has_every_hour(store: Store, error: ErrorFactory, now: datetime) -> None:
    await put(store, now, error(count=2), error(timestamp=now - HOUR))
    group = await store.read(groups.by_number, 1)

    hours = (await store.read(queries.group_hours, [group.id, "unknown"], 24, now))[group.id]

    assert len(hours) == 24
    assert [count for _, count in hours[-3:]] == [0, 1, 2]


async def test_groups_are_counted_by_status(store: Store, error: ErrorFactory, now: datetime) -> None:
    await put(store, now, error("A"), error("B"))
    await store.write(groups.act, 1, Trigger.IGNORE, by="anna", via="api", now=now)

    counts = await store.read(queries.group_counts)

    assert (counts[Status.OPEN], counts[Status.IGNORED], counts[Status.MUTED]) == (1, 1, 0)


async def test_a_probe_writes_again_and_again(store: Store, now: datetime) -> None:
    await store.write(queries.probe_write, now)
    await store.write(queries.probe_write, now + HOUR)


async def test_instances_alive_come_first(store: Store, now: datetime) -> None:
    for name, ended_at in (("dead", now), ("alive", None)):
        instance = Instance(
            id=name,
            service="shop",
            environment="production",
            release=None,
            host="web-1",
            pid=41,
            started_at=now - HOUR,
            ended_at=ended_at,
        )
        await store.write(errors.write_instance, instance, now)

    assert [row["id"] for row in await store.read(queries.list_instances)] == ["alive", "dead"]
