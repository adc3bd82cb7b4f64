"""One error is one row: sightings, contexts, storms, hostile values, interrupts and forks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import logging
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import pytest

import tocsin
from tests.instrumentation.conftest import Catch, Watched
from tests.processes import errors_in, rows_of, run_program
from tests.waiting import eventually
from tocsin.exporter import raw
from tocsin.instrumentation import state
from tocsin.instrumentation.capture import NEW_PLACES
from tocsin.instrumentation.context import current_scope
from tocsin.instrumentation.state import Sighting

log = logging.getLogger("shop")


def fail(message: str = "no") -> NoReturn:
    raise ValueError(message)


def request(trace: int, function: Callable[[], object]) -> None:
    """Run a function as if within a request."""
    header = f"00-{trace:032x}-00f067aa0ba902b7-01".encode()
    token = current_scope.set({"type": "http", "headers": [(b"traceparent", header)]})
    try:
        function()
    finally:
        current_scope.reset(token)


# The same error, seen several times


def test_an_exception_seen_by_many_is_one_row(watched: Watched, catch: Catch) -> None:
    exc = catch(fail)

    first = tocsin.track_error(exc)
    try:
        raise exc
    except ValueError:
        log.exception("again")
    second = tocsin.track_error(exc)

    assert watched.row().id == first == second
    assert watched.row().count == 1


def test_the_same_object_in_two_requests_is_two_rows(watched: Watched, catch: Catch) -> None:
    """An exception kept in a variable and raised in each request fails each of them."""
    exc = catch(fail)

    for trace in (1, 2):
        request(trace, lambda: tocsin.track_error(exc))
        request(trace, lambda: log.error("again", exc_info=exc))

    assert [row.trace_id for row in watched.rows()] == [f"{1:032x}", f"{2:032x}"]


def test_what_left_a_request_is_known_outside(watched: Watched, catch: Catch) -> None:
    """A server logs what came out of the application, when the request is over for us."""
    exc = catch(fail)

    request(1, lambda: tocsin.track_error(exc))
    log.error("seen by the server", exc_info=exc)

    assert watched.row().trace_id == f"{1:032x}"


async def test_the_same_object_in_two_tasks_is_two_rows(watched: Watched, catch: Catch) -> None:
    exc = catch(fail)

    async def task() -> None:
        tocsin.track_error(exc)

    await asyncio.gather(task(), task())

    assert len(watched.rows()) == 2


def test_logged_and_then_unhandled_is_unhandled(watched: Watched, catch: Catch) -> None:
    exc = catch(fail)

    log.error("first", exc_info=exc)
    assert watched.row().handled is True
    assert state.current is not None
    state.current.see(Sighting(exc, mechanism="threading", handled=False))

    assert (watched.row().handled, watched.row().mechanism) == (False, "threading")


def test_a_later_word_raises_the_severity_and_never_lowers_it(watched: Watched, catch: Catch) -> None:
    exc = catch(fail)

    log.error("first", exc_info=exc)
    assert watched.row().severity == "high"
    tocsin.track_error(exc, "critical")
    tocsin.track_error(exc, "low")

    assert watched.row().severity == "critical"


def test_an_explicit_category_wins_whenever_it_is_said(watched: Watched, catch: Catch) -> None:
    exc = catch(fail)

    log.error("first", exc_info=exc)
    tocsin.track_error(exc, category="amocrm", context={"lead_id": "7"})

    assert (watched.row().category, watched.row().context["lead_id"]) == ("amocrm", "7")


# Storms


def test_what_finds_no_room_is_lost_and_counted_and_nothing_else_with_it(watched: Watched) -> None:
    """No counter may hang on an error that was never written."""
    watched.init()
    spool = state.current.spool  # type: ignore[union-attr]
    room, spool.max_bytes = spool.max_bytes, 0
    for _ in range(50):
        tocsin.track_error("no room", "high")
    spool.max_bytes = room
    for _ in range(10):
        tocsin.track_error("room again", "high")

    assert spool.lost == 50
    eventually(lambda: watched.errors() == 10)


def test_a_storm_is_counted_exactly(watched: Watched) -> None:
    """A few rows tell it, and their counts add up."""
    for number in range(2000):
        try:
            fail(f"number {number}")
        except ValueError as exc:
            tocsin.track_error(exc)

    eventually(lambda: watched.errors() == 2000)
    assert len(watched.rows()) < 50


def test_eight_threads_at_once_are_counted_exactly(watched: Watched) -> None:
    def work() -> None:
        for _ in range(500):
            try:
                fail()
            except ValueError as exc:
                tocsin.track_error(exc)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    eventually(lambda: watched.errors() == 4000)


def test_more_places_than_can_be_written_are_counted_in_all(watched: Watched) -> None:
    """A thousand different errors in a moment: what is not written out is counted, and the row says so."""
    functions: list[Callable[[], object]] = []
    for number in range(1000):
        space: dict[str, Any] = {}
        exec(f"def f{number}():\n    raise ValueError({number})\n", space)
        functions.append(space[f"f{number}"])
    for function in functions:
        try:
            function()
        except ValueError as exc:
            tocsin.track_error(exc)

    # The row that tells of the overflow is an error of its own kind, and stands for the first it counts.
    eventually(lambda: watched.errors() == 1000)
    assert len(watched.rows()) == NEW_PLACES + 1


def test_whoever_says_too_much_in_one_place_is_told_by_the_place(watched: Watched) -> None:
    """A text with a name in it is one mistake, however many names there are."""
    for number in range(2000):
        tocsin.track_error(f"{_word(number)} has no address")

    eventually(lambda: watched.errors() == 2000)
    assert len({row.group_id for row in watched.rows()}) <= 21


def _word(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


# Hostile values


class Meta(type):
    """Refuses to be hashed or compared."""

    def __hash__(cls) -> int:
        raise RuntimeError("no hash")

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("no equality")


def raising(what: BaseException) -> Callable[..., NoReturn]:
    def method(*args: object) -> NoReturn:
        raise what

    return method


class OddText(str):
    __slots__ = ()

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError("no slices")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __str__(self) -> str:
        return self


class Slotted(Exception):
    __slots__ = ("lead_id",)


class Unsettable(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("nothing can be set")


@dataclass(frozen=True)
class Frozen(Exception):
    lead_id: str = "7"


class Hidden(Exception):
    __dict__ = property(raising(RuntimeError("no dict")))


class Closed(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise KeyError(name)


class Pretending(Exception):
    __class__ = property(lambda self: str)


class Unhashable(Exception, metaclass=Meta):
    pass


class Nameless(Exception):
    __module__ = None  # type: ignore[assignment]


def with_method(name: str, method: object, base: type[BaseException] = Exception) -> type[BaseException]:
    return type("Odd", (base,), {name: method})


def noted(notes: object) -> Exception:
    exc = ValueError("noted")
    exc.__notes__ = notes  # type: ignore[assignment]
    return exc


def odd_syntax_error() -> Exception:
    exc = SyntaxError("odd")
    exc.text, exc.lineno, exc.offset, exc.filename = object(), "x", -5, 7  # type: ignore[assignment]
    return exc


def cycle() -> Exception:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    return first


HOSTILE: dict[str, Callable[[], BaseException]] = {
    "NUL": lambda: ValueError("a\0b"),
    "lone surrogate": lambda: ValueError("a\ud800b"),
    "str raises": lambda: with_method("__str__", raising(RuntimeError("x")))("m"),
    "str raises itself": lambda: with_method("__str__", raising(RecursionError()))("m"),
    "str exits": lambda: with_method("__str__", raising(SystemExit(3)))("m"),
    "str interrupts": lambda: with_method("__str__", raising(KeyboardInterrupt()))("m"),
    "str gives bytes": lambda: with_method("__str__", lambda self: b"m")("m"),
    "str gives odd text": lambda: with_method("__str__", lambda self: OddText("odd"))("m"),
    "repr raises": lambda: KeyError(with_method("__repr__", raising(RuntimeError("x")))()),
    "slots": lambda: Slotted("m"),
    "setattr raises": lambda: Unsettable("m"),
    "frozen": Frozen,
    "dict raises": lambda: Hidden("m"),
    "getattribute raises": lambda: Closed("m"),
    "class is str": lambda: Pretending("m"),
    "unhashable class": lambda: Unhashable("m"),
    "module is None": lambda: Nameless("m"),
    "bool raises": lambda: with_method("__bool__", raising(RuntimeError("x")))("m"),
    "eq raises": lambda: with_method("__eq__", raising(RuntimeError("x")))("m"),
    "notes are odd": lambda: noted([b"bytes", None, OddText("odd"), 7]),
    "notes are no list": lambda: noted(7),
    "notes are endless": lambda: noted(["n" * 10_000] * 10_000),
    "cause is a cycle": cycle,
    "syntax error": odd_syntax_error,
    "group": lambda: BaseExceptionGroup("g", [Unhashable("m"), Closed("m"), cycle()]),
    "name error": lambda: NameError("name", name=7),  # type: ignore[arg-type]
    "request": lambda: with_method("request", property(raising(SystemExit())))("m"),
    "base exception": lambda: with_method("x", 1, BaseException)("m"),
}


def raised(make: Callable[[], BaseException]) -> tuple[BaseException, Any]:
    """An exception as its `except` clause has it, and its traceback."""
    exc = make()
    try:
        raise exc
    except BaseException as caught:
        if caught is not exc:
            raise
        return exc, raw.traceback_of(exc)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_exception_is_stored_and_left_as_it_was(name: str, watched: Watched) -> None:
    """By `track_error`, and by `protect` on its way to the caller; its neighbours are stored too."""
    exc, tb = raised(HOSTILE[name])
    kind, arguments = type(exc), BaseException.args.__get__(exc)  # type: ignore[attr-defined]

    tocsin.track_error("before")
    tocsin.track_error(exc)
    caught = None
    try:
        with tocsin.protect(), tocsin.context(lead_id="7"):
            raise exc
    except BaseException as again:
        caught = again
    tocsin.track_error("after")

    assert caught is exc
    assert type(exc) is kind
    assert BaseException.args.__get__(exc) is arguments  # type: ignore[attr-defined]
    frames = raw.traceback_of(exc)
    assert frames is not None
    assert frames.tb_next is tb  # the new `raise` stands before the old
    rows = watched.rows()
    assert [rows[0].message, rows[-1].message] == ["before", "after"]
    assert len(rows) == 3
    assert rows[1].stack is not None
    assert "\0" not in rows[1].message


class Odd:
    """An object that refuses everything."""

    __slots__ = ()
    __repr__ = __str__ = __hash__ = __len__ = __iter__ = __eq__ = __bool__ = raising(RuntimeError("x"))


def endless() -> dict[str, Any]:
    facts: dict[str, Any] = {"list": [1]}
    facts["self"] = facts
    facts["list"].append(facts["list"])
    return facts


CONTEXTS: list[Any] = [
    {"nan": float("nan"), "inf": float("-inf"), "huge": 10**400, "bytes": b"\xff\0"},
    endless(),
    {"odd": Odd(), "proxy": MappingProxyType({"a": Odd()})},
    {1: 2, None: 3, (1, 2): 4, "a\0\ud800": "b\0\ud800"},
    {"long": "x" * 5_000_000, "deep": eval("[" * 90 + "]" * 90), "wide": list(range(100_000))},
    {"k" * 100_000: 1},
    7,
    [("a", 1)],
    Odd(),
]


@pytest.mark.parametrize("facts", CONTEXTS, ids=range(len(CONTEXTS)))
def test_any_context_can_be_stored(facts: Any, watched: Watched, catch: Catch) -> None:
    """By hand, around, and by a log line's ``extra``."""
    tocsin.track_error(catch(fail), context=facts)
    with tocsin.context(facts=facts):
        tocsin.track_error(catch(fail))
        log.error("said", extra={"facts": facts})

    rows = watched.rows()
    assert len(rows) == 3
    assert rows[1].context["facts"] is not None


