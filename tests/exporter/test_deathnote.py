"""From what is known of the end of a process to one error, or none."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tocsin.exporter.deathnote import Evidence, as_line, judge, parse_dump
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.life import LastWords, State
from tocsin.exporter.spool import LINE_BYTES
from tocsin.ids import uuid7
from tocsin.model import ErrorRecord, Severity

BEGAN_NS = 1_773_480_000_000_000_000
ENDED_NS = BEGAN_NS + 90_000_000_000
SOURCE = Source("shop", "production", None, None, None)

DUMP = """\
Fatal Python error: Segmentation fault

Thread 0x00007f5635ae26c0 (most recent call first):
  File "/srv/shop/worker.py", line 5 in other
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f5636660b80 [shop] (most recent call first):
  File "/usr/lib/python3.11/ctypes/__init__.py", line 519 in string_at
  File "/srv/shop/images.py", line 3 in thumbnail
  File "/srv/shop/app.py", line 7 in <module>

Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python3.14", at _PyErr_Display+0x10

Extension modules: PIL._imaging, numpy.core (total: 2)
"""


def words(state: State = State.ALIVE, **values: int) -> LastWords:
    figures = {"active_requests": 0, "memory_bytes": 0, "seen_ns": 0, "stopping_ns": 0, "exit_code": 0}
    return LastWords(state=state, **(figures | {"watcher_pid": 0} | values))


def evidence(**values: Any) -> Evidence:
    defaults: dict[str, Any] = {"error_id": uuid7(), "service": "shop", "began_ns": BEGAN_NS, "ended_ns": ENDED_NS}
    return Evidence(**(defaults | values))


def error(**values: Any) -> ErrorRecord:
    """The end as it is stored."""
    line = as_line(evidence(**values))
    assert line is not None
    entry = decode(json.loads(line), SOURCE)
    assert isinstance(entry, ErrorRecord)
    return entry


ASKED_NS = ENDED_NS - 12_000_000_000
KILLED = "shop ended without a word: likely killed (SIGKILL, or for want of memory)"


@pytest.mark.parametrize(
    ("known", "how", "severity", "message"),
    [
        ({"words": None}, None, None, ""),
        ({"words": words(State.UNMARKED)}, None, None, ""),
        ({"words": words(State.ENDED)}, "ended", None, ""),
        ({"words": words(State.ENDED, stopping_ns=ASKED_NS)}, "stopped", None, ""),
        ({"words": words(State.LEFT)}, "left: 0", None, ""),
        ({"words": words(State.LEFT, exit_code=9)}, "left: 9", "critical", "shop was left by os._exit(9)"),
        ({"words": words(State.LEFT, exit_code=9, stopping_ns=ASKED_NS)}, "left: 9", None, ""),
        ({"words": words()}, "killed", "critical", KILLED),
        ({"words": words(), "dump": DUMP}, "crashed: SIGSEGV", "critical", "shop crashed by SIGSEGV (likely)"),
        (
            {"words": words(stopping_ns=ASKED_NS), "dump": DUMP},
            "crashed: SIGSEGV",
            "critical",
            "shop crashed by SIGSEGV (likely)",
        ),
        (
            {"words": words(stopping_ns=ASKED_NS)},
            "stopped late",
            "medium",
            "shop: stop ran out of time after 12 s",
        ),
        (
            {"words": words(stopping_ns=ASKED_NS), "dump": DUMP.replace("Segmentation fault", "Aborted")},
            "stopped late",
            "medium",
            "shop: stop ran out of time after 12 s",
        ),
        ({"words": words(stopping_ns=ENDED_NS - 20 * 60 * 10**9)}, "killed", "critical", KILLED),  # it went on living
        (
            {"words": words(stopping_ns=ENDED_NS + 1)},
            "stopped late",
            "medium",
            "shop: stop ran out of time after 0 s",
        ),
        (
            {"words": words(), "with_machine": True},
            "lost with the machine",
            "critical",
            "shop ended without a word: likely with the machine, which has restarted since",
        ),
        ({"code": 0}, "ended", None, ""),
        ({"code": 3}, "exited: 3", "critical", "shop exited with code 3"),
        ({"code": 143, "asked": [signal.SIGTERM]}, "stopped", None, ""),
        ({"code": -15, "asked": [signal.SIGTERM]}, "stopped", None, ""),
        ({"code": -15}, "killed: SIGTERM", "medium", "shop was killed by SIGTERM"),
        ({"code": -9}, "killed: SIGKILL", "critical", "shop was killed by SIGKILL (out of memory?)"),
        ({"code": -9, "oom_kills": 0}, "killed: SIGKILL", "critical", "shop was killed by SIGKILL"),
        ({"code": -9, "oom_kills": 1}, "killed: SIGKILL", "critical", "shop was killed by SIGKILL (out of memory)"),
        (
            {"code": -9, "asked": [signal.SIGTERM], "stopping_ns": ASKED_NS},
            "stopped late",
            "medium",
            "shop: stop ran out of time after 12 s",
        ),
        (
            {"code": -11, "asked": [signal.SIGTERM]},
            "crashed: SIGSEGV",
            "critical",
            "shop was killed by SIGSEGV after SIGTERM",
        ),
        (
            {"code": -6, "command": ["/usr/bin/node", "app.js", "--token=abcdefgh123"]},
            "crashed: SIGABRT",
            "critical",
            "node app.js --token=[scrubbed] was killed by SIGABRT",
        ),
    ],
)
def test_an_end_is_said_as_it_was(known: dict[str, Any], how: str, severity: str | None, message: str) -> None:
    """By whoever finds it: the parent that has seen the exit code, or who has only what was left."""
    verdict = judge(evidence(**known))

    assert (verdict.how, verdict.severity, verdict.message) == (how, severity, message)
    assert (as_line(evidence(**known)) is None) == (severity is None)


def test_one_way_to_die_is_one_group() -> None:
    """Whatever its figures are, and other ways are others."""
    late = [error(words=words(stopping_ns=ENDED_NS - seconds * 10**9)) for seconds in (5, 70)]
    killed = [error(words=words(memory_bytes=number)) for number in (1, 2)]
    crashed = [error(words=words(), dump=text) for text in (DUMP, DUMP.replace("line 3", "line 33"))]

    prints = [{one.fingerprint for one in some} for some in (late, killed, crashed)]
    assert [len(one) for one in prints] == [1, 1, 1]
    assert len(set.union(*prints)) == 3


def test_the_evidence_stands_in_the_error() -> None:
    alive = words(active_requests=3, memory_bytes=98_000_000, stopping_ns=0)
    found = error(words=alive, dump=DUMP)

    assert found.severity == Severity.CRITICAL
    assert found.exception_type == "ProcessExit"
    expected = {
        "process.uptime_s": 90.0,
        "process.memory_bytes": 98_000_000,
        "process.active_requests": 3,
        "process.exit.signal": "SIGSEGV",
    }
    assert {key: found.context.get(key) for key in expected} == expected
    assert found.stack is not None
    assert found.stack.index("images.py") < found.stack.index("worker.py")  # what failed, first
    assert found.culprit == "shop.images in thumbnail"
    shown = [(frame["module"], frame["line"], frame["in_app"]) for frame in found.context["tocsin.frames"]]
    assert shown == [("shop.app", 7, True), ("shop.images", 3, True), ("ctypes", 519, False)]


def test_a_code_that_was_left_with_is_told() -> None:
    assert error(words=words(State.LEFT, exit_code=9)).context["process.exit.code"] == 9


def test_what_has_come_to_stderr_counts_where_a_parent_has_read_it() -> None:
    said = b"Traceback (most recent call last):\n  File \"a.py\", line 1, in <module>\nKeyError: 'x'\n"

    assert error(code=1, stderr=said).exception_type == "KeyError"
    found = error(code=-6, stderr=b"\x1b[31mpanic: out of luck\x1b[0m password=hunter22\n")
    assert found.message == "shop was killed by SIGABRT: panic: out of luck password=[scrubbed]"
    assert "hunter22" not in json.dumps(found.context)


@pytest.mark.parametrize("uptime", [(0, ENDED_NS), (ENDED_NS + 1, ENDED_NS)], ids=["not known", "a clock went back"])
def test_no_uptime_is_better_than_a_wrong_one(uptime: tuple[int, int]) -> None:
    found = error(words=words(), began_ns=uptime[0], ended_ns=uptime[1])

    assert "process.uptime_s" not in found.context


def test_a_dump_as_the_interpreter_writes_it_is_read(tmp_path: Path) -> None:
    program = """
