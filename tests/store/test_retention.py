"""Growth is bounded: what goes, what stays, and that nobody waits for it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, func, insert, select, text, update

from tests.conftest import ErrorFactory
from tocsin import ids
from tocsin.failures import StoreAway
from tocsin.lifecycle import Trigger
from tocsin.model import Batch, ErrorRecord, Repeats
from tocsin.store import Store, errors, groups, open_store, queries, retention, schema
from tocsin.store.alerts import add_alert, add_deliveries
from tocsin.store.groups import Group
from tocsin.store.retention import ERRORS, Policy, Run, Task, work
from tocsin.store.retention.work import BUDGET_S, Pace

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
MOMENT = timedelta(microseconds=1)
MONTH = Policy(days=30)


async def prune(store: Store, now: datetime, policy: Policy = MONTH, *tasks: Task) -> Counter[Task]:
    """A whole run, as the server does it."""
    run = Run(policy, tasks or tuple(Task))
    while run.task is not None:
        run.note(await store.write(run.chunk, now))
    return +run.removed


async def put(store: Store, *entries: Any, stored_at: datetime) -> None:
    await store.write(errors.write_batch, Batch(entries=list(entries)), stored_at)


async def ids_in(store: Store) -> list[str]:
    def work(connection: Connection) -> list[str]:
        logs = schema.error_logs.c
        return list(connection.execute(select(logs.id).order_by(logs.timestamp, logs.id)).scalars())

    return await store.read(work)


async def rows_in(store: Store, table: Any) -> int:
    def work(connection: Connection) -> int:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()

    return await store.read(work)


async def sums(store: Store) -> dict[str, int]:
    """What all counts say, each in its own words."""

    def work(connection: Connection) -> dict[str, int]:
        tables = (schema.error_counts, schema.hourly_totals, schema.error_groups, schema.error_logs)
        return {
            table.name: int(connection.execute(select(func.coalesce(func.sum(table.c.count), 0))).scalar_one())
            for table in tables
        }

    return await store.read(work)


def storm(
    error: ErrorFactory, hour: datetime, number: int, exception_type: str = "KeyError", **values: Any
) -> list[ErrorRecord]:
    """So many errors of one group within an hour, in order."""
    return [
        error(exception_type, timestamp=hour + index * (HOUR / number), message=str(index), **values)
        for index in range(number)
    ]


# Age


async def test_errors_older_than_the_retention_go(store: Store, error: ErrorFactory, now: datetime) -> None:
    """And not a moment before; the counts tell of them all the same."""
    old = [error(timestamp=now - 30 * DAY - MOMENT - number * HOUR) for number in range(60)]
    young = error(timestamp=now - 30 * DAY)
    await put(store, *old, young, stored_at=now - 30 * DAY)
    before = await sums(store)

    assert await prune(store, now) == {Task.AGE: 60}
    assert await ids_in(store) == [young.id]
    assert await sums(store) == before | {"error_logs": 1}


async def test_what_has_just_been_stored_stays_however_old(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Its repeats come right behind it, and need its row."""
    late = error(timestamp=now - 40 * DAY)
    await put(store, late, stored_at=now)
    await prune(store, now)
    repeats = Repeats(error_id=late.id, count=7, timestamp=late.timestamp + MINUTE)
    await put(store, repeats, stored_at=now + MINUTE)

    assert (await sums(store))["error_counts"] == 8
    assert await prune(store, now + HOUR + MOMENT) == {Task.AGE: 1}


async def early_row(store: Store, now: datetime, **values: Any) -> str:
    """A row as another program inserts it."""
    row = {"id": ids.uuid7(), "severity": "high", "category": "api", "message": "boom", "timestamp": now}
    await store.write(lambda connection: connection.execute(insert(schema.error_logs).values(**row | values)))
    return str(row["id"])


