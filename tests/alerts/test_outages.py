"""Outages of dependencies whose end the process that met them cannot tell any more."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.alerts.conftest import Opener
from tests.alerts.samples import plain_settings
from tests.conftest import ErrorFactory
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin import clock
from tocsin.alerts import outages
from tocsin.exporter.fingerprint import of_place
from tocsin.lifecycle import Trigger
from tocsin.model import Batch, DependencyState, Instance
from tocsin.store import Store, errors, groups

OURS = {"service": "shop", "environment": "production"}


async def tell(store: Store, process: str, since: datetime, *, away: bool, **values: Any) -> None:
    """A process tells how Redis stands for it."""
    now = clock.now()
    one = Instance(id=process, release=None, host="h", pid=1, started_at=now, **{**OURS, **values})
    state = DependencyState(name="redis", instance_id=process, is_away=away, is_optional=True, since=since, **OURS)
    await store.write(errors.write_batch, Batch(entries=[], instance=one, facts=[state]), now)


@pytest.fixture
async def left_open(store: Store, error: ErrorFactory) -> datetime:
    """A process has met an outage and has ended in it; when that was."""
    began = clock.now() - timedelta(minutes=5)
    away = error("ConnectionError", fingerprint=of_place("redis is away"), timestamp=began, instance_id="old", **OURS)
    await store.write(errors.write_batch, Batch(entries=[away]), clock.now())
    await tell(store, "old", began, away=True, ended_at=began, ended_how="stopped")
    return began


async def look(store: Store) -> bool:
    return await outages.look(store, plain_settings())


async def test_the_next_process_ends_what_the_last_one_has_left_open(store: Store, left_open: datetime) -> None:
    assert not await look(store)
    await tell(store, "new", left_open + timedelta(minutes=1), away=False)

    assert await look(store)
    group = await store.read(groups.by_number, 1)
    assert (group.status, group.resolved_by) == ("resolved", "tocsin")
    assert not await look(store)


async def test_who_heard_of_it_hears_that(
    open_alerts: Opener, telegram: TelegramStandIn, store: Store, left_open: datetime
) -> None:
    await open_alerts()
    await aeventually(lambda: telegram.messages)
    await tell(store, "new", left_open + timedelta(minutes=1), away=False)

    await aeventually(lambda: len(telegram.messages) == 2, 20)
    assert "redis answers again" in telegram.messages[1].text


async def test_it_goes_on_while_a_living_process_says_so(store: Store, left_open: datetime) -> None:
    await tell(store, "new", left_open + timedelta(minutes=1), away=False)
    await tell(store, "other", left_open, away=True)

    assert not await look(store)
    assert (await store.read(groups.by_number, 1)).status == "open"


async def test_who_lives_tells_it_by_itself(store: Store, left_open: datetime, error: ErrorFactory) -> None:
    """It may wait until the return has lasted."""
    now = clock.now()
    one = error(fingerprint=of_place("redis is away"), timestamp=now, instance_id="living", **OURS)
    await store.write(errors.write_batch, Batch(entries=[one]), now)
    await tell(store, "living", now + timedelta(seconds=1), away=False)
    await tell(store, "new", now + timedelta(seconds=1), away=False)

    assert not await look(store)


async def test_who_has_asked_only_before_knows_nothing_of_it(store: Store, left_open: datetime) -> None:
    await tell(store, "idle", left_open - timedelta(minutes=1), away=False)

    assert not await look(store)


async def test_what_a_person_has_said_stands(store: Store, left_open: datetime) -> None:
    await store.write(groups.act, 1, Trigger.IGNORE, by="@anna", via="api")
    await tell(store, "new", left_open + timedelta(minutes=1), away=False)

    assert not await look(store)
    assert (await store.read(groups.by_number, 1)).status == "ignored"
