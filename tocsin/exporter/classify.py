"""
What failed, and how bad it is: decided from names alone, so that no library is imported for it.

Redis counts as ``queue``: the services that tocsin watches keep their jobs in it (Celery, RQ, arq, BullMQ).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from tocsin.contained import pass_on
from tocsin.exporter import node
from tocsin.exporter.raw import exit_code_of, is_group, members_of, module_of, mro_of, qualname_of
from tocsin.model import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of an error before anyone judges it; all of it may be missing."""

    types: tuple[str, ...] = ()  #       qualified names of the exception's class and its bases; builtins bare
    cause_types: tuple[str, ...] = ()  # the same for what it came from, and for the members of a group
    message: str = ""
    modules: tuple[str, ...] = ()  #     of the frames, outermost first
    logger: str | None = None
    hosts: tuple[str, ...] = ()  #       host names in its context: server.address, a URL
    mechanism: str | None = None  #      what saw it: asgi, logging, excepthook, …
    handled: bool | None = None
    status_code: int | None = None  #    that the request was answered with, or the exception asks for
    level: str | None = None  #          of the log call: "critical", "error", "warning"
    exit: bool = False  #                the process ends because of it


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error is taken for; ``is_stored`` is False when it was expected, and only counts."""

    severity: Severity
    category: str
    is_stored: bool


# Whose exceptions and frames speak for what. A longer name wins over a shorter one.
_LIBRARIES: dict[str, str] = {
    "amocrm": "amocrm",
    "kommo": "amocrm",
    **dict.fromkeys(("telegram", "aiogram", "telethon", "pyrogram", "telebot"), "telegram"),
    **dict.fromkeys(
        (
            "asyncpg",
            "psycopg",
            "psycopg2",
            "psycopg_pool",
            "sqlalchemy",
            "sqlite3",
            "aiosqlite",
            "alembic",
            "django.db",
            "pymongo",
            "motor",
            "pymysql",
            "MySQLdb",
            "aiomysql",
            "asyncmy",
            "mysql",
            "oracledb",
            "pyodbc",
            "peewee",
            "tortoise",
            "databases",
            "clickhouse_connect",
            "clickhouse_driver",
            "cassandra",
            "elasticsearch",
            "supabase",
            "postgrest",
        ),
        "database",
    ),
    **dict.fromkeys(
        (
            "redis",
            "aioredis",
            "coredis",
            "redis_om",
            "valkey",
            "celery",
            "kombu",
            "billiard",
            "amqp",
            "pika",
            "aio_pika",
            "aiormq",
            "rq",
            "arq",
            "dramatiq",
            "huey",
            "taskiq",
            "bullmq",
            "procrastinate",
            "kafka",
            "aiokafka",
            "confluent_kafka",
            "nats",
        ),
        "queue",
    ),
    **dict.fromkeys(
        (
            "httpx",
            "httpcore",
            "requests",
            "urllib3",
            "urllib.error",
            "http.client",
            "aiohttp.client",
            "aiohttp.client_exceptions",
            "aiohttp.connector",
            "websockets",
            "grpc",
            "h2",
            "smtplib",
            "aiosmtplib",
            "imaplib",
            "poplib",
            "ftplib",
            "paramiko",
            "socket",
            "ssl",
            "dns",
            "botocore",
        ),
        "network",
    ),
    **dict.fromkeys(
        (
            "jwt",
            "jose",
            "authlib",
            "oauthlib",
            "itsdangerous",
            "passlib",
            "argon2",
            "starlette.authentication",
            "django.contrib.auth",
            "rest_framework_simplejwt",
        ),
        "authentication",
    ),
    **dict.fromkeys(("pydantic", "pydantic_core", "marshmallow", "jsonschema", "cerberus", "voluptuous"), "validation"),
}

_TYPES: dict[str, str] = {
    "telegram.error.NetworkError": "telegram",
    "fastapi.exceptions.RequestValidationError": "validation",
    "fastapi.exceptions.WebSocketRequestValidationError": "validation",
    "fastapi.exceptions.ResponseValidationError": "validation",
    "django.core.exceptions.ValidationError": "validation",
    "django.core.exceptions.PermissionDenied": "authentication",
    "rest_framework.exceptions.ValidationError": "validation",
    "rest_framework.exceptions.NotAuthenticated": "authentication",
    "rest_framework.exceptions.AuthenticationFailed": "authentication",
    "rest_framework.exceptions.PermissionDenied": "authentication",
    "msgspec.ValidationError": "validation",
    "json.decoder.JSONDecodeError": "validation",
    # Parents that say little: only when no child of theirs said more.
    "ConnectionError": "network",
    "TimeoutError": "network",
    "socket.gaierror": "network",
    "socket.herror": "network",
    "ssl.SSLError": "network",
    "asyncio.exceptions.IncompleteReadError": "network",
    "concurrent.futures._base.TimeoutError": "network",
}

# Network faults that a library lets through as they are: whose frames raised them says whose they are.
_BARE = frozenset({"ConnectionError", "TimeoutError", "socket.gaierror", "ssl.SSLError", "OSError"})
_BETWEEN = frozenset(
    {"asyncio", "uvloop", "socket", "ssl", "selectors", "concurrent", "threading", "contextlib"}
    | {"async_timeout", "anyio", "sniffio", "trio", "greenlet"}
)

_HOSTS = {
    "amocrm.ru": "amocrm",
    "amocrm.com": "amocrm",
    "kommo.com": "amocrm",
    "api.telegram.org": "telegram",
}

# Database or Redis cannot be reached: always …
_AWAY_TYPES = frozenset(
    {
        "asyncpg.exceptions.PostgresConnectionError",
        "asyncpg.exceptions.CannotConnectNowError",
        "asyncpg.exceptions.TooManyConnectionsError",
        "asyncpg.exceptions.AdminShutdownError",
        "asyncpg.exceptions.CrashShutdownError",
        "asyncpg.exceptions.InvalidAuthorizationSpecificationError",
        "asyncpg.exceptions.InvalidCatalogNameError",
        "psycopg.errors.ConnectionTimeout",
        "psycopg.errors.AdminShutdown",
        "psycopg.errors.CrashShutdown",
        "psycopg.errors.CannotConnectNow",
        "psycopg.errors.TooManyConnections",
        "psycopg_pool.errors.PoolTimeout",
        "psycopg_pool.PoolTimeout",
        "psycopg2.errors.AdminShutdown",
        "psycopg2.errors.CannotConnectNow",
        "psycopg2.errors.TooManyConnections",
        "sqlalchemy.exc.TimeoutError",  # no connection came free in time
        "redis.exceptions.ConnectionError",
        "redis.exceptions.TimeoutError",
        "aioredis.exceptions.ConnectionError",
        "aioredis.exceptions.TimeoutError",
        "valkey.exceptions.ConnectionError",
        "valkey.exceptions.TimeoutError",
        "kombu.exceptions.OperationalError",
        "pymongo.errors.ConnectionFailure",
        "amqp.exceptions.ConnectionError",
        "aiormq.exceptions.AMQPConnectionError",
        "pika.exceptions.AMQPConnectionError",
    }
)
# … when their text says so …
_AWAY_TEXT_TYPES = frozenset(
    {
        "sqlite3.Error",
        "psycopg.Error",
        "psycopg2.Error",
        "sqlalchemy.exc.DBAPIError",
        "django.db.utils.DatabaseError",
        "django.db.utils.InterfaceError",
        "django.db.utils.Error",
        "pymysql.err.Error",
        "MySQLdb.Error",
        "asyncpg.exceptions._base.InterfaceError",
        "asyncpg.exceptions._base.InternalClientError",
    }
)
_AWAY_TEXT = re.compile(
    r"connection (?:is |was |has been |already )?(?:refused|closed|lost|failed|reset|timed out|invalidated|to server)"
    r"|could not connect|can't connect|cannot connect|connect call failed|unable to connect"
    r"|server closed the connection|terminating connection|gone away|lost connection"
    r"|could not translate host|name or service not known|name resolution|no address associated|nodename nor servname"
    r"|timeout expired|starting up|shutting down|too many (?:clients|connections)|remaining connection slots"
    r"|password authentication failed|no pg_hba\.conf entry|ssl connection has been closed"
    r"|unable to open database file|disk i/o error|database disk image is malformed|not a database",
    re.IGNORECASE,
)
# … or as a bare network fault out of a library's frames; a time-out only where it was still connecting.
_LOST = frozenset({"ConnectionError", "socket.gaierror", "ssl.SSLError"})
_CONNECTING = frozenset({"asyncpg.connect_utils", "asyncpg.pool", "sqlalchemy.pool.base", "sqlalchemy.pool.impl"})

# What else says that somebody cannot be reached, whoever it is …
_UNREACHABLE_TYPES = frozenset(
    {
        "socket.gaierror",
        "ssl.SSLEOFError",
        "ssl.SSLZeroReturnError",
        "asyncio.exceptions.IncompleteReadError",
        "redis.exceptions.ClusterDownError",
        "httpx.NetworkError",
        "httpx.TimeoutException",
        "httpx.RemoteProtocolError",
        "httpx.ProxyError",
        "httpcore.NetworkError",
        "httpcore.TimeoutException",
        "httpcore.RemoteProtocolError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.Timeout",
        "requests.exceptions.ChunkedEncodingError",
        "urllib3.exceptions.TimeoutError",
        "urllib3.exceptions.ProtocolError",
        "urllib3.exceptions.NewConnectionError",
        "urllib3.exceptions.MaxRetryError",
        "aiohttp.client_exceptions.ClientConnectionError",
        "botocore.exceptions.HTTPClientError",
        "elastic_transport.ConnectionError",
        "elastic_transport.ConnectionTimeout",
        "kafka.errors.NoBrokersAvailable",
        "kafka.errors.KafkaConnectionError",
        "aiokafka.errors.KafkaConnectionError",
        "nats.errors.ConnectionClosedError",
        "nats.errors.NoServersError",
        "smtplib.SMTPServerDisconnected",
        "smtplib.SMTPConnectError",
        "aiosmtplib.errors.SMTPConnectError",
        "aiosmtplib.errors.SMTPServerDisconnected",
    }
)
# … and only by itself: its children are about something else.
_UNREACHABLE_ALONE = frozenset({"psycopg.OperationalError", "psycopg2.OperationalError", "urllib.error.URLError"})

_VALIDATION_IN_REQUEST = frozenset(
    {
        "fastapi.exceptions.RequestValidationError",
        "fastapi.exceptions.WebSocketRequestValidationError",
        "rest_framework.exceptions.ValidationError",
    }
)
_VALIDATION_HANDLED = frozenset(
    {
        "pydantic_core._pydantic_core.ValidationError",
        "pydantic.v1.error_wrappers.ValidationError",
        "pydantic.error_wrappers.ValidationError",
        "marshmallow.exceptions.ValidationError",
        "django.core.exceptions.ValidationError",
        "jsonschema.exceptions.ValidationError",
        "msgspec.ValidationError",
    }
)

# The answers to a request that are made by raising: where their status stands.
_STATUS_IN: dict[str, str | int] = {
    "starlette.exceptions.HTTPException": "status_code",
    "werkzeug.exceptions.HTTPException": "code",
    "aiohttp.web_exceptions.HTTPException": "status",
    "rest_framework.exceptions.APIException": "status_code",
    "litestar.exceptions.http_exceptions.HTTPException": "status_code",
    "tornado.web.HTTPError": "status_code",
    "sanic.exceptions.SanicException": "status_code",
    "django.http.response.Http404": 404,
    "django.core.exceptions.PermissionDenied": 403,
    "django.core.exceptions.BadRequest": 400,
    "django.core.exceptions.SuspiciousOperation": 400,
}

_NOT_ERRORS = frozenset(
    {
        # cancelled
        "asyncio.exceptions.CancelledError",
        "concurrent.futures._base.CancelledError",
        "trio.Cancelled",
        "gevent.GreenletExit",
        "greenlet.GreenletExit",
        # ended as wished
        "GeneratorExit",
        "StopIteration",
        "StopAsyncIteration",
        "KeyboardInterrupt",
        "bdb.BdbQuit",
        # a worker told what to do with its job
        "celery.exceptions.Ignore",
        "celery.exceptions.Reject",
        "celery.exceptions.Retry",
        # the client went away
        "starlette.requests.ClientDisconnect",
        "starlette.websockets.WebSocketDisconnect",
        "uvicorn.protocols.utils.ClientDisconnected",
        "werkzeug.exceptions.ClientDisconnected",
        "django.http.request.UnreadablePostError",
        "websockets.exceptions.ConnectionClosedOK",
    }
)

_IN_REQUEST = frozenset({"asgi", "wsgi", "starlette", "fastapi", "flask", "django", "aiohttp", "http"})
_AT_THE_END = frozenset({"excepthook", "exit", "signal", "faulthandler", "crash"})
# Where an exception that is not handled has left the program's hands; a span only tells that it passed.
_LAST_SEEN = _IN_REQUEST | {"celery", "rq", "threading", "asyncio", "unraisable", "future", "multiprocessing"}


def classify(evidence: Evidence, own: Sequence[tuple[str, str, str]] = ()) -> Verdict:
    """
    Severity and category of an error, and whether it is more than expected.

    Args:
        own: a team's own rules, which win: (category, ``module`` | ``host`` | ``logger``, value); each
            also takes what is below its value, such as ``shop.billing.refunds`` or ``eu.api.example.com``.

    Source: design.md, section 1, severity and category.
    """
    category, is_away = _cause_of(evidence)
    category = _own_category(evidence, own) or category
    severity, is_expected = _severity(evidence, is_away)
    return Verdict(severity, category, not is_expected)


def is_error(exc: BaseException) -> bool:
    """
    False for what only looks like an error.

    That is: cancellation, Ctrl-C, an exit with code 0, a client that went away, and a group of only such.
    """
    for one in _members(exc):
        if issubclass(type(one), SystemExit):  # isinstance would ask the object too
            code = exit_code_of(one)
            if code is None or (isinstance(code, int) and code == 0):
                continue
            return True
        if _NOT_ERRORS.isdisjoint(_names_of(type(one))):
            return True
    return False


def says_unreachable(names: tuple[str, ...], message: Callable[[], str]) -> bool:
    """
    Whether an exception says of whatever it talked to that it cannot be reached.

    Args:
        names: qualified, of its class and the bases.
        message: asked for only where it matters.
    """
    if names[:1] and names[0] in _UNREACHABLE_ALONE:
        return True
    if not _AWAY_TYPES.isdisjoint(names) or not _UNREACHABLE_TYPES.isdisjoint(names):
        return True
    # An OSError of its own is what asyncio makes of several addresses of which none answers.
    is_said = names[:1] == ("OSError",) or not _AWAY_TEXT_TYPES.isdisjoint(names)
    return is_said and _AWAY_TEXT.search(message()[:4096]) is not None


def status_of(exc: BaseException, names: tuple[str, ...]) -> int | None:
    """
    The status that an exception asks for where it is an answer to a request: 404 of ``HTTPException(404)``.

    Args:
        names: qualified, of its class and the bases.
    """
    where = next((_STATUS_IN[name] for name in names if name in _STATUS_IN), None)
    status = _attribute(exc, where) if isinstance(where, str) else where
    if not issubclass(type(status), int):
        return None
    number = int.__int__(status)  # type: ignore[arg-type]  # an enum, mostly
    return number if 100 <= number <= 599 else None


def host_of(exc: BaseException, names: tuple[str, ...]) -> str | None:
    """The host that an HTTP library failed to talk to, as it has it; only classes known for it are asked."""
    if not _talks_http(names):
        return None
    host = _attribute(exc, "host")  # aiohttp
    if type(host) is str:
        return host
    for holder in ("request", "request_info", "pool"):
        held = _attribute(exc, holder)
        url = _attribute(held, "url")
        if type(url) is str:
            return host_in(url)
        for place in (url, held):
            host = _attribute(place, "host")
            if type(host) is str:
                return host
    return None


def host_in(url: str) -> str | None:
    """The host name of a URL; None where it has none, or is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:  # such as an open bracket
        return None


