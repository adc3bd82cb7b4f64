"""What a process says of its own life: there for whoever comes after it, and worth what a file is worth."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tocsin.exporter import life
from tocsin.exporter.life import LastWords, Life, State, last_words

MOST = 2**64 - 1


def cells() -> memoryview[int]:
    return memoryview(bytearray(64)).cast("Q")


def silence() -> Life:
    """One that has said nothing."""
    return Life(cells(), cells())


def test_what_was_said_is_what_is_read() -> None:
    said = silence()

    said.set_active(3)
    said.note_memory(98_000_000, 1_700_000_000_000_000_000)
    said.note_stopping(7)
    said.note_stopping(8)
    said.set_watcher(4711)
    said.set_state(State.LEFT, 300)
    said.note_loop_lag(0.4)
    said.note_limit(512 * 2**20)
    said.note_trend(-12_000_000.5)

    assert said.read() == LastWords(
        active_requests=3,
        memory_bytes=98_000_000,
        seen_ns=1_700_000_000_000_000_000,
        stopping_ns=7,  # the first time counts
        state=State.LEFT,
        exit_code=300 & 0xFF,
        watcher_pid=4711,
        loop_lag_ms=0,  # a loop that is never late is not one of which nothing is known
        memory_limit_bytes=512 * 2**20,
        memory_trend=-12_000_000,
    )


def test_what_was_never_said_is_not_known() -> None:
    words = silence().read()

    assert (words.loop_lag_ms, words.memory_limit_bytes, words.memory_trend) == (None, None, None)


def test_a_memory_that_does_not_grow_is_known_not_to() -> None:
    said = silence()

    said.note_trend(0)

    assert said.read().memory_trend == 0


def test_figures_beyond_all_measure_are_said_as_far_as_they_go() -> None:
    said = silence()

    said.note_loop_lag(1e30)
    said.note_limit(2**70)
    said.note_trend(-1e30)

    words = said.read()
    assert (words.loop_lag_ms, words.memory_limit_bytes, words.memory_trend) == (2**31 - 1, 2**53 - 1, 1 - 2**53)


def test_who_takes_the_place_of_another_says_the_same() -> None:
    first, second = silence(), silence()
    first.set_active(3)
    first.set_state(State.ALIVE)
    first.note_stopping(7)
    first.note_loop_lag(3)
    first.note_limit(4)
    first.note_trend(5)

    second.take_over(first)

    assert second.read() == first.read()


@pytest.mark.parametrize("value", [99, 0xFF, State.ALIVE | 1 << 16, MOST], ids=hex)
def test_a_state_that_nobody_writes_means_nothing(value: int) -> None:
    found = cells()
    found[life.STATE] = value

    assert last_words(found).state == State.UNMARKED


def test_figures_that_cannot_be_are_not_known() -> None:
    """A database would refuse them, and with them the row."""
    chance = random.Random(3)
    for _ in range(1000):
        found, more = cells(), cells()
        for at in range(8):
            for some in (found, more):
                some[at] = chance.choice([0, 1, MOST, 2**63, chance.getrandbits(64), chance.getrandbits(40)])
        words = last_words(found, more)
        assert words.active_requests < 2**31
        assert words.memory_bytes < 2**63
        assert max(words.seen_ns, words.stopping_ns) < 2**63
        assert words.watcher_pid < 2**31
        assert (words.loop_lag_ms or 0) < 2**31
        assert max(words.memory_limit_bytes or 0, abs(words.memory_trend or 0)) < 2**53


def test_a_process_is_told_from_another_with_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert life.is_there(other.pid)
        assert life.start_ticks(other.pid) == life.start_ticks(other.pid) is not None
        assert life.start_ticks(other.pid) != life.start_ticks(os.getpid())
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert not life.is_there(other.pid)  # a zombie is none
    assert not life.is_there(other.pid)
    assert life.start_ticks(other.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_what_the_system_says_of_itself_is_read() -> None:
    memory = life.resident_bytes()
    booted_ns = life.boot_time_ns()

    assert memory is not None and memory > 2**20
    assert booted_ns is not None and booted_ns > 10**18
    assert life.birth_marks().keys() == {"boot_id", "start_ticks"}
