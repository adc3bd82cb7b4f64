"""`protect` with tries, time-outs and jobs: what is called how often, and what is told in the end."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import logging
import math
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException

import tocsin
from tests.failed_jobs import jobs_in
from tests.instrumentation.conftest import Watched
from tests.processes import run_program
from tests.waiting import eventually
from tocsin.instrumentation import protect
from tocsin.instrumentation.retries import LONGEST_PAUSE_S, Policy

SECRET = "hunter2-of-anna"


def jobs_of(watched: Watched) -> list[Any]:
    """The rows of ``jobs``, oldest first."""
    assert tocsin.flush(10)
    return jobs_in(watched.database_url)


class Away(Exception):
    """What a third party fails with."""


class Calls:
    """A function that fails so many times before it gives an answer."""

    def __init__(self, failures: int = 10**6, raising: Callable[[], BaseException] = Away) -> None:
        self.failures = failures
        self.raising = raising
        self.made = 0
        self.raised: list[BaseException] = []

    def __call__(self) -> str:
        self.made += 1
        if self.made <= self.failures:
            self.raised.append(self.raising())
            raise self.raised[-1]
        return "done"


Caller = Callable[[Calls], Any]


def by_function(calls: Calls, **how: Any) -> Any:
    @tocsin.protect(pause_s=0, **how)
    def push() -> str:
        return calls()

    return push()


def by_coroutine(calls: Calls, **how: Any) -> Any:
    @tocsin.protect(pause_s=0, **how)
    async def push() -> str:
        await asyncio.sleep(0)
        return calls()

    return asyncio.run(push())


def in_thread(calls: Calls, **how: Any) -> Any:
    return by_function(calls, timeout_s=20, **how)


def within_time(calls: Calls, **how: Any) -> Any:
    return by_coroutine(calls, timeout_s=20, **how)


both = pytest.mark.parametrize("call", [by_function, by_coroutine])
every = pytest.mark.parametrize("call", [by_function, by_coroutine, in_thread, within_time])


@every
def test_the_last_of_three_tries_is_the_error_and_the_job(call: Any, watched: Watched) -> None:
    """It is raised as it is, all tries stand in it, and none of them is an error of its own."""
    numbers = iter("123")
    calls = Calls(raising=lambda: Away(f"no answer {next(numbers)}"))

    with pytest.raises(Away, match="no answer 3") as caught:
        call(calls, retries=3, category="amocrm", severity="high", context={"lead_id": "7"})

    assert calls.made == 3
    assert caught.value is calls.raised[-1]
    assert caught.value.__context__ is None
    row = watched.row()
    assert (row.count, row.message, row.category, row.severity) == (1, "no answer 3", "amocrm", "high")
    assert (row.handled, row.mechanism, row.context["lead_id"]) == (True, "protect", "7")
    attempts = row.context["attempts"]
    assert [(one["type"].rpartition(".")[2], one["message"]) for one in attempts] == [
        ("Away", f"no answer {number}") for number in (1, 2, 3)
    ]
    assert all(one["at"].endswith("+00:00") and one["ms"] >= 0 for one in attempts)
    (job,) = jobs_of(watched)
    assert (job.error_id, job.tries, job.attempts) == (row.id, 3, attempts)
    assert (job.status, job.category, job.message, job.service) == ("failed", "amocrm", "no answer 3", "shop")
    assert job.exception_type == row.exception_type
    assert job.folder == str(watched.folder)
    assert job.file == __file__


@every
def test_what_succeeds_in_the_end_is_no_error(call: Any, watched: Watched) -> None:
    assert call(Calls(failures=2), retries=3) == "done"

    assert (watched.rows(), jobs_of(watched)) == ([], [])


@both
@pytest.mark.parametrize(("how", "made"), [({}, 1), ({"retries": 1}, 1), ({"retries": 2}, 2), ({"retries": 30}, 30)])
def test_retries_are_tries_in_all(call: Any, how: dict[str, int], made: int, watched: Watched) -> None:
    calls = Calls()

    with pytest.raises(Away):
        call(calls, **how)

    assert calls.made == made
    assert len(jobs_of(watched)) == (1 if how else 0)
    assert len(watched.row().context.get("attempts", [])) == (min(made, 20) if how else 0)


@both
def test_a_job_is_kept_as_asked(call: Any, watched: Watched) -> None:
    for how in ({"job": True}, {"retries": 2, "job": False}, {"timeout_s": 20}):
        with pytest.raises(Away):
            call(Calls(), **how)

    assert [job.tries for job in jobs_of(watched)] == [1]


def test_before_init_it_is_tried_again_all_the_same(unwatched: Watched) -> None:
    calls = Calls(failures=2)

    assert by_function(calls, retries=3) == "done"
    with pytest.raises(Away):
        by_function(Calls(), retries=3)

    assert not unwatched.spool.exists()


# What is tried again


def only_the_first(failure: BaseException) -> bool:
    return failure.args == ("first",)


@both
@pytest.mark.parametrize(
    ("retry_on", "made"),
    [(Away, 3), (ValueError, 1), ((ValueError, Away), 3), ((), 1), (lambda _: True, 3), (only_the_first, 2)],
)
def test_only_what_may_pass_is_tried_again(call: Any, retry_on: Any, made: int, watched: Watched) -> None:
    """The rest is the end at once, and a job as well."""
    words = iter(["first", "second", "third"])
    calls = Calls(raising=lambda: Away(next(words)))

    with pytest.raises(Away):
        call(calls, retries=3, retry_on=retry_on)

    assert calls.made == made
    assert [job.tries for job in jobs_of(watched)] == [made]


@both
def test_a_question_that_fails_is_answered_no(call: Any, watched: Watched) -> None:
    from tocsin.contained import failures

    def ask(failure: BaseException) -> bool:
        raise RuntimeError("no")

    calls = Calls()
    with pytest.raises(Away):
        call(calls, retries=3, retry_on=ask)

    assert calls.made == 1
    assert failures.pop("asking retry_on") == 1


@both
@pytest.mark.parametrize(("status", "made"), [(404, 1), (429, 1), (503, 3)])
def test_an_answer_on_purpose_is_no_failure(call: Any, status: int, made: int, watched: Watched) -> None:
    calls = Calls(raising=lambda: HTTPException(status))

    with pytest.raises(HTTPException):
        call(calls, retries=3)

    assert calls.made == made
    assert len(jobs_of(watched)) == (made > 1)


@both
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit])
def test_ends_pass_at_once(call: Any, kind: type[BaseException], watched: Watched) -> None:
    calls = Calls(raising=kind)

    with pytest.raises(kind):
        call(calls, retries=3, retry_on=lambda _: True)

    assert calls.made == 1
    assert (watched.rows(), jobs_of(watched)) == ([], [])


async def test_who_is_cancelled_between_two_tries_tells_why_it_had_to_wait(unwatched: Watched) -> None:
    """It passes as it is; the failure so far is an error, and no job, since nobody wants it any more."""
    unwatched.init()
    calls = Calls(raising=lambda: Away("no answer"))

    @tocsin.protect(retries=3, pause_s=10**6)
    async def push() -> str:
        return calls()

    task = asyncio.create_task(push())
    while not calls.made:
        await asyncio.sleep(0)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError, match="enough"):
        await task

    assert calls.made == 1
    row = await asyncio.to_thread(unwatched.row)
    assert (row.message, len(row.context["attempts"])) == ("no answer", 1)
    assert await asyncio.to_thread(jobs_of, unwatched) == []


async def test_a_loop_goes_on_while_one_waits(unwatched: Watched) -> None:
    unwatched.init()
    calls = Calls(failures=1)

    @tocsin.protect(retries=2, pause_s=10**6)
    async def push() -> str:
        return calls()

    waiting = asyncio.create_task(push())
    while not calls.made:
        await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.wait_for(asyncio.sleep(0), 1)

    assert not waiting.done()
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting


async def test_a_function_that_a_loop_waits_for_makes_no_pause() -> None:
    """It is tried again at once: in a pause nobody else would be answered."""
    calls = Calls(failures=2)

    @tocsin.protect(retries=3, pause_s=10**6)
    def push() -> str:
        return calls()

    assert push() == "done"


def test_pauses_grow_and_none_is_endless() -> None:
    """At random, from nothing to twice the most of the one before, up to half a minute."""
    policy = Policy(retries=100, pause_s=0.5)
    for tries in (1, 2, 3, 6, 7, 60, 10**9):
        most = min(0.5 * 2.0 ** min(tries - 1, 100), LONGEST_PAUSE_S)
        pauses = [policy.pause_after(tries) for _ in range(300)]
        assert all(0 <= pause <= most for pause in pauses)
        assert max(pauses) > most * 0.8
        assert min(pauses) < most * 0.2


STOPPED = """
import os, signal, sys, time
import tocsin

