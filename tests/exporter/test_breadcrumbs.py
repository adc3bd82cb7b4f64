"""Breadcrumbs in a line, in a row, and for people; also those that somebody has made up."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from tests.exporter.test_drain import error_line
from tocsin import clock, semconv
from tocsin.exporter.breadcrumbs import MOST, bounded, dated, told
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.otlp import Reader
from tocsin.model import ErrorRecord
from tocsin.settings import Settings

NOW_NS = 1_773_480_413_589_793_238
LOG = {"time_unix_nano": NOW_NS, "kind": "log", "level": "info", "logger": "shop", "message": "order is paid"}
CALL = {"time_unix_nano": NOW_NS, "kind": "http", "method": "GET", "host": "a", "path": "/b", "status": 200, "ms": 1.5}
ERROR = {"time_unix_nano": NOW_NS, "kind": "error", "type": "ValueError", "message": "first"}


def sent(line: dict[str, Any], *, sent_ns: int, now_ns: int) -> ErrorRecord:
    """A line as a server reads it that another process has sent to it."""
    record = {"attributes": [{"key": semconv.LINE, "value": {"stringValue": json.dumps(line)}}]}
    resource = {"attributes": [{"key": semconv.SENT, "value": {"stringValue": str(sent_ns)}}]}
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}
    reading = Reader(Settings()).logs(json.dumps(body).encode(), is_json=True, now_ns=now_ns)
    assert reading.problem is None
    found = decode(json.loads(reading.lines[0]), Source.of({}))
    assert isinstance(found, ErrorRecord)
    return found


def test_a_row_has_times_by_the_database_s_clock() -> None:
    (one,) = dated([LOG], timedelta(hours=1))

    assert one == {"time": "2026-03-14T10:26:53.589+00:00"} | {
        key: value for key, value in LOG.items() if key != "time_unix_nano"
    }


def test_they_travel_to_a_server_with_a_clock_of_its_own() -> None:
    now_ns = clock.now_ns()
    line = json.loads(error_line("broken"))
    line["attributes"]["tocsin.breadcrumbs"] = [LOG | {"time_unix_nano": now_ns}, CALL, ERROR]

    record = sent(line, sent_ns=now_ns, now_ns=now_ns + 3600 * 10**9)

    first, second, third = record.context["tocsin.breadcrumbs"]
    assert first["time"] == clock.from_ns(now_ns + 3600 * 10**9).isoformat(timespec="milliseconds")
    assert (second["host"], second["path"], second["status"], second["ms"]) == ("a", "/b", 200, 1.5)
    assert (third["type"], third["message"]) == ("ValueError", "first")


@pytest.mark.parametrize(
    "given",
    [
        None,
        "text",
        {"kind": "log"},
        [None, 1, "x", [], {}],
        [{"kind": []}, {"kind": "other", "time_unix_nano": 1}],
        [LOG | {"time_unix_nano": "1"}, LOG | {"time_unix_nano": True}, LOG | {"time_unix_nano": 2**64}],
        [LOG | {"time_unix_nano": -(10**30)}],
    ],
)
def test_what_is_no_crumb_is_left_out(given: object) -> None:
    assert bounded(given) == []


def test_what_somebody_made_up_is_bounded_cleaned_and_scrubbed() -> None:
    given = {**CALL, "path": "/x?password=geheim77", "host": "h" * 1000, "status": "200", "ms": float("nan")}
    given |= {"more": "x" * 10**6, "method": "G\x1b[31m"}

    found = bounded([LOG] * 1000 + [given])

    assert len(found) == MOST
    assert len(found[-1]["host"]) <= 300
    assert (found[-1]["path"], found[-1]["method"]) == ("/x?password=[scrubbed]", "G\\x1b[31m")
    assert found[-1].keys() == {"time_unix_nano", "kind", "method", "host", "path"}


def test_people_read_when_what_and_by_whom() -> None:
    rows = told(dated([LOG, CALL, ERROR, CALL | {"status": None, "exception": "ConnectError"}]))

    assert [(one.what, one.text, one.note) for one in rows] == [
        ("info", "order is paid", "shop"),
        ("GET", "a/b", "200, 1.5 ms"),
        ("error", "first", "ValueError"),
        ("GET", "a/b", "ConnectError, 1.5 ms"),
    ]
    assert {one.time for one in rows} == {"09:26:53.589"}
