"""Storing errors: once, in their group, counted exactly, with the right reason to ring."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, event, func, select, text
from sqlalchemy.exc import DBAPIError

from tests.conftest import ErrorFactory
from tocsin import ids, lifecycle
from tocsin.failures import Overtaken
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Amendment, Batch, Entry, Instance, Repeats, Severity, Stored
from tocsin.store import Store, errors, groups, open_store, schema
from tocsin.store.groups import Group, Mark

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


async def put(store: Store, now: datetime, *entries: Entry, **batch: Any) -> list[Stored]:
    """Store entries as one batch."""
    return await store.write(errors.write_batch, Batch(entries=list(entries), **batch), now)


async def act(store: Store, trigger: Trigger, now: datetime, number: int = 1, **more: Any) -> groups.Acted:
    return await store.write(groups.act, number, trigger, by="@anna", via="cli", now=now, **more)


async def group(store: Store, number: int = 1) -> Group:
    return await store.read(groups.by_number, number)


async def row(store: Store, error_id: str) -> Any:
    def work(connection: Connection) -> Any:
        return connection.execute(select(schema.error_logs).where(schema.error_logs.c.id == error_id)).one()

    return await store.read(work)


async def everything(store: Store, table: Any) -> list[dict[str, Any]]:
    def work(connection: Connection) -> list[dict[str, Any]]:
        keys = list(table.primary_key)
        return [dict(found) for found in connection.execute(select(table).order_by(*keys)).mappings()]

    return await store.read(work)


async def clear_marks(store: Store) -> None:
    """What the alerts do when they have looked."""

    def work(connection: Connection) -> None:
        connection.execute(schema.error_groups.update().values(mark=None, marked_at=None))

    await store.write(work)


async def bring_to(store: Store, status: Status | None, error: ErrorFactory, now: datetime) -> None:
    """Have group #1 in a status."""
    if status is None:
        return
    await put(store, now, error(timestamp=now - HOUR))
    path = {
        Status.OPEN: [],
        Status.ACKNOWLEDGED: [Trigger.ACKNOWLEDGE],
        Status.RESOLVED: [Trigger.RESOLVE],
        Status.MUTED: [Trigger.MUTE],
        Status.IGNORED: [Trigger.IGNORE],
    }
    for trigger in path[status]:
        await act(store, trigger, now - MINUTE, until=now if status == Status.MUTED else None)
    await clear_marks(store)


async def test_a_first_error_makes_a_group_with_a_number(store: Store, error: ErrorFactory, now: datetime) -> None:
    """What people see of a group comes from its first error."""
    record = error(release="v1", category="amocrm")

    [stored] = await put(store, now, record)

    assert stored == Stored(
        error_id=record.id,
        number=1,
        severity=Severity.HIGH,
        category="amocrm",
        title="KeyError: 'phone'",
        reason="new",
    )
    found = await group(store)
    assert (found.title, found.culprit, found.status) == (record.title, record.culprit, Status.OPEN)
    assert (found.first_seen, found.last_seen, found.count) == (now, now, 1)
    assert (found.last_release, found.last_error_id, found.mark, found.marked_at) == ("v1", record.id, Mark.NEW, now)
    assert found.id == ids.group_id(record.fingerprint, "shop", "production")


async def test_a_row_holds_all_of_its_error(store: Store, error: ErrorFactory, now: datetime) -> None:
    """What was captured is what is stored, with its types."""
    context = {"http.route": "/orders/{id}", "lead": {"id": 7, "tags": ["a", None, 1.5]}, "имя": "Анна 🙂"}
    record = error(
        context=context, trace_id="a" * 32, span_id="b" * 16, release="v1", instance_id="i-1", message="сломалось 🙂"
    )

    await put(store, now, record)

    stored = await row(store, record.id)
    for name in ("id", "timestamp", "message", "stack", "context", "environment", "service", "release", "count"):
        assert getattr(stored, name) == getattr(record, name)
    for name in ("exception_type", "trace_id", "span_id", "handled", "mechanism", "instance_id", "category"):
        assert getattr(stored, name) == getattr(record, name)
    assert (stored.severity, stored.resolved, stored.resolved_at) == ("high", False, None)
    assert stored.created_at == now