def qualified(kind: type) -> str:
    """The qualified name of a class, ``shop.errors.OutOfStock``; builtins bare."""
    module, name = module_of(kind), qualname_of(kind)
    if module is None:
        return "unknown"
    return name if module == "builtins" else f"{module}.{name}"


# Severity


def _severity(evidence: Evidence, is_away: bool) -> tuple[Severity, bool]:
    if evidence.exit or evidence.level == "critical" or evidence.mechanism in _AT_THE_END:
        return Severity.CRITICAL, False
    if evidence.level == "warning":
        return Severity.LOW, False
    if is_away:
        return Severity.CRITICAL, False
    if evidence.level != "error" and _is_expected(evidence):
        return Severity.MEDIUM, True
    return Severity.HIGH, False


def _is_expected(evidence: Evidence) -> bool:
    if evidence.handled is False and evidence.mechanism in _LAST_SEEN:
        return False  # whatever was answered before it: a background task runs behind its response
    if evidence.status_code is not None:
        return 400 <= evidence.status_code < 500
    types = set(evidence.types)
    if not types.isdisjoint(_VALIDATION_IN_REQUEST):
        return True
    return evidence.handled is True and not types.isdisjoint(_VALIDATION_HANDLED)


# Category


def _cause_of(evidence: Evidence) -> tuple[str, bool]:
    """What failed, and whether it is a database or Redis that cannot be reached."""
    by_type = _type_category(evidence.types)
    bare = evidence.types[0] if evidence.types and "." not in evidence.types[0] else ""
    if said := node.said_category(bare, evidence.message, evidence.modules):
        by_type = said
    by_cause = _type_category(evidence.cause_types)
    raised_in, module = _raising_library(evidence.modules)
    is_bare = by_type in (None, "network") and not _BARE.isdisjoint(evidence.types)
    if is_bare and raised_in:
        by_type = raised_in
    category = (
        _host_category((*evidence.hosts, *node.hosts_in(bare, evidence.message)))
        or _answer_category(evidence, by_cause)
        or by_type
        or by_cause
        or _name_category(evidence.logger, evidence.modules)
        or ("api" if evidence.mechanism in _IN_REQUEST or evidence.status_code is not None else "unknown")
    )
    is_away = _is_away(evidence, raised_in if is_bare else None, module) or node.is_away(
        bare, evidence.message, by_type
    )
    return category, is_away


