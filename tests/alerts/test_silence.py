"""A process that falls silent without a goodbye is told of once for its service; whatever has an explanation is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select, update

from tests.alerts.conftest import Opener
from tests.postgres import free_port
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin import clock
from tocsin.alerts.silence import Deed, Watch, decide
from tocsin.failures import StoreAway
from tocsin.model import Instance
from tocsin.settings import Settings
from tocsin.store import Store, errors, open_store
from tocsin.store.schema import error_groups, error_logs, instances
from tocsin.store.silence import Quiet

NOW = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
STARTED = timedelta(hours=1)


def process(quiet_s: float, **values: Any) -> Quiet:
    """One that says every 12 s how it is, and was heard of last so long ago."""
    defaults: dict[str, Any] = {
        "id": "i-1",
        "service": "shop",
        "environment": "production",
        "release": "v1",
        "host": "web-1",
        "pid": 4711,
        "started_at": NOW - STARTED,
        "last_seen": NOW - timedelta(seconds=quiet_s),
        "ended_at": None,
        "ended_how": None,
        "is_shutting_down": False,
        "memory_bytes": None,
        "memory_limit_bytes": None,
        "active_requests": None,
        "loop_lag_ms": None,
        "beats_every_s": 12.0,
        "silent_error_id": None,
    }
    return Quiet(**(defaults | values))


DAY = 24 * 3600.0
TOLD = "0199a3b0-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("one", "steady_s", "expected"),
    [
        pytest.param(process(29), DAY, None, id="it was heard of"),
        pytest.param(process(31), DAY, Deed.TELL, id="it is silent"),
        pytest.param(process(31), 29, None, id="nobody could have heard it for so long"),
        pytest.param(process(149, beats_every_s=60), DAY, None, id="it speaks seldom"),
        pytest.param(process(151, beats_every_s=60), DAY, Deed.TELL, id="it speaks seldom, and is silent"),
        pytest.param(process(151, beats_every_s=60), 149, None, id="it speaks seldom, and the server is new"),
        pytest.param(process(3600, beats_every_s=None), DAY, None, id="it has promised nothing"),
        pytest.param(process(3600, beats_every_s=0), DAY, None, id="nobody keeps the promise any more"),
        pytest.param(process(31, ended_at=NOW, ended_how="ended"), DAY, None, id="it has said goodbye"),
        pytest.param(process(31, is_shutting_down=True), DAY, Deed.GIVE_UP, id="it was asked to stop"),
        pytest.param(process(31, silent_error_id=TOLD), DAY, None, id="it is told of"),
        pytest.param(process(1, silent_error_id=TOLD), DAY, Deed.END, id="it is back"),
        pytest.param(process(1, silent_error_id=TOLD), 0, Deed.END, id="it is back, as anybody can see"),
        pytest.param(process(31, silent_error_id=TOLD, ended_at=NOW), DAY, Deed.END, id="how it ended came later"),
        pytest.param(process(DAY, silent_error_id=TOLD), DAY, Deed.GIVE_UP, id="nobody waits for it any more"),
        pytest.param(process(DAY, beats_every_s=None), DAY, Deed.GIVE_UP, id="one of an earlier version is gone"),
        pytest.param(process(DAY, beats_every_s=None), 0, None, id="nobody could have heard it for a day"),
    ],
)
def test_what_is_done_about_a_process(one: Quiet, steady_s: float, expected: Deed | None) -> None:
    assert decide(one, NOW, silent_after_s=30, steady_s=steady_s) == expected


@pytest.fixture
def watch(settings: Settings) -> Watch:
    """One that has looked on for long enough."""
    return Watch(replace(settings, silent_after_s=30.0), steady_s=DAY)


async def said(store: Store, name: str = "i-1", quiet_s: float = 0.0, **values: Any) -> None:
    """What a process says of itself, so long ago."""
    one = Instance(
        id=name,
        service="shop",
        environment="production",
        release="v1",
        pid=4711,
        beats_every_s=12.0,
        host="web-1",
        started_at=clock.now() - STARTED,
        seen_at=clock.now() - timedelta(seconds=quiet_s),
        memory_bytes=180 * 2**20,
        memory_limit_bytes=512 * 2**20,
        active_requests=3,
        loop_lag_ms=40,
    )
    await store.write(errors.write_instance, replace(one, **values), clock.now())


async def rewind(store: Store, name: str, quiet_s: float) -> None:
    """As if it had said nothing since then."""
    changed = update(instances).where(instances.c.id == name)

    def work(connection: Connection) -> None:
        connection.execute(changed.values(last_seen=clock.now() - timedelta(seconds=quiet_s)))

    await store.write(work)


async def rows(store: Store, table: Any = instances) -> list[Any]:
    return list(await store.read(lambda connection: connection.execute(select(table).order_by(table.c.id)).all()))


async def test_a_service_is_told_of_once_however_many_are_silent(store: Store, watch: Watch) -> None:
    for name in ("i-1", "i-2", "i-3"):
        await said(store, name)
    await rewind(store, "i-1", 40)
    assert await watch.look(store)
    await rewind(store, "i-2", 40)
    assert await watch.look(store)
    assert not await watch.look(store)

    (group,) = await rows(store, error_groups)
    assert (group.title, group.severity, group.status, group.count) == ("shop is silent", "critical", "open", 2)
    first, second = await rows(store, error_logs)
    assert first.message.startswith("shop is silent: pid 4711 on web-1 has said nothing since ")
    assert first.message.endswith(
        ", when it had 180 MB of 512 MB of memory, 3 requests under way, a loop that was 40 ms late; 2 others answer"
    )
    assert second.message.endswith("; 1 other answers")
    assert {row.id: row.silent_error_id for row in await rows(store)} == {
        "i-1": first.id,
        "i-2": second.id,
        "i-3": None,
    }


async def test_it_is_over_when_the_last_of_them_is_back(store: Store, watch: Watch) -> None:
    for name in ("i-1", "i-2"):
        await said(store, name, 40)
    assert await watch.look(store)

    await said(store, "i-1")
    await watch.look(store)
    (group,) = await rows(store, error_groups)
    assert group.status == "open"
    await said(store, "i-2")
    await watch.look(store)

    (group,) = await rows(store, error_groups)
    assert (group.status, group.count) == ("resolved", 2)
    assert [row.silent_error_id for row in await rows(store)] == [None, None]


async def test_one_that_is_found_to_have_died_is_silent_no_more(store: Store, watch: Watch) -> None:
    """Its death is an error of its own."""
    await said(store, quiet_s=40)
    await watch.look(store)

    await said(store, ended_at=clock.now(), ended_how="killed", is_alive=False)
    await watch.look(store)

    (group,) = await rows(store, error_groups)
    assert group.status == "resolved"


async def test_one_that_is_asked_to_stop_and_goes_is_no_alarm(store: Store, watch: Watch) -> None:
    await said(store, quiet_s=40, is_shutting_down=True)

    assert not await watch.look(store)

    assert await rows(store, error_groups) == []
    (row,) = await rows(store)
    assert (row.ended_how, row.ended_at) == ("silent", row.last_seen)


@pytest.mark.parametrize(
    ("release", "is_alarm"),
    [pytest.param("v2", False, id="a deploy"), pytest.param("v1", True, id="the same release")],
)
async def test_a_rude_deploy_is_no_alarm(store: Store, watch: Watch, release: str, is_alarm: bool) -> None:
    """A container that is killed takes its spool with it: another release in its place explains that."""
    await said(store, "old", 40)
    await said(store, "new", release=release, started_at=clock.now() - timedelta(seconds=50))

    assert await watch.look(store) is is_alarm

    assert bool(await rows(store, error_groups)) is is_alarm


async def test_a_silence_that_goes_on_is_given_up_and_may_end_all_the_same(store: Store, watch: Watch) -> None:
    """Its row is closed after a day; what is wrong stays open, since nothing says that it is over."""
    await said(store, quiet_s=40)
    await watch.look(store)
    await rewind(store, "i-1", DAY + 1)
    await watch.look(store)

    (row,) = await rows(store)
    assert (row.ended_how, row.silent_error_id) == ("silent", None)
    (group,) = await rows(store, error_groups)
    assert group.status == "open"

    await said(store)
    (row,) = await rows(store)
    assert (row.ended_how, row.ended_at) == (None, None)


async def test_two_leaders_at_once_tell_once(store: Store, watch: Watch, settings: Settings) -> None:
    await said(store, quiet_s=40)
    await watch.look(store)

    def forget(connection: Connection) -> None:  # as the second has read it
        connection.execute(update(instances).values(silent_error_id=None))

    await store.write(forget)
    await watch.look(store)

    (group,) = await rows(store, error_groups)
    assert group.count == 1


async def test_what_retention_took_is_no_hindrance(store: Store, watch: Watch) -> None:
    await said(store, quiet_s=40)
    await watch.look(store)
    await store.write(lambda connection: connection.execute(delete(error_logs)) and None)

    await said(store)
    await watch.look(store)

    (row,) = await rows(store)
    assert row.silent_error_id is None


async def test_who_has_just_begun_to_look_waits_a_full_period(store: Store, settings: Settings) -> None:
    """Nobody could say anything while the server was away."""
    await said(store, quiet_s=40)

    assert not await Watch(replace(settings, silent_after_s=30.0)).look(store)

    assert await rows(store, error_groups) == []


async def test_after_an_outage_of_the_database_a_full_period_is_waited_for(store: Store, watch: Watch) -> None:
    away = open_store(f"postgresql://nobody@127.0.0.1:{free_port()}/away")
    await said(store, quiet_s=40)

    with pytest.raises(StoreAway):
        await watch.look(away)
    assert not await watch.look(store)

    await away.close()
    assert await rows(store, error_groups) == []


async def test_what_has_come_and_is_not_stored_yet_is_waited_for(store: Store, settings: Settings) -> None:
    """After an outage the errors of all come before the signs of life that came with them."""
    behind_s = 60.0
    watch = Watch(replace(settings, silent_after_s=30.0), steady_s=DAY, behind_s=lambda: behind_s)
    await said(store, quiet_s=40)

    assert not await watch.look(store)
    behind_s = 0.0
    assert not await watch.look(store)  # and then for a full period

    assert await rows(store, error_groups) == []


async def test_the_leader_rings_once_and_says_when_it_is_over(
    open_alerts: Opener, store: Store, telegram: TelegramStandIn
) -> None:
    await said(store, beats_every_s=0.1)
    await open_alerts(silent_after_s=1.0)

    await aeventually(lambda: telegram.messages)
    (alert,) = telegram.messages
    assert "shop is silent" in alert.text
    await said(store)

    await aeventually(lambda: any("is heard of again" in sent.text for sent in telegram.messages))
    assert sum("CRITICAL #1 new" in sent.text for sent in telegram.messages) == 1
