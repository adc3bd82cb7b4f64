"""A house with a bell: alerts that run on a fresh database and ring at a stand-in for Telegram."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Protocol

import pytest

from tests.standin.telegram import TOKEN, TelegramStandIn, telegram_stand_in
from tocsin import clock
from tocsin.alerts.limits import Limits
from tocsin.alerts.scheduler import Alerts, running
from tocsin.model import Batch, ErrorRecord, Stored
from tocsin.settings import Settings
from tocsin.store import Store, errors

ANNA = 17
TEAM = -100500

SHORT = Limits(
    look_s=0.05,
    seen_after_s=0.1,
    lease_ttl_s=2.0,
    lease_renew_s=0.3,
    claim_s=3.0,
    attempt_s=1.5,
    retry_first_s=0.05,
    retry_max_s=0.2,
    park_s=0.5,
    edit_every_s=0.1,
    fold_edit_every_s=0.1,
    poll_s=1.0,
    bot_retry_max_s=0.2,
    away_s=0.1,
    stop_s=2.0,
    snapshot_s=0.1,
)
"""Patience for tests."""


class Opener(Protocol):
    """Opens alerts that run until the test ends."""

    async def __call__(self, limits: Limits = SHORT, **settings: Any) -> Alerts: ...


@pytest.fixture
def telegram() -> Iterator[TelegramStandIn]:
    with telegram_stand_in() as standin:
        yield standin


@pytest.fixture
def settings(telegram: TelegramStandIn) -> Settings:
    """One private chat, and a team's group in which Anna may act."""
    return Settings(
        database_url="sqlite:///unused",
        telegram_token=TOKEN,
        telegram_api_url=telegram.api_url,
        telegram_chat_ids=(ANNA,),
        check_interval_s=0.1,
        messages_per_minute=1000,
        public_url="https://tocsin.example",
    )


@pytest.fixture
async def open_alerts(store: Store, settings: Settings) -> AsyncIterator[Opener]:
    async with AsyncExitStack() as house:

        async def open_one(limits: Limits = SHORT, **changes: Any) -> Alerts:
            return await house.enter_async_context(running(replace(settings, **changes), store, limits=limits))

        yield open_one


@pytest.fixture
def put(store: Store) -> Callable[..., Any]:
    """Stores errors as the exporter does."""

    async def put_errors(*records: ErrorRecord) -> list[Stored]:
        return await store.write(errors.write_batch, Batch(entries=list(records)), clock.now())

    return put_errors