@pytest.mark.parametrize("status", [None, *Status])
async def test_an_error_moves_a_group_as_the_lifecycle_says(
    status: Status | None, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Every cell of the table's row *error*, through SQL."""
    await bring_to(store, status, error, now)
    after, reason = lifecycle.advance(status, Trigger.ERROR)

    [stored] = await put(store, now - timedelta(seconds=1), error(timestamp=now - timedelta(seconds=1)))

    found = await group(store)
    assert found.status == after
    assert stored.reason == (reason and reason.value)
    expected = Mark(reason.value) if reason else None if status == Status.IGNORED else Mark.SEEN
    assert found.mark == expected


async def test_the_same_fingerprint_elsewhere_is_another_group(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Service and environment are part of what a group is."""
    stored = await put(store, now, error(), error(service="crm"), error(environment="staging"), error())

    assert [one.number for one in stored] == [1, 2, 3, 1]


async def test_a_replayed_batch_counts_nothing_twice(store: Store, error: ErrorFactory, now: datetime) -> None:
    """An id is taken once, whatever else comes with it."""
    first, second = error(), error("ValueError")
    await put(store, now, first, second)
    before = [await everything(store, table) for table in (schema.error_counts, schema.hourly_totals)]
    third = error()

    stored = await put(store, now, first, second, third, first)

    assert [one.error_id for one in stored] == [third.id]
    assert ((await group(store, 1)).count, (await group(store, 2)).count) == (2, 1)
    assert sum(count["count"] for count in before[0]) == 2
    for table in (schema.error_counts, schema.hourly_totals):
        assert sum(count["count"] for count in await everything(store, table)) == 3


async def test_an_id_twice_in_one_batch_is_one_error(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A spool may hold a record twice after a crash."""
    record = error()

    stored = await put(store, now, record, error(id=record.id))

    assert len(stored) == 1
    assert (await group(store)).count == 1


async def test_counts_stand_by_hour_severity_and_category(store: Store, error: ErrorFactory, now: datetime) -> None:
    """All statistics are read from these two tables."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    await put(store, now, error(), error(timestamp=now - HOUR), error(category="api", count=5))
    await put(store, now, error(severity=Severity.LOW))

    counts = {count["hour"]: count["count"] for count in await everything(store, schema.error_counts)}
    totals = [tuple(total.values()) for total in await everything(store, schema.hourly_totals)]

    assert counts == {hour: 7, hour - HOUR: 1}
    assert sorted(totals) == [
        (hour - HOUR, "high", "unknown", "shop", "production", 1),
        (hour, "high", "api", "shop", "production", 5),
        (hour, "high", "unknown", "shop", "production", 1),
        (hour, "low", "unknown", "shop", "production", 1),
    ]


async def test_a_group_is_as_bad_as_its_worst_error(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Severity only rises while the group goes on."""
    await put(store, now, error(severity=Severity.MEDIUM), error(severity=Severity.CRITICAL), error())

    assert (await group(store)).severity == Severity.CRITICAL


async def test_a_group_that_comes_back_is_as_bad_as_what_came(store: Store, error: ErrorFactory, now: datetime) -> None:
    """What was critical before it was resolved says nothing of now."""
    await put(store, now, error(severity=Severity.CRITICAL))
    await act(store, Trigger.RESOLVE, now)

    await put(store, now + HOUR, error(severity=Severity.MEDIUM, timestamp=now + HOUR))

    found = await group(store)
    assert (found.severity, found.regressions, found.resolved_by) == (Severity.MEDIUM, 1, "@anna")


async def test_the_last_known_category_wins(store: Store, error: ErrorFactory, now: datetime) -> None:
    """``unknown`` says nothing, so it takes nothing away."""
    await put(store, now, error(category="api"), error(category="database"), error(category="unknown"))

    assert (await group(store)).category == "database"


async def test_first_and_last_seen_hold_against_disorder(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Spools of several processes arrive in any order."""
    newest = error(timestamp=now, release="v2")
    await put(store, now, newest)

    await put(store, now, error(timestamp=now - HOUR, release="v1"))

    found = await group(store)
    assert (found.first_seen, found.last_seen) == (now - HOUR, now)
    assert (found.last_error_id, found.last_release) == (newest.id, "v2")


async def test_a_mark_is_not_weakened_before_it_is_seen(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Ten errors within one look of the alerts still ring as new, and the wait is counted from the first."""
    await put(store, now, error())

    await put(store, now + MINUTE, error(), error())

    found = await group(store)
    assert (found.mark, found.marked_at) == (Mark.NEW, now)


async def test_an_error_from_before_the_resolve_is_late(store: Store, error: ErrorFactory, now: datetime) -> None:
    """It counts and stands resolved, and the group stays so."""
    await put(store, now, error(timestamp=now - HOUR))
    await act(store, Trigger.RESOLVE, now)
    late = error(timestamp=now)

    [stored] = await put(store, now + MINUTE, late)

    found, stored_row = await group(store), await row(store, late.id)
    assert (stored.reason, found.status, found.count, found.last_seen) == (None, Status.RESOLVED, 2, now)
    assert (stored_row.resolved, stored_row.resolved_at) == (True, now)


async def test_an_error_from_before_the_resolve_is_late_in_a_group_that_came_back_too(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Only what happened since the resolve is unresolved."""
    await put(store, now, error(timestamp=now - HOUR))
    await act(store, Trigger.RESOLVE, now)
    late, back = error(timestamp=now - MINUTE), error(timestamp=now + MINUTE)

    stored = await put(store, now + MINUTE, back, late)

    assert [one.reason for one in stored] == ["regressed", None]
    assert (await row(store, late.id)).resolved is True
    assert (await row(store, back.id)).resolved is False


@pytest.mark.parametrize(
    ("release", "after", "reason"),
    [
        ("v1", timedelta(minutes=29), None),
        ("v1", timedelta(minutes=31), "regressed"),
        ("v2", timedelta(minutes=1), "regressed"),
        ("v3", timedelta(minutes=1), "regressed"),
        (None, timedelta(minutes=1), "regressed"),
    ],
)
async def test_an_older_release_is_late_for_half_an_hour(
    release: str | None, after: timedelta, reason: str | None, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Machines that still run the release before the fix do not reopen what it has mended."""
    await put(store, now - HOUR, error(timestamp=now - HOUR, release="v1"))
    await put(store, now - MINUTE, instance=_instance(now, release="v2"))
    await act(store, Trigger.RESOLVE, now)
    record = error(timestamp=now + after, release=release)

    [stored] = await put(store, now + after, record)

    assert stored.reason == reason
    assert (await row(store, record.id)).resolved is (reason is None)


async def test_a_mute_ends_with_the_first_error_after_its_time(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Nobody has to look at a clock for it."""
    await put(store, now, error())
    await act(store, Trigger.MUTE, now, until=now + HOUR)
    await clear_marks(store)

    await put(store, now + HOUR, error(timestamp=now + HOUR))

    found = await group(store)
    assert (found.status, found.mark, found.muted_until) == (Status.OPEN, Mark.UNMUTED, None)


async def test_a_mute_ends_when_so_many_more_have_come(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A mute by count says: call me when it is really many."""
    await put(store, now, error(), error())
    await act(store, Trigger.MUTE, now, until_count=3)
    await clear_marks(store)

    await put(store, now, error(), error())
    muted = await group(store)
    await put(store, now, error())

    assert (muted.status, muted.mark) == (Status.MUTED, Mark.SEEN)
    assert ((await group(store)).status, (await group(store)).mark) == (Status.OPEN, Mark.UNMUTED)


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_an_amendment_adds_what_a_later_sighting_knows(
    in_one_batch: bool, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Highest severity, explicit category and *unhandled* win; of the context what is there stays."""
    record = error(severity=Severity.MEDIUM, handled=True, context={"user": "u7"})
    amendment = Amendment(
        error_id=record.id,
        severity=Severity.CRITICAL,
        category="amocrm",
        handled=False,
        mechanism="excepthook",
        context={"user": "?", "lead": 9},
    )
    batches: list[list[Entry]] = [[record, amendment]] if in_one_batch else [[record], [amendment]]

    stored = [one for batch in batches for one in await put(store, now, *batch)]

    amended, found = await row(store, record.id), await group(store)
    assert (amended.severity, amended.category, amended.handled) == ("critical", "amocrm", False)
    assert (amended.mechanism, amended.context) == ("excepthook", {"user": "u7", "lead": 9})
    assert (found.severity, found.category, found.count) == (Severity.CRITICAL, "amocrm", 1)
    totals = {(t["severity"], t["category"]): t["count"] for t in await everything(store, schema.hourly_totals)}
    assert {key: count for key, count in totals.items() if count} == {("critical", "amocrm"): 1}
    assert len(stored) == 1


async def test_an_amendment_that_knows_less_changes_nothing(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A severity never sinks, and *handled* takes nothing back."""
    record = error(severity=Severity.CRITICAL, category="api", handled=False)
    await put(store, now, record)
    await clear_marks(store)

    await put(store, now, Amendment(error_id=record.id, severity=Severity.LOW, handled=True))

    amended = await row(store, record.id)
    assert (amended.severity, amended.category, amended.handled) == ("critical", "api", False)
    assert (await group(store)).mark is None


async def test_an_amendment_that_makes_it_worse_is_looked_at(store: Store, error: ErrorFactory, now: datetime) -> None:
    """The rule *critical* must hear of it."""
    record = error()
    await put(store, now, record)
    await clear_marks(store)

    await put(store, now, Amendment(error_id=record.id, severity=Severity.CRITICAL))

    assert (await group(store)).mark == Mark.GRAVER


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_repeats_count_without_rows(in_one_batch: bool, store: Store, error: ErrorFactory, now: datetime) -> None:
    """A storm is one row with a count, and in the statistics at the hour in which it happened."""
    record = error()
    repeats = Repeats(error_id=record.id, count=500, timestamp=now + HOUR)
    batches: list[list[Entry]] = [[record, repeats]] if in_one_batch else [[record], [repeats]]
    for batch in batches:
        await put(store, now, *batch)

    found = await group(store)
    assert ((await row(store, record.id)).count, found.count, found.last_seen) == (501, 501, now + HOUR)
    assert [count["count"] for count in await everything(store, schema.error_counts)] == [1, 500]
    assert [total["count"] for total in await everything(store, schema.hourly_totals)] == [1, 500]


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_an_amendment_after_repeats_takes_nothing_from_other_hours(
    in_one_batch: bool, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """The repeats stay where they were counted; no count ever sinks below nothing."""
    record = error()
    entries: list[Entry] = [
        record,
        Repeats(error_id=record.id, count=5, timestamp=now),
        Repeats(error_id=record.id, count=500, timestamp=now + HOUR),
        Amendment(error_id=record.id, category="amocrm"),
    ]
    for batch in [entries] if in_one_batch else [[entry] for entry in entries]:
        await put(store, now, *batch)

    totals = await everything(store, schema.hourly_totals)
    counted = {(total["hour"], total["category"]): total["count"] for total in totals if total["count"]}
    hour = now.replace(minute=0, second=0, microsecond=0)
    assert counted == {(hour, "unknown"): 5, (hour, "amocrm"): 1, (hour + HOUR, "unknown"): 500}


async def test_repeats_after_a_resolve_reopen_the_group(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A storm that goes on is not resolved, though no new row tells so."""
    record = error()
    await put(store, now, record)
    await act(store, Trigger.RESOLVE, now)
    await clear_marks(store)

    await put(store, now, Repeats(error_id=record.id, count=3, timestamp=now + MINUTE))

    assert ((await group(store)).status, (await group(store)).mark) == (Status.OPEN, Mark.REGRESSED)


async def test_repeats_from_before_a_resolve_do_not(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Late is late, counted or written out."""
    record = error(timestamp=now - HOUR)
    await put(store, now, record)
    await act(store, Trigger.RESOLVE, now)

    await put(store, now, Repeats(error_id=record.id, count=3, timestamp=now - MINUTE))

    assert ((await group(store)).status, (await group(store)).count) == (Status.RESOLVED, 4)


async def test_what_belongs_to_no_stored_error_is_left_out(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Its error may be long gone, by age."""
    gone = ids.uuid7()

    stored = await put(
        store,
        now,
        Amendment(error_id=gone, severity=Severity.CRITICAL),
        Repeats(error_id=gone, count=3, timestamp=now),
        error(),
    )

    assert len(stored) == 1
    assert (await group(store)).count == 1


async def test_a_synthetic_error_is_nowhere(store: Store, error: ErrorFactory, now: datetime) -> None:
    """It tests the way, and nobody is to see it."""
    assert await put(store, now, error(is_synthetic=True)) == []
    assert await everything(store, schema.error_groups) == []


async def test_a_batch_says_how_far_its_segment_is_stored(store: Store, error: ErrorFactory, now: datetime) -> None:
    """The position outlives the errors, so a replay after retention counts nothing either."""
    await put(store, now, error(), segment="a/1", start=0, position=700)
    await put(store, now, segment="a/2", start=0, position=30)
    await put(store, now, segment="a/1", start=700, position=900)

    assert await store.read(errors.progress, ["a/1", "a/2", "a/3"]) == {"a/1": 900, "a/2": 30}


@pytest.mark.parametrize(("start", "position"), [(0, 700), (0, 900), (300, 900)])
async def test_two_readers_of_a_segment_store_it_once(
    store: Store, error: ErrorFactory, now: datetime, start: int, position: int
) -> None:
    """Counts have no id by which the second could be told; whoever comes second stores nothing."""
    first = error()
    await put(store, now, first, segment="a/1", start=0, position=700)

    with pytest.raises(Overtaken):
        again = Repeats(error_id=first.id, count=5, timestamp=now)
        await put(store, now, again, segment="a/1", start=start, position=position)

    assert (await group(store)).count == 1
    assert await store.read(errors.progress, ["a/1"]) == {"a/1": 700}


async def test_a_refused_batch_leaves_nothing(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Position, rows and counts stand or fall together."""
    with pytest.raises(DBAPIError):
        await put(store, now, error(), error(severity=_Unheard()), segment="a/1", position=700)

    for table in (schema.error_logs, schema.error_groups, schema.error_counts, schema.spool_progress):
        assert await everything(store, table) == []
    await put(store, now, error())
    assert (await group(store)).number == 1


async def test_a_value_that_postgresql_refuses_is_not_taken_for_an_outage(
    postgres_url: str, error: ErrorFactory, now: datetime
) -> None:
    """Else the drain would try for ever instead of finding the bad one."""
    store = open_store(postgres_url)

    for poison in ({"message": "a\0b"}, {"context": {"key": "a\0b"}}, {"message": "a\ud800"}, {"count": 2**40}):
        with pytest.raises(DBAPIError):
            await put(store, now, error(**poison))

    await store.close()


async def test_what_others_find_of_a_dead_process_is_no_sign_of_life(store: Store, now: datetime) -> None:
    """Its spool is stored by somebody else, perhaps long after; how much it lost is never forgotten."""
    await put(store, now, instance=_instance(now, lost=3))
    await put(store, now + HOUR, instance=_instance(now, lost=2, is_alive=False))

    [instance] = await everything(store, schema.instances)
    assert (instance["last_seen"], instance["lost"]) == (now, 3)


async def test_a_process_found_dead_was_last_seen_at_its_start(store: Store, now: datetime) -> None:
    """Nobody has heard from it since."""
    await put(store, now + HOUR, instance=_instance(now, is_alive=False))

    [instance] = await everything(store, schema.instances)
    assert instance["last_seen"] == now


async def test_what_comes_late_changes_nothing_but_how_it_ended(store: Store, now: datetime) -> None:
    """Lines of one process may come by several servers."""
    await put(store, now + HOUR, instance=_instance(now, memory_bytes=2, beats_every_s=60, seen_at=now + HOUR))
    await put(store, now + HOUR, instance=_instance(now, memory_bytes=1, beats_every_s=0, lost=3, seen_at=now))
    await put(store, now + HOUR, instance=_instance(now, is_alive=False, ended_at=now + MINUTE, ended_how="killed"))

    [instance] = await everything(store, schema.instances)
    assert (instance["memory_bytes"], instance["beats_every_s"], instance["lost"]) == (2, 60, 3)
    assert (instance["last_seen"], instance["ended_how"]) == (now + HOUR, "killed")


async def test_a_process_is_seen_when_it_said_so_and_never_later_than_now(store: Store, now: datetime) -> None:
    await put(store, now, instance=_instance(now, seen_at=now - MINUTE))
    [instance] = await everything(store, schema.instances)
    assert instance["last_seen"] == now - MINUTE

    await put(store, now, instance=_instance(now, seen_at=now + HOUR))
    [instance] = await everything(store, schema.instances)
    assert instance["last_seen"] == now


async def test_one_that_was_given_up_is_back_when_it_says_so(store: Store, now: datetime) -> None:
    """Which nobody says of one that has ended otherwise."""
    given_up = {"seen_at": now, "ended_at": now, "ended_how": errors.SILENT}
    await put(store, now, instance=_instance(now, **given_up))
    await put(store, now + HOUR, instance=_instance(now, is_alive=False))
    [instance] = await everything(store, schema.instances)
    assert instance["ended_how"] == errors.SILENT

    await put(store, now + HOUR, instance=_instance(now, seen_at=now + HOUR))
    [instance] = await everything(store, schema.instances)
    assert (instance["ended_at"], instance["ended_how"]) == (None, None)


async def test_an_instance_is_made_and_refreshed(store: Store, now: datetime) -> None:
    """What a later report does not know stays."""
    await put(store, now, instance=_instance(now, memory_bytes=50_000_000))
    await put(store, now + MINUTE, instance=_instance(now, lost=3))

    [instance] = await everything(store, schema.instances)
    assert (instance["pid"], instance["memory_bytes"], instance["lost"]) == (7, 50_000_000, 3)
    assert instance["last_seen"] == now + MINUTE


async def test_releases_are_known_from_when_they_were_first_seen(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Of an error or of an instance, whichever comes first."""
    await put(store, now, error(release="v1"), instance=_instance(now, release="v2"))
    await put(store, now + HOUR, error(release="v1"), error(release="v3"), error("OSError", release="v1"))

    seen = {release["release"]: release["first_seen"] for release in await everything(store, schema.releases)}
    assert seen == {"v1": now, "v2": now, "v3": now + HOUR}


async def test_writers_of_the_same_new_groups_at_once_make_each_group_once(
    database_url: str, error: ErrorFactory, now: datetime
) -> None:
    """Counts are exact, each group is new once, and every number is given once, without a gap."""
    stores = [open_store(database_url) for _ in range(4)]
    kinds = [f"Error{n}" for n in range(10)]

    async def write(store: Store, turn: int) -> list[Stored]:
        return await put(store, now, *(error(kind) for kind in (kinds if turn % 2 else reversed(kinds))))

    answers = await asyncio.gather(*[write(store, turn) for turn, store in enumerate(stores)])

    found = await everything(stores[0], schema.error_groups)
    counts = await everything(stores[0], schema.error_counts)
    reasons = [one.reason for one in itertools.chain(*answers)]
    assert sorted(one["number"] for one in found) == list(range(1, 11))
    assert {one["count"] for one in found} == {4} == {count["count"] for count in counts}
    assert reasons.count("new") == 10
    for store in stores:
        await store.close()


async def test_errors_that_reach_two_servers_at_once_count_once(
    database_url: str, error: ErrorFactory, now: datetime
) -> None:
    """A sender that got no answer asks the next server, while the first is still at it."""
    stores = [open_store(database_url) for _ in range(4)]
    records = [error(f"Error{n % 3}") for n in range(30)]

    answers = await asyncio.gather(
        *[put(store, now, *(records if turn % 2 else reversed(records))) for turn, store in enumerate(stores)]
    )

    assert sorted(one.error_id for one in itertools.chain(*answers)) == sorted(record.id for record in records)
    assert {one["count"] for one in await everything(stores[0], schema.error_groups)} == {10}
    for store in stores:
        await store.close()


# From outside, where everything may come again


async def test_what_comes_from_outside_again_counts_once(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A sender that got no answer sends all of it again; also when the rows are gone by age."""
    records = [error(from_outside=True), error("ValueError", from_outside=True)]
    repeats = Repeats(error_id=records[0].id, count=5, timestamp=now, id=ids.uuid7())
    await put(store, now, *records, repeats)
    await store.write(lambda connection: connection.execute(schema.error_logs.delete()))

    again = await put(store, now, records[1], error(from_outside=True), records[0], repeats, repeats)

    assert len(again) == 1
    assert ((await group(store, 1)).count, (await group(store, 2)).count) == (7, 1)


async def test_the_same_twice_in_a_batch_from_outside_is_one(store: Store, error: ErrorFactory, now: datetime) -> None:
    record = error(from_outside=True)
    repeats = Repeats(error_id=record.id, count=5, timestamp=now, id=ids.uuid7())

    await put(store, now, record, record, repeats, repeats)

    assert (await group(store)).count == 6


@pytest.mark.parametrize("from_outside_first", [True, False])
async def test_an_own_error_that_also_comes_through_the_door_counts_once(
    from_outside_first: bool, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Its service stores it, and the user's exporter sends the same by OTLP."""
    own = error()
    sent = error("__main__.KeyError", id=own.id, from_outside=True)
    for record in (sent, own) if from_outside_first else (own, sent):
        await put(store, now, record)
        await put(store, now, record)

    assert sum(found["count"] for found in await everything(store, schema.error_groups)) == 1
    assert sum(count["count"] for count in await everything(store, schema.error_counts)) == 1


@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_errors_that_are_summed_up_count_on_the_newest_full_one(
    in_one_batch: bool, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Counts are exact, and the group is as fresh as the last of them."""
    first, second = error(from_outside=True), error(from_outside=True)
    rest = [error(from_outside=True, is_summed_up=True, timestamp=now + n * MINUTE) for n in range(5)]
    entries: list[Entry] = [first, rest[0], second, *rest[1:]]
    for batch in [entries] if in_one_batch else [[entry] for entry in entries]:
        await put(store, now, *batch)
        await put(store, now, *batch)

    found = await group(store)
    assert (found.count, found.last_seen, found.last_error_id) == (7, now + 4 * MINUTE, second.id)
    assert ((await row(store, first.id)).count, (await row(store, second.id)).count) == (2, 5)
    assert sum(count["count"] for count in await everything(store, schema.error_counts)) == 7
    assert sum(total["count"] for total in await everything(store, schema.hourly_totals)) == 7


@pytest.mark.parametrize("is_group_left", [True, False])
async def test_an_error_to_be_summed_up_is_written_out_where_there_is_none(
    is_group_left: bool, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """What it was to count on may have gone by age: nothing that counts may hang on that."""
    if is_group_left:
        await put(store, now, error(from_outside=True))
        await store.write(lambda connection: connection.execute(schema.error_logs.delete()))
    records = [error(from_outside=True, is_summed_up=True) for _ in range(3)]

    stored = await put(store, now, *records)

    assert [one.error_id for one in stored] == [records[0].id]
    assert (await group(store)).count == 3 + is_group_left
    assert (await row(store, records[0].id)).count == 3


async def test_a_summed_up_error_counts_on_a_row_that_was_there_before(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """The full one before it in the batch is an own error that its service had stored itself."""
    own = error()
    await put(store, now, own)
    await store.write(lambda c: c.execute(schema.error_groups.update().values(last_error_id=None)))

    await put(store, now, error(id=own.id, from_outside=True), error(from_outside=True, is_summed_up=True))

    assert ((await group(store)).count, (await row(store, own.id)).count) == (2, 2)


async def test_the_same_from_outside_at_many_servers_at_once_counts_once(
    database_url: str, error: ErrorFactory, now: datetime
) -> None:
    """In any order, some of it to be summed up by one server and not by the other; nobody waits for ever."""
    stores = [open_store(database_url) for _ in range(4)]
    records = [error(f"Error{n % 3}", from_outside=True) for n in range(60)]
    first = [error(f"Error{n}") for n in range(3)]
    repeats = [Repeats(error_id=record.id, count=10, timestamp=now, id=ids.uuid7()) for record in first]
    await put(stores[0], now, *first)

    async def send(store: Store, turn: int) -> None:
        for part in range(0, 60, 20):
            some = [replace(record, is_summed_up=(n + turn) % 2 == 0) for n, record in enumerate(records)]
            portion: list[Entry] = [*some[part : part + 30], *(repeats if part else [])]
            await put(store, now, *(portion if turn % 2 else reversed(portion)))

    await asyncio.gather(*[send(store, turn) for turn, store in enumerate(stores)])
    for store in stores:
        await put(store, now, *records, *repeats)

    counts = [found["count"] for found in await everything(stores[0], schema.error_groups)]
    rows = [found["count"] for found in await everything(stores[0], schema.error_logs)]
    assert counts == [1 + 20 + 10] * 3
    assert sum(rows) == sum(counts)
    for store in stores:
        await store.close()


async def test_what_comes_before_its_error_waits_for_it(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Another server, or one that was killed, may bring the error later; all of it counts once."""
    late = error(from_outside=True, is_shipped=True)
    early = (
        Repeats(error_id=late.id, count=5, timestamp=now + MINUTE, id=ids.uuid7()),
        Amendment(error_id=late.id, severity=Severity.CRITICAL, context={"more": 1}, is_shipped=True),
        Amendment(error_id=late.id, category="queue", is_shipped=True),
    )
    for _ in range(2):
        await put(store, now, *early, segment=None)
    assert await everything(store, schema.error_groups) == []

    for _ in range(2):
        await put(store, now, late, *early)

    found, stored = await group(store), await row(store, late.id)
    assert (found.count, found.severity, found.last_seen) == (6, Severity.CRITICAL, now + MINUTE)
    assert (stored.count, stored.category, stored.context["more"]) == (6, "queue", 1)
    assert await everything(store, schema.held) == []
    assert sum(count["count"] for count in await everything(store, schema.error_counts)) == 6


async def test_what_is_said_of_an_error_that_was_here_does_not_wait(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Its row is gone by age, or it never had one; what this machine says comes after its error."""
    gone = error(from_outside=True, is_shipped=True)
    await put(store, now, gone)
    await store.write(lambda connection: connection.execute(schema.error_logs.delete()))

    await put(
        store,
        now,
        Repeats(error_id=gone.id, count=5, timestamp=now, id=ids.uuid7()),
        Repeats(error_id=ids.uuid7(), count=5, timestamp=now),
        Amendment(error_id=ids.uuid7(), severity=Severity.CRITICAL),
    )

    assert await everything(store, schema.held) == []


async def test_an_error_and_its_repeats_by_two_servers_at_once_count_together(
    database_url: str, error: ErrorFactory, now: datetime
) -> None:
    """Whichever is first, neither misses the other."""
    stores = [open_store(database_url) for _ in range(2)]
    records = [error(from_outside=True, is_shipped=True) for _ in range(30)]
    repeats = [Repeats(error_id=record.id, count=5, timestamp=now, id=ids.uuid7()) for record in records]

    async def send(store: Store, entries: list[Any]) -> None:
        for entry in entries:
            await put(store, now, entry)

    await asyncio.gather(send(stores[0], records), send(stores[1], repeats))

    assert (await group(stores[0])).count == 30 * 6
    assert await everything(stores[0], schema.held) == []
    for store in stores:
        await store.close()


async def test_processes_elsewhere_tell_how_they_are(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Their reports come with the errors, several of one at times; the last says how it is."""
    reports = [_instance(now, memory_bytes=size, release="v2") for size in (1, 2)]

    await put(store, now, error(release="v2"), instance=replace(reports[0], id="i-0"), instances=reports)

    found = {one["id"]: one["memory_bytes"] for one in await everything(store, schema.instances)}
    assert found == {"i-0": 1, "i-1": 2}
    assert [release["release"] for release in await everything(store, schema.releases)] == ["v2"]


async def test_a_large_batch_takes_few_statements(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A statement for each error would make a storm slow."""
    entries = [error(f"Error{n % 200}") for n in range(500)]
    statements: list[str] = []

    def work(connection: Connection, batch: Batch) -> list[Stored]:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        return errors.write_batch(connection, batch, now)

    stored = await store.write(work, Batch(entries=list(entries)))

    assert len(stored) == 500
    assert len(statements) <= 12


async def test_an_error_of_a_known_group_takes_few_statements(store: Store, error: ErrorFactory, now: datetime) -> None:
    """It is the usual case, and each statement is a way to the database and back."""
    await put(store, now, error(release="v1"))
    statements: list[str] = []

    def work(connection: Connection, batch: Batch) -> list[Stored]:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        return errors.write_batch(connection, batch, now)

    await store.write(work, Batch(entries=[error(release="v1")], segment="a/1", position=9))

    assert len(statements) <= 7


async def test_another_programs_insert_with_the_early_columns_alone_works(store: Store) -> None:
    """Id, times and the rest come from the database, in tocsin's own form."""

    def work(connection: Connection) -> Any:
        connection.execute(
            text("INSERT INTO error_logs (severity, category, message) VALUES ('high', 'payments', 'from Node')")
        )
        return connection.execute(select(schema.error_logs)).one()

    stored = await store.write(work)

    assert str(UUID(stored.id)) == stored.id
    assert (stored.environment, stored.resolved, stored.count, stored.group_id) == ("development", False, 1, None)
    assert abs(stored.timestamp - datetime.now(UTC)) < timedelta(minutes=5)
    assert stored.created_at == stored.timestamp


async def test_times_sort_as_text_and_as_times_alike(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A time on the full second has its microseconds too, or SQLite would sort it wrongly."""
    times = [now.replace(microsecond=0), now.replace(microsecond=1), now.replace(microsecond=999999)]
    await put(store, now, *(error(timestamp=moment) for moment in reversed(times)))

    def work(connection: Connection) -> list[datetime]:
        column = schema.error_logs.c.timestamp
        return list(connection.execute(select(column).order_by(column)).scalars())

    assert await store.read(work) == times
    newest = await store.read(lambda c: c.execute(select(func.max(schema.error_logs.c.timestamp))).scalar())
    assert newest == times[-1]


class _Unheard(str):
    """A severity that the database knows nothing of."""

    rank = 0
    value = "loud"

    def __new__(cls) -> Any:
        return super().__new__(cls, "loud")


def _instance(now: datetime, **more: Any) -> Instance:
    values: dict[str, Any] = {"release": None, **more}
    return Instance(id="i-1", service="shop", environment="production", host="web-1", pid=7, started_at=now, **values)
