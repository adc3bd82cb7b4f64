"""The last words of programs, threads and tasks; and hooks that are good neighbours."""

from __future__ import annotations

import _thread
import asyncio
import gc
import importlib.util
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched, hooks_in_place
from tests.postgres import missing_part
from tests.processes import rows_of, run_program
from tests.waiting import eventually


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hook for threads that was there before tocsin gets."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    return seen


@pytest.fixture
def threads(reported: list[Any], unwatched: Watched) -> Watched:
    """tocsin, started after that hook, and ended before it is taken away."""
    unwatched.init()
    return unwatched


def in_thread(exc: BaseException) -> None:
    def work() -> None:
        raise exc

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()


def test_a_thread_that_dies_is_an_error(threads: Watched, reported: list[Any]) -> None:
    """And whoever heard of it before still does."""
    in_thread(ValueError("no"))

    row = threads.row()
    assert (row.message, row.handled, row.mechanism, row.severity) == ("no", False, "threading", "high")
    assert row.context["thread.name"] == "worker"
    assert [args.exc_type for args in reported] == [ValueError]
    reported.clear()


@pytest.mark.parametrize("exc", [SystemExit(0), SystemExit(1), KeyboardInterrupt()])
def test_a_thread_that_exits_is_no_error(exc: BaseException, threads: Watched, reported: list[Any]) -> None:
    in_thread(exc)

    assert threads.rows() == []
    reported.clear()


def run_loop(work: Any, loop_factory: Any = None) -> list[dict[str, Any]]:
    """Run a coroutine to its end, and all that is forgotten in it; what asyncio reports."""
    seen: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: seen.append(context))
        runner.run(work())
        gc.collect()
    return seen


async def forget_a_task() -> None:
    async def work() -> None:
        raise LookupError("lost")

    with tocsin.context(user_id="u7"):
        asyncio.create_task(work(), name="forgotten")  # noqa: RUF006
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def cancel_a_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def catch_a_task() -> None:
    async def work() -> None:
        raise LookupError("lost")

    await asyncio.gather(work(), return_exceptions=True)


def test_a_task_that_nobody_awaits_is_an_error(watched: Watched) -> None:
    """With the facts of where it was started; the program's own handler hears of it too."""
    seen = run_loop(forget_a_task)

    row = watched.row()
    assert (row.message, row.mechanism, row.severity, row.handled) == ("lost", "asyncio", "high", False)
    assert row.context["log.message"] == "Task exception was never retrieved"
    assert row.context["user_id"] == "u7"
    assert len(seen) == 1


@pytest.mark.parametrize("work", [cancel_a_task, catch_a_task])
def test_a_task_that_is_cancelled_or_awaited_is_none(work: Any, watched: Watched) -> None:
    run_loop(work)

    assert watched.rows() == []


