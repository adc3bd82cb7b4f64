"""Retention beside a storm: nothing is lost, nobody waits, and what is on disk does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

import pytest
from sqlalchemy import Connection, func, select, text

from tests.processes import drain_rest, environment_of
from tests.waiting import eventually
from tocsin import clock
from tocsin.prune import Stop, prune
from tocsin.store import Store, open_store, queries, retention
from tocsin.store.retention import Policy, Task
from tocsin.store.schema import error_groups, error_logs

PER_SECOND = 200

# Forty places that fail in turn, at a pace; how long each capture took and when, by the clock of the wall.
SERVICE = """
import json, sys, time
import tocsin

tocsin.init(service="shop")
places = {}
for number in range(40):
    exec(f"def fails_{number}(value):\\n    raise ValueError(value)", places)
calls = []
print("ready", flush=True)
began = time.perf_counter()
while not (len(calls) % 20 == 0 and __import__("select").select([sys.stdin], [], [], 0)[0]):
    try:
        places[f"fails_{len(calls) % 40}"](len(calls))
    except ValueError as error:
        at = time.perf_counter()
        tocsin.track_error(error)
        calls.append((time.time(), time.perf_counter() - at))
    time.sleep(max(began + len(calls) / PER_SECOND - time.perf_counter(), 0))
