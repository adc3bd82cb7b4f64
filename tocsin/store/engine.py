"""
One small door to SQLite and to PostgreSQL.

All SQL is written once, as plain functions ``work(connection, …)`` in the files beside this one. A
`Store` runs such a function in one transaction: from an event loop (`read`, `write`) or from a thread
without one (`read_now`, `write_now`). On PostgreSQL the driver is asyncpg in both cases.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast
from uuid import uuid4

import sqlalchemy
from sqlalchemy import Connection, event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tocsin import install
from tocsin.failures import BadInput, StoreAway, TableMissing
from tocsin.store import address
from tocsin.store.schema import SCHEMA

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[Connection, P], T]

CONNECTIONS = 4
"""The most that a store opens; who uses it from one thread, as a drain does, needs one."""

WAKE_CHANNEL = "tocsin"

_WAL_WITHIN_S = 5.0


class Store(Protocol):
    """A database that tocsin keeps its tables in."""

    dialect: str  # "sqlite" or "postgresql"

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a transaction that only reads; raises `StoreAway`."""
        ...

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in a transaction and commit it; raises `StoreAway`, then nothing was stored."""
        ...

    def read_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read` for a thread that has no event loop; always from the same thread."""
        ...

    def write_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`write` for a thread that has no event loop; always from the same thread."""
        ...

    async def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever another process has stored something, until cancelled; only a hint."""
        ...

    def unhurried(self) -> Store:
        """Another store on the same database that waits as long as it takes: for work on whole tables."""
        ...

    async def close(self) -> None: ...

    def rest_now(self) -> None:
        """Close what is open, for whoever uses this from one thread; the next use opens it again."""
        ...

    def close_now(self) -> None: ...


def open_store(database_url: str) -> Store:
    """
    The store that an address names; nothing is connected yet.

    Args:
        database_url: ``sqlite:///path`` (folders are made as needed), or PostgreSQL's address as
            hosters print it: ``postgres://``, ``?sslmode=``, ``?pgbouncer=true``.

    Raises:
        BadInput: the address names no database that tocsin knows, or its driver is not installed.
    """
    if database_url.split(":", 1)[0].split("+", 1)[0] == "sqlite":
        return SqliteStore(database_url)
    return PostgresStore(database_url)


class SqliteStore:
    """SQLite in WAL mode: one thread writes, a few read."""

    dialect = "sqlite"

    def __init__(self, database_url: str, *, patience_s: float = 5) -> None:
        self._database_url = database_url
        path = database_url.split("://", 1)[1].split("?", 1)[0]
        self.path = Path(path[1:] if path.startswith("/") else path)
        self._engine = sqlalchemy.create_engine(
            sqlalchemy.URL.create("sqlite", database=str(self.path)),
            connect_args={
                "isolation_level": None,
                "timeout": patience_s,
                "check_same_thread": False,
                "cached_statements": 24,
            },
            pool_size=CONNECTIONS,
            json_deserializer=_read_json,
        ).execution_options(schema_translate_map={SCHEMA: None})
        event.listen(self._engine, "connect", _prepare_sqlite)
        event.listen(self._engine, "begin", _begin_sqlite)
        self._writer = ThreadPoolExecutor(1, "tocsin-sqlite-write")
        self._readers = ThreadPoolExecutor(CONNECTIONS - 1, "tocsin-sqlite-read")

    def read_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with _away(self.path):
            _make_private(self.path)
            with self._engine.connect() as connection, connection.begin():
                return work(connection, *args, **kwargs)

    def write_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with _away(self.path):
            _make_private(self.path)
            with (
                self._engine.connect() as connection,
                connection.execution_options(tocsin_begin="BEGIN IMMEDIATE").begin(),
            ):
                return work(connection, *args, **kwargs)

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, lambda: self.read_now(work, *args, **kwargs))

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._writer, lambda: self.write_now(work, *args, **kwargs))

    async def listen(self, wake: Callable[[], None]) -> None:
        """SQLite tells nobody of a change; who waits looks every now and then."""
        await asyncio.Event().wait()

    def unhurried(self) -> SqliteStore:
        return SqliteStore(self._database_url, patience_s=600)

    async def close(self) -> None:
        self.close_now()

    def rest_now(self) -> None:
        """A file that is open takes nothing from anybody."""

    def close_now(self) -> None:
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._engine.dispose()


