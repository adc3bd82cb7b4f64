"""The database as a sink: lines of the door, each stored once, whoever reads them and however often."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, func, select

from tests.postgres import PostgresServer
from tocsin.exporter.database import Database
from tocsin.exporter.decode import Source
from tocsin.exporter.sink import Portion
from tocsin.exporter.spool import Line
from tocsin.exporter.throttle import FULL_A_MINUTE, NEW_GROUPS_A_MINUTE, OVERFLOW
from tocsin.failures import StoreAway
from tocsin.settings import Settings
from tocsin.store import open_store
from tocsin.store.schema import error_counts, error_groups, error_logs, hourly_totals, instances

DOOR = Source.of({"kind": "segment", "door": True})
OWN = Source.of({"kind": "segment", "resource": {"service.name": "shop"}})

SOME_ID = "00000000-0000-8000-8000-000000000000"
RAISED_AT = 'raise ValueError("boom")  # in this very file'
STACK = f"""Traceback (most recent call last):
  File "{__file__}", line 31, in handle
    RAISED_AT = 'raise ValueError("boom")  # in this very file'
ValueError: boom"""


def error_line(message: str = "boom", **values: Any) -> dict[str, Any]:
    """A line as the door writes it."""
    attributes = {"exception.type": "ValueError", "exception.stacktrace": STACK} | values.pop("attributes", {})
    line = {
        "v": 1,
        "kind": "error",
        "door": True,
        "id": foreign_id(),
        "time_unix_nano": time.time_ns(),
        "severity_number": 17,
        "body": message,
        "attributes": attributes,
        "trace_id": None,
        "span_id": None,
        "resource": {"service.name": "node-shop", "service.version": "3.1", "deployment.environment.name": "staging"},
    }
    return line | values


def foreign_id() -> str:
    return str(UUID(int=uuid4().int & ~(0xF << 76) | 0x8 << 76))


def portion(lines: Sequence[dict[str, Any]], segment: str = "s", source: Source = DOOR) -> Portion:
    """Lines as the drain hands them on."""
    read = [Line(line, json.dumps(line).encode() + b"\n", end) for end, line in enumerate(lines, 1)]
    return Portion(segment=segment, start=0, lines=read, source=source, instance=None)


@pytest.fixture
def sink(database_url: str, tmp_path: Path) -> Iterator[Database]:
    sink = Database(Settings(database_url=database_url, spool_dir=str(tmp_path)), tmp_path)
    yield sink
    sink.close()


def everything(url: str, table: Any) -> list[Any]:
    def work(connection: Connection) -> list[Any]:
        return list(connection.execute(select(table)).all())

    found: list[Any] = read(url, work)
    return found


def read(url: str, work: Any) -> Any:
    store = open_store(url)
    try:
        return store.read_now(work)
    finally:
        store.close_now()


def test_a_line_of_the_door_says_itself_whose_it_is(sink: Database, database_url: str) -> None:
    """One segment holds the errors of many services."""
    other = error_line(resource={"service.name": "crm"})

    sink.put(portion([error_line(), other, error_line()]))

    found = sorted((row.service, row.release, row.environment) for row in everything(database_url, error_logs))
    assert found == [("crm", None, "production"), *[("node-shop", "3.1", "staging")] * 2]


def test_no_file_is_read_for_an_error_from_outside(sink: Database, database_url: str, tmp_path: Path) -> None:
    """Its stack may name any file of this machine; what is in it is nobody's business."""
    own = error_line()
    del own["door"], own["resource"]

    sink.put(portion([error_line()], "door"))
    sink.put(portion([own], "own", OWN))

    shown = {row.service: row.context["tocsin.frames"] for row in everything(database_url, error_logs)}
    (foreign,), (mine,) = shown["node-shop"], shown["shop"]
    assert foreign["text"] == mine["text"] == f"RAISED_AT = {RAISED_AT!r}"
    assert "before" not in foreign
    assert mine["before"][-1].startswith("SOME_ID")


def test_the_same_stack_makes_the_same_group_however_often_it_came(sink: Database, database_url: str) -> None:
    """What was worked out once is what would be worked out again."""
    again = Database(Settings(database_url=database_url, spool_dir="."), Path())
    sink.put(portion([error_line(f"order {n}") for n in range(3)], "a"))
    again.put(portion([error_line("order 7")], "b"))
    again.close()

    (group,) = everything(database_url, error_groups)
    assert (group.count, group.title) == (4, "ValueError: order 0")


def test_where_the_message_matters_it_is_looked_at_each_time(sink: Database, database_url: str) -> None:
    """A stack of Node shows no source line: what was said tells its errors apart."""
    stack = "Error: x\n    at charge (/srv/shop/pay.js:7:9)\n    at next (/srv/shop/pay.js:9:1)"
    said = ["no card", "no money", "no card"]

    sink.put(portion([error_line(text, attributes={"exception.stacktrace": stack}) for text in said]))

    assert sorted(group.count for group in everything(database_url, error_groups)) == [1, 2]


