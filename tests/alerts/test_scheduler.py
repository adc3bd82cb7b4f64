"""The alerts of a process: who leads, what wakes them, and what they live through."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, insert, select

from tests.alerts.conftest import ANNA, SHORT, Opener
from tests.conftest import ErrorFactory, mostly
from tests.postgres import PostgresServer
from tests.standin.telegram import TelegramStandIn
from tests.waiting import aeventually
from tocsin import clock
from tocsin.alerts.console import Console
from tocsin.alerts.scheduler import running, send_test
from tocsin.lifecycle import Trigger
from tocsin.model import Batch, Severity
from tocsin.settings import Settings
from tocsin.store import Store, errors, groups, leases, open_store, retention, schema
from tocsin.store.migrate import migrate


async def test_from_error_to_message_in_less_than_a_second(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Without any wake-up, by the look alone and with the usual patience."""
    await open_alerts(replace(SHORT, look_s=0.25))
    await aeventually(lambda: telegram.calls("getUpdates"))
    began = time.monotonic()
    await put(error(severity=Severity.CRITICAL))

    [sent] = await aeventually(lambda: telegram.messages)
    assert sent.at - began < 1.0
    assert not sent.is_silent


@mostly("sqlite")
async def test_a_message_grows_with_its_group(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """One message a group, edited now and then, silently."""
    await open_alerts()
    await put(error())
    await aeventually(lambda: telegram.messages)
    for _ in range(20):
        await put(error())

    await aeventually(lambda: "count 21" in telegram.messages[0].text)
    assert len(telegram.messages) == 1
    assert telegram.messages[0].is_silent
    assert len(telegram.messages[0].edits) < 20


@mostly("sqlite")
async def test_thirty_seven_groups_are_one_message(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """The likely cause first, and each number in it; what is late joins by an edit."""
    await open_alerts()
    cause = error("OperationalError", severity=Severity.CRITICAL, category="database")
    await put(*(error(f"Error{number}") for number in range(36)), cause)

    await aeventually(lambda: telegram.messages)
    await put(error("Late"))
    await aeventually(lambda: "#38" in telegram.messages[0].text)
    [sent] = telegram.messages
    assert "OperationalError" in sent.text.splitlines()[1]
    last = sent.text.splitlines()[-1]
    assert last == "All: " + ", ".join(f"#{number}" for number in range(1, 39))
    assert not sent.is_silent


async def test_what_anyone_does_elsewhere_shows_in_the_message_at_once(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """By whichever way."""
    await open_alerts(replace(SHORT, edit_every_s=600))
    await put(error())
    await aeventually(lambda: telegram.messages)
    await store.write(groups.act, 1, Trigger.RESOLVE, by="token: full", via="api", now=clock.now())

    await aeventually(lambda: "resolved by token: full (api)" in telegram.messages[0].text)


@mostly("sqlite")
async def test_a_mute_that_is_over_rings(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """Silence was wanted until then, not for ever."""
    await open_alerts()
    await put(error())
    await aeventually(lambda: telegram.messages)
    until = clock.now() + timedelta(seconds=0.3)
    await store.write(groups.act, 1, Trigger.MUTE, by="@anna", via="api", now=clock.now(), until=until)

    await aeventually(lambda: any("goes on after its mute" in sent.text for sent in telegram.messages))


async def test_rows_that_are_slow_to_follow_hold_up_no_bell(
    postgres_url: str, settings: Settings, telegram: TelegramStandIn, error: ErrorFactory
) -> None:
    """Somebody else holds a row of the resolved group: what is new rings all the same, and the row follows later."""
    store, other = open_store(postgres_url), open_store(postgres_url)
    held, let_go = threading.Event(), threading.Event()

    def hold(connection: Connection) -> None:
        connection.execute(select(schema.error_logs).with_for_update()).all()
        held.set()
        let_go.wait(30)

    async def put(kind: str) -> None:
        await store.write(errors.write_batch, Batch(entries=[error(kind)]), clock.now())

    async def is_settled() -> bool:
        rows = await store.read(lambda connection: connection.execute(select(schema.error_groups)).all())
        return not any(row.rows_pending for row in rows)

    await put("KeyError")
    holding = asyncio.create_task(asyncio.to_thread(other.write_now, hold))
    try:
        await aeventually(held.is_set)
        async with running(settings, store, limits=SHORT):
            await aeventually(lambda: telegram.messages)
            await store.write(groups.act, 1, Trigger.RESOLVE, by="@anna", via="api")
            await aeventually(lambda: "resolved by @anna" in telegram.messages[0].text)
            await put("OSError")
            await aeventually(lambda: any("OSError" in sent.text for sent in telegram.messages))
            assert not await is_settled()
            let_go.set()
            await holding
            await aeventually(is_settled)
    finally:
        let_go.set()
        await holding
        await asyncio.to_thread(other.close_now)
        await store.close()


async def test_a_leader_that_stops_hands_over_at_once(open_alerts: Opener, store: Store, settings: Settings) -> None:
    """And stops within five seconds."""
    async with running(settings, store, limits=replace(SHORT, lease_ttl_s=60)) as first:
        await aeventually(lambda: first.is_leader)
        second = await open_alerts()
        assert not second.is_leader
        began = time.monotonic()
    assert time.monotonic() - began < 5

    await aeventually(lambda: second.is_leader, timeout_s=3)


_LEADER = """
import asyncio, sys
from tocsin.alerts.console import Console
from tocsin.alerts.limits import Limits
from tocsin.alerts.scheduler import running
from tocsin.settings import Settings
from tocsin.store import open_store

async def main():
    async with running(
        Settings(database_url=sys.argv[1]), open_store(sys.argv[1]), channels=[Console()], limits=Limits(lease_ttl_s=2)
    ) as house:
        while not house.is_leader:
            await asyncio.sleep(0.01)
        print("leads", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_leader_that_is_killed_is_followed(
    database_url: str, open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory
) -> None:
    """Its lease runs out; what it did not decide is decided by the next."""
    arguments = [sys.executable, "-c", _LEADER, database_url]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"}) as worker:
        assert worker.stdout is not None
        try:
            assert await asyncio.to_thread(worker.stdout.readline) == b"leads\n"
            house = await open_alerts()
            assert not house.is_leader
        finally:
            worker.send_signal(signal.SIGKILL)
    await put(error())

    await aeventually(lambda: telegram.messages, timeout_s=10)
    assert house.is_leader


async def test_a_database_that_goes_and_comes_back_is_lived_through(
    postgres_server: PostgresServer,
    settings: Settings,
    telegram: TelegramStandIn,
    error: ErrorFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One line when it goes, one when it is back, and everything goes on; the bot says it meanwhile."""
    store = open_store(postgres_server.url)
    await migrate(store)
    try:
        async with running(settings, store, limits=SHORT) as house:
            await aeventually(lambda: house.state()["bot"]["state"] == "listening")
            postgres_server.stop(at_once=True)
            await aeventually(lambda: house.state()["database"] == "away")
            await aeventually(lambda: not house.is_leader)
            postgres_server.start()
            await aeventually(lambda: house.is_leader and house.state()["database"] == "connected", timeout_s=20)
            await store.write(errors.write_batch, Batch(entries=[error()]), clock.now())
            await aeventually(lambda: telegram.messages)
            telegram.say("/resolve 1", chat_id=ANNA, user_id=ANNA)
            await aeventually(lambda: any("#1 is resolved" in sent.text for sent in telegram.messages))
    finally:
        await store.close()
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tocsin: the database")]
    assert [line.split("database is ")[1].split()[0].strip(",") for line in said] == ["away", "back"]


async def test_alerts_start_while_the_database_is_not_there_yet(
    settings: Settings, tmp_path: Any, telegram: TelegramStandIn, error: ErrorFactory
) -> None:
    """A server may be migrating, or be restarted beside its database."""
    store = open_store(f"sqlite:///{tmp_path}/later.db")
    try:
        async with running(settings, store, limits=SHORT) as house:
            await aeventually(lambda: house.state()["database"] == "away")
            await migrate(store)
            await store.write(errors.write_batch, Batch(entries=[error()]), clock.now())
            await aeventually(lambda: telegram.messages)
    finally:
        await store.close()


async def test_the_console_prints_alerts_and_what_people_do(store: Store, error: ErrorFactory) -> None:
    """The channel of those who have no other."""
    out = io.StringIO()
    chosen = Settings(database_url="sqlite:///unused", check_interval_s=0.1)
    async with running(chosen, store, channels=[Console(out)], limits=SHORT):
        await store.write(errors.write_batch, Batch(entries=[error()]), clock.now())
        await aeventually(lambda: "HIGH #1 new" in out.getvalue())
        await store.write(groups.act, 1, Trigger.RESOLVE, by="root", via="cli", now=clock.now())
        await aeventually(lambda: "#1 ✅ resolved by root (cli)" in out.getvalue())
    assert out.getvalue().count("resolved by") == 1


@mostly("sqlite")
async def test_the_console_names_who_joins_a_fold(store: Store, error: ErrorFactory) -> None:
    """A printed line cannot be edited; a group that nobody names there would ring for nobody."""
    out = io.StringIO()
    chosen = Settings(database_url="sqlite:///unused", fold_above=2)
    async with running(chosen, store, channels=[Console(out)], limits=SHORT):
        await store.write(errors.write_batch, Batch(entries=[error(f"Early{at}") for at in range(4)]), clock.now())
        await aeventually(lambda: "4 errors at once" in out.getvalue())
        await store.write(errors.write_batch, Batch(entries=[error("Late")]), clock.now())
        await aeventually(lambda: "#1–#5" in out.getvalue() or "#5" in out.getvalue())


async def test_a_regression_names_no_act_of_before(store: Store, error: ErrorFactory) -> None:
    """Reopened, resolved, and back by itself: nobody reopened it this time."""
    out = io.StringIO()
    async with running(Settings(database_url="sqlite:///unused"), store, channels=[Console(out)], limits=SHORT):
        await store.write(errors.write_batch, Batch(entries=[error()]), clock.now())
        await aeventually(lambda: "HIGH #1 new" in out.getvalue())
        for trigger in (Trigger.RESOLVE, Trigger.REOPEN, Trigger.RESOLVE):
            await store.write(groups.act, 1, trigger, by="root", via="cli")
        await store.write(errors.write_batch, Batch(entries=[error(timestamp=clock.now())]), clock.now())
        await aeventually(lambda: "regressed" in out.getvalue())
    assert "reopened" not in out.getvalue().split("regressed")[1]


async def test_a_wake_up_comes_from_any_thread(store: Store, error: ErrorFactory) -> None:
    """The exporter has a thread of its own, and no patience to wait for the next look."""
    out = io.StringIO()
    chosen = Settings(database_url="sqlite:///unused")
    async with running(chosen, store, channels=[Console(out)], limits=replace(SHORT, look_s=600)) as house:
        await aeventually(lambda: house.is_leader)
        await store.write(errors.write_batch, Batch(entries=[error()]), clock.now())
        await asyncio.to_thread(house.wake)
        await aeventually(lambda: "HIGH #1 new" in out.getvalue())
    house.wake()


async def test_a_test_message_says_for_each_chat_whether_it_arrived(
    settings: Settings, store: Store, telegram: TelegramStandIn
) -> None:
    """What `tocsin test-alert` prints."""
    assert await send_test(settings, store) == [("telegram", "17", None)]
    assert "this is a test" in telegram.messages[0].text

    telegram.refuse(403, "Forbidden: bot was blocked by the user")
    [(_, _, problem)] = await send_test(settings, store)
    assert problem is not None and "blocked" in problem


async def test_health_sees_who_leads_and_what_waits(
    open_alerts: Opener, telegram: TelegramStandIn, put: Any, error: ErrorFactory, store: Store
) -> None:
    """Read ahead, so that it answers while the database is away."""
    house = await open_alerts()
    await put(error())
    await aeventually(lambda: telegram.messages)

    await aeventually(lambda: house.state()["channels"] and house.state()["channels"][0]["last_ok_at"])
    # What waits is read by a statement of its own, just before the message was marked as sent perhaps.
    await aeventually(lambda: house.state()["oldest_pending_s"] is None)
    state = house.state()
    assert state["leader"] is True
    assert state["leader_id"] == await store.read(leases.holder, "alerts")


PRUNING = replace(SHORT, prune_after_s=0.05, prune_every_s=0.2, prune_size_every_s=0.05)


async def rows_in(store: Store) -> int:
    def work(connection: Connection) -> int:
        return len(connection.execute(select(schema.error_logs.c.id)).all())

    return await store.read(work)


async def put_old(store: Store, *records: Any) -> None:
    """Errors that were stored when they happened."""
    await store.write(errors.write_batch, Batch(entries=list(records)), clock.now() - timedelta(hours=2))


async def test_the_leader_removes_what_is_too_old(open_alerts: Opener, store: Store, error: ErrorFactory) -> None:
    """Shortly after its start, and again and again."""
    await store.write(retention.begins, retention.Policy(days=30), clock.now() - timedelta(days=99))
    await put_old(store, *(error(timestamp=clock.now() - timedelta(days=31)) for _ in range(30)))
    await put_old(store, error(timestamp=clock.now() - timedelta(days=29)))
    await open_alerts(PRUNING)
    await aeventually(lambda: _is(rows_in(store), 1))

    await put_old(store, error(timestamp=clock.now() - timedelta(days=31)))
    await aeventually(lambda: _is(rows_in(store), 1))


async def _is(found: Any, wanted: int) -> bool:
    return bool(await found == wanted)


async def test_what_was_there_before_the_first_server_has_a_day_of_grace(
    open_alerts: Opener, store: Store, error: ErrorFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """A team that brings its old table shall not lose it by a default; it is told, once."""
    await put_old(store, error(timestamp=clock.now() - timedelta(days=31)))
    await open_alerts(PRUNING)

    said = ""

    def has_said() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "there are errors older than TOCSIN_RETENTION_DAYS=30" in said

    await aeventually(has_said)
    await store.write(_forget_hour)
    await aeventually(lambda: _has_looked(store))
    assert await rows_in(store) == 1
    assert (said + capsys.readouterr().err).count("older than") == 1


def _forget_hour(connection: Connection) -> None:
    """A count that any run removes: when it is gone, there was one."""
    old = clock.now().replace(minute=0, second=0, microsecond=0) - timedelta(days=500)
    values = {"severity": "high", "category": "api", "service": "shop", "environment": "production", "count": 1}
    connection.execute(insert(schema.hourly_totals).values(hour=old, **values))


async def _has_looked(store: Store) -> bool:
    def work(connection: Connection) -> bool:
        before = clock.now() - timedelta(days=499)
        query = select(schema.hourly_totals.c.hour).where(schema.hourly_totals.c.hour < before)
        return connection.execute(query).first() is None

    return await store.read(work)


async def test_a_database_that_is_too_large_is_said_once(
    open_alerts: Opener, store: Store, error: ErrorFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    """And made room in, the oldest errors first."""
    noise = os.urandom(5000).hex()
    minute = timedelta(minutes=1)
    records = [error(timestamp=clock.now() - timedelta(days=1) + at * minute, stack=noise[at:]) for at in range(300)]
    await put_old(store, *records)
    await open_alerts(PRUNING, max_db_mb=2)

    said = ""

    def has_said() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return "as large as TOCSIN_MAX_DB_MB=2 allows" in said

    await aeventually(has_said)
    left = await rows_in(store)
    assert 10 < left < 290
    assert await store.read(retention.used_bytes) < 2 * 2**20
    await put_old(store, *(replace(one, id=str(uuid4())) for one in records))
    await aeventually(lambda: _is_below(store))
    assert "allows" not in capsys.readouterr().err


async def _is_below(store: Store) -> bool:
    return await store.read(retention.used_bytes) < 2 * 2**20
