"""What a parent tells of an end, put together with what the program left; and services that die again and again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tocsin.deaths import LOOP_DEATHS, Deaths, Told, line_of, loop_line, write
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.spool import adopt_orphans
from tocsin.model import ErrorRecord, Severity
from tocsin.settings import Settings

NOW_NS = 1_773_480_413_589_793_000
MINUTE_NS = 60 * 10**9
SOURCE = Source("shop", "production", None, None, None)
DUMP = 'Fatal Python error: Aborted\n\nCurrent thread 0x1 (most recent call first):\n  File "a.py", line 3 in f\n'
BARE = b'{"v": 1, "kind": "segment"}\n{"v": 1, "kind": "error", "id": "the bare one"}\n'


def told(folder: Path, **values: Any) -> Told:
    """A program killed by SIGKILL, unless told otherwise."""
    defaults: dict[str, Any] = {
        "how": "died",
        "is_told": False,
        "folder": folder,
        "stem": "00001773480413589793-7-0a0b0c0d",
        "error_id": "019c0000-0000-7000-8000-000000000001",
        "service": "shop",
        "command": ["/usr/bin/node", "app.js"],
        "pid": 4_000_000,
        "watcher": 7,
        "code": -9,
        "asked": [],
        "began_ns": NOW_NS - 90 * 10**9,
        "ended_ns": NOW_NS,
        "stopping_ns": 0,
        "oom_kills": 0,
        "has_core": False,
        "peak_bytes": 98 * 2**20,
        "memory_bytes": 0,
        "max_memory": 0,
        "is_forced": False,
        "grew": "",
        "stderr": b"",
    }
    return Told(**(defaults | values))


def decoded(line: bytes | None) -> ErrorRecord:
    assert line is not None
    entry = decode(json.loads(line), SOURCE)
    assert isinstance(entry, ErrorRecord)
    return entry


PROGRAM = """
import os, sys
from pathlib import Path
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool

spool = Spool(Path(sys.argv[1]), 2**20, {"resource": {"service.name": "shop"}, "started_ns": 1})
spool.life.set_state(State.ALIVE)
spool.life.set_watcher(7)
spool.life.set_active(3)
spool.life.note_memory(64 * 2**20, 1)
(Path(sys.argv[1]) / f"{spool.stem}.fault").write_text(sys.argv[2])
os._exit(0)
"""


def test_what_the_program_left_joins_what_its_parent_saw(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path), DUMP], check=True)
    left = list(adopt_orphans(tmp_path))

    found = decoded(line_of(told(tmp_path, code=-11, has_core=True), left))
    for orphan in left:
        orphan.release(everything_stored=True)

    assert found.message == "node app.js was killed by SIGSEGV"
    assert (found.id, found.severity) == ("019c0000-0000-7000-8000-000000000001", Severity.CRITICAL)
    expected = {
        "process.active_requests": 3,
        "process.memory_bytes": 64 * 2**20,
        "process.memory_peak_bytes": 98 * 2**20,
        "process.core_dumped": True,
        "process.uptime_s": 90.0,
    }
    assert {name: found.context[name] for name in expected} == expected
    assert [frame["function"] for frame in found.context["tocsin.frames"]] == ["f"]


def test_a_dump_on_stderr_is_as_good_as_one_in_a_file(tmp_path: Path) -> None:
    """Where the program, or who runs it, has switched faulthandler on by itself."""
    found = decoded(line_of(told(tmp_path, code=-signal.SIGABRT, stderr=DUMP.encode()), []))

    assert [frame["function"] for frame in found.context["tocsin.frames"]] == ["f"]


def test_a_stop_that_took_too_long_is_a_note(tmp_path: Path) -> None:
    asked = {"how": "late", "asked": [signal.SIGTERM], "stopping_ns": NOW_NS - 12 * 10**9}

    found = decoded(line_of(told(tmp_path, **asked), []))

    assert (found.severity, found.message) == (Severity.MEDIUM, "node app.js: stop ran out of time after 12 s")


@pytest.mark.parametrize(
    ("is_forced", "how"), [(False, "stopped"), (True, "killed, since it did not stop")], ids=["orderly", "by force"]
)
def test_too_much_memory_is_said_with_reading_and_limit(is_forced: bool, how: str, tmp_path: Path) -> None:
    memory = {"how": "restarted", "code": -15, "memory_bytes": 312 * 2**20, "max_memory": 300 * 2**20}

    found = decoded(line_of(told(tmp_path, is_forced=is_forced, **memory), []))

    assert (found.exception_type, found.severity) == ("MemoryLimit", Severity.MEDIUM)
    assert found.message == f"node app.js took 312 MB of memory, more than 300 MB: {how}, and started again"
    assert found.context["process.memory_bytes"] == 312 * 2**20
    assert found.context["process.memory_limit_bytes"] == 300 * 2**20
    assert found.context["process.uptime_s"] == 90.0


def test_what_grew_is_said_and_makes_no_other_group(tmp_path: Path) -> None:
    """As the program has said it of itself, while it could; a secret in a name of its is none here."""
    memory = {"how": "restarted", "code": -15, "memory_bytes": 312 * 2**20, "max_memory": 300 * 2**20}
    grew = "shop.Order by 118,204; the list shop.KEPT has 118,204 items (shop.Order)\npassword=hunter2hunter2"

    found, bare = (decoded(line_of(told(tmp_path, grew=said, **memory), [])) for said in (grew, ""))

    assert "; grew most: shop.Order by 118,204; the list shop.KEPT has 118,204 items" in found.message
    assert found.context["process.memory_grew"].startswith("shop.Order by 118,204")
    assert "hunter2" not in found.message + str(found.context)
    assert "\n" not in found.message
    assert found.fingerprint == bare.fingerprint


def test_what_grew_is_said_where_the_kernel_killed_for_want_of_memory(tmp_path: Path) -> None:
    """A `kill -9` by somebody has nothing to do with it: then it stands in the context alone."""
    grew = "shop.Order by 118,204"

    found, bare, other = (
        decoded(line_of(told(tmp_path, code=-9, oom_kills=kills, grew=said), []))
        for kills, said in ((1, grew), (1, ""), (0, grew))
    )

    assert found.message == "node app.js was killed by SIGKILL (out of memory); grew most: shop.Order by 118,204"
    assert found.fingerprint == bare.fingerprint
    assert other.message == "node app.js was killed by SIGKILL"
    assert other.context["process.memory_grew"] == grew


def test_the_fuller_line_takes_the_place_of_the_bare_one(tmp_path: Path) -> None:
    """Under the parent's lock, by one rename, with the same id."""
    one = told(tmp_path)
    path = tmp_path / f"{one.stem}.0001.seg"
    path.write_bytes(BARE)

    write(one, Settings())

    head, line = path.read_bytes().splitlines()
    assert head == BARE.splitlines()[0]
    assert json.loads(line)["id"] == one.error_id
    assert json.loads(line)["body"] == "node app.js was killed by SIGKILL"