def test_a_storm_from_outside_is_summed_up_and_counted_exactly(sink: Database, database_url: str) -> None:
    """Also when it is sent three times, to two servers."""
    storm = [error_line() for _ in range(FULL_A_MINUTE + 150)]
    grave = error_line(attributes={"tocsin.severity": "critical"})
    other = Database(Settings(database_url=database_url, spool_dir="."), Path())

    sink.put(portion(storm, "a"))
    sink.put(portion([*storm, grave], "b"))
    other.put(portion([*storm[::-1], error_line()], "c"))
    other.close()

    rows = everything(database_url, error_logs)
    (group,) = everything(database_url, error_groups)
    assert (group.count, group.severity) == (FULL_A_MINUTE + 152, "critical")
    assert sum(row.count for row in rows) == group.count
    assert FULL_A_MINUTE + 1 <= len(rows) <= FULL_A_MINUTE + 3
    for table in (error_counts, hourly_totals):
        assert sum(row.count for row in everything(database_url, table)) == group.count


def test_too_many_different_errors_are_one_group_that_rings_once(sink: Database, database_url: str) -> None:
    lines = [error_line(attributes={"exception.type": f"Error{n}"}) for n in range(NEW_GROUPS_A_MINUTE + 50)]

    sink.put(portion(lines))

    groups = {group.title: group for group in everything(database_url, error_groups)}
    assert len(groups) == NEW_GROUPS_A_MINUTE + 1
    assert (groups[OVERFLOW].count, groups[OVERFLOW].mark) == (50, "new")
    assert sum(group.count for group in groups.values()) == len(lines)


@pytest.mark.parametrize(
    "poison",
    [
        {"attributes": {"tocsin.context": {"key": "a\0b"}}},
        {"body": "a\0b"},
        {"body": "a\ud800"},
        {"attributes": {"exception.stacktrace": "a\0b"}},
        {"attributes": {"http.route": "\udfff"}},
        {"attributes": {"n": float("nan")}},
        {"trace_id": "\0"},
        {"id": "no id"},
        {"attributes": []},
        {"time_unix_nano": 10**30},
        {"kind": "repeats", "error_id": "x\0", "from": 0, "to": 5, "time_ns": 1},
        {"kind": "repeats", "id": "no id", "error_id": SOME_ID, "from": 0, "to": 5, "time_ns": 1},
        {"kind": "repeats", "id": SOME_ID, "error_id": SOME_ID, "from": 0, "to": 2**70, "time_ns": 1},
        {"kind": "amend", "error_id": "no id", "severity": "critical"},
        {"kind": "instance", "id": "i\0", "started_at_ns": 1},
        {"kind": "instance", "id": "i", "started_at_ns": 1, "pid": 2**70},
        {"kind": "instance", "id": "i"},
    ],
    ids=repr,
)
def test_a_poisoned_line_of_the_door_costs_no_neighbour(
    poison: dict[str, Any], postgres_url: str, tmp_path: Path
) -> None:
    """In a batch where most is summed up, too."""
    sink = Database(Settings(database_url=postgres_url, spool_dir=str(tmp_path)), tmp_path)
    good = [error_line() for _ in range(FULL_A_MINUTE + 20)]
    bad = error_line() | poison

    sink.put(portion([*good[:60], bad, *good[60:]]))

    sink.close()
    stored = {row.id for row in everything(postgres_url, error_logs)}
    assert len(stored & {line["id"] for line in good}) >= FULL_A_MINUTE - 1
    counts = read(postgres_url, lambda connection: connection.execute(select(func.sum(error_groups.c.count))).scalar())
    is_stored = bad["id"] in stored
    assert counts == len(good) + is_stored


def test_processes_elsewhere_are_seen(sink: Database, database_url: str) -> None:
    report = {"v": 1, "kind": "instance", "door": True, "id": "i-1", "service": "node-shop", "environment": "staging"}

    sink.put(portion([report | {"host": "web-9", "pid": 7, "started_at_ns": 10**9, "release": "3.1", "lost": 2}]))

    (row,) = everything(database_url, instances)
    assert (row.host, row.pid, row.service, row.release, row.lost) == ("web-9", 7, "node-shop", "3.1", 2)


def test_two_servers_that_got_the_same_at_once_count_it_once(database_url: str, tmp_path: Path) -> None:
    """Each has it in a spool of its own, in another order."""
    lines = [error_line(attributes={"exception.type": f"Error{n % 7}"}) for n in range(300)]

    def store(turn: int) -> None:
        sink = Database(Settings(database_url=database_url, spool_dir=str(tmp_path)), tmp_path)
        for part, start in enumerate(range(0, 300, 60)):
            some = lines[start : start + 60]
            sink.put(portion(some if turn % 2 else some[::-1], f"{turn}-{part}"))
        sink.close()

    threads = [threading.Thread(target=store, args=(turn,)) for turn in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(group.count for group in everything(database_url, error_groups)) == 300
    assert sum(row.count for row in everything(database_url, error_logs)) == 300


def test_what_was_under_way_when_the_database_fell_is_stored_once(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """The first full error of the minute is so again, since it was not stored."""
    sink = Database(Settings(database_url=postgres_server.url, spool_dir=str(tmp_path)), tmp_path)
    sink.put(portion([error_line(attributes={"exception.type": "Other"})], "a"))
    lines = [error_line() for _ in range(FULL_A_MINUTE + 10)]
    postgres_server.stop(at_once=True)
    for _ in range(3):
        with pytest.raises(StoreAway):
            sink.put(portion(lines, "b"))
    postgres_server.start()

    assert sink.position("b") == 0
    sink.put(portion(lines, "b"))

    sink.close()
    counts = sorted(group.count for group in everything(postgres_server.url, error_groups))
    assert counts == [1, len(lines)]
    assert len(everything(postgres_server.url, error_logs)) == 1 + FULL_A_MINUTE