def test_two_thousand_hostile_exceptions_are_stored_or_counted(watched: Watched) -> None:
    """Made by chance: odd classes and messages, in chains, groups, contexts; a good one after each."""
    chance = random.Random(7)
    makers = list(HOSTILE.values())

    def make() -> BaseException:
        exc = chance.choice(makers)()
        for _ in range(chance.randrange(3)):
            link = chance.choice(makers)()
            how = chance.randrange(3)
            if how == 2:
                exc = BaseExceptionGroup("g", [exc, link])
            else:
                name = ("__cause__", "__context__")[how]
                vars(BaseException)[name].__set__(exc, link)
        return exc

    for _ in range(2000):
        exc, tb = raised(make)
        with tocsin.context(value=chance.choice(CONTEXTS)):
            tocsin.track_error(exc, context=chance.choice(CONTEXTS[:6]))
        assert raw.traceback_of(exc) is tb
        tocsin.track_error("a neighbour")

    eventually(lambda: watched.errors() == 4000)


def test_a_recursion_error_is_captured_where_it_is_caught(watched: Watched) -> None:
    def down() -> None:
        down()

    try:
        down()
    except RecursionError as exc:
        tocsin.track_error(exc)

    assert watched.row().exception_type == "RecursionError"


def test_an_error_near_the_end_of_the_stack_is_captured_whole(watched: Watched) -> None:
    """Nothing more is raised there, and the stack ends where the program wants it to."""
    limit = sys.getrecursionlimit()
    track = tocsin.track_error

    def down(more: int) -> None:
        if more:
            down(more - 1)
            return
        try:
            fail("near the end")
        except ValueError as exc:
            track(exc)

    rooms = [*range(20, 50), 70, 100]
    for room in rooms:
        thread = threading.Thread(target=down, args=[limit - room])  # which begins with a stack of its own
        thread.start()
        thread.join()

    eventually(lambda: watched.errors() == len(rooms))
    assert {row.message for row in watched.rows()} == {"near the end"}
    assert sys.getrecursionlimit() == limit


