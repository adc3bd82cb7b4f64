"""How the living are stands in their rows, though none of them opens the database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.waiting import eventually
from tocsin.exporter import kept
from tocsin.exporter.database import Database
from tocsin.exporter.drain import adopting
from tocsin.exporter.neighbours import WRITE_EVERY_S, Neighbours
from tocsin.exporter.spool import Spool
from tocsin.settings import Settings
from tocsin.store import open_store
from tocsin.store.schema import instances


class Process:
    """A process that has a spool, called `spool`, and does what it is told by a line of code each."""

    def __init__(self, folder: Path, service: str = "shop", **header: Any) -> None:
        resource = {"service.name": service, "service.instance.id": service, "host.name": "h"}
        script = f"""
import json, sys, time
from pathlib import Path
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool
spool = Spool(Path({str(folder)!r}), 2**30, json.loads({json.dumps({"resource": resource, **header})!r}))
spool.life.set_state(State.ALIVE)
print("ready", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._heard() == "ready\n"

    def _heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def do(self, code: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        assert self._heard() == "done\n"

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate()


@contextmanager
def process(folder: Path, service: str = "shop", **header: Any) -> Iterator[Process]:
    started = Process(folder, service, **header)
    try:
        yield started
    finally:
        started.end()


@contextmanager
def watching(url: str, folder: Path, silent_after_s: float = 60.0) -> Iterator[Neighbours]:
    """Looks whenever it is asked to."""
    with closing(Database(Settings(database_url=url), folder)) as sink:
        yield Neighbours(folder, sink, look_every_s=0.0, silent_after_s=silent_after_s)


def rows(url: str) -> dict[str, Any]:
    store = open_store(url)
    try:
        found = store.read_now(lambda connection: connection.execute(select(instances)).all())
    finally:
        store.close_now()
    return {row.id: row for row in found}


def test_a_row_is_as_its_process_is_until_it_ends(database_url: str, tmp_path: Path) -> None:
    with process(tmp_path) as shop, watching(database_url, tmp_path) as neighbours:
        shop.do("spool.life.set_active(3); spool.life.note_memory(98_000_000, time.time_ns()); spool.lose()")
        neighbours.look()
        row = rows(database_url)["shop"]
        assert (row.active_requests, row.memory_bytes, row.is_shutting_down, row.lost) == (3, 98_000_000, False, 1)
        assert row.ended_at is None

        shop.do("spool.life.set_active(0); spool.life.note_stopping(time.time_ns())")
        neighbours.look()
        row = rows(database_url)["shop"]
        assert (row.active_requests, row.is_shutting_down) == (0, True)

        shop.do("spool.close(everything_stored=True)")
        neighbours.look()
        row = rows(database_url)["shop"]
        assert row.ended_how == "ended"
        assert row.ended_at >= row.started_at


def test_a_row_says_all_that_its_process_says(sqlite_url: str, tmp_path: Path) -> None:
    with process(tmp_path) as shop, watching(sqlite_url, tmp_path) as neighbours:
        shop.do("spool.life.note_loop_lag(40); spool.life.note_limit(5); spool.life.note_trend(-7)")
        neighbours.look()

        row = rows(sqlite_url)["shop"]
        assert (row.loop_lag_ms, row.memory_limit_bytes, row.memory_trend) == (40, 5, -7)
        assert row.spool_bytes > 0


def test_a_process_that_stands_still_ages(sqlite_url: str, tmp_path: Path) -> None:
    """Its row is as old as its last word, whoever writes it, and however often."""
    with process(tmp_path) as shop, watching(sqlite_url, tmp_path, silent_after_s=0.0) as neighbours:
        shop.do("spool.life.note_memory(1, 1_700_000_000 * 10**9); spool.life.set_active(1)")
        neighbours.look()
        shop.do("spool.life.set_active(2)")
        neighbours.look()

        row = rows(sqlite_url)["shop"]
        assert (row.active_requests, row.last_seen.timestamp()) == (2, 1_700_000_000)
        shop.do("spool.life.note_memory(1, time.time_ns())")
        neighbours.look()
        assert rows(sqlite_url)["shop"].last_seen > row.last_seen


@pytest.mark.parametrize(("silent_after_s", "promised_s"), [(30.0, 12.0), (3600.0, WRITE_EVERY_S)])
def test_a_row_is_made_anew_more_often_than_its_silence_would_be_told(
    sqlite_url: str, tmp_path: Path, silent_after_s: float, promised_s: float
) -> None:
    with process(tmp_path), watching(sqlite_url, tmp_path, silent_after_s) as neighbours:
        neighbours.look()

    assert rows(sqlite_url)["shop"].beats_every_s == promised_s


def test_one_that_is_about_to_end_promises_nothing_any_more(sqlite_url: str, tmp_path: Path) -> None:
    """It may take long over it, without a word."""
    with process(tmp_path) as shop, watching(sqlite_url, tmp_path) as neighbours:
        neighbours.look()
        shop.do("spool.life.set_state(State.ENDED)")
        neighbours.look()

        assert rows(sqlite_url)["shop"].beats_every_s == 0


def test_a_server_that_stops_promises_nothing_any_more(sqlite_url: str, tmp_path: Path) -> None:
    with process(tmp_path):
        with adopting(Settings(database_url=sqlite_url, spool_dir=str(tmp_path))):
            eventually(lambda: rows(sqlite_url))
            assert kept.is_kept(tmp_path)

        assert rows(sqlite_url)["shop"].beats_every_s == 0
        assert not kept.is_kept(tmp_path)


def test_one_that_ended_while_there_was_no_server_is_known_to_the_next(sqlite_url: str, tmp_path: Path) -> None:
    """In order, so that it left nothing; how the others ended is for who takes over what they left."""
    with process(tmp_path, "billing"), process(tmp_path) as shop:
        with watching(sqlite_url, tmp_path) as neighbours:
            neighbours.look()
        shop.do("spool.close(everything_stored=True)")

        with watching(sqlite_url, tmp_path) as neighbours:
            neighbours.look()

        assert {name: row.ended_how for name, row in rows(sqlite_url).items()} == {"shop": "ended", "billing": None}


def test_one_whose_files_were_deleted_goes_on_under_another_name(sqlite_url: str, tmp_path: Path) -> None:
    with process(tmp_path) as shop, watching(sqlite_url, tmp_path) as neighbours:
        neighbours.look()
        for path in tmp_path.glob("*.live"):
            path.unlink()
        shop.do("spool.refresh(); spool.life.set_active(3)")
        neighbours.look()

        row = rows(sqlite_url)["shop"]
        assert (row.active_requests, row.ended_at) == (3, None)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": 1}', b"\xff" * 100, b"[" * 100_000])
def test_what_stands_there_of_an_earlier_server_may_be_anything(
    sqlite_url: str, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "rows.kept").write_bytes(content)
    with process(tmp_path), watching(sqlite_url, tmp_path) as neighbours:
        neighbours.look()

        assert rows(sqlite_url).keys() == {"shop"}


def test_who_takes_over_says_how_it_ended(sqlite_url: str, tmp_path: Path) -> None:
    with process(tmp_path) as shop, watching(sqlite_url, tmp_path) as neighbours:
        neighbours.look()
        shop.end()
        neighbours.look()
        assert rows(sqlite_url)["shop"].ended_at is None  # it is not gone before somebody has looked at what it left

        with adopting(Settings(database_url=sqlite_url, spool_dir=str(tmp_path))):
            eventually(lambda: not list(tmp_path.glob("*.seg")))
        neighbours.look()

        assert rows(sqlite_url)["shop"].ended_how == "killed"


def test_a_server_does_it_by_itself(sqlite_url: str, tmp_path: Path) -> None:
    with (
        process(tmp_path, "shop"),
        process(tmp_path, "billing"),
        process(tmp_path, "door", door=True),  # what another tocsin receives is no process of a service
        adopting(Settings(database_url=sqlite_url, spool_dir=str(tmp_path))),
    ):
        eventually(lambda: len(rows(sqlite_url)) == 2)


def test_looking_takes_no_lock_and_loses_none(sqlite_url: str, tmp_path: Path) -> None:
    """Of this process's own file too: whoever opens and closes it has no lock on it any more."""
    own = Spool(tmp_path, 2**30, {"resource": {"service.name": "own", "service.instance.id": "own"}})
    program = f"""
from pathlib import Path
from tocsin.exporter.spool import adopt_orphans
print(len(list(adopt_orphans(Path({str(tmp_path)!r})))))
"""
    with process(tmp_path), watching(sqlite_url, tmp_path) as neighbours:
        for _ in range(3):
            neighbours.look()
        assert rows(sqlite_url).keys() == {"own", "shop"}

        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["0"]
    own.close(everything_stored=True)


def test_what_is_no_process_makes_no_row(sqlite_url: str, tmp_path: Path) -> None:
    """Files of anybody, and of the dead."""
    (tmp_path / "x.live").write_bytes(os.urandom(100_000))
    (tmp_path / "y.live").touch()
    with process(tmp_path) as shop:
        shop.end()

    with watching(sqlite_url, tmp_path) as neighbours:
        neighbours.look()

        assert rows(sqlite_url) == {}
