"""Event loops that do not come round: each time is one error, with the stack that blocks, and never without need."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

import tocsin
from tests.instrumentation.conftest import Watched
from tests.waiting import aeventually, eventually
from tocsin.instrumentation import loop as loops
from tocsin.instrumentation import state
from tocsin.instrumentation.capture import Capture

BLOCKED_S = 0.3
BLOCKS_S = 0.8

KINDS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture
def watching(unwatched: Watched) -> Watched:
    unwatched.init(loop_blocked_s=BLOCKED_S)
    return unwatched


def run(
    work: Callable[[], Awaitable[object]], make: Callable[[], asyncio.AbstractEventLoop] = KINDS["asyncio"]
) -> None:
    """Run it in a loop that has come round before."""

    async def main() -> None:
        await has_answered()
        await work()

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(main())


async def has_answered() -> None:
    await aeventually(lambda: loops._runs[threading.get_ident()].has_answered)


def lag_ms() -> int | None:
    assert isinstance(state.current, Capture)
    return state.current.spool.life.read().loop_lag_ms


async def sleep() -> None:
    time.sleep(BLOCKS_S)  # this line


async def hold_the_interpreter() -> None:
    ctypes.PyDLL(None).usleep(int(BLOCKS_S * 1e6))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_shows_the_line_that_blocks(kind: str, watching: Watched) -> None:
    run(sleep, KINDS[kind])

    row = watching.row()
    own = [frame for frame in row.context["tocsin.frames"] if frame["in_app"]]
    assert (row.exception_type, row.message) == (
        "tocsin.EventLoopBlocked",
        f"event loop blocked by {__name__} in sleep",
    )
    assert own[-1]["text"] == "time.sleep(BLOCKS_S)  # this line"
    assert row.stack.splitlines()[-3].strip() == "time.sleep(BLOCKS_S)  # this line"
    assert (row.severity, row.handled, row.mechanism) == ("high", False, "event_loop")
    assert row.context["thread.name"] == "MainThread"


def test_only_what_the_loop_runs_is_in_the_stack(watching: Watched) -> None:
    """How the loop was started says nothing, and would part groups."""
    run(sleep)

    functions = [frame["function"] for frame in watching.row().context["tocsin.frames"]]
    assert functions == ["run.<locals>.main", "sleep"]


def test_it_is_told_while_it_goes_on_and_for_how_long_when_it_is_over(watching: Watched) -> None:
    released = threading.Event()

    async def wait() -> None:
        released.wait()

    began = time.monotonic()
    thread = threading.Thread(target=run, args=(wait,), name="loops")
    thread.start()
    row = eventually(watching.rows)[0]
    assert "blocked_s" not in row.context
    assert row.context["blocked_over_s"] >= BLOCKED_S
    assert row.context["thread.name"] == "loops"

    released.set()
    thread.join()
    most_s = time.monotonic() - began

    assert BLOCKED_S < eventually(lambda: watching.row().context.get("blocked_s")) <= most_s
    assert watching.row().count == 1


def test_a_loop_that_works_for_too_long_is_told_of_where_it_works(watching: Watched) -> None:
    async def compute() -> None:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            sorted(range(100))

    run(compute)

    assert watching.row().message.endswith("compute")


def test_a_lock_that_another_thread_holds_is_told_of_where_it_is_waited_for(watching: Watched) -> None:
    lock = threading.Lock()

    async def wait() -> None:
        lock.acquire()
        other = threading.Timer(BLOCKS_S, lock.release)
        other.start()
        with lock:
            pass
        other.join()

    run(wait)

    assert [frame["text"] for frame in watching.row().context["tocsin.frames"]][-1] == "with lock:"


def test_each_time_is_an_error_and_all_are_one_group(watching: Watched) -> None:
    """Wherever it was found at work: another line of the same function is the same place."""

    async def main() -> None:
        for way in (0, 1):
            await has_answered()
            if way:
                time.sleep(BLOCKS_S)
            else:
                time.sleep(BLOCKS_S)
            await asyncio.sleep(0.1)
            await asyncio.sleep(0)

    run(main)

    first, second = watching.rows()
    assert first.stack != second.stack
    assert first.group_id == second.group_id


def test_several_loops_are_looked_at_each_in_its_thread(watching: Watched) -> None:
    async def one() -> None:
        await sleep()

    async def other() -> None:
        await sleep()

    threads = [threading.Thread(target=run, args=(work,)) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [
        [frame["function"].rpartition(".")[2] for frame in row.context["tocsin.frames"]] for row in watching.rows()
    ]
    assert sorted(found) == [["main", "one", "sleep"], ["main", "other", "sleep"]]


def test_a_loop_in_which_tocsin_was_started_is_looked_at(unwatched: Watched) -> None:
    async def start() -> None:
        unwatched.init(loop_blocked_s=BLOCKED_S)
        await has_answered()
        await sleep()

    asyncio.run(start())

    assert [frame["function"].rpartition(".")[2] for frame in unwatched.row().context["tocsin.frames"]] == [
        "start",
        "sleep",
    ]


def test_the_request_that_blocks_is_named_and_those_that_wait_for_it(watching: Watched) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow/7":
            await asyncio.sleep(0.05)  # the other has begun
            time.sleep(BLOCKS_S)
        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing(*_: Any) -> Any:
        return {}

    async def ask(path: str) -> None:
        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await tocsin.TocsinMiddleware(app)(scope, nothing, nothing)

    async def both() -> None:
        await asyncio.gather(ask("/slow/7"), ask("/waits/8"))

    run(both)

    context = watching.row().context
    assert context["url.path"] == "/slow/7"
    assert context["waiting_requests"] == 1
    assert context["waiting"][0].startswith("GET /waits/* (")


def test_the_longest_lag_of_the_last_minute_is_known(watching: Watched) -> None:
    async def main() -> None:
        await sleep()
        await aeventually(lambda: (lag_ms() or 0) >= BLOCKED_S * 1000)
        await asyncio.sleep(0.2)

    run(main)

    assert BLOCKED_S * 1000 <= (lag_ms() or 0) <= BLOCKS_S * 1000 + 500


# Never without need


def test_a_loop_that_waits_is_not_blocked(watching: Watched) -> None:
    async def wait() -> None:
        await asyncio.sleep(5 * BLOCKED_S)

    for make in KINDS.values():
        run(wait, make)

    assert watching.rows() == []


def test_a_loop_that_has_not_come_round_yet_is_starting(watching: Watched) -> None:
    """A server imports its application in a loop that runs already."""
    asyncio.run(sleep())

    assert watching.rows() == []


def test_a_person_at_a_debugger_has_time(watching: Watched) -> None:
    async def step() -> None:
        before = sys.gettrace()
        sys.settrace(lambda *_: lambda *_: None)
        try:
            await sleep()
        finally:
            sys.settrace(before)

    run(step)

    assert watching.rows() == []


def test_what_is_typed_in_a_notebook_may_take_its_time(watching: Watched) -> None:
    cell: dict[str, Any] = {"__name__": "ipykernel.kernelbase"}
    exec(f"import time\nasync def cell():\n    time.sleep({BLOCKS_S})", cell)

    run(cell["cell"])

    assert watching.rows() == []


def test_one_call_that_keeps_the_interpreter_for_itself_is_not_told(watching: Watched) -> None:
    """Nor is a process that was stopped: seen from within they are the same."""
    run(hold_the_interpreter)

    assert watching.rows() == []


def test_a_clock_that_jumps_is_no_matter(watching: Watched) -> None:
    class Jumping(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return time.monotonic() * 1000

    async def wait() -> None:
        await asyncio.sleep(1000 * BLOCKED_S)

    run(wait, Jumping)

    assert watching.rows() == []


def test_nothing_of_it_stands_in_a_loop(watching: Watched) -> None:
    async def main() -> None:
        running = asyncio.get_running_loop()
        for _ in range(3):
            loops._runs[threading.get_ident()].has_answered = False
            await has_answered()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [one for one in running._scheduled if not one.cancelled()] == []  # type: ignore[attr-defined]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main(), debug=True)


def test_loops_that_come_and_go_leave_nothing(watching: Watched) -> None:
    async def nothing() -> None:
        await asyncio.sleep(0)

    for _ in range(200):
        asyncio.run(nothing())

    assert loops._runs == {}
    assert watching.rows() == []


def test_a_loop_that_ends_while_it_is_asked_ends(watching: Watched) -> None:
    """Blocked to its last moment: it is told for how long all the same."""
    with contextlib.closing(asyncio.new_event_loop()) as loop:

        async def main() -> None:
            await has_answered()
            loop.stop()
            time.sleep(BLOCKS_S)

        task = loop.create_task(main())
        loop.run_forever()
        assert task.done()
        eventually(lambda: "blocked_s" in watching.row().context)


def test_it_can_be_turned_off(unwatched: Watched) -> None:
    unwatched.init(loop_blocked_s=0)

    asyncio.run(sleep())

    assert unwatched.rows() == []
    assert lag_ms() is None


def test_a_child_that_is_forked_in_a_loop_looks_at_none_of_its_parent(watching: Watched) -> None:
    read, write = os.pipe()

    async def fork() -> None:
        child = os.fork()
        if child == 0:
            try:
                tocsin.track_error("of the child")
                os.write(write, str(len(loops._runs)).encode())
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)

    run(fork)

    assert os.read(read, 10) == b"0"
    os.close(read)
    os.close(write)