def test_what_recurses_under_protection_raises_its_own(watched: Watched) -> None:
    @tocsin.protect
    def down() -> None:
        down()

    with pytest.raises(RecursionError) as caught:
        down()

    assert caught.value.__context__ is None
    assert {row.exception_type for row in watched.rows()} == {"RecursionError"}


_OUT_OF_MEMORY = """
import resource, tocsin

tocsin.init(service="shop")
tocsin.track_error("before")
tocsin.flush(20)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 50_000_000,) * 2)

def eat():
    held, size = [], 1_000_000
    while True:
        try:
            held.append(bytearray(size))
        except MemoryError as exc:
            if size < 100:
                tocsin.track_error(exc)
                raise
            size //= 10

for _ in range(3):
    try:
        eat()
    except MemoryError:
        pass
tocsin.track_error("afterwards")
"""


def test_an_error_that_says_that_memory_has_run_out_is_captured(tmp_path: Path, sqlite_url: str) -> None:
    """To the last hundred bytes; the service goes on."""
    done = run_program(tmp_path, _OUT_OF_MEMORY, sqlite_url, command=())

    assert done.returncode == 0, done.stderr
    found = Counter({row.exception_type or row.message: row.count for row in rows_of(sqlite_url)})
    assert found.keys() == {"before", "MemoryError", "afterwards"}
    assert errors_in(sqlite_url) == 5


