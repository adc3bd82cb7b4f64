"""What many tests need: fresh databases of both kinds, stores on them, and errors to put into them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import pytest

from tests.postgres import PostgresServer
from tocsin import ids
from tocsin.model import ErrorRecord, Severity
from tocsin.store import Store, open_store
from tocsin.store.migrate import migrate_now

NOW = datetime(2026, 3, 14, 9, 26, 53, 589793, UTC)

_TEMPLATE = "tocsin_template"
_names = itertools.count(1)


class ErrorFactory(Protocol):
    """Makes an error from what a test is about; the rest has defaults."""

    def __call__(self, exception_type: str = "KeyError", **values: Any) -> ErrorRecord: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where every part is required, no test may be left out."""
    report = yield
    if report.skipped and os.environ.get("TOCSIN_REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped, and TOCSIN_REQUIRE_ALL=1 is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def session_postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a worker, started by the first that needs it."""
    server = PostgresServer()
    _execute(server, f"CREATE DATABASE {_TEMPLATE}")
    _migrate(server.url_of(_TEMPLATE))
    yield server
    server.close()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "tocsin.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgres_url(session_postgres: PostgresServer) -> Iterator[str]:
    """A fresh, migrated database on PostgreSQL."""
    yield from _fresh(session_postgres, f"TEMPLATE {_TEMPLATE}")


@pytest.fixture
def empty_postgres_url(session_postgres: PostgresServer) -> Iterator[str]:
    """A database on PostgreSQL in which there is nothing."""
    yield from _fresh(session_postgres, "")


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated file of SQLite."""
    path = tmp_path / "tocsin.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated database of each kind."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind in which there is nothing; the file is not there yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new/tocsin.db"
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """A store on a fresh database of each kind."""
    opened = open_store(database_url)
    yield opened
    await opened.close()


@pytest.fixture
def postgres_server() -> Iterator[PostgresServer]:
    """A server of the test's own, which it may `stop` and `start`; nothing is in its database."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def error(now: datetime) -> ErrorFactory:
    """Errors with the same exception type form a group, unless a test says otherwise."""

    def make(exception_type: str = "KeyError", **values: Any) -> ErrorRecord:
        defaults: dict[str, Any] = {
            "id": ids.uuid7(),
            "timestamp": now,
            "severity": Severity.HIGH,
            "category": "unknown",
            "message": "'phone'",
            "fingerprint": f"1-{exception_type}",
            "title": f"{exception_type}: 'phone'",
            "service": "shop",
            "environment": "production",
            "culprit": "shop.orders in create_order",
            "stack": "Traceback (most recent call last):\n…",
            "exception_type": exception_type,
            "handled": False,
            "mechanism": "asgi",
        }
        return ErrorRecord(**{**defaults, **values})

    return make


def _migrate(url: str) -> None:
    store = open_store(url)
    migrate_now(store)
    store.close_now()


def _fresh(server: PostgresServer, how: str) -> Iterator[str]:
    name = f"test_{next(_names)}"
    _execute(server, f"CREATE DATABASE {name} {how}")
    yield server.url_of(name)
    _execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _execute(server: PostgresServer, statement: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(server.url)
        await connection.execute(statement)
        await connection.close()

    with asyncio.Runner() as runner:
        runner.run(run())
