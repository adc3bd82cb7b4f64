"""The end of a process: callbacks, and signals whose handlers nobody sees."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tests.processes import run_program
from tocsin import requests
from tocsin.exporter.life import LastWords
from tocsin.instrumentation import late, state
from tocsin.instrumentation.capture import Capture

ENDS = """
import asyncio, os, sys, threading, time
import tocsin

@tocsin.on_shutdown
def registered_before_init():
    print("last", flush=True)

tocsin.init()

if os.fork() == 0:
    tocsin.on_shutdown(lambda: print("of the child", flush=True))
    sys.exit()
os.wait()

async def closes():
    await asyncio.sleep(0)
    print("awaited", flush=True)

class Closing:
    def __call__(self):
        return closes()

tocsin.on_shutdown(closes)
tocsin.on_shutdown(Closing())
registered_before_init.__name__  # it is given back as it is

async def within():
    tocsin.on_shutdown(lambda: print("of the loop", flush=True))

asyncio.run(within())
print("end", flush=True)
"""


def test_callbacks_run_once_the_last_one_first(tmp_path: Path, sqlite_url: str) -> None:
    """Also those of before `init`, at the end of their loop, and none of a parent's in a forked child."""
    done = run_program(tmp_path, ENDS, sqlite_url, command=())

    assert done.stdout.splitlines() == ["of the child", "of the loop", "end", "awaited", "awaited", "last"]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def handlers() -> Iterator[None]:
    """The handlers of this process, put back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def own(number: int, frame: Any) -> None:
    """A handler of the program's own."""


GIVEN = [own, signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler]


@pytest.mark.parametrize("handler", GIVEN, ids=["own", "default", "ignored", "interrupt"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_program_sees_its_own_handlers(number: int, handler: Any, unwatched: Watched, handlers: None) -> None:
    """Those from before `init`, those set after it, and all of them when tocsin is gone."""
    signal.signal(number, handler)
    unwatched.init()
    assert signal.getsignal(number) is handler

    assert signal.signal(number, own) is handler
    assert signal.getsignal(number) is own
    assert signal.signal(number, handler) is own

    tocsin.shutdown()
    assert signal.getsignal(number) is handler


def words() -> LastWords:
    assert isinstance(state.current, Capture)
    return state.current.spool.life.read()


@pytest.mark.parametrize(
    ("number", "is_stop"), [(signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGHUP, False)]
)
def test_a_signal_that_a_program_handles_itself(number: int, is_stop: bool, watched: Watched, handlers: None) -> None:
    """A SIGTERM is a stop that was asked for; what else it means is the program's affair, and so is who is served."""
    came: list[int] = []
    signal.signal(number, lambda number, frame: came.append(number))

    signal.raise_signal(number)

    assert came == [number]
    assert (words().stopping_ns > 0) is is_stop
    assert not requests.is_stopping


async def test_a_loop_that_handles_the_signal_is_asked_to_stop(watched: Watched, handlers: None) -> None:
    came = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, came.set)

    os.kill(os.getpid(), signal.SIGINT)

    await asyncio.wait_for(came.wait(), 5)
    loop.remove_signal_handler(signal.SIGINT)
    assert words().stopping_ns > 0


async def test_many_requests_that_are_cut_off_are_named_within_a_bound(watched: Watched) -> None:
    """The oldest of them, and the number of the rest."""
    scopes = [{"type": "http", "method": "GET", "path": f"/{number}/x", "headers": []} for number in range(25)]
    for scope in scopes:
        requests.entered(scope)

    late.name_late_requests()

    for scope in scopes:
        requests.left(scope)
    rows = await asyncio.to_thread(watched.rows)
    assert sum(row.count for row in rows) == late.MOST + 1
    assert {row.severity for row in rows} == {"medium"}
    assert "5 further requests were cut off when the stop ran out of time" in {row.message for row in rows}