async def test_rows_of_an_early_table_are_subject_too(store: Store, now: datetime) -> None:
    """Whether or not anybody knows when they were stored, or of which group they are."""
    await early_row(store, now, timestamp=now - 31 * DAY, created_at=None)
    await early_row(store, now, timestamp=now - 31 * DAY, created_at=now - 31 * DAY, group_id="of before")
    young = await early_row(store, now, timestamp=now - DAY, created_at=None)

    assert await prune(store, now) == {Task.AGE: 2}
    assert await ids_in(store) == [young]


def id_of(moment: datetime) -> str:
    return ids.uuid7(round(moment.timestamp()) * 10**9)


@pytest.mark.parametrize(
    ("error_id", "stored_at", "stays"),
    [
        (None, -31 * DAY, False),
        (None, -29 * DAY, True),
        (-31 * DAY, None, False),
        (-29 * DAY, None, True),
        ("7d3f3a52-0c8e-4f0e-9e39-0f6a1f0b5a01", None, True),  # nobody knows
    ],
)
async def test_an_error_from_the_future_is_as_old_as_its_stay(
    store: Store, now: datetime, error_id: Any, stored_at: timedelta | None, stays: bool
) -> None:
    """A clock that was years ahead would keep it for years, at the top of every list."""
    await early_row(
        store,
        now,
        id=id_of(now + error_id) if isinstance(error_id, timedelta) else error_id or ids.uuid7(),
        timestamp=now + 9000 * DAY,
        created_at=None if stored_at is None else now + stored_at,
    )

    assert await prune(store, now) == ({} if stays else {Task.CLOCK: 1})


# So many of a group and hour


