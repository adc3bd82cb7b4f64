"""What failed, how bad it is, and whether it rings: decided for real exceptions of real libraries."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import smtplib
import socket
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import asyncpg
import fastapi
import httpx
import pydantic
import pytest
import redis
import requests
import sqlalchemy
import starlette.exceptions
import starlette.requests
import starlette.websockets
import telegram.error
from alembic.util.exc import CommandError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tocsin.exporter.classify import Evidence, classify, host_of, is_error, status_of
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.drain import Drain
from tocsin.exporter.raw import origins_of
from tocsin.exporter.spool import Spool, read_segment
from tocsin.instrumentation.capture import Capture, resource
from tocsin.instrumentation.context import current_scope
from tocsin.instrumentation.logs import LEVELS
from tocsin.instrumentation.state import Sighting
from tocsin.model import ErrorRecord, Severity
from tocsin.settings import Settings

Raise = Callable[[], Any]
ONCE = Retry(NoBackoff(), 0)


def _closed_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _silent_port() -> tuple[socket.socket, int]:
    """A port that takes connections and says nothing."""
    one = socket.create_server(("127.0.0.1", 0))
    return one, int(one.getsockname()[1])


def _raised(exc: BaseException | type[BaseException], cause: BaseException | None = None) -> Raise:
    def raise_it() -> None:
        raise exc from cause

    return raise_it


# Raised by the libraries themselves, where that needs no server.


def _asyncpg_refused() -> None:
    asyncio.run(asyncpg.connect(host="127.0.0.1", port=_closed_port(), user="shop", database="shop"))


def _asyncpg_name_unknown() -> None:
    asyncio.run(asyncpg.connect(host="db.invalid", user="shop", database="shop"))


def _asyncpg_connect_times_out() -> None:
    listening, port = _silent_port()
    with listening:
        asyncio.run(asyncpg.connect(host="127.0.0.1", port=port, user="shop", database="shop", timeout=0.05))


def _sqlalchemy_refused() -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    async def connect() -> None:
        engine = create_async_engine(f"postgresql+asyncpg://shop:secret@127.0.0.1:{_closed_port()}/shop")
        async with engine.connect():
            pass

    asyncio.run(connect())


def _redis_refused() -> None:
    with redis.Redis(host="127.0.0.1", port=_closed_port(), socket_timeout=1, retry=ONCE) as client:
        client.ping()


def _redis_times_out() -> None:
    listening, port = _silent_port()
    with listening, redis.Redis(host="127.0.0.1", port=port, socket_timeout=0.05, retry=ONCE) as client:
        client.ping()


def _order_fails_since_redis_is_away() -> None:
    try:
        _redis_refused()
    except redis.ConnectionError as away:
        raise RuntimeError("order not queued") from away


def _httpx(fault: type[httpx.HTTPError], url: str) -> Raise:
    def handler(request: httpx.Request) -> httpx.Response:
        raise fault("All connection attempts failed", request=request)  # type: ignore[call-arg]

    def call() -> None:
        with httpx.Client(transport=httpx.MockTransport(handler)) as client:
            client.get(url)

    return call


def _lead_fails_since_amocrm_is_away() -> None:
    try:
        _httpx(httpx.ConnectError, AMOCRM)()
    except httpx.ConnectError as away:
        raise RuntimeError("lead not pushed") from away


def _task_group_of_amocrm() -> None:
    raise BaseExceptionGroup("all", [ValueError("a"), _caught(_lead_fails_since_amocrm_is_away)])


def _requests(url: str) -> Raise:
    return _raised(requests.ConnectionError("Max retries exceeded", request=requests.Request("GET", url).prepare()))


def _httpx_status(status: int, url: str) -> Raise:
    def call() -> None:
        with httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(status))) as client:
            client.get(url).raise_for_status()

    return call


def _httpx_refused() -> None:
    with httpx.Client(trust_env=False) as client:
        client.get(f"http://127.0.0.1:{_closed_port()}/")


def _requests_refused() -> None:
    with requests.Session() as session:
        session.trust_env = False
        session.get(f"http://127.0.0.1:{_closed_port()}/", timeout=1)


def _sqlite_locked() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        first = sqlite3.connect(Path(folder) / "a.db", isolation_level=None)
        second = sqlite3.connect(Path(folder) / "a.db", isolation_level=None, timeout=0)
        try:
            first.execute("begin exclusive")
            second.execute("begin exclusive")
        finally:
            first.close()
            second.close()


def _sqlite_no_table() -> None:
    one = sqlite3.connect(":memory:")
    try:
        one.execute("select * from orders")
    finally:
        one.close()


def _engine(statement: str, url: str = "sqlite://") -> Raise:
    def execute() -> None:
        engine = sqlalchemy.create_engine(url)
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("create table a (b integer primary key)")
                connection.exec_driver_sql("insert into a values (1)")
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    return execute


def _pool_times_out() -> None:
    engine = sqlalchemy.create_engine(
        "sqlite://", poolclass=sqlalchemy.pool.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    try:
        with engine.connect(), engine.connect():
            pass
    finally:
        engine.dispose()


class _Order(pydantic.BaseModel):
    amount: int


def _wait_too_long() -> None:
    async def wait() -> None:
        await asyncio.wait_for(asyncio.Event().wait(), 0.01)

    asyncio.run(wait())


def _cancelled() -> None:
    async def cancel() -> None:
        task = asyncio.create_task(asyncio.Event().wait())
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(cancel())


def _task_group_fails() -> None:
    async def fail(one: BaseException) -> None:
        raise one

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ValueError("a")))
            group.create_task(fail(redis.ConnectionError("Error 111 connecting to redis:6379. Connection refused.")))

    asyncio.run(run())


def _recursion() -> None:
    _recursion()


def _client_hangs_up() -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    asyncio.run(starlette.requests.Request({"type": "http", "method": "POST"}, receive).body())


def _tls_to_plain() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="shop.example").do_handshake()


def _smtp_refused() -> None:
    smtplib.SMTP("127.0.0.1", _closed_port(), timeout=1)


def _pipe_broken() -> None:
    one, other = socket.socketpair()
    other.close()
    try:
        one.send(b"x")
        one.send(b"x")
    finally:
        one.close()


def _telegram_flood() -> None:
    raise telegram.error.RetryAfter(5)


def _request_refused() -> None:
    raise fastapi.exceptions.RequestValidationError([{"loc": ("body", "amount"), "msg": "missing", "type": "missing"}])


CRITICAL, HIGH, MEDIUM, LOW = Severity.CRITICAL, Severity.HIGH, Severity.MEDIUM, Severity.LOW
IN_REQUEST = {"mechanism": "asgi", "handled": False, "status_code": 500}
ANSWERED: dict[str, Any] = {"mechanism": "asgi", "handled": True}
AMOCRM = "https://test.amocrm.ru/api/v4/leads"
HTTPException = starlette.exceptions.HTTPException

TABLE: list[tuple[str, Raise, dict[str, Any], str, Severity, bool]] = [
    # name, how it is raised, what the catcher knows, category, severity, stored
    ("asyncpg refused", _asyncpg_refused, {}, "database", CRITICAL, True),
    ("asyncpg name unknown", _asyncpg_name_unknown, {}, "database", CRITICAL, True),
    ("asyncpg connect time-out", _asyncpg_connect_times_out, {}, "database", CRITICAL, True),
    ("asyncpg by SQLAlchemy refused", _sqlalchemy_refused, IN_REQUEST, "database", CRITICAL, True),
    ("asyncpg unique", _raised(asyncpg.UniqueViolationError("dup")), IN_REQUEST, "database", HIGH, True),
    ("asyncpg shut down", _raised(asyncpg.AdminShutdownError("terminating")), {}, "database", CRITICAL, True),
    ("asyncpg too many", _raised(asyncpg.TooManyConnectionsError("sorry")), {}, "database", CRITICAL, True),
    ("asyncpg closed", _raised(asyncpg.InterfaceError("connection is closed")), {}, "database", CRITICAL, True),
    ("asyncpg busy", _raised(asyncpg.InterfaceError("another operation is in progress")), {}, "database", HIGH, True),
    ("asyncpg deadlock", _raised(asyncpg.DeadlockDetectedError("deadlock")), {}, "database", HIGH, True),
    ("redis refused", _redis_refused, IN_REQUEST, "queue", CRITICAL, True),
    ("redis time-out", _redis_times_out, {}, "queue", CRITICAL, True),
    ("redis refused underneath", _order_fails_since_redis_is_away, IN_REQUEST, "queue", CRITICAL, True),
    ("redis wrong type", _raised(redis.ResponseError("WRONGTYPE")), {}, "queue", HIGH, True),
    ("redis refused, only warned of", _redis_refused, {"level": "warning"}, "queue", LOW, True),
    ("amocrm connect", _httpx(httpx.ConnectError, AMOCRM), IN_REQUEST, "amocrm", HIGH, True),
    ("amocrm time-out", _httpx(httpx.ConnectTimeout, AMOCRM), {}, "amocrm", HIGH, True),
    ("amocrm 401", _httpx_status(401, AMOCRM), IN_REQUEST, "amocrm", HIGH, True),
    ("kommo 502", _httpx_status(502, "https://shop.kommo.com/"), {}, "amocrm", HIGH, True),
    ("amocrm by requests", _requests(AMOCRM), {}, "amocrm", HIGH, True),
    ("amocrm underneath", _lead_fails_since_amocrm_is_away, IN_REQUEST, "amocrm", HIGH, True),
    ("amocrm in a group", _task_group_of_amocrm, {}, "amocrm", HIGH, True),
    ("not amocrm", _httpx(httpx.ReadTimeout, "https://notamocrm.ru/"), {}, "network", HIGH, True),
    ("httpx refused", _httpx_refused, IN_REQUEST, "network", HIGH, True),
    ("httpx pool", _raised(httpx.PoolTimeout("pool")), {}, "network", HIGH, True),
    ("requests refused", _requests_refused, {}, "network", HIGH, True),
    ("telegram by httpx", _httpx(httpx.ReadError, "https://api.telegram.org/"), {}, "telegram", HIGH, True),
    ("telegram forbidden", _raised(telegram.error.Forbidden("blocked")), {}, "telegram", HIGH, True),
    ("telegram flood", _telegram_flood, {}, "telegram", HIGH, True),
    ("telegram time-out", _raised(telegram.error.TimedOut()), {}, "telegram", HIGH, True),
    ("pydantic, answered", lambda: _Order(amount="x"), ANSWERED, "validation", MEDIUM, False),  # type: ignore[arg-type]
    ("pydantic, unhandled", lambda: _Order(amount="x"), IN_REQUEST, "validation", HIGH, True),  # type: ignore[arg-type]
    ("pydantic, logged", lambda: _Order(amount="x"), {"handled": True, "level": "error"}, "validation", HIGH, True),  # type: ignore[arg-type]
    ("FastAPI 422", _request_refused, ANSWERED, "validation", MEDIUM, False),
    ("404", _raised(HTTPException(404)), ANSWERED, "api", MEDIUM, False),
    ("401", _raised(HTTPException(401)), ANSWERED, "authentication", MEDIUM, False),
    ("FastAPI 403", _raised(fastapi.HTTPException(403)), ANSWERED, "authentication", MEDIUM, False),
    ("500", _raised(HTTPException(500)), ANSWERED, "api", HIGH, True),
    ("503 of asyncpg", _raised(HTTPException(503), asyncpg.QueryCanceledError()), {}, "database", HIGH, True),
    ("404 in a thread", _raised(HTTPException(404)), {"mechanism": "threading"}, "api", HIGH, True),
    ("404, by hand", _raised(HTTPException(404)), {}, "api", MEDIUM, True),
    (
        "404, by a decorator",
        _raised(HTTPException(404)),
        {"mechanism": "protect", "handled": True},
        "api",
        MEDIUM,
        True,
    ),
    ("401, by hand", _raised(HTTPException(HTTPStatus.UNAUTHORIZED)), {}, "authentication", MEDIUM, True),
    ("404 behind an answer", _raised(HTTPException(404)), IN_REQUEST | {"status_code": 200}, "api", HIGH, True),
    ("404, logged", _raised(HTTPException(404)), {"level": "error"}, "api", HIGH, True),
    ("sqlite locked", _sqlite_locked, IN_REQUEST, "database", HIGH, True),
    ("sqlite no table", _sqlite_no_table, {}, "database", HIGH, True),
    ("sqlite no folder", lambda: sqlite3.connect("/nowhere/a.db"), {}, "database", CRITICAL, True),
    ("SQLAlchemy syntax", _engine("selct 1"), {}, "database", HIGH, True),
    ("SQLAlchemy integrity", _engine("insert into a values (1)"), IN_REQUEST, "database", HIGH, True),
    ("SQLAlchemy no file", _engine("", "sqlite:////nowhere/a.db"), {}, "database", CRITICAL, True),
    ("SQLAlchemy pool time-out", _pool_times_out, IN_REQUEST, "database", CRITICAL, True),
    ("Alembic", _raised(CommandError("no such revision")), {}, "database", HIGH, True),
    ("time-out of one's own", _wait_too_long, {}, "network", HIGH, True),
    ("task group, redis away", _task_group_fails, IN_REQUEST, "queue", CRITICAL, True),
    ("JSON", lambda: json.loads("{bad"), {}, "validation", HIGH, True),
    ("TLS", _tls_to_plain, {}, "network", HIGH, True),
    ("name unknown", lambda: socket.getaddrinfo("shop.invalid", 80), {}, "network", HIGH, True),
    ("SMTP refused", _smtp_refused, {}, "network", HIGH, True),
    ("SMTP password", _raised(smtplib.SMTPAuthenticationError(535, b"no")), {}, "network", HIGH, True),
    ("broken pipe", _pipe_broken, {}, "network", HIGH, True),
    ("reset", _raised(ConnectionResetError(104, "reset by peer")), {}, "network", HIGH, True),
    ("KeyError in a request", lambda: {}["phone"], IN_REQUEST, "api", HIGH, True),  # type: ignore[index]
    ("KeyError in a thread", lambda: {}["phone"], {"mechanism": "threading"}, "unknown", HIGH, True),  # type: ignore[index]
    ("KeyError at the end", lambda: {}["phone"], {"mechanism": "excepthook", "exit": True}, "unknown", CRITICAL, True),  # type: ignore[index]
    ("division", lambda: 1 / 0, {"level": "critical"}, "unknown", CRITICAL, True),
    ("division, warned of", lambda: 1 / 0, {"level": "warning"}, "unknown", LOW, True),
    ("memory", _raised(MemoryError()), {}, "unknown", HIGH, True),
    ("recursion", _recursion, IN_REQUEST, "api", HIGH, True),
    ("file", lambda: Path("/nowhere").read_bytes(), {}, "unknown", HIGH, True),
    ("permission", _raised(PermissionError(13, "denied")), {}, "unknown", HIGH, True),
    ("exit 3", _raised(SystemExit(3)), {"exit": True}, "unknown", CRITICAL, True),
    ("group", _raised(ExceptionGroup("all", [ValueError(1), KeyError(2)])), {}, "unknown", HIGH, True),
]

NO_ERRORS: list[tuple[str, Raise]] = [
    ("cancelled task", _cancelled),
    ("cancelled future", _raised(concurrent.futures.CancelledError())),
    ("client went away", _client_hangs_up),
    ("WebSocket closed", _raised(starlette.websockets.WebSocketDisconnect(1001))),
    ("exit", _raised(SystemExit())),
    ("exit 0", _raised(SystemExit(0))),
    ("Ctrl-C", _raised(KeyboardInterrupt())),
    ("generator closed", _raised(GeneratorExit())),
    ("iterator at its end", lambda: next(iter([]))),
    ("group of cancelled", _raised(BaseExceptionGroup("all", [asyncio.CancelledError(), SystemExit(0)]))),
]


class Witness:
    """The way that an error takes: captured, a line in the spool, decoded from there; None for what is not stored."""

    def __init__(self, folder: Path) -> None:
        header = {"resource": resource("shop", "test", None, "i1"), "started_ns": 0}
        self.spool = Spool(folder, 2**20, header)
        settings = Settings(database_url=f"sqlite:///{folder}/unused.db", spool_dir=str(folder))
        self._capture = Capture(self.spool, Drain(settings, self.spool, folder))

    def __call__(
        self,
        exc: BaseException,
        *,
        mechanism: str | None = None,
        handled: bool | None = None,
        status_code: int | None = None,
        level: str | None = None,
        exit: bool = False,  # noqa: A002  (the word of the evidence)
    ) -> ErrorRecord | None:
        mechanism = mechanism or ("logging" if level else "excepthook" if exit else "track_error")
        if handled is None:
            handled = mechanism in ("track_error", "logging")
        seen = Sighting(
            exc, mechanism=mechanism, handled=handled, status=status_code, level=LEVELS[level] if level else None
        )
        token = current_scope.set({"type": "http", "path": "/"} if mechanism == "asgi" else None)
        try:
            assert self._capture.see(seen)
        finally:
            current_scope.reset(token)
        return self.last()

    def last(self, *, capture_4xx: bool = False) -> ErrorRecord | None:
        """What was captured last, as it is stored."""
        (path,) = self.spool.segments()
        header, *_, line = read_segment(path)
        assert header.content is not None
        assert line.content is not None
        record = decode(line.content, Source.of(header.content), capture_4xx=capture_4xx)
        assert record is None or isinstance(record, ErrorRecord)
        return record


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    one = Witness(tmp_path)
    yield one
    one.spool.close(everything_stored=True)


def _caught(raise_it: Raise) -> BaseException:
    with pytest.raises(BaseException) as caught:
        raise_it()
    return caught.value


@pytest.mark.filterwarnings("ignore")  # some libraries leave a socket to the collector when they fail
@pytest.mark.parametrize(
    ("raise_it", "facts", "category", "severity", "is_stored"),
    [pytest.param(*row[1:], id=row[0]) for row in TABLE],
)
def test_each_exception_has_its_category_and_severity(
    raise_it: Raise, facts: dict[str, Any], category: str, severity: Severity, is_stored: bool, witness: Witness
) -> None:
    """The table of the design, for what services really raise; high and critical ring."""
    exc = _caught(raise_it)

    assert is_error(exc)
    record = witness(exc, **facts)
    assert (record is not None) == is_stored
    record = record or witness.last(capture_4xx=True)
    assert record is not None
    assert (record.severity, record.category) == (severity, category)


@pytest.mark.parametrize("raise_it", [pytest.param(row[1], id=row[0]) for row in NO_ERRORS])
def test_what_only_looks_like_an_error_is_none(raise_it: Raise) -> None:
    """Cancellation, a wished end and a client that went away ring nowhere."""
    assert not is_error(_caught(raise_it))


def test_the_table_has_at_least_forty_exceptions() -> None:
    """So many kinds are promised."""
    assert len(TABLE) + len(NO_ERRORS) >= 40


def test_a_group_with_one_error_among_the_cancelled_is_an_error() -> None:
    """A task group cancels the others when one fails."""
    assert is_error(BaseExceptionGroup("all", [asyncio.CancelledError(), ValueError()]))


@pytest.mark.parametrize(
    "rule",
    [
        ("billing", "host", "pay.example"),
        ("billing", "module", "httpx"),
        ("billing", "module", "shop.billing"),
        ("billing", "logger", "shop"),
    ],
)
def test_a_teams_own_rule_wins(rule: tuple[str, str, str]) -> None:
    """By host with what is below it, by the exception's or a frame's module, by logger."""
    evidence = Evidence(
        types=("httpx.ConnectError", "OSError", "Exception"),
        modules=("shop.billing.refunds", "httpx._client"),
        hosts=("eu.pay.example",),
        logger="shop.api",
    )

    assert classify(evidence, own=[("other", "host", "y.example"), rule]).category == "billing"
    assert classify(evidence, own=[(rule[0], rule[1], rule[2] + "x")]).category == "network"


@pytest.mark.parametrize(
    ("evidence", "category"),
    [
        (Evidence(types=("KeyError",), modules=("shop.integrations.amocrm", "shop.util")), "amocrm"),
        (Evidence(types=("KeyError",), modules=("shop.telegram_bot",)), "telegram"),
        (Evidence(logger="sqlalchemy.pool.impl", level="error"), "database"),
        (Evidence(logger="celery.app.trace", level="error"), "queue"),
        (Evidence(types=("TimeoutError",), modules=("celery.app.trace", "shop.tasks", "asyncio.tasks")), "network"),
        (Evidence(types=("jwt.exceptions.ExpiredSignatureError",)), "authentication"),
        (Evidence(types=("kombu.exceptions.OperationalError",)), "queue"),
        (Evidence(), "unknown"),
    ],
)
def test_loggers_and_module_names_speak_where_the_type_is_silent(evidence: Evidence, category: str) -> None:
    """A KeyError in a team's own amocrm module is about amocrm."""
    assert classify(evidence).category == category