def ask_to_stop(number, frame):
    print("asked", flush=True)

signal.signal(signal.SIGTERM, ask_to_stop)

@tocsin.protect(retries=100, pause_s=10**6)
def push(lead):
    os.kill(os.getpid(), signal.SIGTERM)
    raise ConnectionError("no answer")

def main():
    try:
        push("7")
    except ConnectionError:
        print("gave up")

if __name__ == "__main__":
    main()
"""


def test_a_process_that_is_asked_to_stop_gives_up_and_keeps_the_job(tmp_path: Path, sqlite_url: str) -> None:
    done = run_program(tmp_path, STOPPED, sqlite_url)

    assert (done.returncode, done.stdout) == (0, "asked\ngave up\n"), done.stderr
    (job,) = jobs_in(sqlite_url)
    assert (job.function, job.file, job.tries) == ("__main__:push", str(tmp_path / "program.py"), 1)
    assert (job.arguments, job.changed) == ({"args": ["7"], "kwargs": {}}, [])


PAUSED = """
import asyncio, os, signal, threading, time
import tocsin

signal.signal(signal.SIGTERM, lambda number, frame: None)
begun = threading.Semaphore(0)

def fail():
    begun.release()
    raise ConnectionError("no answer")

@tocsin.protect(retries=100, pause_s=10**6)
def push():
    fail()