class PostgresStore:
    """PostgreSQL by asyncpg; nothing here relies on a session, so a transaction pooler may stand between."""

    dialect = "postgresql"

    def __init__(
        self,
        database_url: str,
        *,
        read_within_s: float | None = 10,
        write_within_s: float | None = 20,
        connections: int = CONNECTIONS,
    ) -> None:
        self._database_url = database_url
        self._read_within_s = read_within_s
        self._write_within_s = write_within_s
        try:
            import asyncpg  # noqa: F401, PLC0415  (an optional library)
            from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415
        except ImportError:
            problem = f"PostgreSQL needs a driver, asyncpg: {install.command('postgres')}"
            raise BadInput("TOCSIN_DATABASE_URL", problem) from None
        self._address = address.parse(database_url)
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            pool_size=connections,
            max_overflow=0,
            pool_timeout=10,
            pool_pre_ping=True,
            pool_recycle=300,
            connect_args={
                "async_creator_fn": self._connect,
                # For when no answer comes at all; the server itself gives up before.
                "command_timeout": None if write_within_s is None else write_within_s + 5,
                # Behind a transaction pooler a prepared statement may meet another session.
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__tocsin_{uuid4()}__",
            },
        )
        self._own_loop: asyncio.AbstractEventLoop | None = None

    async def _connect(self, **options: Any) -> Any:
        import asyncpg  # noqa: PLC0415

        try:
            return await asyncpg.connect(**self._address.arguments(), **options, statement_cache_size=0)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, ValueError) as problem:
            raise StoreAway(address.explain(problem, self._address)) from problem

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transact(self._write_within_s, lambda connection: work(connection, *args, **kwargs))

    async def _transact(self, within_s: float | None, work: Callable[[Connection], T]) -> T:
        def bounded(connection: Connection) -> T:
            if within_s is not None:
                connection.exec_driver_sql(_bounds(within_s))
            return work(connection)

        with _away():
            try:
                async with self._engine.begin() as connection:
                    return await connection.run_sync(bounded)
            except DBAPIError as problem:
                if sqlstate(problem) == "25006":  # a primary that became read-only: leave it
                    await self._engine.dispose()
                raise

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._transact(self._read_within_s, lambda connection: work(connection, *args, **kwargs))

    def write_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._in_own_loop(self.write(work, *args, **kwargs))

    def read_now(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._in_own_loop(self.read(work, *args, **kwargs))

    def _in_own_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._own_loop is None:
            self._own_loop = _ThreadlessLoop()
        return self._own_loop.run_until_complete(work)

    async def listen(self, wake: Callable[[], None]) -> None:
        """Listen on a connection of its own and come back after it is lost; behind a pooler nothing is heard."""
        pause_s = 1.0
        while True:
            with suppress(Exception):
                async with self._listening(wake) as lost:
                    pause_s = 1.0
                    await lost.wait()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 60)

    @asynccontextmanager
    async def _listening(self, wake: Callable[[], None]) -> AsyncIterator[asyncio.Event]:
        lost = asyncio.Event()
        connection = await self._connect()
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(WAKE_CHANNEL, lambda *_: wake())
            yield lost
        finally:
            connection.terminate()

    def unhurried(self) -> PostgresStore:
        return PostgresStore(self._database_url, read_within_s=None, write_within_s=None, connections=1)

    def alone_now(self, statement: str) -> None:
        """
        Run one statement in no transaction, as building an index beside writers needs.

        As a simple query: through a transaction pooler a prepared one may be executed by another session.
        """
        self._in_own_loop(self._alone(statement))

    async def _alone(self, statement: str) -> None:
        import asyncpg  # noqa: PLC0415

        async with self._engine.connect() as connection:
            raw = await connection.get_raw_connection()
            try:
                await cast(Any, raw.driver_connection).execute(statement)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as problem:
                raise StoreAway(_reason(problem)) from problem

    async def close(self) -> None:
        await self._engine.dispose()

    def rest_now(self) -> None:
        if self._own_loop is not None:
            with suppress(Exception):
                self._own_loop.run_until_complete(self._engine.dispose())

    def close_now(self) -> None:
        if self._own_loop is not None and not self._own_loop.is_closed():
            with suppress(Exception):
                self._own_loop.run_until_complete(self._engine.dispose())
            self._own_loop.close()


