"""What people do to groups, and how groups are found."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tests.conftest import ErrorFactory
from tests.store.test_errors import HOUR, MINUTE, act, bring_to, clear_marks, group, put, row
from tocsin import clock, ids, lifecycle
from tocsin.failures import BadInput, NotFound
from tocsin.lifecycle import IllegalTransition, Status, Trigger
from tocsin.model import Severity
from tocsin.store import Store, audit, groups, leases, schema
from tocsin.store.groups import Mark

BY_PEOPLE = [trigger for trigger in Trigger if trigger not in (Trigger.ERROR, Trigger.EXPIRE)]


async def settle(store: Store, limit: int = 5000) -> list[int]:
    """Settle until nothing waits; returns how many rows each call changed."""
    changed = []
    while rows := await store.write(groups.settle_rows, limit):
        changed.append(rows)
    return changed


@pytest.mark.parametrize("trigger", BY_PEOPLE)
@pytest.mark.parametrize("status", Status)
async def test_an_act_does_what_the_lifecycle_says(
    status: Status, trigger: Trigger, store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Every cell that a person can reach, through SQL; what is not allowed changes nothing."""
    await bring_to(store, status, error, now)
    before = await group(store)
    try:
        expected, _ = lifecycle.advance(status, trigger)
    except IllegalTransition:
        with pytest.raises(IllegalTransition):
            await act(store, trigger, now)
        assert await group(store) == before
        return

    acted = await act(store, trigger, now, until=before.muted_until)

    found = await group(store)
    assert (found.status, acted.before) == (expected, status)
    assert acted.group == found
    assert acted.changed is (expected != status)
    assert found.mark == (Mark.CHANGED if acted.changed else None)