@tocsin.protect(retries=100, pause_s=10**6)
async def push_async():
    fail()

def stop():
    begun.acquire(), begun.acquire()
    time.sleep(0.1)  # into their pauses
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop).start()
thread = threading.Thread(target=push)
thread.start()
try:
    asyncio.run(push_async())
finally:
    thread.join()
"""


def test_a_pause_ends_when_the_process_is_asked_to_stop(tmp_path: Path, sqlite_url: str) -> None:
    done = run_program(tmp_path, PAUSED, sqlite_url)

    assert done.stderr.count("ConnectionError: no answer") >= 2
    assert [job.tries for job in jobs_in(sqlite_url)] == [1, 1]


# What is seen on the way


def logging_it() -> None:
    try:
        raise Away("no answer")
    except Away:
        logging.getLogger("shop").exception("pushing failed")
        raise


def tracking_it() -> None:
    try:
        raise Away("no answer")
    except Away as exc:
        tocsin.track_error(exc, category="tracked")
        raise


def logging_its_cause() -> None:
    try:
        raise OSError("no answer")
    except OSError as exc:
        logging.getLogger("shop").exception("pushing failed")
        raise Away("no answer") from exc


@tocsin.protect(category="inner")
def protected() -> None:
    raise Away("no answer")


@tocsin.protect(category="inner", retries=2, pause_s=0)
def protected_with_tries() -> None:
    raise Away("no answer")


@tocsin.protect(retries=2, pause_s=0, timeout_s=20)
def logging_in_a_thread() -> None:
    logging_it()


@pytest.mark.parametrize(
    "work",
    [logging_it, tracking_it, logging_its_cause, protected, protected_with_tries, logging_in_a_thread],
    ids=lambda work: work.__name__,
)
@both
def test_what_tells_of_a_try_tells_of_the_one_error(call: Any, work: Callable[[], None], watched: Watched) -> None:
    calls = Calls()

    def push() -> str:
        calls.made += 1
        work()
        return "done"

    with pytest.raises(Away):
        call(push, retries=3, severity="critical")

    assert calls.made == 3
    row = watched.row()
    assert (row.count, row.severity) == (1, "critical")
    assert [one["message"] for one in row.context["attempts"]][-1] == "no answer"
    (job,) = jobs_of(watched)
    assert (job.error_id, job.tries) == (row.id, 3)


@both
def test_what_a_try_has_an_answer_to_is_an_error_of_its_own(call: Any, watched: Watched) -> None:
    numbers = iter("123")

    def push() -> str:
        number = next(numbers)
        try:
            raise LookupError(f"no price {number}")
        except LookupError:
            logging.getLogger("shop").exception("none")
        try:
            raise Away("no answer")
        except Away:
            if number == "3":
                return "done"
            logging.getLogger("shop").exception("none")
            raise

    assert call(push, retries=3) == "done"

    found = [row.message for row in watched.rows()]
    assert sorted(found) == ["no answer", *(f"no price {number}" for number in (1, 2, 3))]
    assert jobs_of(watched) == []


def test_a_job_of_what_the_outer_call_has_an_answer_to_is_kept(watched: Watched) -> None:
    @tocsin.protect(retries=3, pause_s=0)
    def outer() -> str:
        with suppress(Away):
            protected_with_tries()
        return "done"

    assert outer() == "done"

    (job,) = jobs_of(watched)
    assert job.function == f"{__name__}:protected_with_tries"


def test_the_same_exception_each_time_is_one_error(watched: Watched) -> None:
    exc = Away("the one and only")

    with pytest.raises(Away) as caught:
        by_function(Calls(raising=lambda: exc), retries=3)
    logging.getLogger("shop").error("it failed", exc_info=exc)

    assert caught.value is exc
    assert (watched.row().count, len(watched.row().context["attempts"])) == (1, 3)


# Time-outs


def innermost(row: Any) -> str:
    """The team's own innermost function."""
    return [str(frame["function"]) for frame in row.context["tocsin.frames"] if frame["in_app"]][-1]