class _ThreadlessLoop(asyncio.SelectorEventLoop):
    """A loop that resolves names in its own thread: no executor, so it works while the interpreter ends."""

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002  (the name that the loop's interface gives it)
        proto: int = 0,
        flags: int = 0,
    ) -> Any:
        return socket.getaddrinfo(host, port, family, type, proto, flags)


def _bounds(within_s: float) -> str:
    """
    For this transaction alone: what is stuck ends, here and, should this process be frozen, there.

    As settings of the session they would stay with a pooler's connection, for whoever gets it next.
    """
    limits = {"lock_timeout": within_s / 2, "statement_timeout": within_s, "idle_in_transaction_session_timeout": 60}
    return "SELECT " + ", ".join(f"set_config('{name}', '{value * 1000:.0f}', true)" for name, value in limits.items())


def wake_others(connection: Connection) -> None:
    """Tell other processes that something is stored, once this transaction commits (PostgreSQL only)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_notify('{WAKE_CHANNEL}', '')")


def sqlstate(problem: BaseException) -> str | None:
    """PostgreSQL's five characters for an error, if it has them."""
    original = getattr(problem, "orig", problem)
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    return state if isinstance(state, str) else None


_ABOUT_DATA = ("22", "23", "54")
"""Classes of SQLSTATE that speak of a value: data exception, integrity, a program limit exceeded."""


def _is_about_data(problem: DBAPIError) -> bool:
    """
    Whether a database refuses a value, which no other try would change.

    All else is the database speaking of itself, in more ways than a list can hold: poolers without a free
    place, a damaged file, a table that somebody will bring back. Whoever writes keeps what it has.
    """
    if state := sqlstate(problem):
        return state.startswith(_ABOUT_DATA)
    if isinstance(problem, DataError | IntegrityError):
        return True
    # What a driver cannot bind never reached the database; each says so in its own class.
    is_bind = isinstance(problem.orig, sqlite3.ProgrammingError | sqlite3.InterfaceError)
    if is_bind and "binding parameter" in str(problem.orig):
        return True
    return isinstance(getattr(problem.orig, "__cause__", None), ValueError)


@contextmanager
def _away(file: Path | None = None) -> Iterator[None]:
    """
    Turn every way in which a database can be away into `StoreAway`; what is wrong with the data passes.

    Args:
        file: SQLite's, about which its driver says little.
    """
    try:
        yield
    except DBAPIError as problem:
        if not problem.connection_invalidated and _is_about_data(problem):
            raise
        if gone := _gone(problem):
            raise TableMissing(f"{gone} is missing: `tocsin check` says what to do") from problem
        raise StoreAway(_reason(problem, file)) from problem
    except (OSError, TimeoutError, PoolTimeout, sqlite3.Error) as problem:
        raise StoreAway(_reason(problem, file)) from problem


_NAME = r"[\w.$]{1,130}"
_GONE = re.compile(
    rf"""^(?:no\ such\ table:\ (?P<table>{_NAME})
      | relation\ "(?P<relation>{_NAME})"\ does\ not\ exist
      | no\ such\ column:\ (?P<column>{_NAME})
      | table\ (?P<without>{_NAME})\ has\ no\ column\ named\ (?P<named>{_NAME})
      | column\ "?(?P<of>{_NAME})"?(?:\ of\ relation\ "(?P<whose>{_NAME})")?\ does\ not\ exist)""",
    re.VERBOSE,
)


