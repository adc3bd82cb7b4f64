"""`init` and `shutdown`: again and again, with anything wrong, without a trace."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

import tocsin
from tests.instrumentation.conftest import Watched, hooks_in_place
from tests.processes import rows_of, run_program
from tests.waiting import eventually
from tocsin.instrumentation import state


def descriptors() -> int:
    """How many are open for good; the drain opens files for a moment to look into them."""
    return min(len(os.listdir("/proc/self/fd")) for _ in range(200))


def test_init_twice_changes_nothing(unwatched: Watched) -> None:
    """Also where service and release are not named, but found."""
    tocsin.init(database_url=unwatched.database_url, spool_dir=str(unwatched.spool))
    first = (state.current, hooks_in_place())

    tocsin.init(database_url=unwatched.database_url, spool_dir=str(unwatched.spool))

    assert (state.current, hooks_in_place()) == first


def test_init_with_other_settings_goes_on_with_them(watched: Watched) -> None:
    tocsin.track_error("first")
    watched.init(service="another")
    tocsin.track_error("second")

    assert [(row.message, row.service) for row in watched.rows()] == [("first", "shop"), ("second", "another")]


def test_fifty_starts_leave_no_thread_and_no_descriptor(watched: Watched) -> None:
    watched.init(service="other")
    before, open_before = (threading.active_count(), hooks_in_place()), descriptors()

    for number in range(50):
        watched.init(service=f"shop-{number}")

    assert (threading.active_count(), hooks_in_place()) == before
    eventually(lambda: descriptors() <= open_before)  # the drain may be looking into its folder


def test_fifty_rounds_leave_nothing_at_all(unwatched: Watched) -> None:
    before, open_before = (threading.active_count(), hooks_in_place()), descriptors()

    for number in range(50):
        unwatched.init(service=f"shop-{number}")
        tocsin.shutdown()

    assert (threading.active_count(), hooks_in_place()) == before
    eventually(lambda: descriptors() <= open_before)  # the drain may be looking into its folder
    assert list(unwatched.spool.iterdir()) == []


def test_shutdown_stores_what_is_left(unwatched: Watched) -> None:
    unwatched.init()
    tocsin.track_error("last words")

    tocsin.shutdown(10)

    assert [row.message for row in rows_of(unwatched.database_url)] == ["last words"]
    assert list(unwatched.spool.iterdir()) == []


def test_shutdown_is_harmless_at_any_time() -> None:
    tocsin.shutdown()
    tocsin.shutdown()
    assert tocsin.flush() is True


def test_a_wrong_setting_is_said_and_its_default_holds(unwatched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    unwatched.init(log_level="loud", nonsense=1)
    tocsin.track_error("still here")

    said = capsys.readouterr().err
    assert "tocsin: log_level: give one of warning, error, critical\n" in said
    assert "nonsense: there is no such setting" in said.lower()
    assert unwatched.row().message == "still here"


def test_a_spool_that_cannot_be_made_is_replaced(
    unwatched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("")

    unwatched.init(spool_dir=str(tmp_path / "file" / "spool"))
    tocsin.track_error("still here")

    assert f"the spool folder {tmp_path}/file/spool cannot be used" in capsys.readouterr().err
    assert unwatched.row().message == "still here"


def test_errors_wait_where_the_database_is_away(unwatched: Watched, tmp_path: Path) -> None:
    """They are in the spool, and the next start with a database stores them."""
    (tmp_path / "file").write_text("")
    unwatched.init(database_url=f"sqlite:///{tmp_path}/file/tocsin.db")
    tocsin.track_error("waiting")
    tocsin.shutdown(0.2)
    assert len(list(unwatched.spool.glob("*.seg"))) == 1

    unwatched.init()

    eventually(lambda: [row.message for row in rows_of(unwatched.database_url)] == ["waiting"])


ENDS = {
    "return": ("", 0),
    "exit": ("import sys; sys.exit(3)", 3),
    "closed stderr": ("import sys, os; sys.stderr.close()", 0),
    "no stderr": ("import sys; sys.stderr = None", 0),
    "os exit": ("import os; os._exit(4)", 4),
    "a thread that goes on": ("import threading; threading.Thread(target=lambda: None).start()", 0),
}


@pytest.mark.parametrize("name", ENDS)
def test_however_a_program_ends_its_errors_are_stored(name: str, tmp_path: Path, sqlite_url: str) -> None:
    end, code = ENDS[name]

    done = run_program(tmp_path, f"import logging\nlogging.error('before the end')\n{end}\n", sqlite_url)

    assert done.returncode == code
    said = {row.message for row in rows_of(sqlite_url)}
    assert "before the end" in said
    assert len(said) == (2 if code else 1)  # to leave like that is an error of its own
    assert "Traceback" not in done.stderr


WATCHED = """
import os, sys
import tocsin
from tocsin.instrumentation import state

tocsin.init()
words = state.current.spool.life.read()
print(words.state.name, words.watcher_pid, {"TOCSIN_WATCHER", "TOCSIN_INSTANCE"} & os.environ.keys() or "nothing left")
tocsin.track_error("before the end")
if len(sys.argv) < 2:
    try:
        os.execv("/nowhere", ["nowhere"])
    except FileNotFoundError:
        print(state.current.spool.life.read().state.name, flush=True)
    tocsin.flush()
    os.execl(sys.executable, sys.executable, "program.py", "again")
"""


@pytest.mark.parametrize("is_parent", [True, False])
def test_a_process_knows_who_watches_it(is_parent: bool, tmp_path: Path, sqlite_url: str) -> None:
    """A parent that it is told of, also as another program; what is told of somebody else's parent is forgotten."""
    watcher = os.getpid() if is_parent else 1
    environ = {"TOCSIN_WATCHER": str(watcher), "TOCSIN_INSTANCE": INSTANCE}

    done = run_program(tmp_path, WATCHED, sqlite_url, command=(), environ=environ)

    first = f"ALIVE {watcher if is_parent else 0} nothing left"
    assert done.stdout.splitlines() == [first, "ALIVE", first], done.stderr
    rows = rows_of(sqlite_url)
    assert [row.message for row in rows] == ["before the end"] * 2
    assert [row.instance_id == INSTANCE for row in rows] == [is_parent] * 2


INSTANCE = "0190b5a0-0000-7000-8000-000000000001"
