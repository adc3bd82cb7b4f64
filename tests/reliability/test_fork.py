"""
Forks under load, each while another thread holds one of our locks: the child captures all the same.

The program finds the locks by itself: whatever lock object hangs on a module, a spool, a drain or a capture of
ours is held for some of the forks, so that a lock added later is tried too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import drain_rest, environment_of, rows_of

PROGRAM = r"""
import collections, contextlib, gc, itertools, json, logging, os, signal, sys, threading, time, types, _thread
import tocsin

tocsin.init(service="forks")
from tocsin.instrumentation import state

LOCKS = (_thread.LockType, type(threading.RLock()))


def locks():
    "Each lock of ours, with its name: of modules, and of what captures."
    seen, found = set(), {}
    waiting = collections.deque(
        (name, module) for name, module in list(sys.modules.items()) if name.split(".")[0] == "tocsin"
    )
    waiting.append(("current", state.current))
    while waiting:
        name, thing = waiting.popleft()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        fields = dict(getattr(thing, "__dict__", {}))
        for slot in getattr(type(thing), "__slots__", ()):
            if isinstance(slot, str) and hasattr(thing, slot):
                fields[slot] = getattr(thing, slot)
        for key, value in fields.items():
            if isinstance(value, LOCKS):
                found[f"{name}.{key}"] = value
            elif type(value).__module__.split(".")[0] == "tocsin" and not isinstance(value, type):
                waiting.append((f"{name}.{key}", value))
    return found


def fail(number):
    raise ValueError(number)


def load(stop):
    for number in itertools.count():
        if stop.is_set():
            return
        try:
            fail(number)
        except ValueError as error:
            tocsin.track_error(error)
        logging.getLogger("load").error("no %s", number)


def hold(lock, held, done):
    # The drain waits at one of its locks, which is so most of the time: then it is held already.
    mine = lock.acquire(timeout=0.2)
    held.set()
    done.wait(5)
    if mine:
        with contextlib.suppress(RuntimeError):  # of a lock that wakes somebody, and was let go for that
            lock.release()


def child(number):
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(10)
    begin = time.monotonic()
    try:
        raise KeyError(f"child {number}")
    except KeyError as error:
        id = tocsin.track_error(error, "high")
    seconds = time.monotonic() - begin
    os._exit(0 if id and seconds < limit_s else 1)


stop = threading.Event()
for _ in range(2):
    threading.Thread(target=load, args=(stop,), daemon=True).start()
times, limit_s = int(sys.argv[1]), int(sys.argv[2])
outcomes, names = collections.Counter(), set()
bad = []
known = list(locks().items())
for number in range(times):
    name, lock = known[number % len(known)]
    names.add(name)
    held, done = threading.Event(), threading.Event()
    holder = threading.Thread(target=hold, args=(lock, held, done))
    holder.start()
    held.wait()
    pid = os.fork()
    if pid == 0:
        child(number)
    done.set()
    holder.join()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        bad.append((name, code))
stop.set()
print(json.dumps({"bad": bad, "names": sorted(names)}))
"""


@pytest.mark.parametrize(
    ("times", "limit_s"),
    [
        (50, 4),  # beside other tests, and as many processes as they have
        pytest.param(1000, 1, marks=pytest.mark.gate),
    ],
)
def test_a_forked_child_captures_whatever_lock_was_held(
    tmp_path: Path, sqlite_url: str, times: int, limit_s: int
) -> None:
    """Within a second, without a deadlock, and stored once; nothing of the parent's is stored twice."""
    (tmp_path / "forks.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "forks.py", str(times), str(limit_s)],
        cwd=tmp_path,
        env=environment_of(tmp_path, sqlite_url),
        capture_output=True,
        text=True,
        timeout=60 + times / 4,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["bad"] == []
    assert {"tocsin.exporter.spool._adopting", "current.spool._rotating"} <= set(said["names"])
    drain_rest(tmp_path, sqlite_url)
    rows = rows_of(sqlite_url)
    children = [row.message for row in rows if row.exception_type == "KeyError"]
    assert sorted(children) == sorted(f"'child {number}'" for number in range(times))
    others = [
        f"{row.message}\n{row.stack}" for row in rows if row.exception_type not in ("KeyError", "ValueError", None)
    ]
    assert others == []