def test_a_callback_that_raises_is_an_error_once(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    """asyncio's own handler logs it, which is not another one."""

    async def work() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await asyncio.sleep(0)

    with asyncio.Runner() as runner:
        runner.run(work())

    assert (watched.row().exception_type, watched.row().count) == ("ZeroDivisionError", 1)


_LATE_LOOP = """
import sys
assert "asyncio" not in sys.modules
import asyncio, gc

async def work():
    raise LookupError("lost")

async def main():
    asyncio.create_task(work())
    await asyncio.sleep(0.01)
    gc.collect()

asyncio.run(main())
"""


def test_asyncio_is_watched_from_its_import_on(tmp_path: Path, sqlite_url: str) -> None:
    """A program that has no loop does not wait for it."""
    done = run_program(tmp_path, _LATE_LOOP, sqlite_url)

    assert done.returncode == 0, done.stderr
    (row,) = rows_of(sqlite_url)
    assert (row.message, row.mechanism) == ("lost", "asyncio")


def test_uvloop_is_watched_as_well(watched: Watched) -> None:
    if importlib.util.find_spec("uvloop") is None:
        missing_part("uvloop")
    import uvloop

    run_loop(forget_a_task, uvloop.new_event_loop)

    assert watched.row().message == "lost"


LAST_WORDS = {
    "exception": ("raise ValueError('the end')", 1, ["critical"]),
    "exit 0": ("import sys; sys.exit(0)", 0, []),
    "exit 3": ("import sys; sys.exit(3)", 3, ["critical"]),  # told by who watches it
    "group": ("raise ExceptionGroup('g', [ValueError('a'), KeyError('b')])", 1, ["critical"]),
    "syntax": ("def f(:", 1, ["critical"]),
    "recursion": ("def f(): f()\nf()", 1, ["critical"]),
    "hook": ("import sys; sys.excepthook = lambda *a: print('mine'); raise ValueError('the end')", 1, ["critical"]),
    "both": (
        "import sys; before = sys.excepthook; sys.excepthook = lambda *a: before(*a); raise ValueError('the end')",
        1,
        ["critical"],
    ),
}


@pytest.mark.parametrize("name", LAST_WORDS)
def test_a_program_s_end_is_what_it_was(name: str, tmp_path: Path, sqlite_url: str) -> None:
    """Exit code and output are those of the program alone; what is an error is stored."""
    code, exit_code, severities = LAST_WORDS[name]
    plain = run_program(tmp_path, code, sqlite_url, command=(), is_drained=False)

    done = run_program(tmp_path, code, sqlite_url)

    assert done.returncode == plain.returncode == exit_code
    assert done.stdout == plain.stdout
    assert plain.stderr in done.stderr
    assert [row.severity for row in rows_of(sqlite_url)] == severities


def test_an_interrupt_is_no_error(unwatched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", lambda *args: None)
    unwatched.init()

    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert unwatched.rows() == []
    tocsin.shutdown()


def test_hooks_call_what_they_found(unwatched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: seen.append(args))
    unwatched.init()
    exc = ValueError("no")

    sys.excepthook(ValueError, exc, None)

    assert seen == [(ValueError, exc, None)]
    assert unwatched.row().severity == "critical"
    tocsin.shutdown()  # before the fixture takes its hook away


def test_a_hook_on_top_of_ours_is_left_alone(unwatched: Watched) -> None:
    """Ours goes on below it, and records nothing any more."""
    before = hooks_in_place()
    unwatched.init()
    ours = sys.excepthook
    sys.excepthook = theirs = lambda *args: ours(*args)  # noqa: PLW0108
    try:
        tocsin.shutdown()
        assert sys.excepthook is theirs
    finally:
        sys.excepthook = before["sys.excepthook"]  # type: ignore[assignment]
    assert hooks_in_place() == before


def test_a_thread_started_before_shutdown_ends_well_after_it(unwatched: Watched) -> None:
    unwatched.init()
    go = threading.Event()
    ended: list[bool] = []
    with tocsin.context(user_id="u7"):
        thread = threading.Thread(target=lambda: ended.append(go.wait(10)))
        thread.start()

    tocsin.shutdown()
    go.set()
    thread.join()

    assert ended == [True]


ODD_REPORTS: list[dict[str, Any]] = [{}, {"message": None}, {"message": "m", "future": SimpleNamespace()}]


def test_odd_reports_of_asyncio_are_taken(watched: Watched) -> None:
    """Any library may report anything; that asyncio logs it is not another error."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        for context in ODD_REPORTS:
            loop.call_exception_handler(context)

    assert len(watched.rows()) == 3


# What Python itself can only ignore


@pytest.fixture
def ignored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hook for it that was there before tocsin gets."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    return seen


def in_a_finalizer() -> None:
    class Closing:
        def __del__(self) -> None:
            raise ValueError("no")

    Closing()


def in_a_callback_of_a_weak_reference() -> None:
    def gone(_: object) -> None:
        raise ValueError("no")

    class Thing: ...

    thing = Thing()
    reference = weakref.ref(thing, gone)
    del thing
    assert reference() is None


def in_a_bare_thread() -> None:
    ended = threading.Event()

    class Ends:
        def __del__(self) -> None:
            ended.set()

    def work(_: Ends) -> None:
        raise ValueError("no")

    _thread.start_new_thread(work, (Ends(),))
    assert ended.wait(10)


@pytest.mark.parametrize("work", [in_a_finalizer, in_a_callback_of_a_weak_reference, in_a_bare_thread])
def test_what_python_ignores_is_an_error(work: Any, ignored: list[Any], unwatched: Watched) -> None:
    """Whoever heard of it before still does."""
    unwatched.init()
    work()
    eventually(lambda: ignored)

    row = unwatched.row()
    assert (row.message, row.handled, row.mechanism, row.severity) == ("no", False, "unraisable", "high")
    assert row.context["log.message"].startswith("Exception ignored in")
    assert ignored == [ValueError]
    tocsin.shutdown()


_LATE = """
import atexit, builtins, sys

class Closing:
    def __init__(self, name):
        self.name = name

    def __del__(self):
        raise ValueError(self.name)

@atexit.register
def at_the_end():
    raise KeyError("at exit")

sys.modules["kept"] = Closing("among the modules")
builtins.kept = Closing("among the builtins")
"""


def test_what_fails_while_the_interpreter_ends_is_recorded(tmp_path: Path, sqlite_url: str) -> None:
    """After the last drain too; nothing of ours has anything to say of it."""
    plain = run_program(tmp_path, _LATE, sqlite_url, command=(), is_drained=False)

    done = run_program(tmp_path, _LATE, sqlite_url)

    assert done.returncode == 0
    severities = {row.message: row.severity for row in rows_of(sqlite_url)}
    assert severities == {"'at exit'": "high", "among the modules": "medium", "among the builtins": "medium"}
    assert len({row.instance_id for row in rows_of(sqlite_url)}) == 1
    assert done.stderr.count("Traceback") == plain.stderr.count("Traceback") == 3
    assert "tocsin/" not in done.stderr


_FAILING_HOOK = """
import sys, tocsin

def hook(*args):
    raise LookupError("in the hook")

sys.excepthook = hook
if len(sys.argv) == 1:
    tocsin.init(service="shop")
raise ValueError("the end")
"""


def test_a_hook_that_fails_fails_as_without_us(tmp_path: Path, sqlite_url: str) -> None:
    done = run_program(tmp_path, _FAILING_HOOK, sqlite_url, command=())

    assert done.returncode == 1
    assert "Error in sys.excepthook:" in done.stderr
    assert "LookupError: in the hook" in done.stderr
    assert "ValueError: the end" in done.stderr
    assert [row.message for row in rows_of(sqlite_url)] == ["the end"]


# Loops of other kinds


def handle(self: Any, context: dict[str, Any]) -> None:
    """Do what has to be done, which is nothing."""


class OwnLoop(asyncio.SelectorEventLoop):
    """It handles what fails by itself."""

    call_exception_handler = handle


@pytest.mark.parametrize("is_late", [False, True])
def test_a_loop_with_a_handler_of_its_own_is_watched(is_late: bool, watched: Watched) -> None:
    """Whether its class is there before tocsin or not."""
    kind: Any = type("Late", (asyncio.SelectorEventLoop,), {"call_exception_handler": handle}) if is_late else OwnLoop

    run_loop(forget_a_task, kind)

    assert (watched.row().message, watched.row().mechanism) == ("lost", "asyncio")
    tocsin.shutdown()
    assert kind.call_exception_handler is handle


def test_a_handler_that_fails_is_an_error_too(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    """Beside the one that it was given."""

    def fail(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise KeyError("in the handler")

    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(fail)
        runner.run(forget_a_task())
        gc.collect()

    assert sorted(row.message for row in watched.rows()) == ["'in the handler'", "lost"]


def test_a_handler_that_asks_for_the_default_tells_once(watched: Watched, capfd: pytest.CaptureFixture[str]) -> None:
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda loop, context: loop.default_exception_handler(context))
        runner.get_loop().call_exception_handler({"message": "odd"})

    assert (watched.row().message, watched.row().count) == ("odd", 1)
