"""Errors that only count are short on their way, and count all the same."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, select

from tocsin.exporter import throttle
from tocsin.exporter.brief import MOST_KINDS, Briefs, Verdict, kind_of, without_numbers
from tocsin.exporter.database import Database
from tocsin.exporter.decode import Source
from tocsin.exporter.fingerprint import template
from tocsin.exporter.foreign import NO_STACK, Error, Resource
from tocsin.exporter.otlp import Reader
from tocsin.exporter.sink import Portion
from tocsin.exporter.spool import Line
from tocsin.exporter.throttle import FULL_A_MINUTE
from tocsin.lifecycle import Status, Trigger
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.store import groups, open_store
from tocsin.store.schema import error_groups, error_logs

DOOR = Source.of({"kind": "segment", "door": True})


class House:
    """A door and a database, and the lines that went from one to the other."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._briefs = Briefs()
        self._reader = Reader(Settings(), self._briefs)
        self.sink = Database(Settings(database_url=url, spool_dir=str(folder)), folder, self._briefs)
        self._portions = 0

    def take(self, *records: dict[str, Any]) -> list[dict[str, Any]]:
        """Log records as they come, stored at once; returns their lines."""
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
        body = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": records}]}]}
        reading = self._reader.logs(json.dumps(body).encode(), is_json=True, now_ns=time.time_ns())
        self._portions += 1
        read = [Line(json.loads(line), line, end) for end, line in enumerate(reading.lines, 1)]
        self.sink.put(Portion(segment=f"s{self._portions}", start=0, lines=read, source=DOOR, instance=None))
        return [line.content or {} for line in read]

    def rows(self, table: Any) -> list[Any]:
        store = open_store(self.url)
        try:
            return store.read_now(lambda connection: list(connection.execute(select(table)).all()))
        finally:
            store.close_now()

    def write(self, work: Any, *args: Any, **values: Any) -> None:
        store = open_store(self.url)
        try:
            store.write_now(work, *args, **values)
        finally:
            store.close_now()

    @property
    def count(self) -> int:
        return sum(row.count for row in self.rows(error_groups))


def record(number: int, *, severity_number: int = 17, **attributes: str) -> dict[str, Any]:
    """One of many errors of one place; each says another number."""
    said = f"order {number} is lost"
    frames = 'Traceback (most recent call last):\n  File "/srv/shop/orders.py", line 7, in send\n    go()\n'
    stack = f"{frames}shop.Lost: {said}"
    told = {"exception.type": "shop.Lost", "exception.message": said, "exception.stacktrace": stack} | attributes
    return {
        "timeUnixNano": str(time.time_ns()),
        "severityNumber": severity_number,
        "traceId": random.randbytes(16).hex(),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in told.items()],
    }


