"""The outbox: an alert is never lost, and said twice at most when nobody saw how saying it ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import select, update

from tests.waiting import aeventually
from tocsin import clock
from tocsin.failures import BadInput
from tocsin.ids import uuid7
from tocsin.model import Severity
from tocsin.store import Store, alerts, cursors, leases, schema
from tocsin.store.alerts import Claim
from tocsin.store.queries import RECENT_AT_MOST

CHAT = ("telegram", "17")


async def add(store: Store, *targets: tuple[str, str], severity: Severity = Severity.HIGH) -> str:
    """Write an alert about nothing, with its deliveries."""

    def work(connection: Any) -> str:
        now = leases.database_now(connection)
        alert_id = alerts.add_alert(connection, reason="test", severity=severity, now=now)
        assert alert_id is not None
        alerts.add_deliveries(connection, alert_id, targets or [CHAT], priority=severity.rank, now=now)
        return alert_id

    return await store.write(work)


async def claim(store: Store, target: tuple[str, str] = CHAT, **values: Any) -> Claim | None:
    return await store.write(alerts.claim, *target, **{"owner": "p1", "claim_s": 60, "per_minute": 100, **values})


async def claimed(store: Store, **values: Any) -> Claim:
    found = await claim(store, **values)
    assert found is not None
    return found


async def delivery(store: Store, alert_id: str) -> alerts.Delivery:
    listed, _ = await store.read(alerts.list_alerts)
    return next(one.deliveries[0] for one in listed if one.alert.id == alert_id)


async def test_a_key_makes_one_alert(store: Store) -> None:
    """Two leaders for a moment still ring once."""

    def work(connection: Any) -> str | None:
        return alerts.add_alert(connection, reason="new", severity=Severity.HIGH, now=clock.now(), dedupe_key="a")

    assert await store.write(work) is not None
    assert await store.write(work) is None


async def test_an_attempt_belongs_to_one_worker(store: Store) -> None:
    """However many ask at once."""
    await add(store)

    found = await asyncio.gather(*(claim(store, owner=f"p{number}") for number in range(4)))

    assert len([one for one in found if one]) == 1


async def test_what_was_sent_is_not_due_any_more(store: Store) -> None:
    """And can be looked up: when, under which id, by how many attempts."""
    alert_id = await add(store)

    assert await store.read(alerts.due_targets, ["telegram"]) == [CHAT]
    assert await store.write(alerts.mark_sent, await claimed(store), "777")

    assert await store.read(alerts.due_targets, ["telegram"]) == []
    assert await claim(store) is None
    sent = await delivery(store, alert_id)
    assert (sent.state, sent.external_id, sent.attempts, sent.may_repeat) == ("sent", "777", 1, False)
    assert [line.outcome for line in sent.log] == ["sent"]
    assert await store.read(alerts.oldest_pending) is None


async def test_a_claim_that_ran_out_is_made_again_and_says_that_it_may_repeat(store: Store) -> None:
    """Its worker may have died before or after the message left; whoever comes back too late changes nothing."""
    alert_id = await add(store)
    lost = await claimed(store, claim_s=0.05)
    assert not lost.subject.may_repeat

    again = await aeventually(lambda: claim(store, owner="p2"))

    assert again is not None and again.subject.may_repeat and again.fence > lost.fence
    assert not await store.write(alerts.mark_sent, lost, "1")
    assert await store.write(alerts.mark_sent, again, "2")
    assert (await delivery(store, alert_id)).external_id == "2"


async def test_the_gravest_goes_first(store: Store) -> None:
    """And of the equally grave the oldest."""
    ids = [await add(store, severity=severity) for severity in (Severity.HIGH, Severity.HIGH, Severity.CRITICAL)]

    order = [(await claimed(store)).subject.alert.id for _ in ids]

    assert order == [ids[2], ids[0], ids[1]]


async def test_only_so_many_messages_a_minute_go_to_a_chat(store: Store) -> None:
    """Also when several workers ask at once; the rest waits, nothing is dropped, other chats are not concerned."""
    for _ in range(5):
        await add(store, CHAT, ("telegram", "18"))

    found = await asyncio.gather(*(claim(store, per_minute=3) for _ in range(5)))

    taken = [one for one in found if one]
    assert len(taken) == 3
    for one in taken:
        await store.write(alerts.mark_sent, one, "1")
    assert await claim(store, per_minute=3) is None
    assert await claim(store, target=("telegram", "18"), per_minute=3) is not None
    await minute_passes(store)
    assert await claim(store, per_minute=3) is not None


async def minute_passes(store: Store) -> None:
    """Make everything that was sent a minute older."""

    def work(connection: Any) -> None:
        table = schema.deliveries
        for row in connection.execute(select(table).where(table.c.sent_at.is_not(None))).all():
            earlier = row.sent_at - timedelta(minutes=1)
            connection.execute(update(table).where(table.c.id == row.id).values(sent_at=earlier))

    await store.write(work)


async def test_a_failed_attempt_is_made_again_after_its_pause(store: Store) -> None:
    """The whole target rests, for all workers; why can be seen."""
    alert_id = await add(store)
    await store.write(alerts.mark_retry, await claimed(store), "no route", pause_s=0.1)
    await add(store, severity=Severity.CRITICAL)

    assert await claim(store, owner="p2") is None
    critical = await aeventually(lambda: claim(store))
    again = await claimed(store)

    assert critical is not None and critical.subject.alert.severity == Severity.CRITICAL
    assert (again.subject.alert.id, again.attempt, again.subject.may_repeat) == (alert_id, 2, False)
    failed = await delivery(store, alert_id)
    assert [(line.outcome, line.error) for line in failed.log] == [("retry", "no route")]
    [state] = await store.read(alerts.states)
    assert state.last_error == "no route" and state.paused_until is not None


async def test_a_message_that_cannot_be_said_lets_others_pass(store: Store) -> None:
    """However grave it is; it is tried again later, and nothing is held against the target."""
    broken = await add(store, severity=Severity.CRITICAL)
    await add(store, severity=Severity.LOW)
    await store.write(alerts.postpone, await claimed(store), "UnicodeError", pause_s=0.1)

    assert (await claimed(store)).subject.alert.severity == Severity.LOW
    again = await aeventually(lambda: claim(store))
    assert again is not None
    assert (again.subject.alert.id, again.attempt, again.subject.may_repeat) == (broken, 2, True)
    [state] = await store.read(alerts.states)
    assert (state.paused_until, state.last_error) == (None, None)


async def test_an_edit_is_wanted_on_the_channels_that_follow(store: Store) -> None:
    """What a mail has said stays said."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")

    await store.write(alerts.want_edits, [alert_id], channels=["email"], now=clock.now())
    assert await store.read(alerts.due_targets, ["telegram"]) == []

    await store.write(alerts.want_edits, [alert_id], channels=["telegram"], now=clock.now())
    assert len(await store.read(alerts.due_targets, ["telegram"])) == 1


