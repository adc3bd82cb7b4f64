"""Signs of life become rows: when the next is due, and what an old one may not change."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.beating import DAY, HOUR, MINUTE, kept, nightly, put
from tests.conftest import NOW
from tocsin import clock, contained
from tocsin.beats import State
from tocsin.failures import BadInput, NotFound
from tocsin.model import Batch
from tocsin.store import Store, audit, beats, errors


async def tell(store: Store, *, now: datetime = NOW, **values: Any) -> None:
    await store.write(beats.tell, nightly(**{"timestamp": now, **values}), now)


async def test_the_first_beat_registers(store: Store) -> None:
    await tell(store, took_s=42.0, message="17 files")

    beat = await kept(store)

    assert (beat.environment, beat.name, beat.service) == ("production", "nightly", "shop")
    assert (beat.last_at, beat.last_ok_at, beat.created_at) == (NOW, NOW, NOW)
    assert (beat.is_ok, beat.took_s, beat.message, beat.error_id) == (True, 42.0, "17 files", None)
    assert beat.due_at == NOW + DAY + 2 * HOUR


@pytest.mark.parametrize(
    ("every", "grace"),
    [
        pytest.param(MINUTE, MINUTE, id="at least a minute"),
        pytest.param(HOUR, 6 * MINUTE, id="a tenth"),
        pytest.param(DAY, 2 * HOUR, id="more than the hour of winter time"),
        pytest.param(30 * DAY, 2 * HOUR, id="also of a month"),
    ],
)
async def test_the_usual_grace_grows_with_the_pause(store: Store, every: timedelta, grace: timedelta) -> None:
    await tell(store, every_s=every.total_seconds())

    assert (await kept(store)).due_at == NOW + every + grace


async def test_what_nobody_says_again_stays_as_it_was_said(store: Store) -> None:
    """`tocsin beat nightly` alone is enough from the second time on; who says how often says the grace too."""
    await tell(store, grace_s=3 * 3600.0)
    await tell(store, now=NOW + DAY, every_s=None)
    assert (await kept(store)).due_at == NOW + 2 * DAY + 3 * HOUR

    await tell(store, now=NOW + 2 * DAY, every_s=HOUR.total_seconds())
    assert (await kept(store)).due_at == NOW + 2 * DAY + HOUR + 6 * MINUTE


async def test_of_what_nobody_knows_somebody_has_to_say_how_often_it_comes(store: Store) -> None:
    with pytest.raises(BadInput, match="every: nothing is known of nightly in production yet"):
        await tell(store, every_s=None)
    with pytest.raises(BadInput, match="every"):
        await tell(store, every_s=0.0)

    assert await store.read(beats.list_beats) == []


async def test_a_failed_run_keeps_when_it_went_well_last(store: Store) -> None:
    await tell(store)
    await tell(store, now=NOW + DAY, is_ok=False, message="exit code 3")

    beat = await kept(store)
    assert (beat.is_ok, beat.last_at, beat.last_ok_at) == (False, NOW + DAY, NOW)
    assert beat.state(NOW + DAY) == State.FAILED


async def test_what_comes_late_makes_nothing_older(store: Store) -> None:
    """A spool that waited out an outage is emptied after what has happened since."""
    await tell(store, now=NOW + DAY, message="of today")
    late = nightly(timestamp=NOW, is_ok=False, every_s=60.0, message="of yesterday")
    await store.write(beats.tell, late, NOW + DAY + HOUR)

    beat = await kept(store)
    assert (beat.is_ok, beat.last_at, beat.message, beat.every_s) == (True, NOW + DAY, "of today", 86_400.0)


async def test_the_same_beat_twice_is_one(store: Store) -> None:
    await tell(store, took_s=1.0)
    before = await kept(store)
    await tell(store, took_s=1.0)

    assert await kept(store) == before


async def test_a_clock_that_is_ahead_buys_no_time(store: Store) -> None:
    """Else a wrong date would silence a job for as long."""
    await tell(store, timestamp=NOW + 400 * DAY)

    assert (await kept(store)).last_at == NOW


async def test_environments_are_apart(store: Store) -> None:
    await tell(store)
    await tell(store, environment="staging", is_ok=False)

    found = await store.read(beats.list_beats)
    assert [(one.environment, one.is_ok) for one in found] == [("production", True), ("staging", False)]
    assert [one.environment for one in await store.read(beats.list_beats, "staging")] == ["staging"]


async def test_a_beat_is_overdue_when_its_grace_is_over(store: Store) -> None:
    await tell(store)
    due = NOW + DAY + 2 * HOUR

    assert await store.read(beats.overdue, due) == []
    (late,) = await store.read(beats.overdue, due + timedelta(seconds=1))
    assert late.state(due + timedelta(seconds=1)) == State.MISSING


async def test_first_beats_at_the_same_moment_make_one_row(store: Store) -> None:
    """Cron jobs of several machines begin at the same second."""
    await asyncio.gather(*(tell(store, timestamp=NOW - at * MINUTE) for at in range(8)))

    assert (await kept(store)).last_at == NOW


async def test_there_is_a_most(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds the ingest token can make up names; those that are there go on."""
    monkeypatch.setattr(beats, "MOST", 2)
    await tell(store, name="a")
    await tell(store, name="b")

    with pytest.raises(BadInput, match="there are 2 beats, which is the most"):
        await tell(store, name="c")
    await tell(store, name="a", now=NOW + DAY)
    assert len(await store.read(beats.list_beats)) == 2


async def test_a_line_that_cannot_be_taken_holds_up_no_other(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """It is left out, and said."""
    contained.failures.clear()
    await put(store, nightly(name="unknown", every_s=None), nightly())

    assert (await kept(store)).name == "nightly"
    assert contained.failures == {"taking a beat": 1}
    contained.failures.clear()


async def test_beats_travel_with_errors(store: Store, error: Any) -> None:
    await store.write(errors.write_batch, Batch(entries=[error()], facts=[nightly()]), clock.now())

    assert (await kept(store)).name == "nightly"


async def test_a_beat_that_is_forgotten_is_gone_and_the_audit_says_who(store: Store) -> None:
    await tell(store)
    await store.write(beats.forget, "nightly", None, by="token: full", via="api", now=NOW)

    assert await store.read(beats.list_beats) == []
    (entry,) = await store.read(audit.of_target, "beat nightly")
    assert (entry.actor, entry.action, entry.detail) == ("token: full", "forget", "production")


async def test_what_is_not_there_cannot_be_forgotten(store: Store) -> None:
    await tell(store)
    await tell(store, environment="staging")

    with pytest.raises(NotFound, match="there is no beat hourly"):
        await store.write(beats.forget, "hourly", None, by="anna", via="cli", now=NOW)
    with pytest.raises(BadInput, match="environment: nightly is in production, staging"):
        await store.write(beats.forget, "nightly", None, by="anna", via="cli", now=NOW)
    await store.write(beats.forget, "nightly", "staging", by="anna", via="cli", now=NOW)
    assert (await kept(store)).environment == "production"