async def test_of_each_hour_the_first_errors_and_the_newest_are_kept(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """A hundred of a group; all that anything counts stays as it was."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    crowd = storm(error, hour, 250)
    few = storm(error, hour, 100, "ValueError")
    next_hour = storm(error, hour + HOUR, 101)
    await put(store, *crowd, *few, *next_hour, stored_at=hour + 2 * HOUR - MOMENT)
    before = await sums(store)

    assert await prune(store, now + HOUR) == {Task.HOURS: 151}
    kept = [*crowd[:99], crowd[-1], *few, *next_hour[:99], next_hour[-1]]
    assert set(await ids_in(store)) == {one.id for one in kept}
    assert await sums(store) == before
    assert await prune(store, now + HOUR) == {}


async def test_an_hour_is_thinned_out_an_hour_after_its_end(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Repeats and amendments on their way find their row."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    await put(store, *storm(error, hour, 150), stored_at=hour + 59 * MINUTE)

    assert await prune(store, hour + 2 * HOUR - MOMENT) == {}
    assert await prune(store, hour + 2 * HOUR) == {Task.HOURS: 50}


async def test_what_came_late_is_thinned_out_too(store: Store, error: ErrorFactory, now: datetime) -> None:
    """After an outage a spool fills hours that were looked at; not before all of it had time to come."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 2 * DAY
    await put(store, error("ValueError"), stored_at=now)
    await prune(store, now)
    late = storm(error, hour, 130)
    await put(store, *late, stored_at=now + MINUTE)

    assert await prune(store, now + HOUR) == {}
    await put(store, Repeats(error_id=late[110].id, count=5, timestamp=late[110].timestamp), stored_at=now + HOUR)
    assert await prune(store, now + HOUR + 2 * MINUTE) == {Task.HOURS: 30}
    assert len(set((await sums(store)).values())) == 1


async def test_hours_are_not_looked_at_for_ever(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Those of the days before the last run are done with."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 5 * DAY
    await prune(store, now)
    await put(store, *storm(error, hour, 130), stored_at=now - 2 * HOUR)

    assert await prune(store, now) == {}


async def test_the_error_that_people_see_of_a_group_stays(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Also where it is not the newest of its hour."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    crowd = storm(error, hour, 150)
    await put(store, *crowd, stored_at=hour + HOUR)

    def show_another(connection: Connection) -> None:
        connection.execute(update(schema.error_groups).values(last_error_id=crowd[120].id))

    await store.write(show_another)

    assert await prune(store, now) == {Task.HOURS: 49}
    assert crowd[120].id in await ids_in(store)


@pytest.mark.parametrize("resolved_after", [0, 50, 120, 149])
async def test_thinning_out_changes_nothing_of_what_is_unresolved(
    store: Store, error: ErrorFactory, now: datetime, resolved_after: int
) -> None:
    """A resolve in the midst of an hour parts its errors for good."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    crowd = storm(error, hour, 150)
    await put(store, *crowd[: resolved_after + 1], stored_at=hour + HOUR)
    moment = crowd[resolved_after].timestamp
    await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="cli", now=moment)
    await put(store, *crowd[resolved_after + 1 :], stored_at=hour + HOUR)
    before = await store.read(queries.unresolved)

    assert (await prune(store, now))[Task.HOURS] == 50
    assert await store.read(queries.unresolved) == before == 149 - resolved_after


async def test_no_table_is_read_through_for_a_few_hours(
    store: Store, error: ErrorFactory, now: datetime, database_url: str
) -> None:
    """What a run asks of the rows, an index answers."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    await put(store, *storm(error, hour, 150), *storm(error, hour - 40 * DAY, 9), stored_at=hour + HOUR)
    plans: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "error_logs" not in statement or statement.startswith("EXPLAIN"):
            return
        explain = "EXPLAIN QUERY PLAN " if connection.dialect.name == "sqlite" else "EXPLAIN "
        rows = connection.exec_driver_sql(explain + statement, parameters).all()
        plans.extend(str(row[-1]) for row in rows)

    def watched(connection: Connection, run: Run) -> retention.Chunk:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        event.listen(connection, "before_cursor_execute", note)
        try:
            return run.chunk(connection, now)
        finally:
            event.remove(connection, "before_cursor_execute", note)

    run = Run(MONTH, ERRORS)
    while run.task is not None:
        run.note(await store.write(watched, run))

    assert run.removed == {Task.AGE: 9, Task.CLOCK: 0, Task.HOURS: 50, Task.SIZE: 0}
    assert plans
    assert not [plan for plan in plans if "SCAN error_logs" in plan or "Seq Scan on error_logs" in plan]


def test_a_statement_takes_as_many_rows_as_the_database_is_quick_with() -> None:
    """It cannot be stopped halfway: where rows take long, it is for few of them."""
    pace = Pace()
    for _ in range(20):
        pace.took(pace.rows, BUDGET_S / 100)
    assert pace.rows == Pace.MOST

    pace.took(pace.rows, BUDGET_S)
    assert pace.rows == Pace.MOST // 2

    pace.took(pace.rows - 1, BUDGET_S / 100)  # there were no more, which says nothing
    assert pace.rows == Pace.MOST // 2

    for _ in range(20):
        pace.took(pace.rows, BUDGET_S)
    assert pace.rows == Pace.FEWEST


async def test_a_machine_too_slow_for_its_time_comes_to_an_end_too(
    store: Store, error: ErrorFactory, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each task something is done in each transaction, however late it is."""
    monkeypatch.setattr(work, "BUDGET_S", -1)
    await put(store, *(error(f"Error{number}", timestamp=now - 500 * DAY) for number in range(3)), stored_at=now)

    removed = await prune(store, now + 2 * HOUR)

    assert removed == {Task.AGE: 3, Task.COUNTS: 3, Task.TOTALS: 1}


# Size


def bulky(error: ErrorFactory, now: datetime, number: int, exception_type: str) -> Iterator[ErrorRecord]:
    """About 10 kB each on either database: nothing of it can be made shorter."""
    noise = Counter(range(300))
    for index in range(number):
        stack = "".join(ids.group_id(str(index), exception_type, str(line)) for line in noise)
        yield error(exception_type, timestamp=now - 10 * DAY + index * MINUTE, stack=stack)


async def fill(store: Store, error: ErrorFactory, now: datetime, megabytes: int) -> None:
    for part in range(megabytes):
        await put(store, *bulky(error, now + part * HOUR, 100, f"Error{part % 7}"), stored_at=now - 5 * DAY)


async def test_the_oldest_errors_make_room(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Until there is room for a while, and no more than that; nothing is done while there is enough."""
    await fill(store, error, now, 7)
    full = await ids_in(store)
    assert await prune(store, now, Policy(days=30, max_db_mb=16), *ERRORS) == {}

    removed = (await prune(store, now, Policy(days=30, max_db_mb=6), *ERRORS))[Task.SIZE]

    left = await ids_in(store)
    used = await store.read(retention.used_bytes)
    gone = [error_id for error_id in full if error_id not in set(left)]
    shown = {group.last_error_id for group in (await store.read(groups.list_groups))[0]}
    assert gone == [error_id for error_id in full if error_id not in shown][:removed]
    assert 5 * 2**20 < used < 6 * 2**20
    # On PostgreSQL the files are as large as before.
    assert await prune(store, now, Policy(days=30, max_db_mb=6), *ERRORS) == {}


async def test_what_people_see_of_a_group_makes_no_room(store: Store, error: ErrorFactory, now: datetime) -> None:
    """One error of each group that is not done with stays, whatever the limit."""
    await fill(store, error, now, 3)
    await store.write(groups.act, 2, Trigger.RESOLVE, by="@anna", via="cli", now=now)
    shown = {(await store.read(groups.by_number, number)).last_error_id for number in (1, 3)}

    await store.write(_all_but_done, Policy(days=30, max_db_mb=0), now)

    left = set(await ids_in(store))
    assert left >= shown if store.dialect == "postgresql" else left == shown


def _all_but_done(connection: Connection, policy: Policy, now: datetime) -> None:
    run = Run(policy, [Task.SIZE])
    while run.task is not None:
        run.note(run.chunk(connection, now))


async def test_what_is_in_use_is_known_after_rows_are_gone(
    postgres_url: str, error: ErrorFactory, now: datetime
) -> None:
    """PostgreSQL's files do not shrink; by their size alone, everything would be removed."""
    store = open_store(postgres_url)
    await fill(store, error, now, 6)
    full = await store.read(retention.used_bytes)
    on_disk = await store.read(retention.file_bytes)
    await store.write(
        lambda connection: connection.execute(
            text("DELETE FROM error_logs WHERE timestamp < :t"), {"t": now - 9.9 * DAY}
        )
    )
    left = len(await ids_in(store)) / 600
    others = on_disk - full

    assert full > 0.75 * on_disk
    assert await store.read(retention.used_bytes) == pytest.approx(full * left, abs=0.1 * full + abs(others))
    assert await store.read(retention.file_bytes) == on_disk
    await store.close()


# What tells of rows that are gone


async def a_group(store: Store, error: ErrorFactory, seen: datetime, exception_type: str) -> Group:
    await put(store, error(exception_type, timestamp=seen), stored_at=seen)

    def clear(connection: Connection) -> None:
        connection.execute(update(schema.error_groups).values(mark=None, marked_at=None))

    await store.write(clear)
    [group], _ = await store.read(groups.list_groups, limit=1)
    return group


async def test_a_group_unseen_for_long_is_forgotten_with_its_counts(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """But for those that somebody silenced: they shall stay silent."""
    for number, trigger in enumerate([None, Trigger.IGNORE, Trigger.MUTE, Trigger.RESOLVE, Trigger.ACKNOWLEDGE], 1):
        await a_group(store, error, now - 90 * DAY - MOMENT, f"Error{number}")
        if trigger is not None:
            await store.write(groups.act, number, trigger, by="@anna", via="cli", now=now - 80 * DAY)
    await a_group(store, error, now - 90 * DAY, "Young")

    removed = await prune(store, now)

    assert (removed[Task.AGE], removed[Task.GROUPS]) == (6, 3)
    left = [group.number for group in (await store.read(groups.list_groups))[0]]
    assert sorted(left) == [2, 3, 6]
    assert await rows_in(store, schema.error_counts) == 3
    assert await rows_in(store, schema.hourly_totals) == 1


async def test_a_group_lives_as_long_as_its_errors(store: Store, error: ErrorFactory, now: datetime) -> None:
    await a_group(store, error, now - 200 * DAY, "Old")

    assert await prune(store, now, Policy(days=365)) == {}
    assert await prune(store, now, Policy(days=199)) == {Task.AGE: 1, Task.GROUPS: 1}


async def test_a_group_whose_errors_have_just_been_stored_would_stay(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """As of an old table that was loaded a moment ago; an hour later both would go."""
    await a_group(store, error, now - 100 * DAY, "Old")
    await store.write(lambda connection: connection.execute(update(schema.error_logs).values(created_at=now)))

    assert +await store.read(retention.count, MONTH, now) == Counter()
    assert +await store.read(retention.count, MONTH, now + 2 * HOUR) == {Task.AGE: 1, Task.GROUPS: 1}


async def test_counts_are_kept_for_a_year_and_a_month(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Of a group that goes on too."""
    for seen in (now - 401 * DAY, now - 399 * DAY, now):
        await a_group(store, error, seen, "Eternal")

    removed = await prune(store, now)

    assert (removed[Task.COUNTS], removed[Task.TOTALS]) == (1, 1)
    assert (await store.read(groups.by_number, 1)).count == 3


async def test_old_alerts_go_with_their_deliveries(store: Store, error: ErrorFactory, now: datetime) -> None:
    """But for the last one of a group that is there: the group would ring as if new."""
    group = await a_group(store, error, now, "KeyError")

    def ring(connection: Connection, at: datetime, of: Group | None) -> None:
        alert_id = add_alert(connection, reason="new", severity=group.severity, group=of, now=at)
        assert alert_id is not None
        add_deliveries(connection, alert_id, [("telegram", "1"), ("email", "a@b")], priority=1, now=at)

    for age in (92 * DAY, 91 * DAY):
        await store.write(ring, now - age, group)
    for age in (91 * DAY, 90 * DAY):
        await store.write(ring, now - age, None)

    assert await prune(store, now) == {Task.ALERTS: 2}
    assert await rows_in(store, schema.alerts) == 2
    assert await rows_in(store, schema.deliveries) == 4


# A run


async def test_what_would_go_is_known_before(store: Store, error: ErrorFactory, now: datetime) -> None:
    """The count and the run agree."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    await put(store, *storm(error, hour, 130), *storm(error, now - 500 * DAY, 30, "Old"), stored_at=hour + HOUR)
    await early_row(store, now, id=id_of(now - 31 * DAY), timestamp=now + 99 * DAY, created_at=None)

    def clear(connection: Connection) -> None:
        connection.execute(update(schema.error_groups).values(mark=None, marked_at=None))

    await store.write(clear)

    expected = +await store.read(retention.count, MONTH, now)

    assert expected == {Task.AGE: 30, Task.CLOCK: 1, Task.HOURS: 30, Task.GROUPS: 1, Task.COUNTS: 2, Task.TOTALS: 2}
    assert await prune(store, now) | {Task.COUNTS: 2} == expected


async def test_what_was_not_committed_is_done_again(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A run goes on where the database has it."""
    await put(store, *storm(error, now - 40 * DAY, 40), stored_at=now - DAY)
    run = Run(MONTH)

    def fails(connection: Connection) -> None:
        run.chunk(connection, now)
        raise StoreAway("just now")

    with pytest.raises(StoreAway):
        await store.write(fails)
    while run.task is not None:
        run.note(await store.write(run.chunk, now))

    assert run.removed[Task.AGE] == 40
    assert await ids_in(store) == []


async def test_two_runs_at_once_remove_everything_once(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A person's `tocsin prune` beside the server's own."""
    hour = now.replace(minute=0, second=0, microsecond=0) - 3 * HOUR
    await put(store, *storm(error, hour, 400), *storm(error, hour - 40 * DAY, 700, "Old"), stored_at=hour + HOUR)
    before = await sums(store)

    first, second = await asyncio.gather(prune(store, now, MONTH, *ERRORS), prune(store, now, MONTH, *ERRORS))

    assert first + second == {Task.AGE: 700, Task.HOURS: 300}
    assert await sums(store) == before | {"error_logs": 400}


async def test_a_held_row_holds_up_no_run(postgres_url: str, error: ErrorFactory, now: datetime) -> None:
    """It goes the next time."""
    store, other = open_store(postgres_url), open_store(postgres_url)
    old = storm(error, now - 40 * DAY, 10)
    await put(store, *old, stored_at=now - DAY)
    held, let_go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with other._engine.begin() as connection:  # type: ignore[attr-defined]
            await connection.execute(
                select(schema.error_logs).where(schema.error_logs.c.id == old[3].id).with_for_update()
            )
            held.set()
            await let_go.wait()

    holding = asyncio.create_task(hold())
    await held.wait()
    removed = await prune(store, now)
    let_go.set()
    await holding

    assert removed == {Task.AGE: 9}
    assert await prune(store, now) == {Task.AGE: 1}
    await store.close()
    await other.close()


async def test_a_run_waits_while_the_log_is_long(sqlite_url: str, error: ErrorFactory, now: datetime) -> None:
    """Somebody reads for hours: what is removed would only make SQLite's log longer."""
    store = open_store(sqlite_url)
    await put(store, *storm(error, now - 40 * DAY, 10), stored_at=now - DAY)
    log = Path(f"{sqlite_url.removeprefix('sqlite:///')}-wal")
    reader = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM error_logs").fetchone()
    with log.open("r+b") as file:
        file.truncate(retention.LOG_BYTES + 1)
    await store.write(_write_much)
    run = Run(MONTH)

    async def is_held_up() -> bool:
        chunk = await store.write(run.chunk, now)
        run.note(chunk)
        return chunk.is_held_up

    assert [await is_held_up() for _ in range(5)] == [True] * 5
    reader.close()
    assert False in [await is_held_up() for _ in range(5)]
    assert run.removed[Task.AGE] == 10
    assert log.stat().st_size < retention.LOG_BYTES
    await store.close()


def _write_much(connection: Connection) -> None:
    """More than SQLite keeps in its log without a look whether it can be emptied."""
    values = {"severity": "high", "category": "api", "message": "x" * 5_000_000, "timestamp": datetime.now(UTC)}
    connection.execute(insert(schema.error_logs).values(id=ids.uuid7(), **values))


CANARY = "canary-4b1d"


def found_in(folder: Path) -> list[str]:
    return [path.name for path in sorted(folder.iterdir()) if path.is_file() and CANARY.encode() in path.read_bytes()]


async def test_nothing_of_what_was_removed_is_left_in_the_file(
    sqlite_url: str, error: ErrorFactory, now: datetime, tmp_path: Path
) -> None:
    """Nor in its log, once the file is written anew."""
    store = open_store(sqlite_url)
    for number in range(3):
        secret = f"{CANARY} {number} " * 900
        one = error(timestamp=now - 40 * DAY, stack=secret, message=secret, context={"key": secret})
        await put(store, one, *storm(error, now - number * HOUR, 20), stored_at=now - DAY)
    assert found_in(tmp_path)

    await prune(store, now)
    await asyncio.to_thread(retention.compact, tmp_path / "tocsin.db")

    assert found_in(tmp_path) == []
    assert await rows_in(store, schema.error_logs) == 60
    await store.close()


async def test_a_file_that_somebody_reads_is_compacted_another_time(
    sqlite_url: str, error: ErrorFactory, now: datetime, tmp_path: Path
) -> None:
    store = open_store(sqlite_url)
    await put(store, error(), stored_at=now)
    reader = sqlite3.connect(tmp_path / "tocsin.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM error_logs").fetchone()

    with pytest.raises(StoreAway):
        retention.compact(tmp_path / "tocsin.db", wait_s=0.05)
    reader.close()
    retention.compact(tmp_path / "tocsin.db", wait_s=0.05)
    await store.close()