async def test_an_edit_that_fails_again_and_again_pauses_longer(store: Store) -> None:
    """As a message does; one that succeeds begins anew."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")

    async def edit() -> Claim:
        await store.write(alerts.want_edits, [alert_id], now=clock.now())
        return await claimed(store)

    first = await edit()
    await store.write(alerts.postpone, first, "UnicodeError", pause_s=0)
    second = await edit()
    await store.write(alerts.mark_edited, second)

    assert second.attempt == first.attempt + 1
    assert (await edit()).attempt == first.attempt


async def test_an_unclear_end_may_repeat(store: Store) -> None:
    """The message may have arrived although the answer did not."""
    await add(store)
    await store.write(alerts.mark_retry, await claimed(store), "time-out", pause_s=0, unclear=True)

    assert (await claimed(store)).subject.may_repeat


async def test_a_target_that_refuses_is_left_alone_until_it_may_have_been_mended(store: Store) -> None:
    """What waits for it goes on waiting, the refused message first; a restart tries again at once."""
    alert_id = await add(store)
    await store.write(alerts.park, await claimed(store), "bot was blocked", retry_s=600)
    await add(store)

    assert await claim(store) is None
    assert await store.read(alerts.due_targets, ["telegram"]) == []
    refused = await delivery(store, alert_id)
    assert (refused.state, refused.last_error) == ("pending", "bot was blocked")
    assert [line.outcome for line in refused.log] == ["refused"]
    [state] = await store.read(alerts.states)
    assert state.parked_reason == "bot was blocked"

    await store.write(alerts.unpark, ["telegram"])
    again = await claimed(store)
    assert (again.subject.alert.id, again.subject.may_repeat) == (alert_id, False)
    await store.write(alerts.mark_sent, again, "1")
    [state] = await store.read(alerts.states)
    assert (state.parked_reason, state.last_error) == (None, None)
    assert state.last_ok_at is not None


async def test_a_refused_edit_stops_no_message(store: Store) -> None:
    """The old message may be out of reach for ever in a chat that takes new ones; it is tried again later."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")
    await store.write(alerts.want_edits, [alert_id], now=clock.now())
    await store.write(alerts.park, await claimed(store), "not enough rights", retry_s=0.1)

    await add(store, severity=Severity.CRITICAL)
    assert (await claimed(store)).subject.alert.severity == Severity.CRITICAL
    again = await aeventually(lambda: claim(store))
    assert again is not None and again.external_id == "5"
    [state] = await store.read(alerts.states)
    assert (state.parked_reason, state.last_error) == (None, "not enough rights")


