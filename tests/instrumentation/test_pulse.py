"""The thread that looks at this process twice a second."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tocsin
from tests.instrumentation.conftest import Watched
from tests.standin.otlp import Answer, OtlpStandIn
from tests.waiting import eventually
from tocsin.contained import failures, own_threads
from tocsin.exporter.spool import Spool
from tocsin.instrumentation import state
from tocsin.instrumentation.capture import Capture
from tocsin.instrumentation.pulse import Pulse


def seen_ns() -> int:
    """When this process has said last that it lives."""
    assert isinstance(state.current, Capture)
    return state.current.spool.life.read().seen_ns


@pytest.fixture
def server() -> Iterator[OtlpStandIn]:
    with OtlpStandIn() as server:
        yield server


def pulses() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tocsin-pulse"]


@contextmanager
def beating(folder: Path, *chores: Callable[[], None], every_s: float = 0.01) -> Iterator[Spool]:
    """A pulse of its own, and the spool that it beats for."""
    spool = Spool(folder / "spool", 2**30, {"resource": {}})
    pulse = Pulse(spool, chores, every_s=every_s)
    pulse.start()
    try:
        yield spool
    finally:
        pulse.end()
        spool.close(everything_stored=True)


def test_a_process_says_that_it_lives_while_its_drain_waits_for_a_database(unwatched: Watched) -> None:
    """It takes the connection, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        unwatched.init(database_url=f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/d")
        tocsin.track_error("waiting")
        connection, _ = silent.accept()

        first_ns = seen_ns()
        eventually(lambda: seen_ns() > first_ns)

        silent.close()
        connection.close()
        tocsin.shutdown(5)


def test_a_process_says_that_it_lives_through_any_pause_that_a_server_asks_for(
    unwatched: Watched, server: OtlpStandIn
) -> None:
    server.next(Answer(status=503, headers={"Retry-After": "3600"}))
    unwatched.init(endpoint=server.address)
    tocsin.track_error("waiting")
    eventually(lambda: server.requests)

    first_ns = seen_ns()
    eventually(lambda: seen_ns() > first_ns)


def test_a_process_has_one_which_ends_with_its_watching(unwatched: Watched) -> None:
    unwatched.init()
    unwatched.init(service="another")
    first = pulses()

    tocsin.shutdown()

    assert len(first) == 1
    assert pulses() == []
    assert own_threads == set()


def test_a_chore_that_fails_or_takes_long_is_no_harm_to_the_others(tmp_path: Path) -> None:
    """One that took long twice rests: it may have a twentieth of the time."""
    done = []
    slow = []

    def fail() -> None:
        raise ValueError("broken")

    def take_long() -> None:
        slow.append(time.monotonic())
        threading.Event().wait(0.05)

    with beating(tmp_path, fail, take_long, lambda: done.append(1)):
        eventually(lambda: len(done) >= 10)

    assert len(slow) == 2
    assert failures.pop("looking after this process") >= 10


def test_a_process_that_is_stopping_says_more_often_that_it_lives(tmp_path: Path) -> None:
    beats: list[float] = []

    with beating(tmp_path, lambda: beats.append(time.monotonic()), every_s=0.3) as spool:
        spool.life.note_stopping(1)
        eventually(lambda: len(beats) >= 4)

    assert beats[3] - beats[2] < 0.3


def test_a_forked_child_gets_one_of_its_own_with_its_first_error(watched: Watched) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = len(pulses())
            tocsin.track_error("of the child")
            os.write(write, f"{before} {len(pulses())}".encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(child, 0)
    assert os.read(read, 10) == b"0 1"
    os.close(read)
    os.close(write)
    assert len(pulses()) == 1
