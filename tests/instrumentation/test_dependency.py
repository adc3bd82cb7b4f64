"""Dependencies that may be away: what the callers get, what is told, and how the return is noticed."""

from __future__ import annotations

import asyncio
import errno
import inspect
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tests.postgres import free_port
from tests.processes import rows_of, run_program
from tests.waiting import aeventually, eventually
from tocsin import clock
from tocsin.contained import failures
from tocsin.instrumentation import dependency as dependencies
from tocsin.store import dependencies as standing
from tocsin.store import groups, open_store


class Door:
    """Something that answers on a port, or does not: each `knock` is a real connection."""

    def __init__(self) -> None:
        self.port = free_port()
        self.knocks = 0
        self._listening: socket.socket | None = None

    def open(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))

    def close(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    def knock(self, key: str = "key") -> str:
        self.knocks += 1
        with socket.create_connection(("127.0.0.1", self.port), 5):
            return f"value of {key}"

    async def aknock(self, key: str = "key") -> str:
        self.knocks += 1
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.close()
        return f"value of {key}"


@pytest.fixture
def door() -> Iterator[Door]:
    one = Door()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def _no_dependency_is_left(_nothing_is_left: None) -> Iterator[None]:
    yield
    dependencies.forget()
    eventually(lambda: not [one for one in threading.enumerate() if one.name == "tocsin-probe"])


def refuse(*args: object) -> Any:
    raise ConnectionRefusedError(111, "Connection refused")


def told(watched: Watched) -> list[tuple[str, bool, bool]]:
    """How each dependency stands in the database: name, away, optional."""
    assert tocsin.flush(10)
    store = open_store(watched.database_url)
    try:
        found = store.read_now(standing.current, clock.now(), timedelta(minutes=1))
    finally:
        store.close_now()
    return [(one.name, one.is_away, one.is_optional) for one in found]


def group_of(watched: Watched, number: int = 1) -> Any:
    assert tocsin.flush(10)
    store = open_store(watched.database_url)
    try:
        return store.read_now(groups.by_number, number)
    finally:
        store.close_now()


# What the callers get


def with_call(redis: Any, door: Door) -> Any:
    return redis.call(door.knock, "name", fallback="nobody")


def with_decorator(redis: Any, door: Door) -> Any:
    return redis(fallback="nobody")(door.knock)("name")


def with_function(redis: Any, door: Door) -> Any:
    return redis(fallback=lambda key: f"no{key.replace('name', 'body')}")(door.knock)("name")


def with_block(redis: Any, door: Door) -> Any:
    value = "nobody"
    with redis as is_there:
        if is_there:
            value = door.knock("name")
    return value


def with_async_call(redis: Any, door: Door) -> Any:
    return asyncio.run(redis.acall(door.aknock, "name", fallback="nobody"))


def with_async_decorator(redis: Any, door: Door) -> Any:
    return asyncio.run(redis(fallback="nobody")(door.aknock)("name"))


def with_async_function(redis: Any, door: Door) -> Any:
    async def instead(key: str) -> str:
        return "nobody"

    return asyncio.run(redis.acall(door.aknock, "name", fallback=instead))


def with_async_block(redis: Any, door: Door) -> Any:
    async def get() -> str:
        value = "nobody"
        async with redis as is_there:
            if is_there:
                value = await door.aknock("name")
        return value

    return asyncio.run(get())


WAYS = [
    with_call,
    with_decorator,
    with_function,
    with_block,
    with_async_call,
    with_async_decorator,
    with_async_function,
    with_async_block,
]
Way = Callable[[Any, Door], Any]


@pytest.mark.parametrize("way", WAYS)
def test_an_optional_one_that_is_away_costs_the_caller_nothing_but_its_value(
    way: Way, door: Door, watched: Watched
) -> None:
    """One call finds out, the next is not even tried; it is one error, high, whatever follows."""
    redis = tocsin.dependency("redis", optional=True)
    door.open()
    assert way(redis, door) == "value of name"
    assert told(watched) == [("redis", False, True)]
    door.close()

    assert [way(redis, door) for _ in range(20)] == ["nobody"] * 20

    assert door.knocks == 2
    assert redis.is_away
    row = watched.row()
    assert (row.severity, row.category, row.handled, row.mechanism) == ("high", "queue", True, "dependency")
    assert row.message.startswith("redis is away: ") and "111" in row.message
    assert row.count == 1
    assert told(watched) == [("redis", True, True)]


@pytest.mark.parametrize("way", WAYS)
def test_one_that_is_needed_raises_on_and_is_one_error_too(way: Way, door: Door, watched: Watched) -> None:
    """Each call is tried, and what fails is counted there."""
    redis = tocsin.dependency("redis")
    for _ in range(5):
        with pytest.raises(OSError):
            way(redis, door)

    assert door.knocks == 5
    assert (watched.row().severity, watched.row().handled) == ("critical", False)
    door.open()
    assert way(redis, door) == "value of name"
    eventually(lambda: watched.row().count == 5)
    eventually(lambda: group_of(watched).status == "resolved")
    assert group_of(watched).count == 5
    assert told(watched) == [("redis", False, False)]


async def test_whoever_logs_what_is_raised_says_nothing_new(door: Door, unwatched: Watched) -> None:
    unwatched.init()
    redis = tocsin.dependency("redis")
    for _ in range(3):
        try:
            await redis.acall(door.aknock)
        except OSError:
            logging.getLogger("shop").exception("no redis")
    redis.call(lambda: 7)

    assert unwatched.row().mechanism == "dependency"
    await aeventually(lambda: unwatched.row().count == 3)


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("problem", [KeyError("k"), ValueError("no"), FileNotFoundError(2, "no"), PermissionError()])
def test_what_has_nothing_to_do_with_it_passes_untouched(problem: Exception, optional: bool, watched: Watched) -> None:
    redis = tocsin.dependency("redis", optional=optional)

    def fail() -> None:
        raise problem

    uses: list[Callable[[], object]] = [redis(fallback=1)(fail), lambda: redis.call(fail, fallback=1)]
    for use in uses:
        with pytest.raises(type(problem)) as caught:
            use()
        assert caught.value is problem
    with pytest.raises(type(problem)), redis:
        fail()

    assert not redis.is_away
    assert watched.rows() == []


async def test_cancellation_is_no_outage(door: Door) -> None:
    redis = tocsin.dependency("redis", optional=True)
    waiting = asyncio.ensure_future(redis.acall(asyncio.Event().wait, fallback=1))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not redis.is_away


async def test_a_time_out_is_one() -> None:
    redis = tocsin.dependency("redis", optional=True)

    async with redis, asyncio.timeout(0.01):
        await asyncio.Event().wait()

    assert redis.is_away


def test_a_decorated_function_stays_what_it_is() -> None:
    redis = tocsin.dependency("redis", optional=True)

    @redis
    def plain(a: int, /, *, b: str = "x") -> str:
        """What it does."""
        return b * a

    @redis(fallback=0)
    async def later(a: int) -> int:
        return a

    assert (plain(2), plain.__doc__, str(inspect.signature(plain))) == (
        "xx",
        "What it does.",
        "(a: 'int', /, *, b: 'str' = 'x') -> 'str'",
    )
    assert inspect.iscoroutinefunction(later)
    with pytest.raises(TypeError, match="generator"):

        @redis
        def numbers() -> Iterator[int]:
            yield 1


def test_the_same_name_is_the_same_dependency() -> None:
    redis = tocsin.dependency(" redis\n", optional=True)

    assert tocsin.dependency("redis") is redis
    assert redis.call(refuse, fallback=1) == 1
    assert tocsin.dependency("redis", optional=False).is_away
    with pytest.raises(ConnectionError):
        redis.call(refuse, fallback=1)


def test_more_can_say_that_it_is_away(watched: Watched) -> None:
    class Busy(Exception):
        pass

    crm = tocsin.dependency("amocrm", optional=True, away_on=Busy)
    tocsin.dependency("amocrm", away_on=[LookupError, "no class"])  # type: ignore[list-item]

    def fail() -> None:
        raise Busy("come back later")

    assert crm.call(fail, fallback=7) == 7
    row = watched.row()
    assert (row.message, row.category) == ("amocrm is away: come back later", "amocrm")


# What is told


def test_fifty_places_are_one_group(door: Door, watched: Watched) -> None:
    """In this outage and in the next, and whatever the exception says."""
    redis = tocsin.dependency("redis", optional=True)
    door.open()
    for number in range(2):
        program = f"def place{number}(call):\n    call('{number}')\n"
        scope: dict[str, Any] = {}
        exec(compile(program, f"/srv/shop/place{number}.py", "exec"), scope)

        def fail(text: str) -> None:
            raise (ConnectionResetError if text == "0" else TimeoutError)(f"a {text}")

        with redis:
            scope[f"place{number}"](fail)
        assert redis.is_away
        eventually(lambda: redis.call(door.knock))
        eventually(lambda: group_of(watched).status == "resolved")

    first, second = watched.rows()
    assert first.group_id == second.group_id
    assert first.exception_type != second.exception_type
    assert group_of(watched).title == "redis is away: a 0"


def test_threads_that_fail_at_once_are_one_error(watched: Watched) -> None:
    redis = tocsin.dependency("redis", optional=True)
    started = threading.Barrier(16)
    got: list[object] = []

    def fail() -> None:
        started.wait()
        refuse()

    threads = [threading.Thread(target=lambda: got.append(redis.call(fail, fallback=1))) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()

    assert got == [1] * 16
    assert watched.row().count == 1


def test_threads_that_fail_at_once_are_one_error_of_one_that_is_needed(watched: Watched) -> None:
    database = tocsin.dependency("orders-db")
    started = threading.Barrier(16)

    def fail() -> None:
        started.wait()
        with suppress(ConnectionError):
            try:
                database.call(refuse)
            except ConnectionError:
                logging.getLogger("shop").exception("no database")
                raise

    threads = [threading.Thread(target=fail) for _ in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert database.call(lambda: 7) == 7

    assert (watched.row().category, watched.row().severity) == ("database", "critical")
    eventually(lambda: watched.row().count == 16)


def test_a_return_says_how_long_it_was_away_and_rings_as_a_regression_the_next_time(watched: Watched) -> None:
    redis = tocsin.dependency("redis")
    for _ in range(2):
        with pytest.raises(ConnectionError):
            redis.call(refuse)
        eventually(lambda: group_of(watched).status == "open")
        assert redis.call(lambda: 7) == 7
        eventually(lambda: group_of(watched).status == "resolved")

    group = group_of(watched)
    assert (group.resolved_by, group.regressions) == ("tocsin", 1)
    assert len(watched.rows()) == 2


def test_what_comes_and_goes_is_one_outage(watched: Watched) -> None:
    """It is told to be over when it has been back for a while."""
    redis = tocsin.dependency("redis")
    for _ in range(5):
        with pytest.raises(ConnectionError):
            redis.call(refuse)
        assert told(watched) == [("redis", True, False)]
        assert redis.call(lambda: 7) == 7
        assert told(watched) == [("redis", False, False)]
    assert group_of(watched).status == "open"

    tocsin.shutdown()  # there is no time left for it to last

    [row] = rows_of(watched.database_url)
    assert row.count == 5
    group = group_of(watched)
    assert (group.status, group.regressions) == ("resolved", 0)


def test_what_was_logged_before_stays_an_error_of_its_own(watched: Watched) -> None:
    """Whoever logs an exception inside has said something; the outage has its own error all the same."""
    redis = tocsin.dependency("redis", optional=True)
    with redis:
        try:
            refuse()
        except ConnectionError:
            logging.getLogger("shop").exception("no redis")
            raise

    assert sorted(row.mechanism for row in watched.rows()) == ["dependency", "logging"]


def test_a_slow_call_of_before_the_return_begins_no_outage(watched: Watched) -> None:
    """And one of before the outage does not end it."""
    redis = tocsin.dependency("redis")
    go_on, gone_on = threading.Event(), threading.Event()
    outcome: list[object] = []

    def slow(answer: Callable[[], object]) -> None:
        def ask() -> object:
            gone_on.set()
            assert go_on.wait(10)
            return answer()

        with suppress(ConnectionError):
            outcome.append(redis.call(ask))

    for answer, is_away in ((refuse, False), (lambda: 7, True)):
        if not is_away:
            with pytest.raises(ConnectionError):
                redis.call(refuse)
        late = threading.Thread(target=slow, args=(answer,))
        late.start()
        assert gone_on.wait(10)
        if is_away:
            with pytest.raises(ConnectionError):
                redis.call(refuse)
        else:
            redis.call(lambda: 7)
        go_on.set()
        late.join()
        assert redis.is_away is is_away
        go_on.clear()
        gone_on.clear()

    assert outcome == [7]
    eventually(lambda: watched.errors() == 2)


def test_another_error_of_the_same_request_is_told(watched: Watched) -> None:
    """That an optional dependency was away does not explain a 500."""
    from tocsin.instrumentation.asgi import TocsinMiddleware

    redis = tocsin.dependency("redis", optional=True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        redis.call(refuse)
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        return None

    asyncio.run(TocsinMiddleware(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, send, send))  # type: ignore[arg-type]

    assert sorted(row.mechanism for row in watched.rows()) == ["asgi", "dependency"]


def test_a_failing_request_of_one_that_is_needed_is_that_error(watched: Watched) -> None:
    from tocsin.instrumentation.asgi import TocsinMiddleware

    redis = tocsin.dependency("redis")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/first":
            redis.call(refuse)
        with redis:
            refuse()

    async def send(message: Any) -> None:
        return None

    for path in ("/first", "/second", "/third"):
        scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": []}
        with pytest.raises(ConnectionError):
            asyncio.run(TocsinMiddleware(app)(scope, send, send))  # type: ignore[arg-type]
    redis.call(lambda: 7)

    assert watched.row().context["url.path"] == "/first"
    eventually(lambda: watched.row().count == 3)


# Whether it is back


def test_a_probe_finds_that_it_is_back_without_a_call(door: Door, watched: Watched) -> None:
    redis = tocsin.dependency("redis", optional=True, probe=door.knock)
    assert redis.call(door.knock, fallback=1) == 1
    eventually(lambda: door.knocks > 2)
    assert redis.is_away
    door.open()

    eventually(lambda: not redis.is_away)
    eventually(lambda: group_of(watched).status == "resolved")
    assert told(watched) == [("redis", False, True)]
    assert watched.row().count == 1


async def test_a_probe_of_coroutines_runs_where_the_dependency_is_used(door: Door) -> None:
    where: set[tuple[object, int]] = set()

    async def ping() -> str:
        where.add((asyncio.get_running_loop(), threading.get_ident()))
        return await door.aknock()

    redis = tocsin.dependency("redis", optional=True, probe=ping)
    assert await redis.acall(door.aknock, fallback=1) == 1
    await aeventually(lambda: len(where) > 0)
    door.open()

    await aeventually(lambda: not redis.is_away)
    assert where == {(asyncio.get_running_loop(), threading.get_ident())}


def test_a_probe_of_coroutines_whose_loop_is_gone_leaves_it_to_the_calls(door: Door) -> None:
    redis = tocsin.dependency("redis", optional=True, probe=door.aknock)
    assert asyncio.run(redis.acall(door.aknock, fallback=1)) == 1
    door.open()

    assert eventually(lambda: asyncio.run(redis.acall(door.aknock))) == "value of key"
    assert not redis.is_away


def no() -> bool:
    return False


def leave() -> None:
    raise SystemExit(3)


def broken() -> None:
    raise KeyError("no")


@pytest.mark.parametrize("probe", [no, leave, broken])
def test_a_probe_that_fails_in_any_way_is_no_answer(probe: Callable[[], object], watched: Watched) -> None:
    """And no error."""
    asked = threading.Semaphore(0)

    def ask() -> object:
        asked.release()
        logging.getLogger("client").error("no answer")
        return probe()

    redis = tocsin.dependency("redis", optional=True, probe=ask)
    redis.call(refuse)

    assert asked.acquire(timeout=10) and asked.acquire(timeout=10)
    assert redis.is_away
    assert watched.row().mechanism == "dependency"


def test_without_a_probe_one_call_at_a_time_tries_again(door: Door) -> None:
    """The pauses between them grow; the rest of the callers wait for nobody."""
    redis = tocsin.dependency("redis", optional=True)
    tried: list[float] = []

    def get() -> str:
        tried.append(time.monotonic())
        return door.knock()

    def is_tried(times: int) -> bool:
        assert redis.call(get, fallback=0) == 0
        return len(tried) >= times

    eventually(lambda: is_tried(3))
    first, second = (after - before for before, after in pairwise(tried))
    assert dependencies.FIRST_PAUSE_S <= first < 2 * dependencies.FIRST_PAUSE_S <= second
    door.open()
    assert eventually(lambda: redis.call(get)) == "value of key"
    assert not redis.is_away


def test_while_one_call_tries_nobody_else_does() -> None:
    redis = tocsin.dependency("redis", optional=True)
    redis.call(refuse)
    go_on, trying = threading.Event(), threading.Event()

    def slow() -> int:
        trying.set()
        assert go_on.wait(10)
        return 7

    got: list[object] = []

    def ask() -> None:
        while not trying.is_set():
            got.append(redis.call(slow, fallback=0))

    one = threading.Thread(target=ask)
    one.start()
    assert trying.wait(10)
    assert [redis.call(slow, fallback=0) for _ in range(100)] == [0] * 100
    go_on.set()
    one.join()

    assert got[-1] == 7
    assert not redis.is_away


# Whatever else happens


def test_it_works_before_tocsin_runs_and_is_told_of_when_it_does(door: Door, unwatched: Watched) -> None:
    redis = tocsin.dependency("redis", optional=True)
    assert redis.call(door.knock, fallback=1) == 1
    door.open()
    assert eventually(lambda: redis.call(door.knock)) == "value of key"
    assert not unwatched.spool.exists()

    unwatched.init()
    redis.call(door.knock)

    assert told(unwatched) == [("redis", False, True)]
    assert unwatched.rows() == []


def test_an_outage_that_began_before_tocsin_runs_is_told_when_it_is_met(unwatched: Watched) -> None:
    redis = tocsin.dependency("redis")
    with pytest.raises(ConnectionError):
        redis.call(refuse)
    unwatched.init()
    for _ in range(2):
        with pytest.raises(ConnectionError):
            redis.call(refuse)
    redis.call(lambda: 7)

    eventually(lambda: unwatched.row().count == 2)
    eventually(lambda: group_of(unwatched).status == "resolved")


class Mute(ConnectionError):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


class Loud(ConnectionError):
    def __str__(self) -> str:
        return "x" * 10_000_000


class Circle(ConnectionError):
    def __init__(self) -> None:
        self.__cause__ = self


class Secret(ConnectionError):
    def __str__(self) -> str:
        return "redis://:hunter2hunter2@10.0.0.1:6379 refused"


@pytest.mark.parametrize("kind", [Mute, Loud, Circle, Secret])
def test_a_hostile_exception_does_no_harm(kind: type[Exception], watched: Watched) -> None:
    def fail() -> None:
        raise kind()

    assert tocsin.dependency("redis", optional=True).call(fail, fallback=7) == 7
    with pytest.raises(kind):
        tocsin.dependency("needed").call(fail)

    rows = watched.rows()
    assert sorted(row.message.split(":")[0] for row in rows) == ["needed is away", "redis is away"]
    assert all(len(row.message) < 20_000 and "hunter2" not in f"{row.message}{row.stack}" for row in rows)


def test_names_are_bounded_and_tidy(watched: Watched) -> None:
    """Further ones get their fallback; only nothing is told of them."""
    for number in range(dependencies.MOST):
        tocsin.dependency(f"shard {number}", optional=True)
    one_more = tocsin.dependency("one more", optional=True)

    assert one_more.call(refuse, fallback=7) == 7
    assert one_more.is_away
    assert watched.rows() == []
    assert failures.pop("telling of a dependency") == 1
    names = ["x" * 1000, "redis://:hunter2hunter2@host", "\0\n", 7, object()]
    for name in names:
        found = tocsin.dependency(name)  # type: ignore[arg-type]
        assert 0 < len(found.name) <= 60 and found.name.isprintable() and "hunter2" not in found.name
    failures.clear()


def test_a_forked_child_finds_out_for_itself(sqlite_url: str, tmp_path: Any) -> None:
    """Two processes that miss the same thing are one group, and each has an error of its own."""
    program = """
import os
import tocsin
redis = tocsin.dependency("redis")
def refuse():
    raise ConnectionRefusedError(111, "refused")
def fail():
    try:
        redis.call(refuse)
    except ConnectionError:
        pass
fail()
pid = os.fork()
assert redis.is_away is (pid != 0)
fail()
fail()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    done = run_program(tmp_path, program, sqlite_url)

    assert done.returncode == 0, done.stderr
    rows = rows_of(sqlite_url)
    assert sorted(row.count for row in rows) == [2, 3]
    assert len({row.group_id for row in rows}) == 1
    assert len({row.instance_id for row in rows}) == 2


def _known() -> Iterator[tuple[BaseException, bool]]:
    import aiohttp
    import asyncpg
    import httpx
    import kombu.exceptions
    import redis
    import requests
    import sqlalchemy.exc as sql

    yield from (
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(-2, "Name or service not known"), True),
        (OSError(errno.EHOSTUNREACH, "No route to host"), True),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1), [Errno 111] Connect call"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (redis.ConnectionError("Error 111"), True),
        (redis.TimeoutError("Timeout reading from socket"), True),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), True),
        (redis.ResponseError("WRONGTYPE"), False),
        (asyncpg.CannotConnectNowError("the database system is starting up"), True),
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), False),
        (asyncpg.UniqueViolationError("duplicate key"), False),
        (sql.OperationalError("SELECT 1", {}, Exception("server closed the connection unexpectedly")), True),
        (sql.IntegrityError("INSERT", {}, Exception("duplicate key")), False),
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout(""), True),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), True),
        (httpx.UnsupportedProtocol("ftp"), False),
        (requests.ConnectionError(), True),
        (requests.Timeout(), True),
        (requests.HTTPError("500"), False),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ServerTimeoutError(), True),
        (aiohttp.InvalidURL("x"), False),
        (kombu.exceptions.OperationalError("[Errno 111] Connection refused"), True),
        (ExceptionGroup("two", [TimeoutError(), redis.ConnectionError()]), True),
        (ExceptionGroup("two", [TimeoutError(), KeyError("k")]), False),
        (KeyError("connection refused"), False),
    )


def test_what_counts_as_away() -> None:
    """By the names of classes: none of these libraries is imported for it."""
    wrong = []
    for number, (exc, is_away) in enumerate(_known()):
        one = tocsin.dependency(f"thing {number}", optional=True)
        with suppress(type(exc)), one:
            raise exc
        if one.is_away is not is_away:
            wrong.append(exc)

    assert wrong == []


@pytest.mark.parametrize(
    ("name", "category"),
    [
        ("redis", "queue"),
        ("rabbitmq", "queue"),
        ("orders-postgres", "database"),
        ("mongo", "database"),
        ("amocrm", "amocrm"),
        ("telegram", "telegram"),
        ("payments", "network"),
    ],
)
def test_a_name_says_what_kind_of_thing_it_is(name: str, category: str) -> None:
    assert dependencies.category_of(name) == category
