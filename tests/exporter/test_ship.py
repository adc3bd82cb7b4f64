"""Errors that go to a server: every one arrives once, whatever the server, the network or this process do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlalchemy import select

from tests.exporter.test_drain import RESOURCE, error_line, read, rows
from tests.house import open_house
from tests.standin.otlp import PAGE, Answer, OtlpStandIn
from tests.waiting import eventually
from tocsin.contained import failures
from tocsin.exporter import spool as spooling
from tocsin.exporter.drain import BATCH_LINES, Drain, adopting
from tocsin.exporter.life import State
from tocsin.exporter.ship import Ship
from tocsin.exporter.spool import Spool
from tocsin.ids import uuid7
from tocsin.settings import Settings
from tocsin.store.schema import instances
from tocsin.wire import TOTAL_S


@dataclass
class Service:
    """A process that captures: its spool, its drain, and what it says."""

    spool: Spool
    drain: Drain
    said: list[str] = field(default_factory=list)

    def error(self, message: str = "boom", **values: Any) -> None:
        assert self.spool.append(error_line(message, **values))
        self.drain.wake()


@pytest.fixture
def server() -> Iterator[OtlpStandIn]:
    with OtlpStandIn() as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def shipping(address: str, folder: Path, *, within_s: float = TOTAL_S, **values: Any) -> Iterator[Service]:
    """A service whose errors go to a server."""
    settings = Settings(endpoint=address, spool_dir=str(folder), **values)
    spool = Spool(folder, 2**30, RESOURCE)
    said: list[str] = []
    drain = Drain(settings, spool, folder, said.append, sink=Ship(settings, folder, within_s=within_s))
    drain.start()
    try:
        yield Service(spool, drain, said)
    finally:
        spool.close(everything_stored=drain.finish(5))


def until_ended() -> None:
    """Wait until no drain is at work any more, also one that nobody waited for."""
    eventually(lambda: "tocsin-drain" not in {thread.name for thread in threading.enumerate()})


def left_behind(folder: Path, *messages: str) -> Path:
    """The spool of a process that was killed before it could send anything; its segment."""
    spool = Spool(folder, 2**30, RESOURCE)
    for message in messages:
        spool.append(error_line(message))
    path = spool.segments()[0]
    spool.close(everything_stored=False)
    return path


# What travels


def test_a_line_arrives_as_it_was_written(server: OtlpStandIn, folder: Path) -> None:
    """With its id, and with whose it is."""
    raw = error_line("no phone", **{"http.route": "/orders"})
    with shipping(server.address, folder) as service:
        service.spool.append(raw)
        service.drain.wake()
        eventually(lambda: service.drain.stored)

    (line,) = server.of_kind("error")
    assert line == json.loads(raw)
    resource = server.requests[0].resources[0]
    assert {name: value for name, value in resource.items() if name != "tocsin.sent_unix_nano"} == {
        "service.name": "shop",
        "service.version": "1.2",
        "deployment.environment.name": "production",
        "service.instance.id": "i-1",
        "host.name": "h",
        "process.pid": 7,
    }


def test_others_on_the_way_can_read_it_too(server: OtlpStandIn, folder: Path) -> None:
    """A Collector in between sees a log record like any other."""
    raw = json.loads(error_line("no phone")) | {"trace_id": "ab" * 16, "span_id": "cd" * 8}
    with shipping(server.address, folder) as service:
        service.spool.append(json.dumps(raw).encode() + b"\n")
        service.drain.wake()
        eventually(lambda: service.drain.stored)

    record = server.requests[0].message.resource_logs[0].scope_logs[0].log_records[0]
    assert (record.body.string_value, record.severity_number, record.event_name) == ("no phone", 17, "exception")
    assert record.time_unix_nano == raw["time_unix_nano"]
    assert (record.trace_id.hex(), record.span_id.hex()) == (raw["trace_id"], raw["span_id"])


def test_the_source_around_a_frame_travels_with_it(server: OtlpStandIn, folder: Path, tmp_path: Path) -> None:
    """Only the service's own machine can read it; a file that says something else by now is not shown."""
    file = tmp_path / "shop.py"
    file.write_text("def order():\n    phone = {}\n    return phone['number']\n\norder()\n")
    frame = {"module": "shop", "function": "order", "file": str(file), "line": 3, "in_app": True}
    frames: Any = {"tocsin.frames": [frame | {"text": "return phone['number']"}, frame | {"text": "return 1"}]}
    with shipping(server.address, folder) as service:
        service.spool.append(error_line("no number", **frames))
        service.drain.wake()
        eventually(lambda: service.drain.stored)

    shown, changed = server.of_kind("error")[0]["attributes"]["tocsin.frames"]
    assert shown["before"] == ["def order():", "    phone = {}"]
    assert shown["after"] == ["", "order()"]
    assert changed == frame | {"text": "return 1"}


