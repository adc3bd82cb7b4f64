"""What a look of the leader writes, in the transaction that clears the marks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.alerts.samples import plain_settings
from tests.conftest import ErrorFactory
from tocsin import clock
from tocsin.alerts.limits import Limits
from tocsin.alerts.look import Looked, look
from tocsin.lifecycle import Trigger
from tocsin.model import Amendment, Batch, ErrorRecord, Recovery, Severity
from tocsin.store import Store, alerts, errors, groups

CHATS = [("telegram", "17"), ("telegram", "18")]
AT_ONCE = Limits(seen_after_s=0)


async def put(store: Store, *entries: Any) -> None:
    await store.write(errors.write_batch, Batch(entries=list(entries)), clock.now())


async def have_a_look(store: Store, limits: Limits | None = None, **values: Any) -> Looked:
    return await store.write(look, plain_settings(**values), limits or AT_ONCE, CHATS)


async def rung(store: Store) -> list[tuple[str, int | None]]:
    """Each alert as reason and number, oldest first."""
    listed, _ = await store.read(alerts.list_alerts, limit=500)
    return [(one.alert.reason, one.number) for one in reversed(listed)]


def many(error: ErrorFactory, count: int, **values: Any) -> list[ErrorRecord]:
    return [error(f"Error{number}", **values) for number in range(count)]


async def test_a_look_makes_alerts_and_deliveries_and_clears_the_marks(store: Store, error: ErrorFactory) -> None:
    """All of it or nothing; the next look finds nothing to do."""
    await put(store, error(), error("OSError", severity=Severity.MEDIUM))

    looked = await have_a_look(store)

    assert (looked.groups, looked.rung) == (2, [(1, "new")])
    [alert] = (await store.read(alerts.list_alerts))[0]
    assert [(one.channel, one.target, one.state) for one in alert.deliveries] == [(*chat, "pending") for chat in CHATS]
    assert (await have_a_look(store)).groups == 0


async def test_counts_that_grow_can_wait_a_second(store: Store, error: ErrorFactory) -> None:
    """However many errors come, a group is written for the alerts' sake no more often than that."""
    await put(store, error())
    await have_a_look(store)
    await put(store, error())

    assert (await have_a_look(store, Limits())).groups == 0
    assert (await have_a_look(store, AT_ONCE)).edits == 1


async def test_what_has_become_graver_waits_for_nothing(store: Store, error: ErrorFactory) -> None:
    """Whether a new error was worse or more is known of an old one, and whoever looked at it before."""
    seen = error("OSError", severity=Severity.MEDIUM)
    await put(store, error(), seen)
    await have_a_look(store)
    await store.write(groups.act, 2, Trigger.ACKNOWLEDGE, by="@anna", via="api", now=clock.now())
    await put(store, error(severity=Severity.CRITICAL), Amendment(error_id=seen.id, severity=Severity.HIGH))

    assert sorted((await have_a_look(store, Limits())).rung) == [(1, "critical"), (2, "new")]


def over(error: ErrorRecord, message: str = "redis answers again") -> Recovery:
    return Recovery(error_id=error.id, timestamp=clock.now(), message=message)


async def test_who_heard_of_it_hears_that_it_is_over_once(store: Store, error: ErrorFactory) -> None:
    """A new message, since an edit makes no sound; the first one is brought up to date as well."""
    away = error()
    await put(store, away)
    await have_a_look(store)
    await put(store, over(away))
    looked = await have_a_look(store)
    await put(store, over(away))

    assert (looked.rung, looked.edits) == ([(1, "recovered")], 1)
    assert (await have_a_look(store)).groups == 0
    group = await store.read(groups.by_number, 1)
    assert (group.status, group.resolved_by) == ("resolved", "tocsin")
    act = await store.read(alerts.last_act, group)
    assert act is not None and act.detail == "redis answers again"


async def test_what_was_over_before_anybody_looked_rings_nobody(store: Store, error: ErrorFactory) -> None:
    away = error()
    await put(store, away, over(away))

    assert (await have_a_look(store)).rung == []


async def test_it_rings_again_when_it_is_back(store: Store, error: ErrorFactory) -> None:
    first = error()
    await put(store, first)
    await have_a_look(store)
    await put(store, over(first))
    await have_a_look(store)
    await put(store, error(timestamp=clock.now()))

    assert (await have_a_look(store)).rung == [(1, "regressed")]


@pytest.mark.parametrize("trigger", [Trigger.MUTE, Trigger.IGNORE, Trigger.RESOLVE])
async def test_what_a_person_has_said_goes_further(trigger: Trigger, store: Store, error: ErrorFactory) -> None:
    away = error()
    await put(store, away)
    await have_a_look(store)
    acted = await store.write(groups.act, 1, trigger, by="@anna", via="api")
    await have_a_look(store)
    await put(store, over(away))

    assert (await have_a_look(store)).rung == []
    assert (await store.read(groups.by_number, 1)).status == acted.group.status


