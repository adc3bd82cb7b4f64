"""
`kill -9` at every line of ours that writes errors down, takes them over and stores them.

Whatever the line: what capture returned from is stored once, storms count as they were, and the end itself
is told exactly once, by whoever comes next.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from tests.processes import ROOT, environment_of
from tests.reliability.victims import LEFT_COUNTED, Answer, Order
from tests.waiting import eventually
from tocsin.exporter.drain import adopting
from tocsin.settings import Settings
from tocsin.store import open_store
from tocsin.store.schema import error_groups, error_logs

_MOST_LINES = 12_000  # about as many as a victim passes, each as often as it does
_BY_CHANCE = 50


class Nursery:
    """Where victims come from, and what is to be found of them afterwards."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self._folder = folder
        self._url = database_url
        self._orders: list[tuple[Order, Answer]] = []
        with (folder / "said").open("wb") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.reliability.victims", str(folder)],
                env=environment_of(folder, database_url),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, **order: Any) -> Answer:
        """One victim, and its predecessor."""
        given = Order(number=len(self._orders), **order)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(given)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, (self._folder / "said").read_text()[-4000:]
        answer = Answer(**json.loads(line))
        self._orders.append((given, answer))
        return answer

    @property
    def kills(self) -> int:
        return sum(answer.is_killed for _, answer in self._orders)

    def close(self) -> None:
        self._process.communicate()

    def check(self) -> None:
        """Store what is left, and look for every victim at what became of all that it did."""
        with adopting(Settings(database_url=self._url, spool_dir=str(self._folder / "spool"))):
            eventually(lambda: not list((self._folder / "spool").glob("*.[lsf]*")), 60)
        store = open_store(self._url)
        deaths, counts, stored = store.read_now(_found)
        store.close_now()
        for order, answer in self._orders:
            self._check_one(order, answer, deaths, counts, stored)

    def _check_one(
        self, order: Order, answer: Answer, deaths: Counter[str], counts: Counter[str], stored: set[str]
    ) -> None:
        name = f"victim-{order.number}"
        log = self._folder / f"log-{order.number}"
        words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        steps = Counter(word[0] for word in words)
        where = f"{order}: "
        ids = {word[1] for word in words if word[0] == "end"}
        assert not ids - stored, f"{where}{len(ids - stored)} errors are lost"
        # One capture may have been done, and its end not written to the test's log.
        assert steps["end"] <= counts[name] <= steps["begin"], f"{where}{steps}, {counts[name]} stored"
        if not answer.is_killed:
            assert deaths[name] == 0, where
        elif steps["alive"] and not steps["ending"]:
            assert deaths[name] == 1, f"{where}{deaths[name]} deaths are told"
        else:  # as it began or ended
            assert deaths[name] <= 1, where
        before = f"before-{order.number}"
        assert (deaths[before], counts[before]) == (1, 1 + LEFT_COUNTED), f"{where}{deaths[before]}, {counts[before]}"


def _found(connection: Connection) -> tuple[Counter[str], Counter[str], set[str]]:
    """By service: how many ends, and how many other errors; and the ids of all."""
    is_end = error_logs.c.exception_type == "ProcessExit"
    rows = connection.execute(select(error_logs.c.id, error_logs.c.service, error_logs.c.count, is_end)).all()
    ids = Counter(row[0] for row in rows)
    assert max(ids.values()) == 1
    deaths, counts = Counter[str](), Counter[str]()
    for _, service, count, is_death in rows:
        (deaths if is_death else counts)[service] += count
    groups = select(error_groups.c.service, func.sum(error_groups.c.count)).group_by(error_groups.c.service)
    assert {service: int(count) for service, count in connection.execute(groups)} == deaths + counts
    return deaths, counts, set(ids)


@contextmanager
def nursery(folder: Path, database_url: str) -> Iterator[Nursery]:
    opened = Nursery(folder, database_url)
    try:
        yield opened
    finally:
        opened.close()
    opened.check()


def test_killed_at_any_line_nothing_is_lost_or_doubled(database_url: str, tmp_path: Path) -> None:
    """Ten lines by chance, those of a beginning as likely as those of a long life."""
    chance = random.Random(4)
    with nursery(tmp_path, database_url) as found:
        for _ in range(10):
            found.run(times=round(_MOST_LINES ** chance.uniform(0.3, 1.0)))
    assert found.kills >= 8


@pytest.mark.gate
def test_killed_at_every_line_nothing_is_lost_or_doubled(database_url: str, tmp_path: Path) -> None:
    """Each line that a victim passes, one of the times that it does; then moments by chance."""
    chance = random.Random(database_url)
    with nursery(tmp_path, database_url) as found:
        passed = found.run().passed
        missed = []
        for line in chance.sample(sorted(passed), len(passed)):
            moments = (chance.randint(1, passed[line]), 1)
            if not any(found.run(line=line, times=times).is_killed for times in moments):
                missed.append(line)
        at_lines = found.kills
        for _ in range(_BY_CHANCE):
            found.run(delay_s=chance.uniform(0.01, 0.3))
    print(f"{found.kills} kills, {at_lines} of them at as many of {len(passed)} lines; not passed again: {missed}")
    assert len(missed) < len(passed) / 20
    assert at_lines > 500