def test_amendments_and_counts_travel_too(server: OtlpStandIn, folder: Path) -> None:
    error_id = uuid7()
    with shipping(server.address, folder) as service:
        service.error(error_id=error_id)
        amendment = {"v": 1, "kind": "amend", "error_id": error_id, "severity": "critical"}
        service.spool.append(json.dumps(amendment).encode() + b"\n")
        counter = service.spool.counter(error_id)
        assert counter is not None
        for _ in range(41):
            counter.tick()
        service.drain.wake()
        eventually(lambda: sum(line["to"] - line["from"] for line in server.of_kind("repeats")) == 41)

    assert server.of_kind("amend") == [amendment]


def test_what_has_no_id_gets_one_that_is_the_same_on_every_try(server: OtlpStandIn, folder: Path) -> None:
    server.always = Answer(status=503, keeps=True)
    with shipping(server.address, folder) as service:
        for _ in range(2):
            error_id = uuid7()
            service.error(error_id=error_id)
            counter = service.spool.counter(error_id)
            assert counter is not None
            counter.tick()
        eventually(lambda: len(server.of_kind("repeats")) >= 4)
        server.always = Answer(keeps=True)

    ids: dict[tuple[str, int], set[str]] = {}
    for line in server.of_kind("repeats"):
        ids.setdefault((line["error_id"], line["to"]), set()).add(line["id"])
    assert [len(found) for found in ids.values()] == [1] * len(ids)
    assert len(set.union(*ids.values())) == len(ids)


def test_the_process_tells_how_it_is_with_what_it_sends(server: OtlpStandIn, folder: Path) -> None:
    with shipping(server.address, folder) as service:
        service.spool.life.note_memory(98_000_000, 1)
        service.error()
        eventually(lambda: service.drain.stored)

    instance = server.of_kind("instance")[0]
    assert (instance["id"], instance["service"], instance["pid"], instance["is_alive"]) == ("i-1", "shop", 7, True)
    assert instance["started_at_ns"] == RESOURCE["started_ns"]
    assert instance["memory_bytes"] == 98_000_000


def test_a_service_without_errors_tells_that_it_lives(server: OtlpStandIn, folder: Path) -> None:
    with shipping(server.address, folder):
        eventually(lambda: server.of_kind("instance"))

    assert server.messages() == []


def test_it_tells_when_it_spoke_last_and_how_often_it_will(server: OtlpStandIn, folder: Path) -> None:
    """One that stands still is not heard of by what its files say."""
    with shipping(server.address, folder) as service:
        service.spool.life.set_state(State.ALIVE)
        service.spool.life.note_memory(98_000_000, 1_700_000_000 * 10**9)
        eventually(lambda: server.of_kind("instance"))

    told = server.of_kind("instance")[0]
    assert (told["beats_every_s"], told["seen_at_ns"]) == (60.0, 1_700_000_000 * 10**9)