import ctypes, faulthandler, sys
file = open(sys.argv[1], "w")
faulthandler.enable(file, all_threads=True)
def inner():
    ctypes.string_at(0)
def outer():
    inner()
outer()
"""
    (tmp_path / "p.py").write_text(program)
    dump = tmp_path / "dump"
    done = subprocess.run([sys.executable, str(tmp_path / "p.py"), str(dump)], check=False)
    assert done.returncode == -signal.SIGSEGV

    found = parse_dump(dump.read_text())

    assert found.signal == "SIGSEGV"
    assert [frame.function for frame in found.frames if frame.in_app] == ["<module>", "outer", "inner"]


def test_a_hostile_dump_makes_a_line_all_the_same() -> None:
    """It is a file on a disk: cut, doubled, shuffled, of any size, with secrets in it."""
    chance = random.Random(7)
    pieces = [*DUMP.split("\n"), "Fatal Python error: Aborted", "\0\x1b[2J\u202e", "  File", '"' * 3000, "x" * 70_000]
    pieces += [
        '  File "' + "a" * 900 + '", line 99999999999999999999 in x',
        "Thread 0x" + "f" * 500,
        "\U0001f600" * 9999,
    ]
    for _ in range(150):
        dump = "\n".join(chance.choices(pieces, k=chance.randrange(1, 60)))
        line = as_line(evidence(words=words(), dump=dump, stderr=dump.encode()[:16384]))
        assert line is not None
        assert len(line) <= LINE_BYTES
        assert line.count(b"\n") == 1
        assert isinstance(decode(json.loads(line), SOURCE), ErrorRecord)
    secret = DUMP.replace("thumbnail", "password=hunter22")
    assert b"hunter22" not in (as_line(evidence(words=words(), dump=secret)) or b"")