def test_an_exceptions_own_methods_are_not_called(witness: Witness) -> None:
    """The class may be hostile, its chain a circle, and its attributes traps."""

    class Trap(Exception):
        __module__ = 17  # type: ignore[assignment]

        def __str__(self) -> str:
            raise AssertionError

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __eq__(self, other: object) -> bool:
            raise AssertionError

        __hash__ = None  # type: ignore[assignment]

    one, other = Trap(), ValueError()
    BaseException.__setattr__(one, "__cause__", other)
    other.__cause__ = one

    record = witness(other)

    assert record is not None
    assert (record.exception_type, record.category) == ("ValueError", "unknown")
    assert is_error(one)
    assert origins_of(other) == [one]


def test_a_client_s_exception_that_raises_when_it_is_asked_is_only_nameless(witness: Witness) -> None:
    """What stands under `request` and `status_code` is the program's own code; so is what it raises."""

    class Sly(httpx.ConnectError, HTTPException):
        request = status_code = property(lambda self: sys.exit("no"))

        def __init__(self) -> None:
            pass

        __str__ = object.__str__

    names = ("shop.Sly", "httpx.ConnectError", "starlette.exceptions.HTTPException")

    assert host_of(Sly(), names) is None
    assert status_of(Sly(), names) is None
    record = witness(Sly())
    assert record is not None
    assert record.severity is Severity.HIGH


def test_a_host_tells_no_secret(witness: Witness) -> None:
    """What a client takes for a host may be anything that was put into a URL."""
    secret = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"

    witness(_caught(_httpx(httpx.ConnectError, f"https://user:geheim77@{secret}.example/")))

    (path,) = witness.spool.segments()
    assert secret.lower() not in path.read_text().lower()
    assert "geheim77" not in path.read_text()


def test_a_chain_without_end_is_looked_at_for_fifty_links() -> None:
    """A retry loop can chain thousands."""
    first = last = ValueError(0)
    for number in range(1, 80):
        last.__cause__ = ValueError(number)
        last = last.__cause__

    assert [exc.args[0] for exc in origins_of(first)] == list(range(1, 51))


def test_the_status_of_an_answer_decides_over_its_class(witness: Witness) -> None:
    """A KeyError that a handler turned into a 400 was expected; unless somebody logged it as an error."""
    assert witness(_caught(lambda: {}["phone"]), status_code=400, **ANSWERED) is None  # type: ignore[index]
    assert classify(Evidence(types=("KeyError",), status_code=400, level="error")).severity is Severity.HIGH