async def test_what_waits_for_a_chat_that_is_not_set_up_any_more_is_given_up(store: Store) -> None:
    """Else it would wait for ever, and health with it."""
    alert_id = await add(store, ("telegram", "99"))
    await add(store)

    assert await store.write(alerts.give_up, [CHAT], clock.now() - timedelta(hours=1)) == 0
    assert await store.write(alerts.give_up, [CHAT], clock.now() + timedelta(seconds=1)) == 1
    assert (await delivery(store, alert_id)).state == "failed"


async def test_an_edit_wanted_in_a_chat_that_is_not_set_up_any_more_is_forgotten(store: Store) -> None:
    """Else every look of every process would find it due, and nobody would ever make it."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")
    await store.write(alerts.want_edits, [alert_id], now=clock.now())
    assert await store.read(alerts.due_targets, ["telegram"]) == [CHAT]

    await store.write(alerts.give_up, [("telegram", "18")], clock.now())

    assert await store.read(alerts.due_targets, ["telegram"]) == []
    assert (await delivery(store, alert_id)).state == "sent"


@pytest.mark.parametrize("ends", ["retry", "failed", "refused"])
async def test_who_comes_back_too_late_says_nothing_against_the_target(store: Store, ends: str) -> None:
    """Another worker may have reached it since; a pause would stop all that is due there."""
    await add(store)
    lost = await claimed(store, claim_s=0.05)
    again = await aeventually(lambda: claim(store, owner="p2"))
    assert again is not None
    await store.write(alerts.mark_sent, again, "5")

    late: dict[str, Any] = {
        "retry": lambda connection: alerts.mark_retry(connection, lost, "no route", pause_s=600),
        "failed": lambda connection: alerts.mark_failed(connection, lost, "too long"),
        "refused": lambda connection: alerts.park(connection, lost, "bot was blocked", retry_s=600),
    }
    assert not await store.write(late[ends])

    [state] = await store.read(alerts.states)
    assert (state.paused_until, state.parked_reason, state.last_error) == (None, None, None)


async def test_counts_are_edited_only_so_often_but_a_status_at_once(store: Store) -> None:
    """Telegram counts edits as messages: a busy chat is told what people did, figures wait for a quiet minute."""
    shown = [await add(store) for _ in range(alerts.EDITS_BESIDE + 2)]
    for number, _ in enumerate(shown):
        await store.write(alerts.mark_sent, await claimed(store), str(number))
    await minute_passes(store)
    await store.write(alerts.want_edits, shown, now=clock.now(), every_s=1)

    for _ in range(alerts.EDITS_BESIDE):
        await store.write(alerts.mark_edited, await claimed(store, per_minute=0))
    assert await claim(store, per_minute=0) is None

    await store.write(alerts.want_edits, shown[-1:], now=clock.now())
    status = await claimed(store, per_minute=0)
    assert status.subject.alert.id == shown[-1]
    await store.write(alerts.mark_edited, status)
    assert await claim(store, per_minute=0) is None
    assert await claim(store, per_minute=2) is not None


async def test_a_chat_that_moved_is_found_under_its_new_id(store: Store) -> None:
    """For this message, all later ones, and answers to them."""
    await add(store)
    await store.write(alerts.move, await claimed(store), "-100")

    again = await claimed(store)
    assert (again.target, again.address) == ("17", "-100")
    await store.write(alerts.mark_sent, again, "5")
    await add(store)
    assert (await claimed(store)).address == "-100"


async def test_an_edit_waits_for_its_time_and_a_wish_in_between_is_kept(store: Store) -> None:
    """Two changes in a row make two edits, or one that says both; never one that says the first only."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")
    await store.write(alerts.want_edits, [alert_id], now=clock.now(), every_s=600)
    assert await claim(store) is None

    await store.write(alerts.want_edits, [alert_id], now=clock.now() - timedelta(seconds=1))
    edit = await claimed(store)
    assert edit.external_id == "5"
    await store.write(alerts.want_edits, [alert_id], now=clock.now() - timedelta(seconds=1))
    assert await store.write(alerts.mark_edited, edit)

    again = await claimed(store)
    assert await store.write(alerts.mark_edited, again)
    assert await claim(store) is None