def test_a_huge_message_costs_little_memory(watched: Watched) -> None:
    huge = "x" * 50_000_000
    exc, _ = raised(lambda: ValueError(huge))
    tocsin.track_error(raised(lambda: ValueError("warm"))[0])
    watched.rows()

    tracemalloc.start()
    try:
        tocsin.track_error(exc)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 3 * 2**20
    assert len(watched.rows()[-1].message) < 17_000


def test_a_captured_exception_can_be_pickled(watched: Watched) -> None:
    """As process pools do, with facts on it that cannot."""
    exc, _ = raised(lambda: ValueError("no"))
    with pytest.raises(ValueError), tocsin.context(lock=threading.Lock()):
        raise exc
    tocsin.track_error(exc)

    again = pickle.loads(pickle.dumps(exc))

    assert (type(again), again.args) == (ValueError, ("no",))


# In the middle of something


def test_a_str_that_logs_is_not_lost(watched: Watched) -> None:
    """What happens while an error is captured is captured after it."""

    class Talking(Exception):
        def __str__(self) -> str:
            log.error("said while asked")
            return "asked"

    tocsin.track_error(raised(Talking)[0])

    assert {row.message for row in watched.rows()} == {"asked", "said while asked"}


def test_a_finalizer_that_fails_is_captured(watched: Watched) -> None:
    class Closing:
        def __del__(self) -> None:
            try:
                fail("in a finalizer")
            except ValueError:
                log.exception("closing")

    Closing()

    assert watched.row().message == "in a finalizer"


def test_signals_that_interrupt_captures_are_counted(watched: Watched) -> None:
    """A handler that captures, at any moment of a capture in the same thread."""
    handled = 0

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        try:
            fail("in a handler")
        except ValueError as exc:
            tocsin.track_error(exc)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
    captured = 0
    try:
        while handled < 200:
            try:
                fail("in the program")
            except ValueError as exc:
                tocsin.track_error(exc)
                captured += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    eventually(lambda: watched.errors() == captured + handled)


class TimeUpError(Exception):
    """What job queues raise in a signal handler."""


class Slow(Exception):
    """One that spends its time in code that anyone may have written."""

    def __str__(self) -> str:
        for _ in range(200):
            str(object())
        return "slow"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, TimeUpError, TimeoutError])