json.dump(calls, open(sys.argv[1], "w"))
""".replace("PER_SECOND", str(PER_SECOND))


@dataclass
class Figures:
    """Milliseconds, with and without a run of retention beside it."""

    what: str
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)

    def at(self, percent: int) -> tuple[float, float]:
        """The time within which so many percent are done, without and with a run beside."""
        return quantiles(self.before, n=100)[percent - 1], quantiles(self.during, n=100)[percent - 1]

    def __str__(self) -> str:
        shown = (f"p{percent} {'{:.2f} ms before, {:.2f}'.format(*self.at(percent))}" for percent in (50, 99))
        return (
            f"{self.what}: {'; '.join(shown)} ms beside the run;"
            f" longest {max(self.before):.1f} and {max(self.during):.1f} ms"
        )


def _fill(store: Store, rows: int) -> None:
    """Rows older than the retention, with a stack of 2 kB each, of which PostgreSQL keeps a quarter."""
    seconds = 30 * 86_400
    first = clock.now() - timedelta(days=61)
    values = {"stack": "a line of a stack, and another\n" * 40}

    def on_sqlite(connection: Connection, start: int, end: int) -> None:
        connection.execute(
            text(
                "WITH RECURSIVE n(i) AS (SELECT :start UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :end)"
                " INSERT INTO error_logs (id, timestamp, severity, category, message, stack, created_at, group_id)"
                " SELECT printf('%08x-0000-7000-8000-%012x', i, i), t, 'high', 'api', 'boom ' || i, :stack || i, t,"
                " 'old ' || (i % 100) FROM (SELECT i, strftime('%Y-%m-%dT%H:%M:%f', :first + i * :step, 'unixepoch')"
                " || '000+00:00' AS t FROM n)"
            ),
            values | {"start": start, "end": end, "first": first.timestamp(), "step": seconds / rows},
        )

    def on_postgres(connection: Connection, start: int, end: int) -> None:
        connection.execute(
            text(
                "INSERT INTO error_logs (id, timestamp, severity, category, message, stack, created_at, group_id)"
                " SELECT gen_random_uuid(), t, 'high', 'api', 'boom ' || i, CAST(:stack AS text) || md5(i::text)"
                " || repeat(md5(i::text), 20), t, 'old ' || (i % 100) FROM (SELECT i, CAST(:first AS timestamptz)"
                " + i * CAST(:step AS interval) AS t"
                " FROM generate_series(CAST(:start AS int), CAST(:end AS int) - 1) i) n"
            ),
            values | {"start": start, "end": end, "first": first, "step": timedelta(seconds=seconds / rows)},
        )

    unhurried = store.unhurried()
    for start in range(0, rows, 50_000):
        fill = on_sqlite if store.dialect == "sqlite" else on_postgres
        unhurried.write_now(fill, start, min(start + 50_000, rows))
    unhurried.close_now()


@contextmanager
def _service(folder: Path, database_url: str) -> Iterator[list[tuple[float, float]]]:
    """A process that fails at a pace while this lasts; then when it captured and how long that took, in seconds."""
    (folder / "service.py").write_text(SERVICE)
    calls: list[tuple[float, float]] = []
    with subprocess.Popen(
        [sys.executable, "service.py", "calls.json"],
        cwd=folder,
        env=environment_of(folder, database_url, TOCSIN_ENVIRONMENT="production"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield calls
        finally:
            process.stdin.write("end\n")
            process.stdin.close()
            process.wait(60)
    drain_rest(folder, database_url)
    calls.extend(json.loads((folder / "calls.json").read_text()))


class _Prober:
    """Another one who writes now and then, and how long that takes: what waits for a lock, waits here."""

    def __init__(self, database_url: str) -> None:
        self._store = open_store(database_url)
        self._ends = threading.Event()
        self.writes: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Prober:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._ends.set()
        self._thread.join()
        self._store.close_now()

    def _run(self) -> None:
        while not self._ends.wait(0.02):
            at = time.perf_counter()
            self._store.write_now(queries.probe_write, clock.now())
            self.writes.append((time.time(), time.perf_counter() - at))


def _disk_bytes(store: Store, folder: Path) -> int:
    if store.dialect == "sqlite":
        return sum(path.stat().st_size for path in folder.glob("tocsin.db*"))
    return store.read_now(retention.file_bytes)


def _counts(connection: Connection) -> tuple[int, int, int]:
    """What the groups say, what the rows add up to, and how many old rows there are."""
    in_groups = select(func.sum(error_groups.c.count))
    in_rows = select(func.sum(error_logs.c.count)).where(error_logs.c.service == "shop")
    old = select(func.count(error_logs.c.id)).where(error_logs.c.service.is_(None))
    by_group, by_row, left = (connection.execute(query).scalar() for query in (in_groups, in_rows, old))
    return int(by_group or 0), int(by_row or 0), int(left or 0)


def _sort(figures: Figures, calls: list[tuple[float, float]], began: float, ended: float) -> Figures:
    for at, took_s in calls:
        if at < began:
            figures.before.append(took_s * 1000)
        elif at < ended:
            figures.during.append(took_s * 1000)
    return figures


def _prune_in_a_storm(folder: Path, database_url: str, rows: int, *, quiet_s: float) -> list[Figures]:
    store = open_store(database_url)
    _fill(store, rows)
    disk = [_disk_bytes(store, folder)]
    with _service(folder, database_url) as calls, _Prober(database_url) as prober:
        time.sleep(quiet_s)  # what is measured without a run
        began, at = time.time(), time.perf_counter()
        pruned = prune(store, Policy(days=30), Stop())
        took_s, ended = time.perf_counter() - at, time.time()
        disk.append(_disk_bytes(store, folder))
    in_groups, in_rows, left = eventually(lambda: _all(store, len(calls)), 30)
    figures = [
        _sort(Figures("a capture"), calls, began, ended),
        _sort(Figures("another writer's transaction"), prober.writes, began, ended),
    ]
    print(f"\n{store.dialect}: {pruned.removed[Task.AGE]:,} of {rows:,} rows in {took_s:.0f} s", end="")
    print(f" ({rows / took_s:,.0f}/s) beside {len(calls) / (ended - calls[0][0]):.0f} errors/s, of which none is lost")
    print(f"disk: {disk[0] / 2**20:,.0f} MB before, {disk[1] / 2**20:,.0f} MB after, in use", end="")
    print(f" {pruned.used_bytes / 2**20:,.0f} MB", *figures, sep="\n")
    assert pruned.removed[Task.AGE] == rows
    assert (in_groups, in_rows, left) == (len(calls), len(calls), 0)
    assert disk[1] <= disk[0] * 1.1 + 2 * retention.LOG_BYTES
    store.close_now()
    return figures


def _all(store: Store, expected: int) -> Any:
    counts = store.read_now(_counts)
    return counts if counts[0] >= expected else None


def test_nothing_is_lost_while_the_table_is_pruned(database_url: str, tmp_path: Path) -> None:
    """The short form: every error that arrives meanwhile is counted."""
    _prune_in_a_storm(tmp_path, database_url, 4_000, quiet_s=0.3)


@pytest.mark.gate
def test_a_million_rows_are_pruned_beside_a_storm(database_url: str, tmp_path: Path) -> None:
    """The capture of a service takes as long as without it."""
    capture, writer = _prune_in_a_storm(tmp_path, database_url, 1_000_000, quiet_s=10)

    # What shares the machine with this test moves both; what waited for a transaction would take 20 ms and more.
    for percent, margin_ms in ((50, 0.2), (99, 5)):
        before, during = capture.at(percent)
        assert during < 2 * before + margin_ms
    assert writer.at(99)[1] < 1_000