async def test_an_edit_that_nobody_finished_is_made_again(store: Store) -> None:
    """A worker that dies leaves no message that says how things stood."""
    alert_id = await add(store)
    await store.write(alerts.mark_sent, await claimed(store), "5")
    await store.write(alerts.want_edits, [alert_id], now=clock.now() - timedelta(seconds=1))
    lost = await claimed(store, claim_s=0.05)

    again = await aeventually(lambda: claim(store))

    assert again is not None and again.external_id == "5"
    assert not await store.write(alerts.mark_edited, lost)
    assert await store.write(alerts.mark_edited, again)
    assert await claim(store) is None


async def test_a_change_while_the_message_is_on_its_way_makes_an_edit(store: Store) -> None:
    """What was rendered before it says too little."""
    alert_id = await add(store)
    sending = await claimed(store)
    await store.write(alerts.want_edits, [alert_id], now=clock.now() - timedelta(seconds=1))
    await store.write(alerts.mark_sent, sending, "5")

    assert (await claimed(store)).external_id == "5"


async def test_the_log_keeps_the_last_attempts(store: Store) -> None:
    """Enough to see what goes on, and no more."""
    alert_id = await add(store)
    for attempt in range(25):
        await store.write(alerts.mark_retry, await claimed(store), f"try {attempt}", pause_s=0)

    lines = (await delivery(store, alert_id)).log
    assert [line.error for line in lines] == [f"try {attempt}" for attempt in range(5, 25)]
    assert all(line.at.tzinfo == UTC for line in lines)


async def test_alerts_are_listed_newest_first_and_page_by_page(store: Store) -> None:
    """None is missed and none comes twice."""
    ids = [await add(store) for _ in range(5)]

    first, cursor = await store.read(alerts.list_alerts, limit=3)
    rest, end = await store.read(alerts.list_alerts, limit=3, before=cursor)

    assert [one.alert.id for one in first + rest] == ids[::-1]
    assert end is None
    assert cursor is not None and quote(cursor, safe="") == cursor


@pytest.mark.parametrize(
    "place",
    [
        "",
        "yesterday",
        "2026-01-01T00:00:00~01a21044-94b8-7073-914f-aa96740affcf",
        cursors.encode(datetime(2026, 1, 1, tzinfo=UTC), "group-1"),
    ],
)
async def test_a_place_in_no_list_of_alerts_is_refused(store: Store, place: str) -> None:
    """With words for people, whatever it is: also a place in another list, or a moment of no zone."""
    with pytest.raises(BadInput, match="next"):
        await store.read(alerts.list_alerts, before=place)


async def test_the_errors_of_the_last_hour_are_added_up_without_end_in_no_storm(store: Store) -> None:
    """Whoever asks for /status in the worst hour gets an answer."""

    def storm(connection: Any) -> None:
        now = clock.now()
        row = {"severity": "low", "category": "unknown", "message": "x", "environment": "production", "count": 2}
        rows = [row | {"id": uuid7(), "timestamp": now, "created_at": now} for _ in range(RECENT_AT_MOST + 10)]
        connection.execute(schema.error_logs.insert(), rows)

    await store.write(storm)

    overview = await store.read(alerts.overview, clock.now())
    assert overview.errors_last_hour == 2 * RECENT_AT_MOST


async def test_an_update_is_seen_once_by_all_processes(store: Store) -> None:
    """Also when it is delivered again; a count that begins anew far below is no repetition."""

    async def first(update_id: int) -> bool:
        return await store.write(alerts.is_first_sight, "123", update_id)

    assert [await first(update_id) for update_id in (500_000, 500_000, 500_002, 500_001, 7, 7, 8)] == [
        True, False, True, False, True, False, True,
    ]  # fmt: skip