def test_what_a_signal_handler_raises_reaches_the_caller(interrupt: type[BaseException], watched: Watched) -> None:
    """Each, wherever it comes: the error under way is recorded first, and capture works on after it."""

    handled: list[bool] = []

    def handler(number: int, frame: object) -> NoReturn:
        handled.append(True)
        raise interrupt

    before = signal.signal(signal.SIGALRM, handler)
    chance = random.Random(7)
    begun = captured = 0
    gc.disable()  # what is raised in the middle of a collection, Python itself can only ignore
    try:
        for number in range(60):
            with pytest.raises(interrupt):
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0002, 0.002))
                while len(handled) <= number:
                    exc = raised(Slow if captured % 2 else lambda: ValueError("password=x", captured))[0]
                    begun += 1
                    tocsin.track_error(exc)
                    captured += 1
    finally:
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    tocsin.track_error("afterwards")
    eventually(lambda: captured < watched.errors() <= begun + 1)
    assert state.current.spool.lost == 0  # type: ignore[union-attr]
    assert "afterwards" in {row.message for row in watched.rows()}


def test_ctrl_c_during_capture_is_ctrl_c(watched: Watched) -> None:
    """The handler that Python brings has no frame to be known by."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    asked: list[bool] = []

    class Interrupted(Exception):
        def __str__(self) -> str:
            asked.append(True)
            if len(asked) == 1:
                signal.raise_signal(signal.SIGINT)
            return "said"

    try:
        with pytest.raises(KeyboardInterrupt):
            tocsin.track_error(raised(Interrupted)[0])
    finally:
        signal.signal(signal.SIGINT, before)

    assert watched.row().message == "said"


# Forks


def in_child(work: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    try:
        ended = eventually(lambda: [status for pid, status in [os.waitpid(child, os.WNOHANG)] if pid], 30)
    except AssertionError:  # it would hold up all tests after it
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    assert ended == [0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_captures_into_a_spool_of_its_own(watched: Watched) -> None:
    """Ended without a farewell, it leaves its errors to the parent; nothing is stored twice."""
    tocsin.track_error("before")
    files = {path.name: path.stat().st_size for path in watched.spool.iterdir()}

    in_child(lambda: tocsin.track_error("in the child"))

    for name, size in files.items():
        assert (watched.spool / name).stat().st_size == size
    tocsin.track_error("after")
    eventually(lambda: errors_in(watched.database_url) == 3)
    assert sorted(row.message for row in watched.rows()) == ["after", "before", "in the child"]
    assert len({row.instance_id for row in watched.rows()}) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_of_a_child_that_raise_at_once_share_one_spool(watched: Watched) -> None:
    """The first error of a forked child starts it anew, once."""

    def work() -> None:
        barrier = threading.Barrier(8)

        def track() -> None:
            barrier.wait(10)
            tocsin.track_error("in the child")

        threads = [threading.Thread(target=track) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_child(work)

    eventually(lambda: errors_in(watched.database_url) == 8)
    assert len({row.instance_id for row in watched.rows()}) == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signal_in_the_middle_of_a_child_s_start_is_captured(watched: Watched) -> None:
    """Its handler cannot wait for what it interrupts."""
    _ = tocsin.track_error  # imported before: a handler in the middle of an import finds half a module

    def work(delay_s: float) -> None:
        handled: list[
            bool
        ] = []  # an event's lock may be what the signal interrupts, and a handler must not wait for it

        def handler(*_: object) -> None:
            tocsin.track_error("in the handler")
            handled.append(True)

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        tocsin.track_error("in the child")
        eventually(lambda: handled)

    for step in range(1, 16):
        in_child(functools.partial(work, step * 0.0003))

    eventually(lambda: errors_in(watched.database_url) == 30)
    assert len({row.instance_id for row in watched.rows()}) == 15


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_without_errors_leaves_no_file(watched: Watched) -> None:
    before = sorted(watched.spool.iterdir())

    in_child(lambda: None)

    assert sorted(watched.spool.iterdir()) == before


def work_in_a_process() -> None:
    tocsin.track_error("in a process")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_of_multiprocessing_captures(watched: Watched) -> None:
    process = multiprocessing.get_context("fork").Process(target=work_in_a_process)
    process.start()
    process.join()

    eventually(lambda: errors_in(watched.database_url) == 1)


# What is no error


@pytest.mark.parametrize("exc", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(0), GeneratorExit()])
def test_what_only_looks_like_an_error_is_none(exc: BaseException, watched: Watched) -> None:
    tocsin.track_error(exc)
    log.error("cancelled", exc_info=exc)

    assert watched.rows() == []


def test_a_context_of_another_thread_is_not_this_one_s(watched: Watched, catch: Catch) -> None:
    """Seen anew in another thread outside of a request, it is another error."""
    exc = catch(fail)
    tocsin.track_error(exc)

    thread = threading.Thread(target=contextvars.Context().run, args=[lambda: tocsin.track_error(exc)])
    thread.start()
    thread.join()

    assert len(watched.rows()) == 2
