"""
Programs that are killed at a chosen line of ours: `python -m tests.reliability.victims FOLDER`.

Reads one order a line from stdin and answers each on stdout. Everything is imported before the first, so that
a victim, which is forked, lives for a fraction of a second. It captures in many ways, its drain takes over
what its predecessors left, and at the line and the time that the order names it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import tocsin
from tocsin.exporter import database, deathnote, drain, life, orphans
from tocsin.exporter import spool as spooling
from tocsin.exporter.life import State
from tocsin.ids import uuid7
from tocsin.settings import Settings
from tocsin.store import errors, migrate, open_store

FILES = {
    module.__file__: module.__name__.rpartition(".")[2]
    for module in (spooling, drain, orphans, database, life, deathnote, errors)
}
"""Where victims die: what writes errors down, takes them over and stores them."""

STORM = 25
LEFT_COUNTED = 5
"""How often the error of a predecessor has happened again, that it could only count."""

_BIG = "x" * 15_000
_DUMP = 'Fatal Python error: Aborted\n\nCurrent thread 0x7f (most recent call first):\n  File "/a.py", line 1 in b\n'
_FLUSH_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A victim, and where it dies."""

    number: int
    line: str = ""  #      as `Answer.passed` names it; empty for any
    times: int = 0  #      dies when it comes there for so many times; 0 for never
    delay_s: float = 0.0  # or dies so late, wherever it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of it."""

    is_killed: bool
    passed: dict[str, int]  # how often it came by each line; only of a victim that was to live


def _tracer(order: Order, passed: Counter[str]) -> Callable[..., Any]:
    """Counts lines of ours, and ends the process in the middle of one thread's work."""
    left = order.times

    def in_ours(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal left
        if event == "line":
            name = f"{FILES[frame.f_code.co_filename]}:{frame.f_lineno}"
            passed[name] += 1
            if order.times and order.line in ("", name):
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return in_ours

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        return in_ours if frame.f_code.co_filename in FILES else None

    return trace


def _predecessor(folder: Path, number: int) -> None:
    """A process that died before: with an error, a counter that it had no time to write out, and a torn line."""
    own = spooling.Spool(
        folder / "spool",
        2**30,
        {
            "resource": {
                "service.name": f"before-{number}",
                "service.instance.id": uuid7(),
                "process.pid": os.getpid(),
            },
            "started_ns": time.time_ns(),
        },
    )
    own.life.set_state(State.ALIVE)
    own.life.note_memory(50_000_000, time.time_ns())
    error_id = uuid7()
    attributes = {"exception.type": "KeyError", "tocsin.mechanism": "asgi", "tocsin.handled": False}
    line = {"v": 1, "kind": "error", "id": error_id, "time_unix_nano": time.time_ns(), "severity_number": 17}
    line |= {"trace_id": None, "span_id": None, "body": "before", "attributes": attributes}
    own.append(json.dumps(line).encode() + b"\n")
    counter = own.counter(error_id)
    assert counter is not None
    for _ in range(LEFT_COUNTED):
        counter.tick()
    if number % 3 == 0:
        own.append(b'{"v": 1, "kind": "err')
    if number % 2 == 0:
        spooling.fault_path(own.folder, own.stem).write_text(_DUMP)


def _live(folder: Path, number: int) -> None:
    """The life of a victim; it tells the test what it does, before and after, by one write each."""
    log = os.open(folder / f"log-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def capture(make: Callable[[], str | None]) -> None:
        os.write(log, b"begin\n")
        os.write(log, f"end {make()}\n".encode())

    tocsin.init(service=f"victim-{number}", release="1")
    os.write(log, b"alive\n")
    for one in range(3):
        capture(lambda: tocsin.track_error(_raised(ValueError, 1), "high"))
        capture(lambda: tocsin.track_error(_raised(LookupError, _BIG), "low", "queue", {"order": one}))
    tocsin.flush(_FLUSH_S)
    for one in range(STORM):
        capture(lambda: tocsin.track_error(_raised(RuntimeError, one)))
    for _ in range(3):
        capture(lambda: tocsin.track_error(_BIG))
    tocsin.flush(_FLUSH_S)
    os.write(log, b"ending\n")
    tocsin.shutdown()


def _raised(kind: type[Exception], value: object) -> Exception:
    try:
        raise kind(value)
    except kind as error:
        return error


def _run(order: Order, folder: Path) -> Answer:
    def before() -> None:
        _predecessor(folder, order.number)

    passed: Counter[str] = Counter()
    noted = folder / "passed.json"
    noted.unlink(missing_ok=True)

    def victim() -> None:
        if not order.delay_s:
            trace = _tracer(order, passed)
            threading.settrace(trace)
            sys.settrace(trace)
        _live(folder, order.number)
        sys.settrace(None)
        threading.settrace(None)
        noted.write_text(json.dumps(passed))

    _wait(_fork(before))
    pid = _fork(victim)
    if order.delay_s:
        time.sleep(order.delay_s)  # the moment is what is tried, not what is waited for
        os.kill(pid, signal.SIGKILL)
    code = _wait(pid)
    assert code in (0, -signal.SIGKILL), code
    found = json.loads(noted.read_text()) if code == 0 and not order.times else {}
    return Answer(is_killed=code != 0, passed=found)


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> None:
    """Answer orders until there are no more."""
    tocsin.flush()  # the front door loads what is behind it when it is used
    vars(spooling)["SEGMENT_BYTES"] = 64 * 2**10  # so that a victim turns some over
    store = open_store(Settings.load(os.environ).database_url)
    migrate.prepare_now(store)  # the driver and what the first statement loads are there before the first fork
    store.close_now()
    for line in sys.stdin:
        print(json.dumps(asdict(_run(Order(**json.loads(line)), folder))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