def _gone(problem: DBAPIError) -> str | None:
    """What a database does not have, as people say it: a table, a column; None where it is about something else."""
    if sqlstate(problem) not in (None, "42P01", "42703"):
        return None
    text = re.sub(r"^<class '[\w.]+'>: ", "", str(problem.orig))
    found = _GONE.match(text)
    if found is None:
        return None
    if table := (found["table"] or found["relation"] or "").removeprefix("main."):  # as SQLite says it after a drop
        return f"the table {table}"
    table, column = found["without"] or found["whose"], found["named"] or found["of"] or found["column"]
    return f"the column {column} of the table {table}" if table else f"the column {column}"


def _reason(problem: BaseException, file: Path | None = None) -> str:
    """What the driver says, without SQL and parameters, which may hold anything; of a file, what is wrong with it."""
    original = getattr(problem, "orig", None) or problem
    if file is not None and (said := _said_of_file(original, file)):
        return said
    text = str(original).split("\n", 1)[0]
    return f"{type(original).__name__}: {text}"[:300] + _WHAT_TO_DO.get(sqlstate(problem) or "", "")


_WHAT_TO_DO = {
    "42501": "; TOCSIN_DATABASE_URL has to name the user who owns tocsin's tables and error_logs",
    "25006": "; it takes no writes, as a standby does",
}


def _said_of_file(problem: BaseException, path: Path) -> str | None:
    """Why a file cannot be used, and what to do; None where SQLite's own words say it."""
    setting = "TOCSIN_DATABASE_URL"
    if path.is_dir():
        return f"{path} is a folder: {setting} has to name a file, such as sqlite:///{path.absolute()}/tocsin.db"
    match getattr(problem, "sqlite_errorname", type(problem).__name__).partition("_")[2].partition("_")[0]:
        case "NOTADB":
            return f"{path} is a file, but no database of SQLite: {setting} has to name another"
        case "CORRUPT":
            return f"{path} is damaged (malformed): restore it from a backup, or move it away, and a new one is made"
        case "BUSY" | "LOCKED":
            return f"{path} is locked by another program, which does not let go of it"
        case "FULL":
            return f"the disk of {path} is full"
        case "IOERR" | "CANTOPEN" | "READONLY" | "PERM":
            pass
        case _ if not isinstance(problem, OSError):
            return None
    return f"{path} {hindrance(path) or f'cannot be used ({problem})'}; put {setting} right"


def hindrance(path: Path) -> str | None:
    """What keeps this user from a file of SQLite, which makes others beside it."""
    folder = next((parent for parent in path.absolute().parents if parent.exists()), path.parent)
    if not folder.is_dir():
        return f"cannot be made: {folder} is a file"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"cannot be used by this user (id {os.geteuid()}), who may not write to {folder}"
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return f"cannot be read and written by this user (id {os.geteuid()})"
    return None


def _make_private(path: Path) -> None:
    """Folder and file belong to their user alone."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)


def _read_json(value: Any) -> Any:
    """What is in a column for JSON; another program may have written anything, which is shown as it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value if isinstance(value, str) else repr(value)


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA cache_size=-512")
    # SQLite's own knows A to Z only; who looks for "ошибка" means "Ошибка" too.
    connection.create_function("lower", 1, _casefold, deterministic=True)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Several that open a new file at once are in each other's way here, and SQLite lets none of them wait."""
    until = time.monotonic() + _WAL_WITHIN_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _casefold(value: object) -> str | None:
    return None if value is None else str(value).casefold()


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that means to write says so at once: SQLite cannot wait for the lock later on.
    connection.exec_driver_sql(connection.get_execution_options().get("tocsin_begin", "BEGIN"))
