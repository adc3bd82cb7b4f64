"""A process that tocsin watches: this one, for as long as a test lasts."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import tocsin
from tests.processes import rows_of
from tocsin.contained import failures


class Watched:
    """tocsin in this process, and what it has stored."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.spool = folder / "spool"

    def init(self, **arguments: Any) -> None:
        """`tocsin.init` with files in the test's folder."""
        settings = {"service": "shop", "environment": "test", "release": "r1"}
        tocsin.init(**{**settings, "database_url": self.database_url, "spool_dir": str(self.spool), **arguments})

    def rows(self) -> list[Any]:
        """The rows of all that was captured so far."""
        assert tocsin.flush(10)
        return rows_of(self.database_url)

    def row(self) -> Any:
        """The only row."""
        rows = self.rows()
        assert len(rows) == 1, [(row.exception_type, row.message) for row in rows]
        return rows[0]

    def errors(self) -> int:
        """How many errors are stored, those that were only counted too; counts come within a second."""
        return sum(row.count for row in self.rows())


Catch = Callable[[Callable[[], object]], BaseException]


@pytest.fixture
def catch() -> Catch:
    """The exception that a function raises, with its traceback."""

    def call(function: Callable[[], object]) -> BaseException:
        try:
            function()
        except BaseException as exc:
            return exc
        raise AssertionError("it raises nothing")

    return call


@pytest.fixture
def unwatched(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Files and a clean environment for tocsin, which the test starts itself; it is ended here."""
    for name in [name for name in os.environ if name.startswith(("TOCSIN_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    yield Watched(tmp_path, sqlite_url)
    tocsin.shutdown()


@pytest.fixture
def watched(unwatched: Watched) -> Watched:
    """tocsin, started in this process."""
    unwatched.init()
    return unwatched


def hooks_in_place() -> dict[str, object]:
    """All that tocsin may hook."""
    return {
        "sys.excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
        "sys.unraisablehook": sys.unraisablehook,
        "Future": dict(vars(Future)),
        "loops": [dict(vars(kind)) for kind in (asyncio.AbstractEventLoop, asyncio.BaseEventLoop)],
        "Logger.callHandlers": logging.Logger.callHandlers,
        "Thread.start": threading.Thread.start,
        "ThreadPoolExecutor.submit": ThreadPoolExecutor.submit,
        "BaseEventLoop.call_exception_handler": asyncio.BaseEventLoop.call_exception_handler,
        "BaseEventLoop.create_task": asyncio.BaseEventLoop.create_task,
        "SelectorEventLoop.close": asyncio.SelectorEventLoop.close,
        "signal": (signal.signal, signal.getsignal, signal.getsignal(signal.SIGTERM)),
        "os": (os._exit, os.execv, os.execve),
        "sys.meta_path": list(sys.meta_path),
    }


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After each test every hook is back, no thread is left, and tocsin itself has failed nowhere."""
    before = hooks_in_place()
    failures.clear()
    yield
    assert hooks_in_place() == before
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("tocsin")] == []
    assert dict(failures) == {}