async def hang() -> None:
    await asyncio.Event().wait()


async def test_a_coroutine_that_hangs_is_cancelled_and_the_stack_says_where(unwatched: Watched) -> None:
    unwatched.init()

    @tocsin.protect(timeout_s=0.02, retries=2, pause_s=0)
    async def push(number: int) -> None:
        await hang()

    with pytest.raises(TimeoutError, match=r"push took longer than its 0\.02 s"):
        await push(7)

    row = await asyncio.to_thread(unwatched.row)
    assert innermost(row) == "hang"
    assert [one["type"] for one in row.context["attempts"]] == ["TimeoutError"] * 2
    assert all(15 <= one["ms"] < 5000 for one in row.context["attempts"])
    (job,) = await asyncio.to_thread(jobs_of, unwatched)
    assert job.arguments == {"args": [7], "kwargs": {}}


def test_a_function_that_hangs_is_not_waited_for_and_the_stack_says_where(watched: Watched) -> None:
    release = threading.Event()

    def hang_in_it() -> None:
        release.wait()

    @tocsin.protect(timeout_s=0.02, retries=2, pause_s=0)
    def push() -> None:
        hang_in_it()

    try:
        with pytest.raises(TimeoutError, match=r"push took longer than its 0\.02 s"):
            push()
    finally:
        release.set()

    row = watched.row()
    assert innermost(row) == hang_in_it.__qualname__
    assert "release.wait()" in row.stack
    assert len(jobs_of(watched)) == 1


@pytest.mark.parametrize("call", [in_thread, within_time])
def test_a_time_out_of_its_own_stays_what_it_is(call: Any, watched: Watched) -> None:
    calls = Calls(raising=lambda: TimeoutError("of its own"))

    with pytest.raises(TimeoutError) as caught:
        call(calls)

    assert caught.value is calls.raised[0]


async def test_who_cancels_within_the_time_cancels(unwatched: Watched) -> None:
    @tocsin.protect(timeout_s=10**6, retries=3, pause_s=0)
    async def push() -> None:
        await hang()

    task = asyncio.create_task(push())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_context_goes_along_into_the_thread(watched: Watched) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    variable.set("of the caller")
    threads: list[str] = []

    @tocsin.protect(timeout_s=20)
    def push() -> None:
        threads.append(threading.current_thread().name)
        raise Away(variable.get())

    with tocsin.context(lead_id="7"), pytest.raises(Away):
        push()

    assert threads == [f"protect {push.__qualname__}"]
    assert (watched.row().message, watched.row().context["lead_id"]) == ("of the caller", "7")


