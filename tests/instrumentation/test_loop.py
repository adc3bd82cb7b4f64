"""Event loops that do not come round: each time is one error, with the stack that blocks, and never without need."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
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


async def has_answered_again() -> None:
    before = loops._runs[threading.get_ident()].asked_at
    await aeventually(lambda: loops._runs[threading.get_ident()].asked_at > before)


def lag_ms() -> int | None:
    assert isinstance(state.current, Capture)
    return state.current.spool.life.read().loop_lag_ms


def until_told(thread_id: int | None = None) -> threading.Event:
    """Set as soon as it is recorded that this thread's loop is blocked, or after ten seconds."""
    told = threading.Event()
    looked_at = loops._runs[thread_id or threading.get_ident()]

    def watch() -> None:
        with contextlib.suppress(AssertionError):
            eventually(lambda: looked_at.error_id)
        told.set()

    threading.Thread(target=watch).start()
    return told


async def block() -> None:
    until_told().wait()  # this line


async def sleep() -> None:
    time.sleep(BLOCKS_S)


def own_functions(row: Any) -> list[str]:
    return [frame["function"].rpartition(".")[2] for frame in row.context["tocsin.frames"] if frame["in_app"]]


async def hold_the_interpreter() -> None:
    looked_at = loops._runs[threading.get_ident()]
    while looked_at.answered_at:
        time.sleep(0.001)
    ctypes.PyDLL(None).usleep(int(BLOCKS_S * 1e6))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_shows_the_line_that_blocks(kind: str, watching: Watched) -> None:
    run(block, KINDS[kind])

    row = watching.row()
    own = [frame for frame in row.context["tocsin.frames"] if frame["in_app"]]
    assert (row.exception_type, row.message) == (
        "tocsin.EventLoopBlocked",
        f"event loop blocked by {__name__} in block",
    )
    assert own[-1]["text"] == "until_told().wait()  # this line"
    assert "    until_told().wait()  # this line" in row.stack.splitlines()
    assert (row.severity, row.handled, row.mechanism) == ("high", False, "event_loop")
    assert row.context["thread.name"] == "MainThread"


def test_only_what_the_loop_runs_is_in_the_stack(watching: Watched) -> None:
    """How the loop was started says nothing, and would part groups."""
    run(block)

    frames = watching.row().context["tocsin.frames"]
    assert [frame["function"] for frame in frames if frame["in_app"]] == ["run.<locals>.main", "block"]
    assert frames[0]["in_app"]


def test_a_callback_of_a_connection_is_shown_without_the_way_to_it(watching: Watched) -> None:
    class Reading(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            until_told().wait()
            done.set_result(None)

    ours, theirs = socket.socketpair()
    done: asyncio.Future[None]

    async def read() -> None:
        nonlocal done
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        transport, _ = await loop.create_connection(Reading, sock=ours)
        theirs.send(b"x")
        await done
        transport.close()

    with theirs:
        run(read)

    row = watching.row()
    assert own_functions(row) == ["data_received"]
    assert row.context["tocsin.frames"][0]["in_app"]


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
        told = until_told()
        while not told.is_set():
            sorted(range(100))

    run(compute)

    assert watching.row().message.endswith("compute")


def test_a_lock_that_another_thread_holds_is_told_of_where_it_is_waited_for(watching: Watched) -> None:
    lock = threading.Lock()

    async def wait() -> None:
        lock.acquire()
        told = until_told()

        def release() -> None:
            told.wait()
            lock.release()

        threading.Thread(target=release).start()
        with lock:
            pass

    run(wait)

    assert [frame["text"] for frame in watching.row().context["tocsin.frames"]][-1] == "with lock:"


def test_each_time_is_an_error_and_all_are_one_group(watching: Watched) -> None:
    """Wherever it was found at work: another line of the same function is the same place."""

    async def main() -> None:
        for way in (0, 1):
            await has_answered()
            told = until_told()
            if way:
                told.wait()
            else:
                told.wait(10)
            await aeventually(lambda: loops._runs[threading.get_ident()].error_id is None)

    run(main)

    first, second = watching.rows()
    assert first.stack != second.stack
    assert first.group_id == second.group_id


def test_several_loops_are_looked_at_each_in_its_thread(watching: Watched) -> None:
    async def one() -> None:
        await block()

    async def other() -> None:
        await block()

    threads = [threading.Thread(target=run, args=(work,)) for work in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = [own_functions(row) for row in watching.rows()]
    assert sorted(found) == [["main", "one", "block"], ["main", "other", "block"]]


def test_a_loop_in_which_tocsin_was_started_is_looked_at(unwatched: Watched) -> None:
    async def start() -> None:
        unwatched.init(loop_blocked_s=BLOCKED_S)
        await has_answered()
        await block()

    asyncio.run(start())

    assert own_functions(unwatched.row()) == ["start", "block"]


def test_the_request_that_blocks_is_named_and_those_that_wait_for_it(watching: Watched) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow/7":
            await asyncio.sleep(0.05)  # the other has begun
            until_told().wait()
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
        await block()
        await aeventually(lambda: (lag_ms() or 0) >= BLOCKED_S * 1000)

    began = time.monotonic()
    run(main)

    assert BLOCKED_S * 1000 <= (lag_ms() or 0) <= (time.monotonic() - began) * 1000


# Never without need


def test_a_loop_that_waits_is_not_blocked(watching: Watched) -> None:
    async def wait() -> None:
        await asyncio.sleep(5 * BLOCKED_S)

    for make in KINDS.values():
        run(wait, make)

    assert watching.rows() == []


def test_a_loop_that_has_not_come_round_yet_is_starting(watching: Watched) -> None:
    """A server imports its application in a loop that runs already."""

    async def load() -> None:
        run = loops._runs[threading.get_ident()]
        while run.counted_s < 3 * BLOCKED_S:
            time.sleep(0.02)

    asyncio.run(load())

    assert watching.rows() == []


def test_a_loop_that_has_much_to_do_is_late_and_not_blocked(watching: Watched) -> None:
    """Something else at each look is nobody's fault; how late it was is known of its process."""
    names: dict[str, Any] = {"time": time}
    exec("".join(f"def work{number}(): time.sleep(0.02)\n" for number in range(60)), names)

    async def main() -> None:
        for number in range(60):
            asyncio.get_running_loop().call_soon(names[f"work{number}"])
        await aeventually(lambda: (lag_ms() or 0) >= BLOCKED_S * 1000)

    run(main)

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

    async def hold() -> None:
        await hold_the_interpreter()
        await has_answered_again()

    run(hold)

    assert watching.rows() == []
    assert (lag_ms() or 0) < BLOCKED_S * 1000


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
            await block()

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
