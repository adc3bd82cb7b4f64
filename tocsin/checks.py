"""What `tocsin check` looks at: each part on its own, bounded in time, and with a way to mend it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from tocsin import clock, install, supervisors
from tocsin.exporter import spool as spooling
from tocsin.exporter.ship import Ship
from tocsin.failures import ServerRefuses, StoreAway, TocsinError
from tocsin.remote import Remote, is_meant
from tocsin.settings import Settings
from tocsin.store import Store, access, errors, leases, migrate, open_store, queries
from tocsin.store.engine import SqliteStore, hindrance

if TYPE_CHECKING:
    from telegram import Bot

    from tocsin.alerts.telegram import Api

LIMIT_S = 10.0
"""The longest that one part may take to answer."""

_CLOCKS_APART_S = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """How one part stands; ``state`` is "ok", "off" (not set up) or "FAIL"."""

    name: str
    state: str
    what: str
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Check = Callable[[Settings], list[Finding]]


def look(settings: Settings, problems: list[str]) -> Iterator[Finding]:
    """
    Look at everything at once and tell it in order.

    Args:
        problems: what was wrong with the settings when they were read.
    """
    if problems:
        yield from (Finding("settings", "FAIL", problem, "put it right or take it out") for problem in problems)
    else:
        yield Finding("settings", "ok", "every name is known and every value can be read")
    unread = {_PART_OF.get(problem.partition(":")[0]): problem.partition(":")[0] for problem in problems}
    running = [_Running(name, check, settings) for name, check in _checks_for(settings).items() if name not in unread]
    for one in running:
        yield from one.findings()
    for name, setting in unread.items():
        if name is not None:
            yield Finding(name, "off", f"not looked at, since {setting} is wrong")


_PART_OF = {
    "TOCSIN_DATABASE_URL": "database",
    "TOCSIN_ENDPOINT": "server",
    "TOCSIN_TELEGRAM_CHAT_IDS": "telegram",
    "TOCSIN_TELEGRAM_API_URL": "telegram",
    "TOCSIN_SMTP_URL": "email",
    "TOCSIN_EMAIL_FROM": "email",
    "TOCSIN_EMAIL_TO": "email",
    "TOCSIN_WEBHOOK_URL": "webhook",
}
"""What a wrong setting is about: its default would be looked at instead, and found well."""


class _Running:
    """One check in a thread of its own: what hangs is left behind, and said."""

    def __init__(self, name: str, check: Check, settings: Settings) -> None:
        self.name = name
        self._check = check
        self._settings = settings
        self._findings: list[Finding] = []
        self._begun = clock.now()
        self._thread = threading.Thread(target=self._run, name=f"tocsin-check-{name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._findings = self._check(self._settings)
        except Exception as problem:
            what = str(problem) if isinstance(problem, TocsinError) else f"{type(problem).__name__}: {problem}"
            says_itself = isinstance(problem, TocsinError) and "TOCSIN_" in what
            mend = "" if says_itself else _MEND[self.name]
            self._findings = [Finding(self.name, "FAIL", _without_secrets(what, self._settings), mend)]

    def findings(self) -> list[Finding]:
        left_s = LIMIT_S - (clock.now() - self._begun).total_seconds()
        self._thread.join(max(left_s, 0))
        if self._thread.is_alive():
            return [Finding(self.name, "FAIL", f"no answer within {LIMIT_S:g} s", _SILENCE[self.name])]
        return self._findings


_SILENCE = {
    "server": "see whether a firewall swallows what goes to it, and whether TOCSIN_ENDPOINT has the right port",
    "database": "see whether a firewall swallows what goes to it, and whether TOCSIN_DATABASE_URL has the right port",
    "telegram": "set TOCSIN_TELEGRAM_PROXY, or TOCSIN_TELEGRAM_API_URL, when this network lets nothing through to it",
    "email": "see whether a firewall swallows what goes to it, and whether TOCSIN_SMTP_URL has the right port",
    "webhook": "see whether a firewall swallows what goes to it, and whether TOCSIN_WEBHOOK_URL is right",
    "spool": "put TOCSIN_SPOOL_DIR on a local disk",
    "waiting": "see what is said of the database",
    "supervisor": "ask PM2 or systemd how it is",
}
_MEND = {
    "server": "start `tocsin serve` there, or put TOCSIN_ENDPOINT right",
    "database": "see whether it runs, or put TOCSIN_DATABASE_URL right",
    "telegram": "put TOCSIN_TELEGRAM_TOKEN right; set TOCSIN_TELEGRAM_PROXY when this network needs one",
    "email": "put TOCSIN_SMTP_URL right: smtp:// for port 587, smtps:// for port 465",
    "webhook": "start what answers there, or put TOCSIN_WEBHOOK_URL right",
    "spool": "set TOCSIN_SPOOL_DIR to a folder on a local disk that this user may write to",
    "waiting": "see what is said of the spool",
    "supervisor": "see docs/deploy.md for the times that a stop needs",
}


def _without_secrets(what: str, settings: Settings) -> str:
    for secret in settings.secrets():
        what = what.replace(secret, "***")
    return what[:500]


# The database.


def check_database(settings: Settings) -> list[Finding]:
    """Reach it, know its schema, write for real, see who else could read it, and compare the clocks."""
    try:
        store = open_store(settings.database_url)
    except TocsinError as problem:
        return [Finding("database", "FAIL", str(problem), "")]
    if isinstance(store, SqliteStore) and not store.path.exists():
        return [_new_file(store.path)]
    try:
        return list(_database_findings(store))
    finally:
        store.close_now()


def _new_file(path: Path) -> Finding:
    """A database that nobody has made yet is no fault, when it can be made."""
    if problem := hindrance(path):
        return Finding("database", "FAIL", f"sqlite: {path} {problem}", "put TOCSIN_DATABASE_URL right")
    return Finding("database", "ok", f"sqlite: {path} is not there yet; it is made with the first error")


def _database_findings(store: Store) -> Iterator[Finding]:
    found = store.read_now(migrate.version)
    if found != migrate.EXPECTED:
        what = f"{store.dialect}: schema {found or 'none'}, this tocsin needs {migrate.EXPECTED}"
        is_older = found is None or found < migrate.EXPECTED
        yield Finding("database", "FAIL", what, "run `tocsin migrate`" if is_older else "install the newer tocsin")
        return
    if gone := store.read_now(migrate.missing):
        yield _incomplete(store, gone)
        return
    try:
        store.write_now(queries.probe_write, clock.now())
    except TocsinError as problem:
        yield Finding("database", "FAIL", f"{store.dialect}: reads, but cannot write: {problem}", _MEND_WRITE)
    else:
        yield Finding("database", "ok", f"{store.dialect}: reads and writes, schema {found}")
    yield _access(store)
    yield _clocks(store)
    yield _server(store)
    yield from _losses(store)


def _incomplete(store: Store, gone: Sequence[str]) -> Finding:
    """Tables that somebody has dropped; what stood in them, tocsin cannot bring back."""
    mend = "restore what is missing from a backup"
    if all(migrate.can_be_made_anew(name) for name in gone):
        mend += ", or have `tocsin migrate` make it anew, empty"
    elif isinstance(store, SqliteStore):
        mend += f", or move {store.path} away: a new one is made with the next error"
    else:
        mend += ", or begin anew: DROP SCHEMA tocsin CASCADE, then `tocsin migrate` takes in the rows that are left"
    return Finding("database", "FAIL", f"{store.dialect}: missing: {', '.join(gone)}", mend)


_MEND_WRITE = "free its disk, or point TOCSIN_DATABASE_URL at the primary with a user that may write"


def _losses(store: Store) -> Iterator[Finding]:
    """Errors that a process of the last day could only count, since its spool was full."""
    for row in store.read_now(queries.list_instances):
        if row["lost"] and row["last_seen"] > clock.now() - timedelta(days=1):
            what = f"{row['service']} on {row['host']}, process {row['pid']}, could only count {row['lost']} errors"
            yield Finding("losses", "FAIL", what, "free its disk, or raise TOCSIN_SPOOL_MAX_BYTES")


def _access(store: Store) -> Finding:
    if isinstance(store, SqliteStore):
        return _private("access", store.path, f"chmod 600 {store.path}")
    tables = store.read_now(access.open_tables)
    if not tables:
        return Finding("access", "ok", "every table has row level security, and the public has no rights")
    what = "; ".join(f"{table.name}: {table.why}" for table in tables)
    return Finding("access", "FAIL", f"open to others: {what}", " ".join(table.mend for table in tables))


def _private(name: str, path: Path, mend: str) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        return Finding(name, "FAIL", f"{path} can be read by others (mode {mode:03o})", mend)
    return Finding(name, "ok", f"{path} belongs to this user alone")


def _clocks(store: Store) -> Finding:
    if store.dialect == "sqlite":
        return Finding("clock", "ok", "the database has this machine's clock")
    before = clock.now()
    there: datetime = store.read_now(lambda connection: connection.scalar(text("SELECT clock_timestamp()")))
    return _apart(there, before + (clock.now() - before) / 2, "the database's")


def _server(store: Store) -> Finding:
    if holder := store.read_now(leases.holder, "alerts"):
        return Finding("server", "ok", f"{holder} looks for what is to be alerted")
    return Finding("server", "off", "no `tocsin serve` is at work on this database, so nothing rings")


# A server, where errors go to one.


def check_server(settings: Settings) -> list[Finding]:
    """Send it nothing with the token for sending, look with the one for looking, and compare the clocks."""
    return list(_server_findings(settings))


def _server_findings(settings: Settings) -> Iterator[Finding]:
    ship = Ship(settings, Path(settings.spool_dir), within_s=_ASK_S)
    before = clock.now()
    try:
        there = ship.greet()
    except ServerRefuses as problem:
        yield Finding("server", "FAIL", f"{ship.name} takes nothing: {problem}", "")
        return
    except StoreAway as problem:
        yield Finding("server", "FAIL", f"{ship.name} does not answer: {problem}", _MEND["server"])
        return
    finally:
        ship.close()
    yield Finding("server", "ok", f"{ship.name} takes errors")
    if settings.token or settings.read_token:
        asking = Remote(settings, within_s=_ASK_S)
        before = clock.now()
        try:
            health = asking.health()
        finally:
            asking.close()
        there = datetime.fromisoformat(health["timestamp"])
        if (database := health["services"]["database"]) != "connected":
            yield Finding("server", "FAIL", f"its database: {database}", "run `tocsin check` where the server runs")
    if there is not None:
        yield _apart(there, before + (clock.now() - before) / 2, "the server's")


def _apart(there: datetime, here: datetime, whose: str) -> Finding:
    apart_s = abs((there - here).total_seconds())
    what = f"{apart_s:.1f} s between {whose} clock and this machine's"
    if apart_s <= _CLOCKS_APART_S:
        return Finding("clock", "ok", what)
    return Finding("clock", "FAIL", what, "set both by NTP")


# The other parts.


def check_telegram(settings: Settings) -> list[Finding]:
    """Ask the bot for its name, and for each chat whether it is there; nothing is sent."""
    if not settings.telegram_token:
        return [Finding("telegram", "off", "no TOCSIN_TELEGRAM_TOKEN; `tocsin setup telegram` helps to set it up")]
    try:
        import telegram  # noqa: F401, PLC0415  (an optional library)
    except ImportError:
        return [Finding("telegram", "FAIL", "python-telegram-bot is not installed", install.command("server"))]
    return asyncio.run(_telegram_findings(settings))


async def _telegram_findings(settings: Settings) -> list[Finding]:
    from tocsin.alerts.channels import Refused, Unreachable  # noqa: PLC0415
    from tocsin.alerts.telegram import Api  # noqa: PLC0415

    api = Api(settings)
    try:
        return await _asked(api, settings)
    except Refused as problem:
        return [Finding("telegram", "FAIL", str(problem), "copy TOCSIN_TELEGRAM_TOKEN anew from @BotFather")]
    except Unreachable as problem:
        what = f"{settings.telegram_api_url} cannot be reached: {problem}"
        return [Finding("telegram", "FAIL", what, _SILENCE["telegram"])]
    finally:
        await api.close()


async def _asked(api: Api, settings: Settings) -> list[Finding]:
    me = await api.call(lambda bot: bot.get_me(connect_timeout=_ASK_S, read_timeout=_ASK_S))
    findings = [Finding("telegram", "ok", f"the bot is @{me.username}")]
    if not settings.telegram_chat_ids:
        findings.append(Finding("telegram", "FAIL", "no chat gets alerts", _NO_CHAT))
    for chat_id in settings.telegram_chat_ids:
        try:
            name = await api.call(partial(_name_of_chat, chat_id))
        except TocsinError as problem:
            mend = f"add @{me.username} to it, or write to it once"
            findings.append(Finding("telegram", "FAIL", f"chat {chat_id}: {problem}", mend))
        else:
            findings.append(Finding("telegram", "ok", f"chat {chat_id}: {name}"))
    return findings


async def _name_of_chat(chat_id: int, bot: Bot) -> str:
    try:
        chat = await bot.get_chat(chat_id, read_timeout=_ASK_S)
    except TypeError:  # a Bot API server of another age leaves out what the library wants; the chat is there
        return "there"
    return chat.effective_name or chat.type


_ASK_S = 4.0
_MAIL_S = 8.0
_NO_CHAT = "run `tocsin setup telegram`, or set TOCSIN_TELEGRAM_CHAT_IDS"


def check_email(settings: Settings) -> list[Finding]:
    """Connect to the mail server, go over to TLS and log in; nothing is sent."""
    if not settings.smtp_url or not settings.email_to:
        return [Finding("email", "off", "no TOCSIN_SMTP_URL with TOCSIN_EMAIL_TO")]
    if missing := _missing("aiosmtplib", "email"):
        return [missing]
    return [asyncio.run(_email_finding(settings))]


async def _email_finding(settings: Settings) -> Finding:
    from aiosmtplib import SMTPException  # noqa: PLC0415  (an optional library)

    from tocsin.alerts import email  # noqa: PLC0415

    server, (_, sender) = email.server_of(settings), email.sender_of(settings)
    try:
        async with asyncio.timeout(_MAIL_S), email.connected(settings, _MAIL_S) as smtp:
            is_encrypted = smtp.get_transport_info("sslcontext") is not None
    except (TocsinError, OSError, TimeoutError, SMTPException) as problem:
        return Finding("email", "FAIL", str(email.failure(problem, settings)), _MEND["email"])
    how = "over TLS" if is_encrypted else "not encrypted, within this machine"
    who = f", logged in as {server.user}" if server.user else ""
    return Finding(
        "email", "ok", f"{server.shown} answers {how}{who}; {sender} writes to {', '.join(settings.email_to)}"
    )


def check_webhook(settings: Settings) -> list[Finding]:
    """Look at where the webhook leads and connect to it; nothing is sent."""
    if not settings.webhook_url:
        return [Finding("webhook", "off", "no TOCSIN_WEBHOOK_URL")]
    if missing := _missing("httpcore", "webhook"):
        return [missing]
    from tocsin.alerts import outbound  # noqa: PLC0415

    try:
        place = asyncio.run(outbound.reach(settings.webhook_url, allow_private=settings.webhook_allow_private))
    except outbound.Closed as problem:
        return [Finding("webhook", "FAIL", str(problem), "set TOCSIN_WEBHOOK_ALLOW_PRIVATE=1 if that is meant")]
    except TocsinError as problem:
        return [Finding("webhook", "FAIL", str(problem), _MEND["webhook"])]
    return [Finding("webhook", "ok", f"{place.shown} can be reached")]


def _missing(library: str, name: str) -> Finding | None:
    if importlib.util.find_spec(library) is None:
        return Finding(name, "FAIL", f"{library} is not installed", install.command("server"))
    return None


def check_spool(settings: Settings) -> list[Finding]:
    """Write to it as a service would, see that nobody else reads it, and how full it is."""
    folder = Path(settings.spool_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * 4096)
            os.fsync(probe.fileno())
    except OSError as problem:
        return [Finding("spool", "FAIL", f"{folder}: {problem.strerror or problem}", _MEND["spool"])]
    private = _private("spool", folder, f"chmod 700 {folder}")
    if private.state == "FAIL":
        return [private]
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    most = settings.spool_max_bytes or min(2**30, (free + used) // 10)
    what = f"{folder}: {used / 2**20:.1f} of {most / 2**20:.0f} MiB used"
    if used >= most * 0.8:
        return [Finding("spool", "FAIL", what, "see whether the database can be reached: nothing is taken out of it")]
    if free < 64 * 2**20:
        return [Finding("spool", "FAIL", f"{what}; only {free / 2**20:.0f} MiB left on the disk", "free the disk")]
    return [Finding("spool", "ok", what)]


# What waits.


def check_waiting(settings: Settings) -> list[Finding]:
    """Errors in the spool that nobody has stored: of who was killed, or while nobody could."""
    folder = Path(settings.spool_dir)
    paths = sorted(folder.glob("*.seg"))
    stored = _stored_of(settings, [path.stem for path in paths]) if paths else {}
    count, oldest = 0, None
    for path in paths:
        position = max((stored or {}).get(path.stem, 0), spooling.acknowledged(folder, path.stem))
        for line in _errors_after(path, position):
            count += 1
            oldest = oldest or _time_of(line)
    if not count:
        return [Finding("waiting", "ok", f"no error waits in {folder}")]
    age = clock.now() - oldest if oldest else timedelta(0)
    most = "up to " if stored is None else ""  # the database knows, and does not answer
    errors = f"{most}{count:,} {'error waits' if count == 1 else 'errors wait'} in {folder}"
    what = f"{errors}, the oldest for {_span(age)}"
    if age < _SOON:
        return [Finding("waiting", "ok", what)]
    if settings.endpoint:
        mend = "once the server takes errors, the next program that starts with this folder sends them"
    else:
        once = ", once the database is back" if stored is None else ""
        mend = f"start `tocsin serve` with this TOCSIN_SPOOL_DIR: it stores what waits there{once}"
    return [Finding("waiting", "FAIL", what, mend)]


_SOON = timedelta(minutes=1)
_AN_ERROR = re.compile(rb'.{0,100}?"kind": ?"error"')


def _stored_of(settings: Settings, segments: Sequence[str]) -> dict[str, int] | None:
    """Up to which byte segments are stored; None where the database does not say it."""
    if is_meant(settings):
        return {}
    try:
        store = open_store(settings.database_url)
    except TocsinError:
        return None
    try:
        if isinstance(store, SqliteStore) and not store.path.exists():
            return {}
        return store.read_now(errors.progress, segments)
    except TocsinError:
        return None
    finally:
        store.close_now()


def _errors_after(path: Path, position: int) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:  # stored, and gone, in between
        file.seek(position)
        yield from filter(_AN_ERROR.match, file)


def _time_of(line: bytes) -> datetime | None:
    try:
        return datetime.fromtimestamp(json.loads(line)["time_unix_nano"] / 1e9, UTC)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return None


def _span(age: timedelta) -> str:
    minutes = int(age.total_seconds()) // 60
    for length, unit in ((1440, "day"), (60, "hour"), (1, "minute")):
        if count := minutes // length:
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "a moment"


# Who stops services.


def check_supervisor(settings: Settings) -> list[Finding]:
    """Whether PM2 and systemd leave what they keep alive the time to stop, and what a container's word for it is."""
    wait_s = settings.shutdown_timeout_s
    findings = [_stop_time(kept) for kept in supervisors.kept_here(wait_s)]
    needs_s = wait_s + supervisors.MARGIN_S
    if supervisors.is_container():
        what = f"in a container; give it `stop_grace_period: {needs_s:.0f}s`, or `docker stop --time {needs_s:.0f}`"
        findings.append(Finding("supervisor", "off", what))
    if findings:
        return findings
    names = f"kill_timeout: {needs_s * 1000:.0f} (PM2), TimeoutStopSec={needs_s:.0f} (systemd)"
    return [Finding("supervisor", "off", f"none is seen that keeps a program under tocsin; a stop needs {names}")]