def test_what_a_thread_tells_that_nobody_waits_for_is_known_already(watched: Watched) -> None:
    """What it fails of in the end was the time-out; what it has an answer to is an error of its own."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    @tocsin.protect(timeout_s=0.02, retries=2, pause_s=0)
    def push() -> None:
        threads.append(threading.current_thread())
        release.wait()
        try:
            raise LookupError("no price")
        except LookupError:
            logging.getLogger("shop").exception("none")
        logging_it()

    with pytest.raises(TimeoutError):
        push()
    release.set()
    for thread in threads:
        thread.join(10)

    assert [row.exception_type for row in watched.rows()] == ["TimeoutError", "LookupError", "LookupError"]
    assert len(jobs_of(watched)) == 1


def test_only_so_many_threads_hang(watched: Watched) -> None:
    """Beyond them a call fails at once; when they come back, it works again."""
    release = threading.Event()
    begun: list[int] = []

    @tocsin.protect(timeout_s=0.005)
    def push() -> str:
        begun.append(threading.get_ident())
        release.wait()
        return "done"

    def is_refused() -> bool:
        before = len(begun)
        with pytest.raises(TimeoutError, match=r"push (took longer|was not called: 20 calls of it still hang)"):
            push()
        return len(begun) == before

    try:
        assert [is_refused() for _ in range(25)] == [False] * 20 + [True] * 5
    finally:
        release.set()
    eventually(lambda: not [one for one in threading.enumerate() if one.ident in begun])
    assert push() == "done"


# Functions of all kinds


async def ask(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=False)) as client:
        return await client.get(f"http://shop{path}")


async def test_routes_keep_their_parameters_and_dependencies(unwatched: Watched) -> None:
    unwatched.init()
    app = FastAPI()
    tries = {"async": 0, "sync": 0}

    async def user() -> str:
        return "anna"

    @app.get("/async/{number}")
    @tocsin.protect(retries=3, pause_s=0, timeout_s=10)
    async def order(number: int, limit: int = 3, name: str = Depends(user)) -> dict[str, Any]:
        tries["async"] += 1
        if number == 0:
            raise HTTPException(404, "no such order")
        if tries["async"] < number:
            raise Away("no answer")
        return {"number": number, "limit": limit, "name": name}

    @app.get("/sync/{number}")
    @tocsin.protect(retries=3, pause_s=0, timeout_s=10)
    def order_in_a_thread(number: int, limit: int = 3, name: str = Depends(user)) -> dict[str, Any]:
        tries["sync"] += 1
        if tries["sync"] < number:
            raise Away("no answer")
        return {"number": number, "limit": limit, "name": name}

    for kind in ("async", "sync"):
        answer = await ask(app, f"/{kind}/3?limit=9")
        assert (answer.status_code, answer.json()) == (200, {"number": 3, "limit": 9, "name": "anna"})
        assert tries[kind] == 3
        assert (await ask(app, f"/{kind}/x")).status_code == 422
        assert tries[kind] == 3
    assert (await ask(app, "/async/0")).status_code == 404
    assert tries["async"] == 4
    tries["sync"] = -10
    assert (await ask(app, "/sync/9")).status_code == 500

    _, row = await asyncio.to_thread(unwatched.rows)
    assert (row.context["http.route"], row.handled, len(row.context["attempts"])) == ("/sync/{number}", False, 3)
    (job,) = await asyncio.to_thread(jobs_of, unwatched)
    assert job.arguments["kwargs"] == {"number": 9, "limit": 3, "name": "anna"}


@pytest.mark.parametrize("how", [{"retries": 3}, {"timeout_s": 1}, {"job": True}])
def test_a_signature_is_kept(how: dict[str, Any]) -> None:
    def plain(a: int, /, b: str = "x", *args: Any, c: bool, **more: Any) -> dict[str, int]:
        """What it does."""
        return {}

    async def waiting(a: int) -> None: ...

    for function in (plain, waiting):
        guarded = tocsin.protect(**how)(function)
        assert inspect.signature(guarded) == inspect.signature(function)
        assert (guarded.__name__, guarded.__doc__, guarded.__module__) == (
            function.__name__,
            function.__doc__,
            __name__,
        )
        assert inspect.iscoroutinefunction(guarded) == inspect.iscoroutinefunction(function)


def test_a_block_is_refused_where_it_would_be_tried_again() -> None:
    for how in ({"retries": 3}, {"timeout_s": 1.0}, {"job": True}):
        with pytest.raises(TypeError, match=r"a block cannot be run again"), tocsin.protect(**how):
            raise AssertionError("it was entered")


async def test_so_is_an_asynchronous_one() -> None:
    with pytest.raises(TypeError, match=r"a block cannot be run again"):
        async with tocsin.protect(retries=3):  # type: ignore[attr-defined]
            raise AssertionError("it was entered")


@pytest.mark.parametrize("how", [{}, {"retries": 3}])
def test_a_generator_is_refused_at_once(how: dict[str, Any]) -> None:
    def numbers() -> Any:
        yield 1

    async def more() -> Any:
        yield 1

    for function in (numbers, more):
        with pytest.raises(TypeError, match=r"with tocsin\.protect\(\)"):
            tocsin.protect(**how)(function)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"retries": -1}, "retries=-1"),
        ({"retries": 1.5}, "retries=1.5"),
        ({"retries": True}, "retries=True"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": -1}, "timeout_s=-1"),
        ({"retries": 3, "timeout_s": math.nan}, "timeout_s=nan"),
        ({"retries": 3, "pause_s": math.inf}, "pause_s=inf"),
        ({"retries": 3, "pause_s": "1"}, "pause_s='1'"),
        ({"retries": 3, "retry_on": KeyboardInterrupt}, "retry_on="),
        ({"retries": 3, "retry_on": (ValueError, 7)}, "retry_on="),
        ({"retries": 3, "retry_on": None}, "retry_on=None"),
    ],
)
def test_what_makes_no_sense_is_said_where_it_is_written(how: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        tocsin.protect(**how)

    assert str(caught.value).startswith(says)


# Jobs


class Shop:
    @tocsin.protect(retries=1)
    def order(self, number: int) -> None:
        raise Away("no answer")

    @tocsin.protect(retries=1)
    async def order_async(self, number: int) -> None:
        raise Away("no answer")

    @classmethod
    @tocsin.protect(retries=1)
    def close(cls, number: int) -> None:
        raise Away("no answer")

    @tocsin.protect(retries=1)
    @classmethod
    def open(cls, number: int) -> None:
        raise Away("no answer")

    @staticmethod
    @tocsin.protect(retries=1)
    def count(number: int) -> None:
        raise Away("no answer")


class SmallShop(Shop):
    """Closed by the class method that it has inherited."""


@pytest.mark.parametrize(
    ("call", "path", "args", "changed"),
    [
        (lambda: Shop().order(7), "Shop.order", ["<tests.instrumentation.test_retries.Shop object>", 7], ["args.0"]),
        (
            lambda: asyncio.run(Shop().order_async(7)),
            "Shop.order_async",
            ["<tests.instrumentation.test_retries.Shop object>", 7],
            ["args.0"],
        ),
        (lambda: Shop.close(7), "Shop.close", [7], []),
        (lambda: SmallShop.close(7), "SmallShop.close", [7], []),
        (lambda: Shop.open(7), "Shop.open", [7], []),
        (lambda: Shop.count(7), "Shop.count", [7], []),
        (
            lambda: tocsin.protect(retries=1)(lambda number: 1 // 0)(7),
            "<lambda>.<locals>.<lambda>",
            [7],
            [],
        ),
    ],
)
def test_a_job_says_where_its_function_is(
    call: Callable[[], Any], path: str, args: list[Any], changed: list[str], watched: Watched
) -> None:
    """A method's own object cannot be kept, which is said; a class is found by its name."""
    with pytest.raises((Away, ZeroDivisionError)):
        call()

    (job,) = jobs_of(watched)
    assert job.function == f"{__name__}:{path}"
    assert (job.arguments, job.changed) == ({"args": args, "kwargs": {}}, changed)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    __str__ = __repr__

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no")


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
# Made in the test: pytest asks them for their names.
ODD: dict[str, Callable[[], Any]] = {
    "raises whatever it is asked": Hostile,
    "endless": lambda: ENDLESS,
    "long": lambda: "x" * 10**7,
    "wide": lambda: [[0] * 1000] * 1000,
    "many keys": lambda: dict.fromkeys(range(10**5)),
    "half a character": lambda: "\ud800",
    "a class": lambda: object,
    "a function": lambda: open,
    "no number": lambda: math.nan,
}