def _is_away(evidence: Evidence, raised_in: str | None, module: str) -> bool:
    types = {*evidence.types, *evidence.cause_types}
    if not types.isdisjoint(_AWAY_TYPES):
        return True
    is_said_by = not types.isdisjoint(_AWAY_TEXT_TYPES)
    if not is_said_by and raised_in not in ("database", "queue"):
        return False  # most errors: what they say is not searched
    says_so = _AWAY_TEXT.search(evidence.message[:4096]) is not None
    if is_said_by and (says_so or not _LOST.isdisjoint(evidence.cause_types)):
        return True
    if raised_in not in ("database", "queue"):
        return False
    if not _LOST.isdisjoint(evidence.types) or says_so:
        return True
    if "TimeoutError" not in evidence.types:
        return False
    # A statement goes through several functions of asyncpg's connection, connecting through one.
    return module in _CONNECTING or (module == "asyncpg.connection" and evidence.modules.count(module) == 1)


def _own_category(evidence: Evidence, own: Sequence[tuple[str, str, str]]) -> str | None:
    for category, kind, value in own:
        if kind == "module":
            names: Iterable[str] = (*evidence.types, *evidence.modules, *evidence.cause_types)
            if any(_is_below(name, value) for name in names):
                return category
        elif kind == "host":
            if any(_is_host_below(host, value) for host in evidence.hosts):
                return category
        elif kind == "logger" and evidence.logger is not None and _is_below(evidence.logger, value):
            return category
    return None


