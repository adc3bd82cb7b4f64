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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from tocsin import install
from tocsin.model import SCHEMA_VERSION
from tocsin.settings import Settings
from tocsin.text import one_line
from tocsin.wire import Wire

LIMIT_S = 1.5
"""The longest that a start is held up by all of this."""

_READS = "and a server reads there"
_SILENT = "but no server reads there: nothing will ring until 'tocsin serve' runs on the same database"
_LEASE = "name = 'alerts'"  # its holder is the server that looks for what is to ring
_RIGHT = "put TOCSIN_DATABASE_URL right"


def told(settings: Settings) -> str:
    """
    "SQLite /var/lib/tocsin/tocsin.db, and a server reads there", or what is wrong and how to mend it.

    Never raises, shows no password, and waits at most `LIMIT_S`.
    """
    away = f"which does not answer now: {_wait(settings)}"
    if settings.endpoint:
        shown, ask = _shown(settings.endpoint), _endpoint
    else:
        shown = settings.shown_database()
        ask = _sqlite if shown.startswith("SQLite ") else _postgres
    return ", ".join(filter(None, [shown, _within(lambda: ask(settings), away)]))


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


def _wait(settings: Settings) -> str:
    return f"they wait in {settings.spool_dir}"


def _other_schema(found: str | None, settings: Settings) -> str | None:
    """What a database of another version is to this one, which leaves it alone."""
    if found is None or found == SCHEMA_VERSION:
        return None
    if found > SCHEMA_VERSION:
        return (
            f"where a newer tocsin is at work (schema {found}): {_wait(settings)} until that version is installed here"
        )
    return f"whose schema {found} is of an older tocsin: {_wait(settings)} until `tocsin migrate` or its server is run"


# SQLite: one file, and all hangs on whose it is.


def _sqlite(settings: Settings) -> str:
    path = Path(settings.shown_database().removeprefix("SQLite "))
    if path.is_dir():
        return f"which is a folder: {_wait(settings)}; {_RIGHT}"
    if not _may_write(path):
        owner = path.stat().st_uid if path.exists() else None
        of_whom = "" if owner in (None, os.geteuid()) else f"belongs to user {_name(owner)} and "
        verb = "written" if path.exists() else "made"
        return f"which {of_whom}cannot be {verb} by user {_name(os.geteuid())}: {_wait(settings)}; {_MEND}"
    try:
        found, is_read = _look(path) if path.exists() else (None, False)
    except sqlite3.DatabaseError as problem:
        if getattr(problem, "sqlite_errorname", "") != "SQLITE_NOTADB":
            raise
        return f"which is no database of SQLite: {_wait(settings)}; {_RIGHT}"
    if found is not None and found > SCHEMA_VERSION:  # an older one is brought up to date
        return _other_schema(found, settings) or ""
    if is_read:
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


def _look(path: Path) -> tuple[str | None, bool]:
    """The version of its tables, and whether a server reads there."""
    now = "(julianday('now') - 2440587.5) * 86400.0"
    database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=0.2)
    try:
        (found,) = database.execute("SELECT max(version_num) FROM tocsin_version").fetchone()
        rows = database.execute(f"SELECT 1 FROM leases WHERE {_LEASE} AND expires >= {now}")  # noqa: S608
        return found, rows.fetchone() is not None
    except sqlite3.OperationalError as problem:
        if "no such table" in str(problem):  # nobody has prepared it yet
            return None, False
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
        there = asyncio.run(_asked(settings.database_url))
    except asyncpg.PostgresError as problem:
        return f"which refuses: {one_line(str(problem), 160)}; {_wait(settings)}; {_RIGHT}"
    except (ValueError, asyncpg.InterfaceError):  # an address that only the store can read
        return ""
    if there.is_read_only:
        return f"which takes no writes, as a standby does: {_wait(settings)}; {_RIGHT}"
    return _other_schema(there.schema, settings) or (_READS if there.is_read else _SILENT)


@dataclass(frozen=True, slots=True)
class _There:
    is_read_only: bool
    schema: str | None = None
    is_read: bool = False  # by a server


_READ_ONLY = "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on'"
_TABLES = f"""
    SELECT (SELECT max(version_num) FROM tocsin.tocsin_version) AS schema,
      EXISTS (SELECT FROM tocsin.leases WHERE {_LEASE} AND expires >= extract(epoch FROM clock_timestamp())) AS is_read
"""  # noqa: S608


async def _asked(database_url: str) -> _There:
    import asyncpg  # noqa: PLC0415

    arguments = _arguments(database_url)
    connection = await asyncpg.connect(**arguments, timeout=LIMIT_S, statement_cache_size=0)
    try:
        # In a transaction: behind a pooler the parts of a query would else meet different sessions.
        async with connection.transaction(readonly=True):
            if await connection.fetchval(_READ_ONLY):
                return _There(is_read_only=True)
            row = await connection.fetchrow(_TABLES)
            return _There(False, row["schema"], row["is_read"])
    except asyncpg.UndefinedTableError:  # nobody has prepared it yet
        return _There(is_read_only=False)
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


def _endpoint(settings: Settings) -> str:
    """Send it nothing, with the token that errors are sent with: whether it would take something."""
    token = settings.ingest_token or settings.token
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    wire = Wire(settings.endpoint or "", headers=headers)
    try:
        status = wire.request("POST", "/v1/logs", b"{}", within_s=LIMIT_S).status
    finally:
        wire.close()
    if status == 200:
        return "and a server answers there"
    if status in (401, 403):
        wish = "does not take this token" if token else "wants a token"
        return f"where the server {wish} ({status}): {_wait(settings)}; set TOCSIN_INGEST_TOKEN to the server's"
    if status in (429, 500, 502, 503, 504):
        return f"where the server takes nothing just now ({status}): {_wait(settings)}"
    return f"where something else than a server answers ({status} for /v1/logs): {_wait(settings)}"


def _shown(address: str) -> str:
    """An address without user and password."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