@pytest.fixture
def house(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(throttle, "_MINUTE_S", 1e6)  # no minute ends while it is looked at
    opened = House(database_url, tmp_path)
    yield opened
    opened.sink.close()


def is_brief(line: dict[str, Any]) -> bool:
    return "brief" in line


def test_beyond_the_cap_a_line_has_no_stack_and_each_error_counts(house: House) -> None:
    """The first that the drain sums up tells the door; a body that comes again counts nothing."""
    full = house.take(*map(record, range(FULL_A_MINUTE + 1)))
    more = [record(number) for number in range(1000, 1040)]

    brief = house.take(*more)
    again = house.take(*more)

    assert not any(map(is_brief, full))
    assert all(map(is_brief, brief))
    assert all("exception.stacktrace" not in line["attributes"] for line in brief)
    assert max(len(json.dumps(line)) for line in brief) < 700
    assert [line["id"] for line in again] == [line["id"] for line in brief]
    assert house.count == FULL_A_MINUTE + 41
    assert len(house.rows(error_logs)) == FULL_A_MINUTE


def test_what_is_graver_is_written_out(house: House) -> None:
    """What rings may not be lost among what counts."""
    house.take(*map(record, range(FULL_A_MINUTE + 1)))

    (graver,) = house.take(record(1, severity_number=21))

    assert not is_brief(graver)
    (group,) = house.rows(error_groups)
    assert (group.severity, group.count) == (Severity.CRITICAL, FULL_A_MINUTE + 2)


def test_a_resolved_group_comes_back_by_a_brief_one(house: House) -> None:
    house.take(*map(record, range(FULL_A_MINUTE + 1)))
    house.write(groups.act, 1, Trigger.RESOLVE, by="anna", via="api")

    (brief,) = house.take(record(5))

    assert is_brief(brief)
    (group,) = house.rows(error_groups)
    assert (group.status, group.regressions) == (Status.OPEN, 1)


def test_a_brief_one_whose_group_is_gone_gets_a_row(house: House) -> None:
    """It says itself what it was, but for its stack."""
    house.take(*map(record, range(FULL_A_MINUTE + 1)))
    (known,) = house.rows(error_groups)
    for table in (error_logs, error_groups):
        house.write(lambda connection, gone=table: connection.execute(delete(gone)))

    house.take(record(5), record(6))

    (group,) = house.rows(error_groups)
    (row,) = house.rows(error_logs)
    assert (group.id, group.culprit, group.count) == (known.id, known.culprit, 2)
    assert (row.message, row.exception_type, row.severity, row.stack) == ("order 5 is lost", "shop.Lost", "high", None)
    assert "only counted" in row.context["tocsin.left_out"]


def test_a_verdict_holds_until_its_minute_is_over_and_no_more_are_kept_than_some() -> None:
    briefs = Briefs()
    for kind in range(MOST_KINDS + 1):
        briefs.tell(kind, verdict(until_s=60.0))

    assert briefs.of(1, 59.9) == verdict(until_s=60.0)
    assert briefs.of(1, 60.0) is None
    assert briefs.of(0, 0.0) is None


def verdict(until_s: float) -> Verdict:
    return Verdict("1-f", Severity.HIGH, "unknown", "shop in send", "Lost", until_s)


PLAIN = Error(id="1", time_ns=1, message="order 77 of 12 is lost", mechanism="span", resource=Resource("shop", "{}"))


@pytest.mark.parametrize(
    ("other", "is_same"),
    [
        ({"id": "2", "time_ns": 2, "trace_id": "ab" * 16}, True),
        ({"message": "order 1234567 of 9 is lost"}, True),
        ({"attributes": {"url.path": "/other", "user.id": "u7"}}, True),
        ({"message": "order 77 of 12 is late"}, False),
        ({"exception_type": "KeyError"}, False),
        ({"severity_number": 21}, False),
        ({"severity": Severity.LOW}, False),
        ({"category": "amocrm"}, False),
        ({"handled": True}, False),
        ({"exit": True}, False),
        ({"status": 503}, False),
        ({"logger": "shop"}, False),
        ({"mechanism": "log record"}, False),
        ({"resource": Resource("crm", "{}2")}, False),
        ({"stack": replace(NO_STACK, encoded='"x"', frames="x", said="")}, False),
        ({"attributes": {"server.address": "api.amocrm.ru"}}, False),
        ({"attributes": {"url.full": "https://api.amocrm.ru/x"}}, False),
    ],
)
def test_of_one_kind_are_those_that_are_decided_on_alike(other: dict[str, Any], is_same: bool) -> None:
    assert (kind_of(replace(PLAIN, **other)) == kind_of(PLAIN)) is is_same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("connect ECONNREFUSED 127.0.0.1:5432", "connect ECONNREFUSED 127.0.0.1:6379"),
        ("getaddrinfo ENOTFOUND db1.internal", "getaddrinfo ENOTFOUND db2.internal"),
        ("Request failed with status code 404", "Request failed with status code 503"),
        ("request to https://api/v2 failed", "request to https://api/v3 failed"),
    ],
)
def test_a_number_of_an_address_or_an_answer_tells(one: str, other: str) -> None:
    """A port says which database it was."""
    assert kind_of(replace(PLAIN, message=one)) != kind_of(replace(PLAIN, message=other))


@pytest.mark.parametrize(
    "other",
    [{"is_shipped": True}, {"message": "x" * 2_001}, {"stack": replace(NO_STACK, encoded='"x"')}],
    ids=["another tocsin's", "long", "a stack that is not plain"],
)
def test_some_are_always_written_out(other: dict[str, Any]) -> None:
    assert kind_of(replace(PLAIN, **other)) is None


@given(st.text("ab 019.:-/'\"@x_", max_size=60), st.text("ab 019.:-/'\"@x_", max_size=60))
def test_texts_that_differ_in_numbers_alone_have_one_template(one: str, other: str) -> None:
    """So whoever keeps what is said of the one may say it of the other."""
    assert template(without_numbers(one)) == template(one)
    if without_numbers(one) == without_numbers(other):
        assert template(one) == template(other)