@pytest.mark.parametrize("odd", ODD)
def test_no_argument_keeps_a_job_from_being_kept(odd: str, watched: Watched) -> None:
    """It is stored in a bounded form, with what is not what it was."""
    value = ODD[odd]()

    @tocsin.protect(retries=1)
    def push(one: Any, *more: Any, **rest: Any) -> str:
        raise Away("no answer")

    with pytest.raises(Away):
        push(value, value, rest=value)

    (job,) = jobs_of(watched)
    assert job.changed
    assert len(json.dumps(job.arguments)) <= 16 * 1024


def test_no_secret_is_kept(watched: Watched) -> None:
    """Neither by its name, given or not, nor by its shape, nor in what a try has failed with."""

    @tocsin.protect(retries=2, pause_s=0)
    def push(lead: str, password: str, *tokens: str, note: Any = None, **more: Any) -> None:
        raise Away(f"cannot log in with password={SECRET}")

    with pytest.raises(Away):
        push(
            "7",
            SECRET,
            SECRET,
            SECRET,
            note={"text": f"postgresql://anna:{SECRET}@db/shop", "api_key": SECRET},
            session_token=SECRET,
        )

    (job,) = jobs_of(watched)
    assert job.arguments["args"] == ["7", "[scrubbed]", "[scrubbed]", "[scrubbed]"]
    assert set(job.changed) == {
        "args.1", "args.2", "args.3", "kwargs.note.text", "kwargs.note.api_key", "kwargs.session_token",
    }  # fmt: skip
    assert SECRET not in repr((job, watched.rows()))
    assert not [one for one in watched.spool.iterdir() if SECRET.encode() in one.read_bytes()]


