"""Exceptions that do what they should not: nothing of ours escapes, and the program keeps its own."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import tocsin
from tests.hostile_errors import SECRET, Case, cases, log
from tests.processes import drain_rest, rows_of
from tocsin.contained import failures
from tocsin.exporter import raw
from tocsin.exporter.classify import qualified
from tocsin.exporter.spool import LINE_BYTES
from tocsin.instrumentation import capture, stacks, state
from tocsin.instrumentation.asgi import TocsinMiddleware

MANY = 2_000
OURS = str(Path(tocsin.__file__).parent)
AWAY = "postgresql://nobody@127.0.0.1:1/away"

BUDGET_S = 0.05
"""What one may cost; measured in time of this thread, so that a busy machine does not count."""


def caught(function: Callable[[], object]) -> BaseException | None:
    try:
        function()
    except BaseException as exc:
        return exc
    return None


# The ways in which an error is seen; each gives what the program is left with


def by_track_error(case: Case) -> BaseException | None:
    exc = caught(lambda: case.raise_(case.exc))
    assert exc is not None
    tocsin.track_error(exc, context=case.facts)
    return exc


def by_logging(case: Case) -> BaseException | None:
    try:
        case.raise_(case.exc)
    except BaseException as exc:
        log.exception("it failed: %s", case.what, extra={"facts": case.facts})
        return exc


def by_block(case: Case) -> BaseException | None:
    def work() -> None:
        with tocsin.protect(context=case.facts):
            case.raise_(case.exc)

    return caught(work)


def by_function(case: Case) -> BaseException | None:
    @tocsin.protect(severity="high")
    def work() -> None:
        case.raise_(case.exc)

    return caught(work)


def by_request(case: Case) -> BaseException | None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        case.raise_(case.exc)

    async def nothing(*_: Any) -> Any: ...

    scope = {"type": "http", "method": "GET", "path": "/orders", "headers": []}
    return caught(lambda: TocsinMiddleware(app)(scope, nothing, nothing).send(None))


def by_hook(case: Case) -> BaseException | None:
    exc = caught(lambda: case.raise_(case.exc))
    assert exc is not None
    sys.excepthook(type(exc), exc, raw.traceback_of(exc))
    return exc


def by_thread(case: Case) -> BaseException | None:
    thread = threading.Thread(target=lambda: case.raise_(case.exc))
    thread.start()
    thread.join()
    return case.exc


def by_task(case: Case) -> BaseException | None:
    loop = asyncio.SelectorEventLoop()
    loop.set_exception_handler(lambda *_: None)

    async def work() -> None:
        case.raise_(case.exc)

    loop.create_task(work())
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    return case.exc


def by_finalizer(case: Case) -> BaseException | None:
    class Closing:
        def __del__(self) -> None:
            case.raise_(case.exc)

    Closing()
    return case.exc


def by_job(case: Case) -> BaseException | None:
    Future[None]().set_exception(case.exc)
    return case.exc


WAYS: dict[str, tuple[Callable[[Case], BaseException | None], ...]] = {
    "track_error": (by_track_error, by_track_error),
    "logging": (by_logging,),
    "protect": (by_block, by_function),
    "asgi": (by_request,),
    "excepthook": (by_hook,),
    "threading": (by_thread,),
    "asyncio": (by_task,),
    "unraisable": (by_finalizer,),
    "future": (by_job,),
}
ALL = [(mechanism, way) for mechanism, ways in WAYS.items() for way in ways]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """tocsin in this process, writing out whatever it sees; the database is away, so that all of it can be read."""
    for name in ("FULL_PER_SECOND", "FULL_IN_ALL_PER_SECOND", "NEW_PLACES"):
        monkeypatch.setattr(capture, name, 10**9)
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, lambda *_: None)
    monkeypatch.chdir(tmp_path)
    failures.clear()
    tocsin.init(service="shop", environment="test", release="r1", database_url=AWAY, spool_dir=str(tmp_path / "spool"))
    gc.freeze()  # what earlier tests have left is not looked through again and again, on a case's time
    yield tmp_path
    gc.unfreeze()
    tocsin.shutdown()


def let_loose(case: Case, number: int, way: Callable[[Case], BaseException | None]) -> None:
    """Let one be seen in one way, and look at what it leaves."""
    kind, arguments = type(case.exc), BaseException.args.__get__(case.exc)  # type: ignore[attr-defined]
    cause, context = raw.cause_of(case.exc), raw.context_of(case.exc)
    before_s = time.thread_time()
    with tocsin.context(case=number):
        left = way(case)
    spent_s = time.thread_time() - before_s

    assert left is case.exc
    assert type(left) is kind
    if not case.is_changed:
        assert BaseException.args.__get__(left) is arguments  # type: ignore[attr-defined]
        assert raw.cause_of(left) is cause
        assert raw.context_of(left) is context
        is_wrapped = way in (by_request, by_function, by_thread)
        files = [frame.f_code.co_filename for frame in frames_of(left)]
        assert is_wrapped or not any(str.startswith(file, OURS) for file in files)
    if not case.is_slow:
        assert spent_s < 4 * BUDGET_S
    assert sys.getrecursionlimit() == 1000


def frames_of(exc: BaseException) -> Iterator[Any]:
    tb = raw.traceback_of(exc)
    while tb is not None:
        yield tb.tb_frame
        tb = tb.tb_next


def lines_in(folder: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for path in sorted((folder / "spool").glob("*.seg")):
        for line in path.read_bytes().splitlines(keepends=True):
            yield line, json.loads(line)


def run(seed: int, many: int, folder: Path, database_url: str) -> None:
    """Let so many loose, and see each of them stored."""
    seen: dict[int, tuple[str, list[str]]] = {}
    for number, case in enumerate(cases(seed, many)):
        mechanism, way = ALL[number % len(ALL)]
        if mechanism == "asyncio" and not issubclass(type(case.exc), Exception):
            mechanism, way = ALL[0]
        try:
            let_loose(case, number, way)
        except BaseException as exc:  # told in words: it may hurt whoever prints it
            problem = (
                "".join(traceback.format_tb(raw.traceback_of(exc))) + qualified(type(exc)) + stacks.safe_message(exc)
            )
        else:
            problem = ""
        assert not problem, f"seed {seed}, case {number}, {mechanism}: {case.what}\n{problem}"
        seen[number] = (mechanism, case.what)
    assert isinstance(state.current, capture.Capture)
    assert state.current.spool.lost == 0
    tocsin.shutdown()

    assert dict(failures) == {}
    told: Counter[tuple[int, str]] = Counter()
    too_large: Counter[str] = Counter()
    for line, content in lines_in(folder):
        assert len(line) <= LINE_BYTES
        assert SECRET.encode() not in line
        if content["kind"] == "error":
            attributes = content["attributes"]
            case = attributes.get("tocsin.context", {}).get("case", -1)  # none: said while it was made
            told[case, attributes["tocsin.mechanism"]] += 1
            too_large[attributes["tocsin.mechanism"]] += "tocsin.left_out" in attributes.get("tocsin.context", {})
    missing = [(number, *what) for number, what in seen.items() if not told[number, what[0]]]
    # What is left of one that was too large does not say which it was.
    assert Counter(mechanism for _, mechanism, _ in missing) <= too_large, missing
    drain_rest(folder, database_url)
    assert not (folder / "spool" / "refused.jsonl").exists()
    assert len(rows_of(database_url)) == sum(told.values())


def test_two_thousand_hostile_exceptions_hurt_nobody(folder: Path, sqlite_url: str) -> None:
    """Each is recorded, within its time and its room, without its secret; who raised it gets it back as it was."""
    run(7, MANY, folder, sqlite_url)


@pytest.mark.gate
@pytest.mark.parametrize("seed", range(100, 150))
def test_a_hundred_thousand_hostile_exceptions_hurt_nobody(seed: int, folder: Path, sqlite_url: str) -> None:
    run(seed, MANY, folder, sqlite_url)
