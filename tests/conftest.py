"""What many tests need: fresh databases of both kinds, stores on them, and errors to put into them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing, contextmanager
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


class Databases:
    """Makes and drops databases by one session: most tests are shorter than the start of another would be."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._names = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.run_until_complete(asyncpg.connect(server.url))
        # Half the work of the way through the log, and the only one that versions before 15 know.
        self._how = "STRATEGY file_copy" if self._session.get_server_version().major >= 15 else ""

    @contextmanager
    def fresh(self, template: str) -> Iterator[str]:
        """The address of a copy of a database."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} {self._how}")
        yield self._server.url_of(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        self._loop.run_until_complete(self._session.execute(statement))

    def close(self) -> None:
        self._loop.run_until_complete(self._session.close())
        self._loop.close()


def mostly(kind: str, fixture: str = "database_url") -> pytest.MarkDecorator:
    """Tests whose subject is not the database: on one kind here, and on the other in the long run."""
    other = pytest.param("sqlite" if kind == "postgresql" else "postgresql", marks=pytest.mark.gate)
    return pytest.mark.parametrize(fixture, [kind, other], indirect=True)


# Their subject is not SQL: what they store and read is tried on both kinds by the tests of the store.
_ON_SQLITE = (
    "tests/api/",
    *(f"tests/alerts/test_{name}.py" for name in ("email", "telegram", "webhook")),
    *(f"tests/test_{name}.py" for name in ("cli", "jobs", "prune", "remote")),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The same on PostgreSQL belongs to the long run."""
    for item in items:
        given = item.callspec.params.values() if isinstance(item, pytest.Function) and hasattr(item, "callspec") else ()
        # By kind first: some of what tests are given refuses to be compared.
        is_postgresql = any(type(one) is str and one == "postgresql" for one in given)
        if is_postgresql and item.nodeid.startswith(_ON_SQLITE):
            item.add_marker(pytest.mark.gate)


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
    yield server
    server.close()


@pytest.fixture(scope="session")
def databases(session_postgres: PostgresServer) -> Iterator[Databases]:
    """What makes and drops the databases on it."""
    with closing(Databases(session_postgres)) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_template(session_postgres: PostgresServer, databases: Databases) -> str:
    """The name of a migrated database there, to be copied."""
    databases.execute("CREATE DATABASE tocsin_template")
    _migrate(session_postgres.url_of("tocsin_template"))
    return "tocsin_template"


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "tocsin.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgres_url(databases: Databases, postgres_template: str) -> Iterator[str]:
    """A fresh, migrated database on PostgreSQL."""
    with databases.fresh(postgres_template) as url:
        yield url


@pytest.fixture
def empty_postgres_url(databases: Databases) -> Iterator[str]:
    """A database on PostgreSQL in which there is nothing."""
    with databases.fresh("template1") as url:
        yield url


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated file of SQLite."""
    path = tmp_path / "tocsin.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of whoever runs the tests is seen by a command."""
    for name in os.environ:
        if name.startswith(("TOCSIN_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOCSIN_SPOOL_DIR", str(tmp_path / "spool"))
    monkeypatch.chdir(tmp_path)


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