def test_that_it_stops_and_that_it_has_ended_is_told_at_once(server: OtlpStandIn, folder: Path) -> None:
    """The next heartbeat would be too late: load balancers and people look meanwhile."""
    with shipping(server.address, folder) as service:
        service.spool.life.set_state(State.ALIVE)
        service.spool.life.set_active(3)
        eventually(lambda: server.of_kind("instance"))
        service.spool.life.note_stopping(time.time_ns())
        service.drain.wake()
        eventually(lambda: len(server.of_kind("instance")) == 2)

    told = [(one["active_requests"], one["is_shutting_down"], one["ended_how"]) for one in server.of_kind("instance")]
    assert told == [(3, False, None), (3, True, None), (3, False, "stopped")]


def test_a_service_without_errors_says_nothing_of_a_server_that_is_away(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with shipping(address, folder):
            nobody.settimeout(10)
            connection, _ = nobody.accept()
            connection.close()

    assert capfd.readouterr().err == ""


def test_each_error_that_arrived_is_said_in_a_line(server: OtlpStandIn, folder: Path) -> None:
    """As where a database takes it, but for the number, which only the server knows."""
    with shipping(server.address, folder, categories=(("billing", "module", "shop.billing"),)) as service:
        service.error("no phone")
        billing: Any = {"exception.type": "shop.billing.Declined", "tocsin.severity": "critical"}
        service.error("card", **billing)
        eventually(lambda: len(service.said) == 2)

    assert service.said == ["HIGH api ValueError: no phone", "CRITICAL billing Declined: card"]


@pytest.mark.parametrize("settings", [{"ingest_token": "right", "token": "other"}, {"token": "right"}])
def test_the_token_is_the_one_for_sending_else_the_one_for_all(settings: dict[str, Any], folder: Path) -> None:
    with OtlpStandIn(token="right") as server, shipping(server.address, folder, **settings) as service:
        service.error()
        eventually(lambda: service.drain.stored)

        assert server.messages() == ["boom"]


def test_many_errors_share_requests_and_connections(server: OtlpStandIn, folder: Path) -> None:
    many = [f"m{number}" for number in range(2 * BATCH_LINES + 10)]
    left_behind(folder, *many)
    with shipping(server.address, folder):
        eventually(lambda: len(server.messages()) == len(many))

    assert server.messages() == many
    assert len([request for request in server.requests if len(request.lines) > 1]) == 3
    assert {request.connection for request in server.requests} == {1}


def test_the_files_go_when_the_server_has_everything(server: OtlpStandIn, folder: Path) -> None:
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.stored)
        assert list(folder.glob("*.sent"))

    assert list(folder.iterdir()) == []


# Answers


AWAY = {
    "too many": Answer(status=429),
    "bad gateway": Answer(status=502, body=b"<html>", content_type="text/html"),
    "unavailable": Answer(status=503),
    "gateway timeout": Answer(status=504),
    "failed inside": Answer(status=500),
    "cut off": Answer(cut=True),
}
REFUSING = {
    "not found": (Answer(status=404), "no tocsin server"),
    "not allowed": (Answer(status=405), "no tocsin server"),
    "elsewhere": (Answer(status=308, headers={"Location": "http://127.0.0.1:9/"}), "127.0.0.1:9"),
    "a page": (PAGE, "no tocsin server"),
    "other JSON": (Answer(body=b'{"ok": true}'), "no tocsin server"),
    "no JSON": (Answer(body=b"{"), "no tocsin server"),
    "no content": (Answer(status=204, body=b""), "no tocsin server"),
    "who are you": (Answer(status=401), "TOCSIN_INGEST_TOKEN"),
    "not you": (Answer(status=403), "TOCSIN_INGEST_TOKEN"),
}


@pytest.mark.parametrize("answer", AWAY.values(), ids=AWAY)
def test_what_a_server_cannot_take_now_is_sent_again(
    answer: Answer, server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server.next(answer, answer)
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.stored)

    assert server.messages() == ["boom"]
    said = capfd.readouterr().err
    assert said.count("is away, errors wait in") == 1
    assert said.count("is back") == 1


