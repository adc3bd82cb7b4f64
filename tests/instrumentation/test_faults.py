"""A fatal signal: where the process was stands in the error, and faulthandler stays whose it was."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.processes import rows_of, run_program

START = """
import ctypes, faulthandler, os, signal, sys, time
from pathlib import Path
spool = Path(os.environ["TOCSIN_SPOOL_DIR"])
import tocsin
tocsin.init(service="shop")
def files():
    return sorted(path.suffix for path in spool.iterdir())
def thumbnail():
    ctypes.string_at(0)
"""


@pytest.mark.parametrize(
    ("crash", "name", "function"),
    [("thumbnail()", "SIGSEGV", "thumbnail"), ("os.abort()", "SIGABRT", "<module>")],
)
def test_a_crash_is_told_with_the_place_where_it_happened(
    sqlite_url: str, tmp_path: Path, crash: str, name: str, function: str
) -> None:
    done = run_program(tmp_path, START + crash, sqlite_url, command=())
    assert done.returncode == -signal.Signals[name]

    (row,) = rows_of(sqlite_url)
    assert row.message == f"shop crashed by {name} (likely)"
    assert row.severity == "critical"
    assert [frame["function"] for frame in row.context["tocsin.frames"] if frame["in_app"]][-1] == function
    assert "most recent call first" in row.stack
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_child_does_not_write_to_its_parents_file(sqlite_url: str, tmp_path: Path) -> None:
    """Else the parent's end in order would be a crash, or its own crash that of a child."""
    program = """
child = os.fork()
if child == 0:
    thumbnail()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
(fault,) = spool.glob("*.fault")
assert fault.stat().st_size == 0
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_program(tmp_path, START + program, sqlite_url, command=())

    (row,) = rows_of(sqlite_url)
    assert "ended without a word" in row.message


@pytest.mark.parametrize(
    ("program", "environ"),
    [
        ("tocsin.shutdown(); assert faulthandler.is_enabled()\n", {"PYTHONFAULTHANDLER": "1"}),
        ("faulthandler.enable()\n", {}),
        ("faulthandler.enable(); tocsin.init(service='other')\n", {}),
    ],
    ids=["before", "after", "after, and another start"],
)
def test_who_has_enabled_it_keeps_it(sqlite_url: str, tmp_path: Path, program: str, environ: dict[str, str]) -> None:
    done = run_program(tmp_path, START + program + "thumbnail()", sqlite_url, command=(), environ=environ)

    assert "Segmentation fault" in done.stderr and "in thumbnail" in done.stderr


def test_a_program_that_ends_in_order_leaves_nothing(sqlite_url: str, tmp_path: Path) -> None:
    program = """
assert files() == [".fault", ".live", ".seg"], files()

def descriptors():
    return len(os.listdir("/proc/self/fd"))

# At rest: a thread of ours that starts has files open for a moment.
def at_rest(wanted):
    until = time.monotonic() + 10
    while descriptors() != wanted and time.monotonic() < until:
        time.sleep(0.01)
    return descriptors()

before = min(descriptors() for _ in range(5000))
for _ in range(3):
    tocsin.init(service="other")
    tocsin.init(service="shop")
assert files() == [".fault", ".live", ".seg"], files()
assert at_rest(before) == before
tocsin.shutdown()
assert not faulthandler.is_enabled()
assert files() == []
tocsin.init(service="shop")
assert files() == [".fault", ".live", ".seg"], files()
"""
    done = run_program(tmp_path, START + program, sqlite_url, command=())

    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_cleaned_folder_gets_its_file_again(sqlite_url: str, tmp_path: Path) -> None:
    program = """
import time
for path in spool.iterdir():
    path.unlink()
until = time.monotonic() + 10
while ".fault" not in files() and time.monotonic() < until:
    time.sleep(0.02)
thumbnail()
"""
    run_program(tmp_path, START + program, sqlite_url, command=())

    (row,) = rows_of(sqlite_url)
    assert row.message == "shop crashed by SIGSEGV (likely)"
