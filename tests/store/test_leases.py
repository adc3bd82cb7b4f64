"""One leads at a time, by the database's clock."""

from __future__ import annotations

import asyncio

from tests.waiting import aeventually
from tocsin.store import Store, leases


async def take(store: Store, owner: str, ttl_s: float = 60.0) -> int | None:
    return await store.write(leases.acquire, "alerts", owner, ttl_s)


async def test_of_many_that_ask_at_once_one_gets_it(store: Store) -> None:
    """Replicas that start together agree."""
    terms = await asyncio.gather(*(take(store, f"p{number}") for number in range(5)))

    assert len([term for term in terms if term is not None]) == 1


async def test_who_holds_it_keeps_it_in_the_same_term(store: Store) -> None:
    """A renewal is no change of leader."""
    first = await take(store, "a")

    assert await take(store, "a") == first
    assert await take(store, "b") is None
    assert await store.read(leases.holder, "alerts") == "a"


async def test_a_lease_that_ran_out_goes_to_the_next_in_a_higher_term(store: Store) -> None:
    """Whoever comes back from a long pause can be told from the new leader."""
    first = await take(store, "a", 0.05)

    async def taken() -> int | None:
        return await take(store, "b")

    second = await aeventually(taken, timeout_s=5)

    assert first is not None and second is not None and second > first
    assert await take(store, "a") is None


async def test_a_lease_given_back_is_free_at_once(store: Store) -> None:
    """A clean stop makes nobody wait."""
    await take(store, "a")

    await store.write(leases.release, "alerts", "b")
    assert await take(store, "b") is None
    await store.write(leases.release, "alerts", "a")

    assert await store.read(leases.holder, "alerts") is None
    assert await take(store, "b") is not None
