"""Secrets are shown once, kept as hashes, and end when they should."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from tocsin.store import Store, credentials
from tocsin.store.schema import credentials as table

ANNA = {"rights": "full", "label": "anna"}


def everything(connection: Connection) -> str:
    return repr(connection.execute(select(table)).all())


async def test_no_secret_stands_in_the_table(store: Store, now: datetime) -> None:
    made = [
        await store.write(make, **ANNA, now=now)
        for make in (credentials.make_token, credentials.make_code, credentials.make_session)
    ]

    kept = await store.read(everything)

    assert not any(secret in kept for secret in made)
    assert all(len(secret) >= 22 for secret in made)


async def test_a_secret_is_good_for_its_own_kind_only(store: Store, now: datetime) -> None:
    """A code is no token, a token no session."""
    code = await store.write(credentials.make_code, **ANNA, now=now)
    token = await store.write(credentials.make_token, **ANNA, now=now)

    assert await store.read(credentials.token, code) is None
    assert await store.read(credentials.session, token, now) is None
    assert await store.write(credentials.redeem_code, token, now) is None
    assert await store.read(credentials.token, token) == credentials.Credential(rights="full", label="anna")


async def test_a_code_is_good_once_even_for_two_at_once(store: Store, now: datetime) -> None:
    code = await store.write(credentials.make_code, **ANNA, now=now)

    outcomes = await asyncio.gather(*(store.write(credentials.redeem_code, code, now) for _ in range(5)))

    assert sum(outcome is not None for outcome in outcomes) == 1


async def test_a_code_lasts_ten_minutes(store: Store, now: datetime) -> None:
    code = await store.write(credentials.make_code, **ANNA, now=now)

    assert await store.write(credentials.redeem_code, code, now + timedelta(minutes=10)) is None


async def test_a_session_ends_after_eight_hours_without_use(store: Store, now: datetime) -> None:
    secret = await store.write(credentials.make_session, **ANNA, now=now)
    later = now + timedelta(hours=7)
    await store.write(credentials.touch_session, secret, later)

    assert await store.read(credentials.session, secret, later + timedelta(hours=7, minutes=59)) is not None
    assert await store.read(credentials.session, secret, later + timedelta(hours=8)) is None


async def test_a_session_ends_after_seven_days_of_use(store: Store, now: datetime) -> None:
    secret = await store.write(credentials.make_session, **ANNA, now=now)
    end = now + timedelta(days=7)
    await store.write(credentials.touch_session, secret, end - timedelta(minutes=1))

    assert await store.read(credentials.session, secret, end - timedelta(seconds=1)) is not None
    assert await store.read(credentials.session, secret, end) is None


async def test_a_session_that_was_ended_is_gone(store: Store, now: datetime) -> None:
    secret = await store.write(credentials.make_session, **ANNA, now=now)
    await store.write(credentials.end_session, secret)

    assert await store.read(credentials.session, secret, now) is None


async def test_what_has_run_out_is_swept(store: Store, now: datetime) -> None:
    """A new code takes the old ones away."""
    await store.write(credentials.make_session, **ANNA, now=now)
    await store.write(credentials.make_code, **ANNA, now=now)
    await store.write(credentials.make_token, **ANNA, now=now)

    await store.write(credentials.make_code, **ANNA, now=now + timedelta(days=8))

    kept = await store.read(everything)
    assert kept.count("anna") == 2