@pytest.mark.parametrize(("answer", "said"), REFUSING.values(), ids=REFUSING)
def test_who_is_no_server_or_lets_nobody_in_is_said_and_costs_no_error(
    answer: Answer, said: str, server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mistyped address is the classic case: somebody else answers, with 200 perhaps."""
    server.always = answer
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.away_since)
    text = capfd.readouterr().err
    assert said in text and "takes nothing" in text

    server.always = Answer(keeps=True)
    with shipping(server.address, folder):
        eventually(lambda: server.messages() == ["boom"])


def test_a_redirect_gets_no_token(folder: Path) -> None:
    with OtlpStandIn() as elsewhere, OtlpStandIn() as server:
        server.always = Answer(status=307, headers={"Location": f"{elsewhere.address}/v1/logs"})
        with shipping(server.address, folder, ingest_token="secret-token") as service:
            service.error()
            eventually(lambda: service.drain.away_since)

        assert elsewhere.requests == []


def test_no_proxy_of_the_environment_is_used(
    server: OtlpStandIn, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would see the token, and a service's errors."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: server.messages() == ["boom"])


@pytest.mark.parametrize("token", ["hush\nhush", "h\u00fcsh\u2026hush"], ids=["two lines", "not latin"])
def test_no_secret_is_said(token: str, server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library quotes a header that it refuses."""
    address = server.address.replace("://", "://someone:pass-word@")
    with shipping(address, folder, ingest_token=token) as service:
        service.error()
        eventually(lambda: service.drain.away_since)

    said = capfd.readouterr().err
    assert "characters that cannot be sent" in said
    assert "hush" not in said and "pass-word" not in said


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_is_left_alone_for_as_long_as_it_asks(form: str, server: OtlpStandIn, folder: Path) -> None:
    until = datetime.now(UTC) + timedelta(seconds=2)
    value = "2" if form == "seconds" else format_datetime(until.replace(microsecond=0) + timedelta(seconds=1), True)
    server.next(Answer(status=503, headers={"Retry-After": value}))
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.stored)

    first, second = server.requests[:2]
    assert second.at - first.at >= 1.8


def test_a_pause_that_a_server_asks_for_does_not_hold_up_the_end(server: OtlpStandIn, folder: Path) -> None:
    """And the last try is made."""
    server.next(Answer(status=429, headers={"Retry-After": "3600"}))
    spool = Spool(folder, 2**30, RESOURCE)
    drain = Drain(Settings(endpoint=server.address, spool_dir=str(folder)), spool, folder)
    spool.append(error_line())
    drain.start()
    eventually(lambda: drain.away_since)

    begun = time.monotonic()
    is_all_stored = drain.finish(1.5)
    assert time.monotonic() - begun < 1
    spool.close(everything_stored=is_all_stored)
    assert server.messages() == ["boom"]


