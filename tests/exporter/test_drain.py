"""The drain: everything in the spool gets into the database, once, whatever happens in between."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from tests.postgres import PostgresServer
from tests.waiting import eventually
from tocsin.exporter import kept
from tocsin.exporter.database import Database
from tocsin.exporter.drain import Drain, adopting
from tocsin.exporter.life import State
from tocsin.exporter.spool import Spool
from tocsin.ids import uuid7
from tocsin.settings import Settings
from tocsin.store import migrate, open_store
from tocsin.store.schema import error_groups, error_logs, instances, spool_progress

RESOURCE = {
    "resource": {
        "service.name": "shop",
        "service.version": "1.2",
        "deployment.environment.name": "production",
        "service.instance.id": "i-1",
        "host.name": "h",
        "process.pid": 7,
    },
    "started_ns": 1_000_000_000,
}


def error_line(message: str = "boom", error_id: str | None = None, **attributes: Any) -> bytes:
    content = {
        "v": 1,
        "kind": "error",
        "id": error_id or uuid7(),
        "time_unix_nano": time.time_ns(),
        "severity_number": 17,
        "trace_id": None,
        "span_id": None,
        "body": message,
        "attributes": {"exception.type": "ValueError", "tocsin.mechanism": "asgi", "tocsin.handled": False}
        | attributes,
    }
    return (json.dumps(content) + "\n").encode()


@contextmanager
def drained(url: str, folder: Path, **settings: Any) -> Iterator[tuple[Spool, Drain]]:
    """A spool with its drain at work."""
    spool = Spool(folder, 2**30, RESOURCE)
    drain = Drain(Settings(database_url=url, spool_dir=str(folder), **settings), spool, folder)
    drain.start()
    yield spool, drain
    spool.close(everything_stored=drain.finish(5))


def read(url: str, work: Callable[[Connection], Any]) -> Any:
    store = open_store(url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()


def rows(url: str) -> list[Any]:
    return list(read(url, lambda connection: connection.execute(select(error_logs)).all()))


def messages(url: str) -> list[str]:
    return sorted(row.message for row in rows(url))


def test_an_error_becomes_a_row_and_a_group(database_url: str, tmp_path: Path) -> None:
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line("no phone", **{"http.route": "/orders"}))
        drain.wake()
        eventually(lambda: drain.stored)

    (row,) = rows(database_url)
    assert (row.message, row.service, row.release, row.environment) == ("no phone", "shop", "1.2", "production")
    assert row.context["http.route"] == "/orders"
    assert row.count == 1


def test_a_service_on_an_empty_database_makes_the_tables(empty_database_url: str, tmp_path: Path) -> None:
    with drained(empty_database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line())
        drain.wake()
        eventually(lambda: drain.stored)

    assert messages(empty_database_url) == ["boom"]


def test_a_spool_that_is_stored_is_deleted(database_url: str, tmp_path: Path) -> None:
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line())
        drain.wake()
        eventually(lambda: drain.stored)

    assert list((tmp_path / "spool").iterdir()) == []


def test_a_small_spool_that_was_full_takes_errors_again_once_it_is_drained(database_url: str, tmp_path: Path) -> None:
    """Of a process that goes on: what is being written to is not deleted, and may not be all that there is."""
    folder = tmp_path / "spool"
    spool = Spool(folder, 2**20, RESOURCE)
    held = 0
    while spool.append_all([error_line("x" * 20_000)]):
        held += 1
    drain = Drain(Settings(database_url=database_url, spool_dir=str(folder)), spool, folder)
    drain.start()
    eventually(lambda: drain.stored == held)

    eventually(lambda: spool.append_all([error_line("x" * 20_000)] * 10))
    assert drain.finish(5)
    spool.close(everything_stored=True)


def test_counts_join_the_error_that_they_repeat(database_url: str, tmp_path: Path) -> None:
    error_id = uuid7()
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line(error_id=error_id))
        counter = spool.counter(error_id)
        assert counter is not None
        for _ in range(41):
            counter.tick()
        drain.wake()
        eventually(lambda: rows(database_url) and rows(database_url)[0].count == 42)

    (group,) = read(database_url, lambda connection: connection.execute(select(error_groups)).all())
    assert group.count == 42


def test_what_is_left_behind_is_taken_over_once_by_many(database_url: str, tmp_path: Path) -> None:
    """Three servers on one machine find the same orphans."""
    folder = tmp_path / "spool"
    for number in range(20):
        spool = Spool(folder, 2**30, RESOURCE)
        spool.append(error_line(f"m{number}"))
        spool.close(everything_stored=False)
    settings = Settings(database_url=database_url, spool_dir=str(folder))

    with adopting(settings), adopting(settings), adopting(settings):
        eventually(lambda: not list(folder.glob("*.seg")))

    assert messages(database_url) == sorted(f"m{number}" for number in range(20))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (2, ["HIGH api #1 ValueError: m0", "HIGH api #1 ValueError: m1"]),
        (7, ["tocsin: the database now has 7 errors that ended processes left in {folder}"]),
    ],
    ids=["few", "many"],
)
def test_what_others_left_is_summed_up_in_a_line(left: int, said: list[str], sqlite_url: str, tmp_path: Path) -> None:
    """Else the next start after an outage would fill the screen with what somebody else has raised."""
    folder = tmp_path / "spool"
    spool = Spool(folder, 2**30, RESOURCE)
    for number in range(left):
        spool.append(error_line(f"m{number}"))
    spool.close(everything_stored=False)
    heard: list[str] = []

    drain = Drain(Settings(database_url=sqlite_url, spool_dir=str(folder)), None, folder, heard.append)
    drain.start()
    eventually(lambda: not list(folder.glob("*.seg")))
    assert drain.finish(5)

    assert heard == [line.format(folder=folder) for line in said]
    assert drain.stored == left


@pytest.mark.parametrize("header", ['{"v": 1, "kind": "segment", "resource": "x", "started_ns": "y"}', "no json", ""])
def test_an_orphan_that_cannot_be_read_holds_up_no_other(database_url: str, tmp_path: Path, header: str) -> None:
    folder = tmp_path / "spool"
    for number in range(3):
        spool = Spool(folder, 2**30, RESOURCE)
        spool.append(error_line(f"m{number}"))
        path = spool.segments()[0]
        spool.close(everything_stored=False)
        if number == 0:
            path.write_text(header + "\n" + path.read_text().split("\n", 1)[1])

    with adopting(Settings(database_url=database_url, spool_dir=str(folder))):
        eventually(lambda: {"m1", "m2"} <= set(messages(database_url)))


def test_a_server_and_a_service_in_one_process_store_everything_once(database_url: str, tmp_path: Path) -> None:
    """`tocsin run -- tocsin serve` does that."""
    folder = tmp_path / "spool"
    settings = Settings(database_url=database_url, spool_dir=str(folder))
    with drained(database_url, folder) as (spool, drain), adopting(settings), adopting(settings):
        for number in range(200):
            assert spool.append(error_line(f"m{number:03}"))
            drain.wake()
            time.sleep(0.005)  # long enough for the others to look several times
        eventually(lambda: drain.stored == 200)

    assert messages(database_url) == [f"m{number:03}" for number in range(200)]


def test_what_was_lost_is_said_and_stands_in_the_instances_row(
    database_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.max_bytes = 0
        assert not spool.append(error_line())
        assert not spool.append(error_line())
        drain.wake()

        def lost() -> list[int]:
            found = read(database_url, lambda connection: connection.execute(select(instances)).all())
            return [row.lost for row in found]

        eventually(lambda: lost() == [2])
    assert capfd.readouterr().err.count("errors are only counted") == 1


def test_the_row_of_a_process_says_how_it_is_and_that_it_has_ended(database_url: str, tmp_path: Path) -> None:
    """In order: how else is for who takes over what it left."""

    def row() -> Any:
        return read(database_url, lambda connection: connection.execute(select(instances)).one_or_none())

    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.life.set_state(State.ALIVE)
        spool.life.set_active(3)
        spool.life.note_stopping(time.time_ns())
        spool.life.note_memory(98_000_000, 1)
        spool.append(error_line())
        drain.wake()
        found = eventually(row)
        assert (found.active_requests, found.is_shutting_down, found.ended_at) == (3, True, None)
        assert found.memory_bytes == 98_000_000

    assert row().ended_how == "stopped"
    assert abs(row().ended_at - datetime.now(UTC)) < timedelta(minutes=1)


class Beats:
    """A process that writes straight to a database and has no error, with a short patience; and its row."""

    def __init__(self, url: str, folder: Path, starts_when: Callable[[], bool] = lambda: True) -> None:
        self.url = url
        self.starts_when = starts_when
        self.spool = Spool(folder, 2**30, RESOURCE)
        self.spool.life.set_state(State.ALIVE)
        settings = Settings(database_url=url, spool_dir=str(folder))
        self.sink = Database(settings, folder)
        self.sink.first_beat_s = 0.1
        if self.sink.beats_every_s is not None:
            self.sink.beats_every_s = 0.2
        self.drain = Drain(settings, self.spool, folder, sink=self.sink)

    def row(self) -> Any:
        return read(self.url, lambda connection: connection.execute(select(instances)).one_or_none())

    def __enter__(self) -> Beats:
        eventually(self.starts_when)
        self.drain.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.spool.close(everything_stored=self.drain.finish(5))


def test_a_service_without_errors_tells_postgresql_that_it_lives(postgres_url: str, tmp_path: Path) -> None:
    """With all that it knows of itself; the last word is a goodbye."""
    with Beats(postgres_url, tmp_path) as service:
        service.spool.life.set_active(3)
        service.spool.life.note_memory(98_000_000, time.time_ns())
        service.spool.life.note_loop_lag(40)
        service.spool.life.note_limit(512 * 2**20)
        service.spool.life.note_trend(-7)

        first = eventually(service.row)
        assert (first.active_requests, first.memory_bytes, first.loop_lag_ms) == (3, 98_000_000, 40)
        assert (first.memory_limit_bytes, first.memory_trend) == (512 * 2**20, -7)
        assert first.spool_bytes == service.spool.folder_bytes
        assert first.beats_every_s == 0.2

        service.spool.life.note_memory(99_000_000, time.time_ns())
        second = eventually(lambda: service.row() if service.row().memory_bytes == 99_000_000 else None)
        assert second is not None and second.last_seen > first.last_seen

    assert service.row().ended_how == "ended"


def test_a_process_that_says_nothing_new_ages_in_its_row(postgres_url: str, tmp_path: Path) -> None:
    """What counts is when it spoke last, not when somebody wrote that down."""
    spoke_at = datetime.now(UTC) - timedelta(minutes=5)
    with Beats(postgres_url, tmp_path) as service:
        service.spool.life.note_memory(98_000_000, int(spoke_at.timestamp()) * 10**9)

        row = eventually(service.row)

    assert row.last_seen == spoke_at.replace(microsecond=0)


def test_who_has_a_server_beside_it_leaves_its_row_to_that(postgres_url: str, tmp_path: Path) -> None:
    """It loads no database for it, until the server is gone."""
    settings = Settings(database_url=postgres_url, spool_dir=str(tmp_path))
    with adopting(settings), Beats(postgres_url, tmp_path, starts_when=lambda: kept.is_kept(tmp_path)) as service:
        row = eventually(service.row)
        assert row.beats_every_s > 1  # it is the server that promises
        service.spool.life.note_memory(98_000_000, time.time_ns())
        eventually(lambda: service.row().last_seen > row.last_seen, 20)
        assert service.sink.is_told_by_others()

    with Beats(postgres_url, tmp_path) as service:
        assert not service.sink.is_told_by_others()
        eventually(lambda: service.row().beats_every_s == 0.2, 20)


def test_who_writes_to_a_file_is_seen_by_the_server_beside_it_or_by_nobody(sqlite_url: str, tmp_path: Path) -> None:
    assert Database(Settings(database_url=sqlite_url), tmp_path).beats_every_s is None


def test_a_heartbeat_leaves_no_connection_behind(postgres_url: str, tmp_path: Path) -> None:
    """A hundred idle workers would have them all."""
    asked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
    with Beats(postgres_url, tmp_path) as service:
        eventually(service.row)

        eventually(lambda: read(postgres_url, lambda connection: connection.execute(text(asked)).scalar_one()) == 0)


@pytest.mark.parametrize("state", [State.UNMARKED, State.ENDED])
def test_who_need_not_say_goodbye_promises_nothing(postgres_url: str, tmp_path: Path, state: State) -> None:
    """`multiprocessing` ends its children without a word."""
    with Beats(postgres_url, tmp_path) as service:
        service.spool.life.set_state(state)

        assert eventually(service.row).beats_every_s == 0


def test_texts_are_told_apart_by_what_they_say(database_url: str, tmp_path: Path) -> None:
    """They are reported from the same function; only the first would ring if they were one group."""
    stack = '  File "/srv/shop/stock.py", line 7, in check\n'
    texts = ["stock is negative", "payment provider is down", "order 5 failed", "order 17 failed"]
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        for text_ in texts:
            attributes: Any = {"exception.type": None, "exception.stacktrace": stack, "tocsin.place": "shop in check"}
            spool.append(error_line(text_, **attributes))
        drain.wake()
        eventually(lambda: drain.stored == 4)

    groups = read(database_url, lambda connection: connection.execute(select(error_groups.c.count)).scalars().all())
    assert sorted(groups) == [1, 1, 2]


def test_what_a_dead_server_left_is_stored_before_what_came_since(database_url: str, tmp_path: Path) -> None:
    """Counts of an error that is not there yet would be left out."""
    folder = tmp_path / "spool"
    error_id = uuid7()
    left = Spool(folder, 2**30, {"door": True})
    left.append(json.dumps(json.loads(error_line(error_id=error_id)) | {"door": True}).encode() + b"\n")
    left.close(everything_stored=False)
    own = Spool(folder, 2**30, {"door": True})
    repeats = {"v": 1, "kind": "repeats", "id": uuid7(), "error_id": error_id, "from": 0, "to": 41, "time_ns": 1}
    own.append(json.dumps(repeats | {"door": True}).encode() + b"\n")
    drain = Drain(Settings(database_url=database_url, spool_dir=str(folder)), own, folder)
    drain.start()

    eventually(lambda: [row.count for row in rows(database_url)] == [42])

    own.close(everything_stored=drain.finish(5))


def test_a_dead_process_is_not_seen_alive_by_what_it_left(database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder, 2**30, RESOURCE)
    spool.append(error_line())
    spool.lose()
    spool.close(everything_stored=False)

    with adopting(Settings(database_url=database_url, spool_dir=str(folder))):
        eventually(lambda: not list(folder.glob("*.seg")))

    (row,) = read(database_url, lambda connection: connection.execute(select(instances)).all())
    assert row.last_seen == row.started_at
    assert row.lost == 1


def test_a_replay_counts_nothing_twice_even_when_the_rows_are_gone(database_url: str, tmp_path: Path) -> None:
    """The reader died after the commit and before it deleted the segment; retention was there since."""
    folder = tmp_path / "spool"
    spool = Spool(folder, 2**30, RESOURCE)
    spool.append(error_line())
    segment = spool.segments()[0]
    copy = segment.read_bytes()
    live = next(folder.glob("*.live"))
    spool.close(everything_stored=False)
    live_copy = live.read_bytes()
    settings = Settings(database_url=database_url, spool_dir=str(folder))
    with adopting(settings):
        eventually(lambda: not segment.exists())
    store = open_store(database_url)
    store.write_now(lambda connection: connection.execute(error_logs.delete()))
    store.close_now()

    segment.write_bytes(copy)
    live.write_bytes(live_copy)
    with adopting(settings):
        eventually(lambda: not segment.exists())

    assert rows(database_url) == []
    (count,) = read(database_url, lambda connection: connection.execute(select(error_groups.c.count)).one())
    assert count == 1


def test_a_line_that_cannot_be_read_is_set_aside_and_its_neighbours_are_stored(
    database_url: str, tmp_path: Path
) -> None:
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line("before"))
        spool.append(b"{not json\n")
        spool.append(b'{"v":1,"kind":"error","id":"no attributes"}\n')
        spool.append(error_line("after"))
        drain.wake()
        eventually(lambda: drain.stored == 2)

    assert messages(database_url) == ["after", "before"]
    aside = (tmp_path / "spool" / "refused.jsonl").read_text()
    assert "{not json" in aside and "no attributes" in aside


def test_one_poisoned_error_does_not_hold_up_its_neighbours(postgres_url: str, tmp_path: Path) -> None:
    """PostgreSQL refuses NUL in jsonb; capture cleans it, but a line may come from elsewhere."""
    with drained(postgres_url, tmp_path / "spool") as (spool, drain):
        for number in range(9):
            spool.append(error_line(f"m{number}"))
        context: Any = {"tocsin.context": {"key": "a\0b"}}
        spool.append(error_line("bad", **context))
        drain.wake()
        eventually(lambda: drain.stored == 10)

    assert messages(postgres_url) == sorted([*(f"m{number}" for number in range(9)), "bad"])


def test_an_error_that_cannot_be_stored_at_all_is_set_aside(postgres_url: str, tmp_path: Path) -> None:
    with drained(postgres_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line("good"))
        spool.append(error_line("bad", error_id="not-a-uuid"))
        spool.append(error_line("good too"))
        drain.wake()
        eventually(lambda: drain.stored == 2)

    assert messages(postgres_url) == ["good", "good too"]
    assert "not-a-uuid" in (tmp_path / "spool" / "refused.jsonl").read_text()


def test_nothing_is_lost_or_doubled_while_the_database_is_away(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """It stops in the middle of the work, comes back, stops again; whoever captures notices nothing."""
    url = postgres_server.url
    store = open_store(url)
    migrate.migrate_now(store)
    store.close_now()
    with drained(url, tmp_path / "spool") as (spool, drain):
        total = 0
        for _ in range(3):
            for _ in range(50):
                assert spool.append(error_line(f"m{total}"))
                total += 1
            drain.wake()
            eventually(lambda: drain.stored > 0)
            postgres_server.stop(at_once=True)
            for _ in range(50):
                assert spool.append(error_line(f"m{total}"))
                total += 1
            drain.wake()
            eventually(lambda: drain.away_since is not None)
            postgres_server.start()
            eventually(lambda: drain.away_since is None, 20)
        eventually(lambda: len(rows(url)) == total, 20)

    assert messages(url) == sorted(f"m{number}" for number in range(300))
    (count,) = read(url, lambda connection: connection.execute(select(func.sum(error_groups.c.count))).one())
    assert count == 300


def test_tables_that_somebody_drops_cost_no_error(database_url: str, tmp_path: Path) -> None:
    """Errors wait until the tables are back; they are not taken for bad data."""
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        spool.append(error_line("first"))
        drain.wake()
        eventually(lambda: drain.stored == 1)
        store = open_store(database_url)
        store.write_now(lambda connection: connection.execute(text("ALTER TABLE error_logs RENAME TO elsewhere")))
        spool.append(error_line("second"))
        drain.wake()
        eventually(lambda: drain.away_since is not None)
        store.write_now(lambda connection: connection.execute(text("ALTER TABLE elsewhere RENAME TO error_logs")))
        store.close_now()
        eventually(lambda: drain.stored == 2)

    assert messages(database_url) == ["first", "second"]
    assert not (tmp_path / "spool" / "refused.jsonl").exists()


def test_ending_is_quick_when_the_database_is_away(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder, 2**30, RESOURCE)
    settings = Settings(database_url="postgresql://nobody@127.0.0.1:1/x", spool_dir=str(folder))
    drain = Drain(settings, spool, folder)
    drain.start()
    spool.append(error_line())
    drain.wake()
    eventually(lambda: drain.away_since is not None)

    before = time.monotonic()
    assert not drain.finish(2.0)
    assert time.monotonic() - before < 2.0
    spool.close(everything_stored=False)
    assert list(folder.glob("*.seg"))


def test_a_wrong_clock_is_taken_out(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's machine is an hour behind; the error is stored at the database's time."""
    monkeypatch.setattr("tocsin.clock.now", lambda: datetime.now(UTC) - timedelta(hours=1))
    line = json.loads(error_line())
    line["time_unix_nano"] -= 3600 * 10**9
    with drained(postgres_url, tmp_path / "spool") as (spool, drain):
        spool.append((json.dumps(line) + "\n").encode())
        drain.wake()
        eventually(lambda: drain.stored)

    (row,) = rows(postgres_url)
    assert abs(row.timestamp - datetime.now(UTC)) < timedelta(minutes=1)


def test_progress_is_kept_by_segment(database_url: str, tmp_path: Path) -> None:
    with drained(database_url, tmp_path / "spool") as (spool, drain):
        name = spool.segments()[0].stem
        spool.append(error_line())
        size = spool.segments()[0].stat().st_size
        drain.wake()
        eventually(lambda: drain.stored)

    (row,) = read(database_url, lambda connection: connection.execute(select(spool_progress)).all())
    assert (row.segment, row.position) == (name, size)