def test_what_the_program_has_told_by_itself_is_not_told_again(tmp_path: Path) -> None:
    one = told(tmp_path, code=1, is_told=True)
    path = tmp_path / f"{one.stem}.0001.seg"
    path.write_bytes(BARE)

    write(one, Settings())

    assert path.read_bytes().splitlines() == BARE.splitlines()[:1]


# Again and again.


def died_at(*minutes: float) -> tuple[Deaths, list[float]]:
    """Deaths at some minutes, and when it was told that they are a loop."""
    deaths, told_at = Deaths(), []
    for minute in minutes:
        deaths, is_to_tell = deaths.with_one(NOW_NS + int(minute * MINUTE_NS))
        if is_to_tell:
            told_at.append(minute)
        deaths = Deaths.read(deaths.written())
    return deaths, told_at


@pytest.mark.parametrize(
    ("minutes", "told_at"),
    [
        ((0, 1, 2, 3), []),
        ((0, 1, 2, 3, 4), [4]),
        ((0, 0.1, 0.4, 0.2, 0.3), [0.3]),  # at once, and told in any order
        ((0, 3, 6, 9, 12), []),  # five, but not within ten minutes
        ((0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15), [4]),  # still the same
        (tuple(range(100)), [4]),
        (tuple(number * 2.2 for number in range(50)), [8.8]),
        ((0, 1, 2, 3, 4, 30, 31, 32, 33, 34), [4, 34]),  # it has run calmly in between
        ((0, 1, 2, 3, 4, -600, -599, -598, -597, -596), [4, -596]),  # somebody has set the clock
    ],
)
def test_a_loop_is_told_once_until_it_has_run_calmly(minutes: tuple[float, ...], told_at: list[float]) -> None:
    assert died_at(*minutes)[1] == told_at


def test_a_loop_keeps_little() -> None:
    deaths, _ = died_at(*(number / 100 for number in range(500)))

    assert len(deaths.written()) < 2_000


@pytest.mark.parametrize("text", ["", "[]", "{", '{"times_ns": 7}', '{"times_ns": ["x"], "is_told": 1}', "null"])
def test_a_broken_file_of_deaths_counts_for_nothing(text: str) -> None:
    assert Deaths.read(text) == Deaths()


def test_a_loop_is_critical_and_says_how_often_and_why(tmp_path: Path) -> None:
    deaths, _ = died_at(0, 0.5, 1, 2, 3)

    found = decoded(loop_line(told(tmp_path, code=3), deaths))

    assert (found.exception_type, found.severity) == ("CrashLoop", Severity.CRITICAL)
    assert found.message == "shop died 5 times in 3 min; last: exited with code 3"


def test_loops_are_one_group_apart_from_the_deaths(tmp_path: Path) -> None:
    groups = {
        decoded(loop_line(told(tmp_path, code=3), died_at(*minutes)[0])).fingerprint for minutes in ((0,), (0, 7))
    }

    assert len(groups) == 1
    assert groups.isdisjoint({decoded(line_of(told(tmp_path, code=3), [])).fingerprint})


def test_deaths_are_counted_where_the_spool_is_whoever_starts_the_service(tmp_path: Path) -> None:
    """Each by a parent of its own, as under PM2; another service has its own count."""
    loops = []
    for number in range(LOOP_DEATHS + 1):
        for service in ("shop", "other")[: 1 + number % 2]:
            one = told(tmp_path, service=service, ended_ns=NOW_NS + number, code=1, is_told=True)
            path = tmp_path / f"{one.stem}.0001.seg"
            path.write_bytes(BARE)
            write(one, Settings())
            loops += [(service, number)] * (len(path.read_bytes().splitlines()) - 1)

    assert loops == [("shop", LOOP_DEATHS - 1)]