@pytest.mark.parametrize("status", [400, 413, 415])
def test_a_line_that_the_server_refuses_is_set_aside_and_its_neighbours_arrive(
    status: int, server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    failures.clear()
    server.always = Answer(status=status, refuses=lambda line: line.get("body") == "m3")
    left_behind(folder, *(f"m{number}" for number in range(8)))
    with shipping(server.address, folder):
        eventually(lambda: not [path for path in folder.glob("*.seg") if b'"m3"' in path.read_bytes()])

    assert sorted(server.messages()) == [f"m{number}" for number in range(8) if number != 3]
    assert '"m3"' in (folder / "refused.jsonl").read_text()
    assert failures["sending an error that the server refuses"] == 1
    failures.clear()


def test_what_a_server_leaves_out_is_counted_and_set_aside(server: OtlpStandIn, folder: Path) -> None:
    """It says how many, not which."""
    failures.clear()
    server.always = Answer(refuses=lambda line: line.get("body") == "m3")
    left_behind(folder, *(f"m{number}" for number in range(8)))
    with shipping(server.address, folder):
        eventually(lambda: not [path for path in folder.glob("*.seg") if b'"m3"' in path.read_bytes()])

    assert set(server.messages()) == {f"m{number}" for number in range(8) if number != 3}
    assert (folder / "refused.jsonl").read_text().count('"m3"') == 1
    assert failures["sending: left out by the server"] >= 1
    failures.clear()


def test_who_refuses_everything_gets_nothing_and_nothing_is_thrown_away(
    server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some other program answers 400 to whatever it is sent; its errors would all be set aside."""
    server.always = Answer(status=400)
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.away_since)

    assert not (folder / "refused.jsonl").exists()
    assert "takes nothing" in capfd.readouterr().err
    server.always = Answer(keeps=True)
    with shipping(server.address, folder):
        eventually(lambda: server.messages() == ["boom"])


# The network


def test_a_lost_answer_means_sending_again(server: OtlpStandIn, folder: Path) -> None:
    """With the same id, by which the server counts it once."""
    server.next(Answer(keeps=True, cut=True))
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.stored)

    first, second = server.of_kind("error")
    assert first == second


def test_what_was_acknowledged_is_not_sent_by_the_next_process(server: OtlpStandIn, folder: Path) -> None:
    many = [f"m{number}" for number in range(BATCH_LINES + 200)]
    left_behind(folder, *many)
    server.next(Answer(keeps=True))  # the first portion, not the second
    server.always = Answer(status=503)
    first = Drain(Settings(endpoint=server.address, spool_dir=str(folder)), None, folder)
    first.start()
    eventually(lambda: first.away_since)
    first.finish(0)
    until_ended()
    assert server.messages() == many[: BATCH_LINES - 1]  # and the segment's header

    server.always = Answer(keeps=True)
    second = Drain(Settings(endpoint=server.address, spool_dir=str(folder)), None, folder)
    second.start()
    eventually(lambda: not list(folder.glob("*.seg")))
    second.finish(5)

    assert server.messages() == many
    assert list(folder.iterdir()) == []


def test_a_server_on_the_same_machine_stores_only_what_was_not_sent(database_url: str, folder: Path) -> None:
    """It takes over the spool of a dead service whose errors went to it by HTTP."""
    segment = left_behind(folder, "sent", "not sent")
    lines = spooling.read_segment(segment)
    spooling.acknowledge(folder, segment.stem, lines[1].end)

    with adopting(Settings(database_url=database_url, spool_dir=str(folder))):
        eventually(lambda: not list(folder.glob("*.seg")))

    assert [row.message for row in rows(database_url)] == ["not sent"]
    assert list(folder.iterdir()) == []


def test_what_came_to_a_server_that_died_keeps_whose_it_is(server: OtlpStandIn, folder: Path) -> None:
    """A service may take over the spool of a server on the same machine."""
    spool = Spool(folder, 2**30, {"door": True})
    line = json.loads(error_line("foreign")) | {"door": True, "resource": {"service.name": "crm"}}
    spool.append(json.dumps(line).encode() + b"\n")
    spool.close(everything_stored=False)

    with shipping(server.address, folder):
        eventually(lambda: server.messages() == ["foreign"])

    (request,) = [request for request in server.requests if request.lines[0]["kind"] == "error"]
    assert [resource["service.name"] for resource in request.resources] == ["crm"]


@pytest.mark.parametrize("note", ["", "-1", "many", "999999999"])
def test_a_note_that_cannot_be_right_is_not_believed(note: str, server: OtlpStandIn, folder: Path) -> None:
    segment = left_behind(folder, "boom")
    segment.with_suffix(".sent").write_text(note)

    with shipping(server.address, folder):
        eventually(lambda: server.messages() == ["boom"])


def test_notes_of_segments_that_are_gone_are_swept(server: OtlpStandIn, folder: Path) -> None:
    """A process died between deleting the one and the other."""
    folder.mkdir()
    for name in ("00-1-ab.0001.sent", "00-1-ab.0002.sent.new"):
        (folder / name).write_text("1")
    with shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.stored)

    assert list(folder.iterdir()) == []


def test_a_connection_that_rested_too_long_is_made_anew(
    server: OtlpStandIn, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server has closed it meanwhile, without a word."""
    server.next(Answer(keeps=True, hangs_up=True))
    with shipping(server.address, folder) as service:
        service.error("first")
        eventually(lambda: service.drain.stored == 1)
        service.error("second")
        eventually(lambda: service.drain.stored == 2)

    assert server.messages() == ["first", "second"]
    assert "away" not in capfd.readouterr().err


@pytest.mark.parametrize("how", ["half-open", "silent", "dripping"])
def test_a_server_that_hangs_holds_up_neither_capture_nor_the_end(how: str, server: OtlpStandIn, folder: Path) -> None:
    """Each step has its time: connecting, reading, and all of it."""
    server.always = Answer(dripping=True) if how == "dripping" else Answer(after_s=60)
    with silent_port() as hole:
        spool = Spool(folder, 2**30, RESOURCE)
        address = hole if how == "half-open" else server.address
        settings = Settings(endpoint=address, spool_dir=str(folder))
        drain = Drain(settings, spool, folder, sink=Ship(settings, folder, within_s=3))
        drain.start()
        drain.wake()
        begun = time.monotonic()
        for number in range(100):
            assert spool.append(error_line(f"m{number}"))
            drain.wake()
        assert time.monotonic() - begun < 1

        eventually(lambda: how == "half-open" or server.requests)
        begun = time.monotonic()
        assert not drain.finish(1.5)
        assert time.monotonic() - begun < 2
        spool.close(everything_stored=False)
        until_ended()


@contextmanager
def silent_port() -> Iterator[str]:
    """A port whose queue is full: a connection is neither made nor refused."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        host, port = listening.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((host, port))
        try:
            yield f"http://{host}:{port}"
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("answer", [Answer(after_s=60), Answer(dripping=True, headers={"X": "y" * 200})])
def test_an_answer_has_its_time(answer: Answer, server: OtlpStandIn, folder: Path) -> None:
    """Also one of which a byte comes now and then; afterwards it goes on."""
    server.next(answer)
    with shipping(server.address, folder, within_s=0.5) as service:
        service.error()
        eventually(lambda: service.drain.away_since, 3)
        eventually(lambda: service.drain.stored)

    assert server.messages() == ["boom"]


# TLS


@pytest.fixture
def authority(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Makes a certificate for a name: a file with the server's, and one with the authority's."""

    def make(name: str) -> tuple[str, str]:
        ca = trustme.CA()
        own, others = tmp_path / "own.pem", tmp_path / "authority.pem"
        ca.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(own))
        ca.cert_pem.write_to_path(str(others))
        return str(own), str(others)

    return make


def test_a_certificate_is_checked(
    authority: Callable[[str], tuple[str, str]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own, trusted = authority("127.0.0.1")
    with OtlpStandIn(certificate=own) as server:
        with shipping(server.address, folder) as service:
            service.error()
            eventually(lambda: service.drain.away_since)
        assert "certificate" in capfd.readouterr().err

        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        with shipping(server.address, folder):
            eventually(lambda: server.messages() == ["boom"])


def test_a_certificate_for_another_name_is_not_taken(
    authority: Callable[[str], tuple[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, trusted = authority("tocsin.example")
    monkeypatch.setenv("SSL_CERT_FILE", trusted)
    with OtlpStandIn(certificate=own) as server, shipping(server.address, folder) as service:
        service.error()
        eventually(lambda: service.drain.away_since)

        assert server.requests == []


# All the way


def test_what_a_service_captures_is_stored_by_a_server_as_it_would_be_without(
    database_url: str, folder: Path, tmp_path: Path
) -> None:
    """Mild or grave, amended, counted in a storm; with the process that it is from."""
    mild, counted = uuid7(), uuid7()
    source = tmp_path / "shop.py"
    source.write_text("def order():\n    return 1 / 0\n")
    frame = {"module": "shop", "function": "order", "file": str(source), "line": 2, "text": "return 1 / 0"}
    attributes: Any = {"tocsin.handled": True, "tocsin.frames": [frame | {"in_app": True}]}
    line = json.loads(error_line("mild", mild, **attributes)) | {"severity_number": 13}
    settings = Settings(database_url=database_url, spool_dir=str(tmp_path / "server"), ingest_token="right")
    with open_house(settings) as address, shipping(address, folder, ingest_token="right") as service:
        service.spool.append(json.dumps(line).encode() + b"\n")
        amendment = {"v": 1, "kind": "amend", "error_id": mild, "severity": "critical", "category": "billing"}
        service.spool.append(json.dumps(amendment).encode() + b"\n")
        service.error("counted", error_id=counted)
        counter = service.spool.counter(counted)
        assert counter is not None
        for _ in range(41):
            counter.tick()
        service.drain.wake()
        eventually(lambda: {row.message: row.count for row in rows(database_url)} == {"mild": 1, "counted": 42}, 20)

        def known() -> list[Any]:
            return list(read(database_url, lambda connection: connection.execute(select(instances)).all()))

        eventually(known)

    (row,) = [row for row in rows(database_url) if row.message == "mild"]
    assert (row.id, row.severity, row.category, row.handled) == (mild, "critical", "billing", True)
    assert (row.service, row.environment, row.release, row.instance_id) == ("shop", "production", "1.2", "i-1")
    assert (row.exception_type, row.mechanism) == ("ValueError", "asgi")
    assert row.context["tocsin.frames"][0]["before"] == ["def order():"]
    (instance,) = known()
    assert (instance.id, instance.service, instance.host, instance.pid) == ("i-1", "shop", "h", 7)


def test_a_program_that_dies_of_an_error_has_sent_it(server: OtlpStandIn, folder: Path, tmp_path: Path) -> None:
    """Within the second that an end may take; nothing is left for who comes next."""
    code = f"import tocsin; tocsin.init(service='shop', endpoint={server.address!r}, spool_dir={str(folder)!r}); 1 / 0"

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=bare_environment(), capture_output=True, text=True, check=False
    )

    assert (done.returncode, server.messages()) == (1, ["division by zero"])
    assert "CRITICAL" in done.stderr and "ZeroDivisionError" in done.stderr
    assert list(folder.iterdir()) == []


def test_a_forked_child_sends_by_a_connection_of_its_own(server: OtlpStandIn, folder: Path, tmp_path: Path) -> None:
    code = f"""
import os, tocsin
tocsin.init(service="shop", endpoint={server.address!r}, spool_dir={str(folder)!r})
tocsin.track_error("parent, before")
assert tocsin.flush(10)
if os.fork() == 0:
    tocsin.track_error("child")
    assert tocsin.flush(10)
    os._exit(0)
os.wait()
tocsin.track_error("parent, after")
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=bare_environment(), check=True)

    assert sorted(server.messages()) == ["child", "parent, after", "parent, before"]
    by_pid: dict[int, set[int]] = {}
    for request in server.requests:
        for resource in request.resources:
            by_pid.setdefault(resource["process.pid"], set()).add(request.connection)
    parent, child = by_pid.values()
    assert not parent & child


def bare_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "OTEL_"))} | {
        "PYTHONPATH": str(Path(__file__).parents[2])
    }


# Many at once


def test_everything_arrives_once_while_the_server_comes_and_goes(folder: Path) -> None:
    """It is away, refuses, loses answers, and takes everything in between; whoever captures notices nothing."""
    with OtlpStandIn() as server, shipping(server.address, folder) as service:
        stop = threading.Event()

        def trouble() -> None:
            while not stop.is_set():
                server.next(Answer(status=503), Answer(keeps=True, cut=True), Answer(status=429), Answer(cut=True))
                stop.wait(0.3)
                server.next(*[Answer(keeps=True)] * 2)

        thread = threading.Thread(target=trouble)
        thread.start()
        for number in range(400):
            service.error(f"m{number}")
            if number % 40 == 0:
                eventually(lambda: server.requests)
        stop.set()
        thread.join()
        eventually(lambda: service.drain.stored == 400, 30)

    by_id = {line["id"]: line["body"] for line in server.of_kind("error")}
    assert sorted(by_id.values()) == sorted(f"m{number}" for number in range(400))