def _answer_category(evidence: Evidence, by_cause: str | None) -> str | None:
    """Of an exception that is an answer to a request: its status says more than its class."""
    status = evidence.status_code
    if status is None or not any(name in _STATUS_IN for name in evidence.types):
        return None
    if status in (401, 403):
        return "authentication"
    if status in (400, 422):
        return "validation"
    return "api" if status < 500 else by_cause or "api"


def _type_category(types: Iterable[str]) -> str | None:
    for name in types:
        category = _TYPES.get(name) or _library_of(name) or ("." not in name and node.type_category(name)) or None
        if category is not None:
            return category
    return None


def _host_category(hosts: Iterable[str]) -> str | None:
    for host in hosts:
        for known, category in _HOSTS.items():
            if _is_host_below(host, known):
                return category
    return None


@lru_cache(maxsize=512)
def _name_category(logger: str | None, modules: tuple[str, ...]) -> str | None:
    """What the logger or the innermost module that is named for an integration speaks for."""
    if logger and (category := _library_of(logger)):
        return category
    for name in (logger or "", *reversed(modules)):
        for part in name.split("."):
            word = part.partition("_")[0].lower()
            if word in ("amocrm", "kommo"):
                return "amocrm"
            if word == "telegram":
                return "telegram"
    return None


