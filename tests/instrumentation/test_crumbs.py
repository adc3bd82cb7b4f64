"""Breadcrumbs: what a request, a task or a thread did before it failed, and nothing of what others did."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tocsin.instrumentation.context import current_scope

log = logging.getLogger("shop.orders")


@pytest.fixture(autouse=True)
def said() -> Iterator[list[str]]:
    """A logger that says all that it hears, and what it has said."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Handler()
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    yield lines
    log.propagate = True
    log.setLevel(logging.NOTSET)
    log.handlers.clear()


def crumbs_of(row: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = row.context.get("tocsin.breadcrumbs", [])
    return found


def messages_of(row: Any) -> list[str]:
    return [crumb["message"] for crumb in crumbs_of(row)]


def test_the_lines_before_an_error_stay_with_it(watched: Watched) -> None:
    log.info("order %d of %s is paid", 42, "Anna")
    log.warning("it is late")
    tocsin.track_error("it broke")

    first, second = crumbs_of(watched.row())
    assert first["time"].startswith("20")
    assert first["time"].endswith("+00:00")
    del first["time"], second["time"]
    assert first == {"kind": "log", "level": "info", "logger": "shop.orders", "message": "order 42 of Anna is paid"}
    assert second == {"kind": "log", "level": "warning", "logger": "shop.orders", "message": "it is late"}


def test_an_error_is_a_crumb_of_the_next(watched: Watched) -> None:
    tocsin.track_error(ValueError("first"))
    tocsin.track_error(KeyError("second"))

    rows = {row.exception_type: row for row in watched.rows()}
    assert crumbs_of(rows["ValueError"]) == []
    (crumb,) = crumbs_of(rows["KeyError"])
    assert (crumb["kind"], crumb["type"], crumb["message"]) == ("error", "ValueError", "first")


def alone() -> None:
    """Let only the test's own handler hear: pytest has one that keeps records, and makes each message again."""
    del log.handlers[1:]


class Asked:
    """An argument that knows how often it was turned into text."""

    times = 0

    def __str__(self) -> str:
        self.times += 1
        return "asked"


def test_no_message_is_made_that_the_program_does_not_make(watched: Watched) -> None:
    """What nobody hears leaves no crumb, and what is heard is made once."""
    alone()
    disabled, unheard, null, heard = (Asked() for _ in range(4))
    deaf = logging.getLogger("shop.deaf")
    deaf.propagate = False
    handler = logging.StreamHandler()
    handler.setLevel(logging.ERROR)
    log.setLevel(logging.INFO)

    log.debug("disabled %s", disabled)
    deaf.addHandler(handler)
    deaf.warning("below its handler's level: %s", unheard)
    deaf.removeHandler(handler)
    deaf.addHandler(logging.NullHandler())
    deaf.warning("nowhere: %s", null)
    log.info("heard: %s", heard)
    deaf.handlers.clear()
    deaf.propagate = True
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["heard: asked"]
    assert [one.times for one in (disabled, unheard, null, heard)] == [0, 0, 0, 1]


def test_a_handler_with_a_way_of_its_own_is_heard(watched: Watched) -> None:
    """Only what is plain is put into a message that no formatter of logging's has made."""

    class Own(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            pass

    own = logging.getLogger("shop.own")
    own.propagate = False
    own.addHandler(Own())
    unasked = Asked()
    try:
        own.warning("%d of %s", 3, "tea")
        own.warning("who is %s", unasked)
        own.warning({"event": "structured", "order": 42})
        own.warning("%d", "no number")
    finally:
        own.handlers.clear()
        own.propagate = True
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["3 of tea", "who is %s", "structured", "%d"]
    assert unasked.times == 0


class Raises:
    def __str__(self) -> str:
        raise SystemExit(3)


def test_a_line_that_cannot_be_made_fails_as_without_tocsin(watched: Watched) -> None:
    with pytest.raises(SystemExit):
        log.info("%s", Raises())
    log.info("after it")
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["after it"]


@pytest.mark.parametrize("name", ["tocsin.drain", "opentelemetry.sdk", "httpx", "urllib3.connectionpool", "asyncio"])
def test_chatter_is_no_crumb(name: str, watched: Watched) -> None:
    """Ours, and what says the same as a call's own crumb."""
    chatter = logging.getLogger(name)
    chatter.setLevel(logging.DEBUG)
    try:
        chatter.info("chatter")
    finally:
        chatter.setLevel(logging.NOTSET)
    tocsin.track_error("it broke")

    assert crumbs_of(watched.row()) == []


def test_secrets_are_masked(watched: Watched) -> None:
    log.info("login with password=geheim77")
    log.info("all is well")
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["login with password=[scrubbed]", "all is well"]


def test_a_secret_at_the_cut_is_not_shown_by_half(watched: Watched) -> None:
    """Nor where masks before it bring into view what stands far behind."""
    for before in range(516, 540, 3):
        start = f"password={'z' * 400} "
        log.info("%s%s postgresql://shop:geheim77@db.example/shop", start, "x" * (before - len(start)))
        log.info("%s postgresql://shop:geheim77@db.example/shop", "x" * (before - 260))
    tocsin.track_error("it broke")

    told = messages_of(watched.row())
    assert len(told) == 16
    assert max(map(len, told)) == 300
    assert "gehe" not in str(told)


def test_nothing_steers_a_terminal(watched: Watched) -> None:
    log.info("a\x1b[31mb\u202e")
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["a\\x1b[31mb\\u202e"]


@pytest.mark.parametrize("unit", ["thread", "request", "task"])
def test_the_last_thirty_are_kept(unit: str, watched: Watched) -> None:
    def work() -> None:
        for number in range(100):
            log.info("line %d", number)
        tocsin.track_error("it broke")

    async def work_in_task() -> None:
        work()

    if unit == "task":
        asyncio.run(work_in_task())
    else:
        token = current_scope.set({"type": "http", "path": "/"} if unit == "request" else None)
        work()
        current_scope.reset(token)

    assert messages_of(watched.row()) == [f"line {number}" for number in range(70, 100)]


def test_all_of_them_fit_into_eight_kibibytes(watched: Watched) -> None:
    """The oldest go first; a letter beyond ASCII takes six bytes in the spool."""
    for number in range(30):
        log.info("%d %s", number, "ё" * 200)
    tocsin.track_error("it broke")

    numbers = [int(one.split()[0]) for one in messages_of(watched.row())]
    assert numbers == list(range(30 - len(numbers), 30))
    assert 4 <= len(numbers) <= 8192 // 1200


@pytest.mark.parametrize("count", [0, 2, 60])
def test_how_many_is_a_setting(count: int, unwatched: Watched) -> None:
    unwatched.init(breadcrumbs=count)
    for number in range(200):
        log.info("%d", number)
    tocsin.track_error("it broke")

    assert messages_of(unwatched.row()) == [str(number) for number in range(200 - count, 200)]


def test_what_is_old_is_left_out_outside_of_a_request(watched: Watched) -> None:
    for age_s, text in ((400, "old"), (10, "new")):
        record = log.makeRecord(log.name, logging.INFO, "shop.py", 1, text, (), None)
        record.created = time.time() - age_s
        log.handle(record)
    tocsin.track_error("it broke")

    assert messages_of(watched.row()) == ["new"]


def test_no_argument_lives_longer(watched: Watched) -> None:
    """Neither for the crumb nor for the error that tells it."""
    alone()
    argument = Asked()
    held = weakref.ref(argument)

    log.info("held: %s", argument)
    tocsin.track_error("it broke")
    del argument
    gc.collect()

    assert held() is None
    assert messages_of(watched.row()) == ["held: asked"]


async def _request(name: str, turn: asyncio.Barrier) -> None:
    token = current_scope.set({"type": "http", "path": f"/{name}"})
    try:
        log.info("%s begins", name)
        await turn.wait()
        thread = threading.Thread(target=log.info, args=("%s in its thread", name))
        thread.start()
        thread.join()
        await asyncio.to_thread(log.info, "%s in the pool", name)
        await turn.wait()
        await asyncio.create_task(asyncio.to_thread(log.info, "%s in a task", name))
        tocsin.track_error(f"{name} broke")
    finally:
        current_scope.reset(token)


async def test_two_requests_never_see_each_other(watched: Watched) -> None:
    """Threads, tasks and pool jobs belong to who started them."""
    turn = asyncio.Barrier(2)
    await asyncio.gather(_request("alpha", turn), _request("omega", turn))
    tocsin.track_error("outside")

    rows = {row.message.split()[0]: row for row in watched.rows()}
    for name in ("alpha", "omega"):
        steps = ("begins", "in its thread", "in the pool", "in a task")
        assert messages_of(rows[name]) == [f"{name} {step}" for step in steps]
    assert messages_of(rows["outside"]) == []


def test_threads_keep_apart(watched: Watched) -> None:
    def work(name: str) -> None:
        log.info("%s works", name)
        tocsin.track_error(f"{name} broke")

    log.info("main works")
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        first.submit(work, "alpha")
        second.submit(work, "omega")

    rows = {row.message.split()[0]: row for row in watched.rows()}
    assert {name: messages_of(row) for name, row in rows.items()} == {
        "alpha": ["alpha works"],
        "omega": ["omega works"],
    }


async def test_tasks_keep_apart(watched: Watched) -> None:
    """Also where nobody asks what became of one."""

    async def work(name: str) -> None:
        log.info("%s works", name)
        await asyncio.sleep(0)
        raise ValueError(name)

    log.info("main works")
    tasks = [asyncio.create_task(work(name)) for name in ("alpha", "omega")]
    await asyncio.wait(tasks)
    tasks.clear()
    gc.collect()

    rows = watched.rows()
    assert {row.message: messages_of(row) for row in rows} == {"alpha": ["alpha works"], "omega": ["omega works"]}


def test_a_request_that_says_nothing_carries_nothing(watched: Watched) -> None:
    scope = {"type": "http", "path": "/"}
    token = current_scope.set(scope)
    current_scope.reset(token)

    assert scope == {"type": "http", "path": "/"}


def test_a_request_that_logs_from_many_threads_loses_no_error(watched: Watched) -> None:
    """The crumbs are read while others are left."""
    token = current_scope.set({"type": "http", "path": "/"})
    is_over = threading.Event()

    def chat() -> None:
        while not is_over.is_set():
            log.info("chat")

    threads = [threading.Thread(target=chat) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(20):
        tocsin.track_error(f"error {chr(97 + number)}")
    is_over.set()
    for thread in threads:
        thread.join()
    current_scope.reset(token)

    assert len(watched.rows()) == 20