# Run again by a person


class Flaky:
    is_away = True
    made = 0


@tocsin.protect(retries=3, pause_s=10**6)
def push(lead: str) -> str:
    Flaky.made += 1
    if Flaky.is_away:
        logging_it()
    return f"pushed {lead}"


@tocsin.protect(retries=3, pause_s=10**6)
async def push_async(lead: str) -> str:
    await asyncio.sleep(0)
    return push.__wrapped__(lead)  # type: ignore[attr-defined, no-any-return]


@tocsin.protect(category="amocrm")
def push_once(lead: str) -> str:
    return push.__wrapped__(lead)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("function", [push, push_async, push_once], ids=lambda function: function.__name__)
def test_a_rerun_is_one_try_of_which_nothing_is_told(function: Any, watched: Watched) -> None:
    Flaky.made, Flaky.is_away = 0, True
    with pytest.raises(Away):
        protect.rerun(function, ["7"], {})
    assert Flaky.made == 1
    assert (watched.rows(), jobs_of(watched)) == ([], [])

    Flaky.is_away = False
    assert protect.rerun(function, [], {"lead": "7"}) == "pushed 7"
    Flaky.is_away = True
    with pytest.raises(Away):
        tocsin.protect(retries=1)(push_once)("7")
    assert len(jobs_of(watched)) == 1, "afterwards all is as before"


def test_what_a_rerun_has_an_answer_to_is_told(watched: Watched) -> None:
    @tocsin.protect(retries=3)
    def outer() -> str:
        with suppress(Away):
            protected_with_tries()
        return "done"

    assert protect.rerun(outer, [], {}) == "done"

    assert watched.row().context["attempts"][1]["message"] == "no answer"
    assert len(jobs_of(watched)) == 1


def test_what_is_protected_can_be_told() -> None:
    import functools

    @functools.wraps(push)
    def around(lead: str) -> str:
        return push(lead)

    assert all(map(protect.is_protected, (push, push_async, push_once, Shop.close, Shop().order, around)))
    assert not any(map(protect.is_protected, (logging_it, Shop, None, print)))


def _typed(calls: Awaitable[int]) -> None:
    """For the type checker: what `protect` gives has the type of what it is around."""

    @tocsin.protect(retries=3, timeout_s=1, retry_on=(OSError, ValueError))
    async def push(lead: str) -> int:
        return await calls

    @tocsin.protect(retries=3, retry_on=lambda failure: isinstance(failure, OSError))
    def push_sync(lead: str) -> int:
        return 1

    _: Callable[[str], Awaitable[int]] = push
    __: Callable[[str], int] = push_sync
    with tocsin.protect(category="shop"):
        pass
    time.sleep(0)
