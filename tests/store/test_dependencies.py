"""How dependencies stand: by what the living processes say of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from tocsin import clock
from tocsin.model import Batch, DependencyState, Instance
from tocsin.store import Store, dependencies, errors, schema, upkeep
from tocsin.store.dependencies import Standing

SILENT = timedelta(seconds=60)


def instance(name: str, now: datetime, **values: Any) -> Instance:
    defaults = {"service": "shop", "environment": "production", "release": None, "host": "h", "pid": 1}
    return Instance(id=name, started_at=now, **{**defaults, **values})


def state(process: str, since: datetime, *, away: bool = True, **values: Any) -> DependencyState:
    defaults = {"name": "redis", "is_optional": True, "service": "shop", "environment": "production"}
    return DependencyState(instance_id=process, since=since, is_away=away, **{**defaults, **values})


async def tell(store: Store, now: datetime, *states: DependencyState, **values: Any) -> None:
    """As from processes that are alive."""
    names = sorted({one.instance_id for one in states})
    living = [instance(name, now, **values) for name in names]
    await store.write(errors.write_batch, Batch(entries=[], instances=living, facts=[*states]), now)


async def current(store: Store, now: datetime | None = None) -> list[Standing]:
    return await store.read(dependencies.current, now or clock.now(), SILENT)


async def test_nothing_is_said_of_what_nobody_needs(store: Store) -> None:
    assert await current(store) == []


async def test_the_worst_that_a_process_says_holds(store: Store) -> None:
    """Those that are away come first; an optional one is needed where one process cannot do without."""
    now = clock.now()
    early, late = now - timedelta(minutes=5), now - timedelta(minutes=2)
    await tell(
        store,
        now,
        state("a", early, away=False),
        state("b", late, problem="refused"),
        state("c", early, is_optional=False),
        state("a", late, name="crm", away=False),
        state("b", early, name="mail", away=False),
    )

    redis, crm, mail = await current(store)

    assert redis == Standing(
        name="redis", is_away=True, is_optional=False, since=early, processes=3, away=2, problem="refused"
    )
    assert (crm.name, crm.is_away, crm.is_optional, crm.since, crm.problem) == ("crm", False, True, late, None)
    assert mail.name == "mail"


async def test_what_is_older_changes_nothing(store: Store) -> None:
    """Lines of a process may be stored again, and out of order over the network."""
    now = clock.now()
    await tell(store, now, state("a", now - timedelta(seconds=5)))
    await tell(store, now, state("a", now - timedelta(seconds=1), away=False))
    await tell(store, now, state("a", now - timedelta(seconds=5), problem="refused"))

    [redis] = await current(store)

    assert (redis.is_away, redis.problem) == (False, None)


async def test_processes_that_are_gone_or_silent_do_not_count(store: Store) -> None:
    now = clock.now()
    await tell(store, now, state("a", now, away=False))
    await tell(store, now, state("b", now), ended_at=now, ended_how="stopped")
    await tell(store, now - timedelta(minutes=2), state("c", now))

    [redis] = await current(store, now)

    assert (redis.is_away, redis.processes) == (False, 1)
    assert await current(store, now + timedelta(hours=1)) == []


async def test_who_says_rarely_how_it_is_has_longer_for_it(store: Store) -> None:
    now = clock.now()
    await tell(store, now, state("a", now), beats_every_s=60.0)

    assert len(await current(store, now + timedelta(seconds=170))) == 1
    assert await current(store, now + timedelta(seconds=190)) == []


async def test_what_is_told_goes_with_the_process(store: Store) -> None:
    """Nothing is kept for ever."""
    now = clock.now()
    await tell(store, now - upkeep.INSTANCE_AGE - timedelta(days=1), state("old", now), state("old", now, name="crm"))
    await tell(store, now, state("new", now))

    while await store.write(upkeep.sweep, now):
        pass

    assert await store.read(lambda c: c.execute(select(func.count()).select_from(schema.dependencies)).scalar()) == 1
    assert [one.name for one in await current(store)] == ["redis"]
