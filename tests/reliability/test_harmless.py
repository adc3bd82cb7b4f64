"""tocsin takes nothing for itself that it does not give back: threads, descriptors, memory, and time at the end."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import environment_of, rows_of

RELOADS = r"""
import gc, json, os, sys, threading, time
import tocsin
from tocsin.contained import own_threads


def state():
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    memory = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"threads": threading.active_count(), "descriptors": descriptors, "memory": memory, "own": len(own_threads)}


def reload(number):
    tocsin.init(service=f"shop-{number % 2}")  # another setting each time: nothing of the old may stay


times, failing = int(sys.argv[1]), int(sys.argv[2])
for number in range(max(100, times // 10)):
    reload(number)
before = state()
for number in range(times):
    reload(number)
    if failing and number % failing == 0:
        tocsin.track_error(ValueError(number))
after = state()
hooks = sys.excepthook, threading.excepthook, sys.unraisablehook, os._exit
tocsin.shutdown()
print(json.dumps({"before": before, "after": after, "left": [one.__name__ for one in hooks]}))
"""


def reloads(folder: Path, url: str, times: int, failing: int) -> dict[str, dict[str, int]]:
    (folder / "reloads.py").write_text(RELOADS)
    done = subprocess.run(
        [sys.executable, "reloads.py", str(times), str(failing)],
        cwd=folder,
        env=environment_of(folder, url),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_thousand_reloads_leave_nothing_behind(tmp_path: Path, sqlite_url: str) -> None:
    found = reloads(tmp_path, sqlite_url, 1000, 0)

    before, after = found["before"], found["after"]
    assert after["threads"] == before["threads"] == 3
    assert abs(after["descriptors"] - before["descriptors"]) <= 2  # a reload under way
    assert after["own"] <= 2
    assert after["memory"] - before["memory"] < 2 * 2**20
    assert list((tmp_path / "spool").glob("*")) == []


@pytest.mark.gate
def test_reloads_with_errors_leave_nothing_behind(tmp_path: Path, sqlite_url: str) -> None:
    """Each has a connection of its own to the database, and lets go of it."""
    found = reloads(tmp_path, sqlite_url, 1000, 5)

    before, after = found["before"], found["after"]
    assert after["threads"] == before["threads"] == 3
    assert abs(after["descriptors"] - before["descriptors"]) <= 2
    assert after["memory"] - before["memory"] < 48 * 2**20  # SQLAlchemy comes with the first error
    assert sum(row.count for row in rows_of(sqlite_url)) == 200


ENDS = r"""
import sys, threading, time
import tocsin

tocsin.init(service="shop")
def fail():
    raise ValueError("last words")
for _ in range(5):
    try:
        fail()
    except ValueError as error:
        tocsin.track_error(error)
print(time.monotonic(), flush=True)
"""


@pytest.mark.parametrize("where", ["server", "database", "postgresql"])
def test_an_end_with_everything_unreachable_takes_two_seconds_at_most(
    tmp_path: Path, sqlite_url: str, where: str
) -> None:
    """Somebody takes the connection and never says a word; what was captured waits on disk."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://u:p@127.0.0.1:{port}/d" if where == "postgresql" else sqlite_url
        more = {"TOCSIN_ENDPOINT": f"http://127.0.0.1:{port}"} if where == "server" else {}
        if where == "database":
            url = f"sqlite:///{tmp_path}/missing/tocsin.db"
            (tmp_path / "missing").write_text("")
        (tmp_path / "ends.py").write_text(ENDS)
        with subprocess.Popen(
            [sys.executable, "ends.py"],
            cwd=tmp_path,
            env=environment_of(tmp_path, url, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            last_line = float(process.stdout.readline())
            assert process.wait(20) == 0
            took_s = time.monotonic() - last_line

    assert took_s < 2.5  # half a second for a busy machine
    waiting = b"".join(path.read_bytes() for path in (tmp_path / "spool").glob("*.seg"))
    assert waiting.count(b"last words") >= 3