def _stop_time(kept: supervisors.Kept) -> Finding:
    who = f"{kept.by} {kept.name}"
    if not kept.is_long_enough:
        what = f"{who} is killed {kept.stop_s:g} s after it was asked to stop, in the middle of its requests"
        return Finding("supervisor", "FAIL", what, f"set {kept.setting}")
    if kept.memory_limit:
        what = f"{who} has max_memory_restart, by which PM2 sees the memory of tocsin alone"
        return Finding("supervisor", "FAIL", what, "take it out, and use `tocsin run --max-memory 300M -- …`")
    return Finding("supervisor", "ok", f"{who} has {kept.stop_s:g} s to stop")


CHECKS: dict[str, Check] = {
    "database": check_database,
    "telegram": check_telegram,
    "email": check_email,
    "webhook": check_webhook,
    "spool": check_spool,
    "waiting": check_waiting,
    "supervisor": check_supervisor,
}


def _checks_for(settings: Settings) -> dict[str, Check]:
    """All of them, and the server that errors go to; where only that is set, the rest is the server's own affair."""
    if is_meant(settings):
        return {"server": check_server} | {name: CHECKS[name] for name in ("spool", "waiting", "supervisor")}
    return {"server": check_server, **CHECKS} if settings.endpoint else CHECKS
