"""
Where a program's errors go, and whether a server reads there: asked once, when the program starts.

Two default SQLite files under two users is the classic trap: everything is stored, and nothing rings. What
is asked here is asked of the destination itself, within a bound, and with little loaded for it: the program
shall start as fast as without.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from tocsin import install
from tocsin.settings import Settings

LIMIT_S = 1.5
"""The longest that a start is held up by all of this."""

_READS = "and a server reads there"
_SILENT = "but no server reads there: nothing will ring until 'tocsin serve' runs on the same database"
_LEASE = "name = 'alerts'"  # its holder is the server that looks for what is to ring


def told(settings: Settings) -> str:
    """
    "SQLite /var/lib/tocsin/tocsin.db, and a server reads there", or what is wrong and how to mend it.

    Never raises, shows no password, and waits at most `LIMIT_S`.
    """
    if settings.endpoint:
        endpoint = settings.endpoint
        return _within(lambda: _endpoint(endpoint), f"{_shown(endpoint)}, {_waiting(settings)}")
    shown = settings.shown_database()
    ask = _sqlite if shown.startswith("SQLite ") else _postgres
    return _within(lambda: ", ".join(filter(None, [shown, ask(settings)])), f"{shown}, {_waiting(settings)}")


def _within(ask: Callable[[], str], otherwise: str) -> str:
    """An answer that comes in time; who hangs, in a name server too, is left behind."""
    answers: list[str] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception:
            answers.append(otherwise)

    thread = threading.Thread(target=run, name="tocsin-destination", daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return answers[0] if answers else otherwise


def _waiting(settings: Settings) -> str:
    return f"which does not answer now: they wait in {settings.spool_dir}"


# SQLite: one file, and all hangs on whose it is.


def _sqlite(settings: Settings) -> str:
    path = Path(settings.shown_database().removeprefix("SQLite "))
    if not _may_write(path):
        owner = f"belongs to user {_name(path.stat().st_uid)}" if path.exists() else "cannot be made"
        wait = f"they wait in {settings.spool_dir}"
        return f"which {owner} and cannot be written by user {_name(os.geteuid())}: {wait}; {_MEND}"
    if path.exists() and _is_read(path):
        return _READS
    if settings.database_url != Settings().database_url:
        return _SILENT
    user = _name(os.geteuid())
    return f"but no server reads there: nothing will ring until 'tocsin serve' runs as user {user}; for another {_MEND}"


_MEND = "set TOCSIN_DATABASE_URL for both, or TOCSIN_ENDPOINT"


def _may_write(path: Path) -> bool:
    """Whether the file can be written, and its journals made beside it, or all of that from nothing."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    return os.access(folder, os.W_OK | os.X_OK) and (not path.exists() or os.access(path, os.R_OK | os.W_OK))


def _is_read(path: Path) -> bool:
    now = "(julianday('now') - 2440587.5) * 86400.0"
    database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=0.2)
    try:
        rows = database.execute(f"SELECT 1 FROM leases WHERE {_LEASE} AND expires >= {now}")  # noqa: S608
        return rows.fetchone() is not None
    except sqlite3.OperationalError as problem:
        if "no such table" in str(problem):  # nobody has prepared it yet
            return False
        raise
    finally:
        database.close()


def _name(user_id: int) -> str:
    try:
        return pwd.getpwuid(user_id).pw_name
    except KeyError:  # a container's user without a name
        return str(user_id)


# PostgreSQL: one short question, on a connection of its own.


def _postgres(settings: Settings) -> str:
    try:
        import asyncpg  # noqa: PLC0415  (an optional library)
    except ImportError:
        return (
            f"but its driver is missing (asyncpg), so they wait in {settings.spool_dir}: {install.command('postgres')}"
        )
    import asyncio  # noqa: PLC0415  (half of the time that this takes)

    try:
        return _READS if asyncio.run(_asked(settings.database_url)) else _SILENT
    except (ValueError, asyncpg.InterfaceError):  # an address that only the store can read
        return ""


async def _asked(database_url: str) -> bool:
    import asyncpg  # noqa: PLC0415

    arguments = _arguments(database_url)
    connection = await asyncpg.connect(**arguments, timeout=LIMIT_S, statement_cache_size=0)
    try:
        # In a transaction: behind a pooler the parts of a query would else meet different sessions.
        async with connection.transaction(readonly=True):
            now = "extract(epoch from clock_timestamp())"
            question = f"SELECT EXISTS (SELECT FROM tocsin.leases WHERE {_LEASE} AND expires >= {now})"  # noqa: S608
            return bool(await connection.fetchval(question))
    except asyncpg.UndefinedTableError:  # nobody has prepared it yet
        return False
    finally:
        connection.terminate()


_DRIVER_READS = ("host", "port", "sslmode", "sslrootcert", "sslcert", "sslkey")


def _arguments(database_url: str) -> dict[str, Any]:
    """The address with what asyncpg knows of libpq's parameters; hosters print others too."""
    parts = urlsplit(database_url)
    query = dict(parse_qsl(parts.query))
    mode = query.pop("ssl", query.get("sslmode", ""))
    query["sslmode"] = mode = {"true": "require", "false": "disable"}.get(mode, mode)
    arguments: dict[str, Any] = {}
    if mode.startswith("verify") and query.get("sslrootcert", "system") == "system":
        import ssl  # noqa: PLC0415

        arguments["ssl"] = ssl.create_default_context()
        query["sslmode"] = query["sslrootcert"] = ""
    kept = urlencode({name: query[name] for name in _DRIVER_READS if query.get(name)})
    return arguments | {"dsn": f"postgresql://{parts.netloc}{parts.path}{'?' if kept else ''}{kept}"}


# A server.


def _endpoint(address: str) -> str:
    import http.client  # noqa: PLC0415  (seldom needed, and not small)

    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=LIMIT_S)
    try:
        connection.request("GET", f"{parts.path}/livez")
        status = connection.getresponse().status
    finally:
        connection.close()
    if status == 200:
        return f"{_shown(address)}, and a server answers there"
    return f"{_shown(address)}, where something else than a server answers ({status} for /livez)"


def _shown(address: str) -> str:
    """An address without user and password."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