def _raising_library(modules: Sequence[str]) -> tuple[str | None, str]:
    """Whose innermost frame it is, what only passes bytes or waits left out: (category, module)."""
    for module in reversed(modules):
        if module.partition(".")[0] not in _BETWEEN:
            return _library_of(module), module
    return None, ""


@lru_cache(maxsize=2048)
def _library_of(name: str) -> str | None:
    if "/" in name:
        return node.package_category(name)
    while name:
        if category := _LIBRARIES.get(name):
            return category
        name = name.rpartition(".")[0]
    return None


def _is_below(name: str, value: str) -> bool:
    return name == value or name.startswith((value + ".", value + "/"))


def _is_host_below(host: str, value: str) -> bool:
    host, value = host.lower().rstrip("."), value.lower()
    return host == value or host.endswith("." + value)


# Live exceptions

_names: dict[int, tuple[type, tuple[str, ...]]] = {}


def _names_of(kind: type) -> tuple[str, ...]:
    known = _names.get(id(kind))  # its metaclass may refuse to hash it
    if known is None:
        if len(_names) >= 1024:  # a program may make classes without end
            _names.clear()
        names = tuple(qualified(one) for one in mro_of(kind) if one is not object)
        known = _names[id(kind)] = (kind, names)  # kept, so that no other class can get its id
    return known[1]


def _members(exc: BaseException) -> Iterator[BaseException]:
    """The exception, or all that are in its group."""
    waiting, seen = [exc], 0
    while waiting and seen < 1_000:
        one = waiting.pop()
        seen += 1
        if is_group(one):
            waiting.extend(members_of(one))
        else:
            yield one


@lru_cache(maxsize=1024)
def _talks_http(names: tuple[str, ...]) -> bool:
    return any(name.partition(".")[0] in ("httpx", "requests", "aiohttp", "urllib3") for name in names)


def _attribute(thing: object, name: str) -> object:
    try:
        return getattr(thing, name, None)
    except BaseException as problem:  # a property of somebody else's class: httpx raises where no request is set
        pass_on(problem)
        return None
