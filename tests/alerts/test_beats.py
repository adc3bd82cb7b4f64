"""Cron jobs that are missing or fail ring once, and once when they run again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.alerts.conftest import SHORT, Opener
from tests.alerts.samples import NOW, plain_settings
from tests.beating import DAY, HOUR, MINUTE, kept, nightly, put
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin import clock
from tocsin.alerts.beats import Deed, Watch, decide
from tocsin.alerts.commands import Command, run
from tocsin.alerts.limits import Limits
from tocsin.alerts.look import look
from tocsin.lifecycle import Status, Trigger
from tocsin.store import Store, alerts, beats, groups, queries
from tocsin.store.beats import KeptBeat

AT_ONCE = replace(SHORT, missing_after_s=0.0)
CHATS = [("telegram", "17")]


# What is decided


def beat_of(**values: Any) -> KeptBeat:
    """A beat that came an hour ago, was well, and comes once a day; told of when a test says so."""
    defaults: dict[str, Any] = {
        "environment": "production",
        "name": "nightly",
        "service": "shop",
        "every_s": DAY.total_seconds(),
        "grace_s": HOUR.total_seconds(),
        "created_at": NOW - 9 * DAY,
        "last_at": NOW - HOUR,
        "last_ok_at": NOW - HOUR,
        "is_ok": True,
        "took_s": 42.0,
        "message": None,
        "error_id": None,
        "told": None,
        "told_at": None,
        "group": None,
        "group_status": None,
        "group_resolved_at": None,
    }
    known = {**defaults, **values}
    known.setdefault("due_at", known["last_at"] + DAY + HOUR)
    return KeptBeat(**known)


def told(what: str, **values: Any) -> dict[str, Any]:
    """That an error of an open group tells of it."""
    return {"error_id": "e", "told": what, "group": 1, "group_status": Status.OPEN, **values}


LATE = NOW - 2 * DAY


def resolved(at: datetime) -> dict[str, Any]:
    """That a person said that it is mended, while it was missing."""
    return told("missing", told_at=LATE, group_status=Status.RESOLVED, group_resolved_at=at)


@pytest.mark.parametrize(
    ("beat", "deed"),
    [
        pytest.param(beat_of(), None, id="well"),
        pytest.param(beat_of(last_at=LATE), Deed.TELL, id="missing"),
        pytest.param(beat_of(is_ok=False), Deed.TELL, id="failed"),
        pytest.param(beat_of(**told("missing", told_at=LATE)), Deed.END, id="came again"),
        pytest.param(beat_of(last_at=LATE, **told("missing", told_at=LATE)), None, id="goes on missing"),
        pytest.param(beat_of(is_ok=False, **told("failed", told_at=NOW - HOUR)), None, id="failed, and told so"),
        pytest.param(beat_of(is_ok=False, **told("failed", told_at=LATE)), Deed.TELL, id="failed again"),
        pytest.param(beat_of(is_ok=False, **told("missing", told_at=LATE)), Deed.TELL, id="came again, and failed"),
        pytest.param(beat_of(last_at=LATE, is_ok=False, **told("failed", told_at=LATE)), Deed.TELL, id="then missing"),
        pytest.param(beat_of(last_at=LATE, **told("missing", told_at=LATE, group_status=None)), Deed.TELL, id="gone"),
        pytest.param(beat_of(last_at=LATE, **resolved(at=NOW - 26 * HOUR)), Deed.TELL, id="resolved a day ago"),
        pytest.param(beat_of(last_at=LATE, **resolved(at=NOW - HOUR)), None, id="resolved an hour ago"),
    ],
)
def test_what_is_told_of_a_beat(beat: KeptBeat, deed: Deed | None) -> None:
    assert decide(beat, NOW, may_miss=True) == deed


@pytest.mark.parametrize(
    ("beat", "deed"),
    [
        pytest.param(beat_of(last_at=LATE), None, id="missing"),
        pytest.param(beat_of(last_at=LATE, is_ok=False), None, id="failed long ago"),
        pytest.param(beat_of(is_ok=False), Deed.TELL, id="failed"),
        pytest.param(beat_of(**told("missing", told_at=LATE)), Deed.END, id="came again"),
    ],
)
def test_while_signs_of_life_may_be_on_their_way_nothing_is_missing(beat: KeptBeat, deed: Deed | None) -> None:
    """What has been heard is true all the same."""
    assert decide(beat, NOW, may_miss=False) == deed


# What is written


def watch(**values: Any) -> Watch:
    return Watch(plain_settings(**values), patience_s=0.0)


async def rung(store: Store, **settings: Any) -> list[tuple[int, str]]:
    looked = await store.write(look, plain_settings(**settings), Limits(seen_after_s=0), CHATS)
    return [(number, str(reason)) for number, reason in looked.rung]


async def messages(store: Store) -> list[str]:
    rows, _ = await store.read(queries.list_errors)
    return [row["message"] for row in rows]


async def test_a_missing_beat_is_one_error_and_one_ring_however_often_one_looks(store: Store) -> None:
    """Whichever server leads, and after a restart."""
    await put(store, nightly(timestamp=clock.now() - 2 * DAY))

    assert await watch().look(store)
    assert await rung(store) == [(1, "new")]
    assert not await watch().look(store)
    assert await rung(store) == []
    (said,) = await messages(store)
    assert said.startswith("nightly is missing: it was due by ")
    assert "(every 1d)" in said
    (row,), _ = await store.read(queries.list_errors)
    assert (row["severity"], row["category"], row["service"]) == ("high", "unknown", "shop")
    assert row["context"]["beat"] == "nightly"


async def test_two_leaders_at_once_tell_once(store: Store) -> None:
    await put(store, *(nightly(name=f"job {at}", timestamp=clock.now() - 2 * DAY) for at in range(5)))

    await asyncio.gather(*(watch().look(store) for _ in range(4)))

    assert len(await messages(store)) == 5
    assert len(await rung(store)) == 5


async def test_each_failure_counts_and_only_the_first_rings(store: Store) -> None:
    await put(store, nightly(is_ok=False, took_s=42.0, message="exit code 3\nno space left"))
    await watch().look(store)
    assert await rung(store) == [(1, "new")]
    await put(store, nightly(is_ok=False, took_s=1.25, message="exit code 4"))
    await watch().look(store)

    assert await rung(store) == []
    assert (await store.read(groups.by_number, 1)).count == 2
    assert await messages(store) == [
        "nightly has failed after 1.2 s: exit code 4",
        "nightly has failed after 42 s: exit code 3\nno space left",
    ]


async def test_the_next_good_beat_ends_it(store: Store) -> None:
    await put(store, nightly(timestamp=clock.now() - 2 * DAY))
    await watch().look(store)
    await rung(store)
    await put(store, nightly(took_s=42.0))
    await watch().look(store)

    assert await rung(store) == [(1, "recovered")]
    group = await store.read(groups.by_number, 1)
    assert (group.status, group.resolved_by) == (Status.RESOLVED, "tocsin")
    act = await store.read(alerts.last_act, group)
    assert act is not None
    assert act.detail is not None
    assert act.detail.startswith("nightly has run again at ")
    assert act.detail.endswith(", took 42 s")
    assert (await kept(store)).error_id is None


async def test_a_good_beat_that_was_late_on_its_way_ends_it_too(store: Store) -> None:
    """It happened before anybody missed it: its spool was emptied after that."""
    await put(store, nightly(timestamp=clock.now() - 27 * HOUR))
    await watch().look(store)
    await rung(store)
    await put(store, nightly(timestamp=clock.now() - 3 * HOUR))
    await watch().look(store)

    assert await rung(store) == [(1, "recovered")]


async def test_what_fails_again_after_it_was_well_rings_again(store: Store) -> None:
    for is_ok in (False, True, False):
        await put(store, nightly(is_ok=is_ok))
        await watch().look(store)
        reasons = await rung(store)

    assert reasons == [(1, "regressed")]


async def test_a_beat_that_a_person_resolved_rings_when_it_misses_its_next_time(store: Store) -> None:
    """Somebody said that it is mended, and it is not."""
    await put(store, nightly(every_s=1.0, grace_s=0.0, timestamp=clock.now() - MINUTE))
    await watch().look(store)
    await rung(store)
    await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api", now=clock.now() - timedelta(seconds=5))
    assert (await kept(store)).group_status == Status.RESOLVED
    await rung(store)
    await watch().look(store)

    assert await rung(store) == [(1, "regressed")]


async def test_an_environment_that_does_not_ring_does_not_ring(store: Store) -> None:
    """It can be seen all the same."""
    await put(store, nightly(environment="test", is_ok=False))
    await watch().look(store)

    assert await rung(store) == []
    assert len(await messages(store)) == 1


async def test_a_beat_that_comes_while_it_is_about_to_be_missed_is_not_missed(store: Store) -> None:
    """What was read is looked at again in the transaction that tells it."""
    old = clock.now() - 2 * DAY
    await put(store, nightly(timestamp=old))

    seen = await kept(store)
    await put(store, nightly())
    assert not await store.write(beats.mark_told, seen, "0198c0de-0000-7000-8000-000000000000", None)


async def test_what_is_forgotten_while_it_is_missing_is_resolved_by_who_forgets_it(store: Store) -> None:
    await put(store, nightly(timestamp=clock.now() - 2 * DAY))
    await watch().look(store)
    await rung(store)
    await store.write(beats.forget, "nightly", None, by="cli: root", via="cli", now=clock.now())

    group = await store.read(groups.by_number, 1)
    assert (group.status, group.resolved_by) == (Status.RESOLVED, "cli: root")
    assert await rung(store) == []


async def test_status_names_what_is_missing_or_failed(store: Store) -> None:
    """And of the others nothing: what is well needs no line."""
    await put(
        store, nightly(timestamp=clock.now() - 2 * DAY), nightly(name="hourly", is_ok=False), nightly(name="well")
    )
    settings = plain_settings()
    said = await store.read(
        run, Command(name="status"), settings, by="@anna", via="telegram", leader="me", now=clock.now()
    )

    assert "nightly: missing since" in said.plain
    assert "hourly: failed," in said.plain
    assert "well" not in said.plain


# While the alerts run


async def test_after_a_start_nothing_is_missing_until_spools_had_their_time(
    open_alerts: Opener, telegram: TelegramStandIn, store: Store
) -> None:
    """The server was down over night: the job ran, and its beat waits in the spool of its machine."""
    await put(store, nightly(timestamp=clock.now() - 2 * DAY), nightly(name="hourly", is_ok=False))
    await open_alerts(replace(SHORT, missing_after_s=600.0))

    [sent] = await aeventually(lambda: telegram.messages)
    assert "hourly has failed" in sent.text
    assert (await store.read(groups.list_groups))[0][0].number == 1
    assert len(await messages(store)) == 1


async def test_an_outage_asks_for_the_same_patience_again(store: Store) -> None:
    """While the database was away nobody could tell that it runs."""
    await put(store, nightly(timestamp=clock.now() - 2 * DAY))
    watching = Watch(plain_settings(check_interval_s=0.01), patience_s=0.2, break_s=0.2)
    assert not await watching.look(store)
    await asyncio.sleep(0.25)  # nobody looks: it was away
    assert not await watching.look(store)

    await aeventually(lambda: watching.look(store))
    assert len(await messages(store)) == 1


async def test_missing_is_one_message_and_well_again_another(
    open_alerts: Opener, telegram: TelegramStandIn, store: Store
) -> None:
    """The whole way to Telegram and back."""
    await put(store, nightly(timestamp=clock.now() - 2 * DAY))
    await open_alerts(AT_ONCE)
    await aeventually(lambda: telegram.messages)
    await put(store, nightly(took_s=42.0))
    await aeventually(lambda: len(telegram.messages) == 2)
    await aeventually(lambda: "resolved" in telegram.messages[0].text)

    missed, again = telegram.messages
    assert "nightly is missing: it was due by" in missed.text
    assert "is over" in again.text
    assert "nightly has run again at" in again.text
    assert "took 42 s" in again.text
    assert missed.is_silent
    assert again.is_silent
    assert len(telegram.messages) == 2
