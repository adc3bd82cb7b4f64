"""An application on a fresh database, and clients with each right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.conftest import ErrorFactory
from tocsin import clock
from tocsin.api import create_app
from tocsin.exporter.door import Door
from tocsin.exporter.otlp import Reader
from tocsin.exporter.spool import Spool
from tocsin.model import Batch, ErrorRecord
from tocsin.settings import Settings
from tocsin.store import Store, errors

HOST = "http://tocsin.test"
TOKENS = {"full": "full-secret", "read": "read-secret", "ingest": "ingest-secret"}

Put = Callable[..., Awaitable[ErrorRecord]]


def settings_with(**values: Any) -> Settings:
    tokens = {"token": TOKENS["full"], "read_token": TOKENS["read"], "ingest_token": TOKENS["ingest"]}
    return Settings(**(tokens | values))


def client_of(
    app: Starlette, *, token: str | None = None, host: str = HOST, peer: str = "10.0.0.9"
) -> httpx.AsyncClient:
    """A client of an application in this process; without a token nobody is known."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    transport = httpx.ASGITransport(app, client=(peer, 40000))
    return httpx.AsyncClient(transport=transport, base_url=host, headers=headers)


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """Where the door puts what it takes; nothing drains it."""
    opened = Spool(tmp_path / "spool", 2**30, {"door": True})
    yield opened
    opened.close(everything_stored=True)


@pytest.fixture
def door(spool: Spool) -> Iterator[Door]:
    opened = Door(Reader(Settings()), spool, wake=lambda: None)
    opened.start()
    yield opened
    opened.close(5)


@pytest.fixture
async def app(store: Store, door: Door) -> AsyncIterator[Starlette]:
    made = create_app(settings_with(), store=store, door=door)
    yield made
    await made.state.house.finish(5)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may do everything."""
    async with client_of(app, token=TOKENS["full"]) as opened:
        yield opened


@pytest.fixture
async def stranger(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client that nobody knows."""
    async with client_of(app) as opened:
        yield opened


@pytest.fixture
def put(store: Store, error: ErrorFactory) -> Put:
    """Store an error that happens now."""

    async def store_one(exception_type: str = "KeyError", **values: Any) -> ErrorRecord:
        now = clock.now()
        entry = error(exception_type, **{"timestamp": now, **values})
        await store.write(errors.write_batch, Batch(entries=[entry]), now)
        return entry

    return store_one