async def test_what_has_happened_since_keeps_it_open(store: Store, error: ErrorFactory) -> None:
    """Another process still does without it."""
    away = error()
    recovery = over(away)
    await put(store, away, error(timestamp=clock.now()))
    await put(store, recovery)

    assert (await store.read(groups.by_number, 1)).status == "open"


async def test_two_leaders_that_look_at_once_ring_once(store: Store, error: ErrorFactory) -> None:
    """Leases can overlap for a moment."""
    await put(store, *many(error, 8))

    looks = await asyncio.gather(*(have_a_look(store) for _ in range(4)))

    assert sum(len(one.rung) for one in looks) == 8
    assert await rung(store) == [("new", number) for number in range(1, 9)] or len(await rung(store)) == 8


async def test_a_mark_that_is_set_again_is_not_lost(store: Store, error: ErrorFactory) -> None:
    """An error that arrives after a look is looked at next time."""
    await put(store, error())
    await have_a_look(store)
    await put(store, error())

    assert (await have_a_look(store)).edits == 1


async def test_what_regresses_and_what_becomes_critical_rings_again(store: Store, error: ErrorFactory) -> None:
    """Each once, with its reason."""
    first = error()
    await put(store, first)
    await have_a_look(store)
    await put(store, Amendment(error_id=first.id, severity=Severity.CRITICAL))
    await have_a_look(store)
    await put(store, error(severity=Severity.CRITICAL))
    await have_a_look(store)
    await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api", now=clock.now())
    await have_a_look(store)
    await put(store, error(timestamp=clock.now()))
    await have_a_look(store)

    assert await rung(store) == [("new", 1), ("critical", 1), ("regressed", 1)]


async def test_an_amendment_that_makes_it_grave_rings_as_new(store: Store, error: ErrorFactory) -> None:
    """It never rang as long as it was harmless."""
    harmless = error(severity=Severity.MEDIUM)
    await put(store, harmless)
    await have_a_look(store)
    assert await rung(store) == []
    await put(store, Amendment(error_id=harmless.id, severity=Severity.HIGH))
    await have_a_look(store)

    assert await rung(store) == [("new", 1)]


async def test_many_new_groups_become_one_message(store: Store, error: ErrorFactory) -> None:
    """Each still has its alert, and the one message knows them all."""
    await put(store, *many(error, 37))
    await have_a_look(store)

    listed, _ = await store.read(alerts.list_alerts, limit=500)
    folds = [one for one in listed if one.alert.reason == "fold"]
    assert len(listed) == 38 and len(folds) == 1
    assert [one for one in listed if one.deliveries] == folds
    subject = await store.read(alerts.subject_of, folds[0].alert.id)
    assert sorted(group.number for group in subject.groups) == list(range(1, 38))


async def test_late_groups_join_the_fold_and_its_message_is_edited(store: Store, error: ErrorFactory) -> None:
    """Those that rang alone before count as well; the eleventh begins the fold."""
    await put(store, *many(error, 10))
    await have_a_look(store)
    await put(store, error("Eleventh"))
    await have_a_look(store)
    await put(store, error("Twelfth"))
    await have_a_look(store)

    listed, _ = await store.read(alerts.list_alerts, limit=500)
    [fold] = [one for one in listed if one.alert.reason == "fold"]
    subject = await store.read(alerts.subject_of, fold.alert.id)
    assert sorted(group.number for group in subject.groups) == [11, 12]
    assert len([one for one in listed if one.deliveries]) == 11


async def test_a_critical_group_in_a_storm_rings_with_sound(store: Store, error: ErrorFactory) -> None:
    """It does not slip into a message that was silent."""
    await put(store, *many(error, 11))
    await have_a_look(store)
    await put(store, error("Fatal", severity=Severity.CRITICAL), error("Fatal2", severity=Severity.CRITICAL))
    await have_a_look(store)
    await put(store, error("Fatal3", severity=Severity.CRITICAL))
    await have_a_look(store)

    listed, _ = await store.read(alerts.list_alerts, limit=500)
    folds = [one.alert.severity for one in reversed(listed) if one.alert.reason == "fold"]
    assert folds == [Severity.HIGH, Severity.CRITICAL]


async def test_more_marks_than_a_look_takes_are_taken_by_the_next(store: Store, error: ErrorFactory) -> None:
    """Nothing is left behind."""
    await put(store, *many(error, 5))

    looks = [await have_a_look(store, Limits(marked_at_once=2)) for _ in range(4)]

    assert [one.groups for one in looks] == [2, 2, 1, 0]


async def test_where_people_develop_nothing_rings(store: Store, error: ErrorFactory) -> None:
    """The mark is cleared all the same."""
    await put(store, error(environment="development"))

    assert (await have_a_look(store)).groups == 1
    assert await rung(store) == []