async def test_a_resolve_says_who_when_and_in_which_release(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Whoever asks later finds it in the group."""
    await put(store, now, error(release="v1"))
    await put(store, now + MINUTE, error("OSError", release="v2"))

    await act(store, Trigger.RESOLVE, now + HOUR)

    found = await group(store)
    assert (found.resolved_at, found.resolved_by, found.resolved_in_release) == (now + HOUR, "@anna", "v2")


async def test_resolving_twice_changes_nothing(store: Store, error: ErrorFactory, now: datetime) -> None:
    """The first who did it stays named, and no message is edited for it."""
    await put(store, now, error())
    await act(store, Trigger.RESOLVE, now)

    again = await store.write(groups.act, 1, Trigger.RESOLVE, by="@boris", via="telegram", now=now + HOUR)

    assert again.changed is False
    assert ((await group(store)).resolved_by, (await group(store)).resolved_at) == ("@anna", now)


async def test_the_rows_of_a_resolved_group_follow_in_chunks(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A group may have many; no transaction is long."""
    records = [error() for _ in range(7)]
    await put(store, now, *records, error("OSError"))
    await act(store, Trigger.RESOLVE, now)

    assert await settle(store, 3) == [3, 3, 1]

    rows = [await row(store, record.id) for record in records]
    assert {(found.resolved, found.resolved_at) for found in rows} == {(True, now)}
    assert (await group(store)).rows_pending is False
    assert await unresolved(store) == 1


async def test_what_came_back_before_the_rows_were_settled_stays_unresolved(
    store: Store, error: ErrorFactory, now: datetime
) -> None:
    """A regression takes nothing back of what was resolved, and settling nothing of the regression."""
    old, new = error(), error(timestamp=now + HOUR)
    await put(store, now, old)
    await act(store, Trigger.RESOLVE, now)
    await put(store, now + HOUR, new)

    await settle(store)

    assert ((await row(store, old.id)).resolved, (await row(store, new.id)).resolved) == (True, False)
    assert (await group(store)).status == Status.OPEN


async def test_a_reopen_takes_the_resolve_back(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Rows and group look as if nobody had resolved them."""
    records = [error() for _ in range(5)]
    await put(store, now, *records)
    await act(store, Trigger.RESOLVE, now)
    await settle(store)

    await act(store, Trigger.REOPEN, now + HOUR)
    assert sum(await settle(store, 2)) == 5

    found = await group(store)
    assert (found.resolved_at, found.resolved_by, found.resolved_in_release) == (None, None, None)
    rows = [await row(store, record.id) for record in records]
    assert {(found.resolved, found.resolved_at) for found in rows} == {(False, None)}


async def test_several_groups_settle_in_one_call(store: Store, error: ErrorFactory, now: datetime) -> None:
    """An incident is often resolved as a whole."""
    await put(store, now, *(error(kind) for kind in ("A", "B", "C")))
    for number in (1, 2, 3):
        await act(store, Trigger.RESOLVE, now, number)

    assert await settle(store) == [3]


async def test_a_stronger_mark_outlives_an_act(store: Store, error: ErrorFactory, now: datetime) -> None:
    """A new error that is acknowledged within a moment still rings."""
    await put(store, now, error())

    await act(store, Trigger.ACKNOWLEDGE, now)

    assert (await group(store)).mark == Mark.NEW


async def test_a_mute_can_be_made_longer(store: Store, error: ErrorFactory, now: datetime) -> None:
    """It is a change, though the status stays."""
    await put(store, now, error())
    await act(store, Trigger.MUTE, now, until=now + HOUR)

    again = await act(store, Trigger.MUTE, now, until=now + 2 * HOUR)

    assert again.changed
    assert (await group(store)).muted_until == now + 2 * HOUR


async def test_mutes_end_when_their_time_is_over(store: Store, error: ErrorFactory, now: datetime) -> None:
    """And not before, and not when they have no end."""
    await put(store, now, error("A"), error("B"), error("C"))
    await act(store, Trigger.MUTE, now, 1, until=now + HOUR)
    await act(store, Trigger.MUTE, now, 2, until=now + 2 * HOUR)
    await act(store, Trigger.MUTE, now, 3)
    await clear_marks(store)

    assert await store.write(groups.expire_mutes, now + HOUR - timedelta(microseconds=1)) == 0
    assert await store.write(groups.expire_mutes, now + HOUR) == 1

    assert [(await group(store, n)).status for n in (1, 2, 3)] == [Status.OPEN, Status.MUTED, Status.MUTED]
    assert ((await group(store)).mark, (await group(store)).muted_until) == (Mark.UNMUTED, None)


async def test_every_act_is_in_the_audit(store: Store, error: ErrorFactory, now: datetime) -> None:
    """With its end, and also when it changed nothing; a refused one is for the caller to note."""
    await put(store, now, error())
    await act(store, Trigger.MUTE, now, until=now + HOUR, until_count=100)
    await act(store, Trigger.RESOLVE, now + MINUTE)
    await act(store, Trigger.RESOLVE, now + MINUTE)

    entries = await store.read(audit.of_target, "#1")

    assert [(entry.action, entry.detail) for entry in entries] == [
        ("resolve", "it was so already"),
        ("resolve", None),
        ("mute", "until 2026-03-14 10:26 UTC, for 100 more errors"),
    ]
    assert {(entry.actor, entry.via, entry.allowed) for entry in entries} == {("@anna", "cli", True)}


async def test_what_is_not_there_is_named(store: Store) -> None:
    """The text can be shown as it is."""
    with pytest.raises(NotFound, match="there is no group #42"):
        await group(store, 42)
    with pytest.raises(NotFound, match="there is no group #42"):
        await act(store, Trigger.RESOLVE, datetime.now().astimezone(), 42)
    for unknown in (ids.uuid7(), "42", "' or 1=1"):
        with pytest.raises(NotFound):
            await store.read(groups.number_of_error, unknown)


async def test_a_number_beyond_what_the_column_holds_is_not_found(store: Store) -> None:
    """People type anything."""
    with pytest.raises(NotFound):
        await group(store, 10**30)


async def test_an_error_leads_to_its_group(store: Store, error: ErrorFactory, now: datetime) -> None:
    """In whichever form its id is written."""
    record = error("B")
    await put(store, now, error("A"), record)

    assert await store.read(groups.number_of_error, record.id) == 2
    assert await store.read(groups.number_of_error, record.id.upper()) == 2


async def test_groups_are_listed_newest_first_page_by_page(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Each is listed once, also those of the same moment."""
    await put(store, now, *(error(f"E{n}", timestamp=now - (n // 3) * MINUTE) for n in range(10)))
    seen: list[groups.Group] = []
    before: str | None = None
    pages = 0
    while pages == 0 or before:
        page, before = await store.read(groups.list_groups, limit=4, before=before)
        seen += page
        pages += 1

    assert pages == 3
    assert len({found.number for found in seen}) == 10
    assert [found.last_seen for found in seen] == sorted((found.last_seen for found in seen), reverse=True)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, {1, 2, 3}),
        ({"status": Status.RESOLVED}, {3}),
        ({"severity": Severity.CRITICAL}, {2}),
        ({"category": "amocrm"}, {1}),
        ({"service": "crm"}, {2}),
        ({"environment": "staging"}, {3}),
        ({"q": "TIMEOUT"}, {2}),
        ({"q": "create_order"}, {1, 3}),
        ({"q": "100%"}, {3}),
        ({"q": "_%_"}, set()),
        ({"service": "crm", "severity": Severity.HIGH}, set()),
    ],
)
async def test_groups_are_found_by_what_is_known(
    wanted: dict[str, Any], numbers: set[int], store: Store, error: ErrorFactory, now: datetime
) -> None:
    """Filters join; a text is taken as it is, in any case."""
    await put(
        store,
        now,
        error("A", category="amocrm"),
        error("TimeoutError", severity=Severity.CRITICAL, service="crm", culprit=None),
        error("B", environment="staging", title="disk at 100%"),
    )
    await act(store, Trigger.RESOLVE, now, 3)

    found, following = await store.read(groups.list_groups, **wanted)

    assert {one.number for one in found} == numbers
    assert following is None


async def test_a_look_tells_whether_work_waits(store: Store, error: ErrorFactory, now: datetime) -> None:
    """Nobody takes the lock for writing every few seconds for nothing."""

    async def is_waiting(when: datetime) -> bool:
        return await store.read(groups.is_work_waiting, when)

    await put(store, now, error("A"), error("B"))
    nothing = await is_waiting(now)
    await act(store, Trigger.MUTE, now, 1, until=now + HOUR)
    muted, over = await is_waiting(now), await is_waiting(now + HOUR)
    await act(store, Trigger.RESOLVE, now, 2)
    resolved = await is_waiting(now)
    await settle(store)

    assert [nothing, muted, over, resolved, await is_waiting(now)] == [False, False, True, True, False]


async def test_an_act_happens_at_the_databases_time(store: Store, error: ErrorFactory, monkeypatch: Any) -> None:
    """A server whose clock is ahead does not make the next errors late, which would ring nobody."""
    moment = await store.read(leases.database_now)
    await put(store, moment, error(timestamp=moment))
    if store.dialect == "postgresql":
        monkeypatch.setattr(clock, "now", lambda: moment + 5 * MINUTE)

    await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api")
    after = await store.read(leases.database_now)
    (again,) = await put(store, after, error(timestamp=after))

    assert again.reason == "regressed"
    resolved_at = (await group(store)).resolved_at
    assert resolved_at is not None
    assert moment <= resolved_at <= after


@pytest.mark.parametrize("before", ["", "?", "AAAA", "MjAyNi0wMy0xNCB4"])
async def test_a_page_that_no_list_has_named_is_refused(before: str, store: Store) -> None:
    """Instead of showing the wrong groups."""
    with pytest.raises(BadInput, match="before"):
        await store.read(groups.list_groups, before=before)


async def unresolved(store: Store) -> int:
    def work(connection: Connection) -> int:
        logs = schema.error_logs
        return len(connection.execute(select(logs.c.id).where(logs.c.resolved.is_not(True))).all())

    return await store.read(work)
