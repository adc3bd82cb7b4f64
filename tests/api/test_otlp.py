"""What arrives by HTTP: answered as the specification says, and only from those who may send."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.api.conftest import TOKENS, client_of, settings_with
from tocsin.api import create_app
from tocsin.exporter.door import Door
from tocsin.exporter.otlp import Reader, Reading
from tocsin.exporter.spool import Spool, read_segment
from tocsin.settings import Settings

JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}
HERE = "http://127.0.0.1:4318"
MIB = 2**20


def client_on(door: Door | None, *, token: str | None = TOKENS["ingest"], **settings: Any) -> httpx.AsyncClient:
    return client_of(create_app(settings_with(**settings), door=door), token=token)


@pytest.fixture
async def sender(door: Door) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may only send."""
    async with client_on(door) as client:
        yield client


def a_log(message: str = "boom") -> bytes:
    """An error as a log record, in protobuf."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.time_unix_nano = 1_700_000_000_000_000_000
    record.severity_number = 17
    record.body.string_value = message
    for name, value in {"exception.type": "ValueError", "exception.message": message}.items():
        attribute = record.attributes.add()
        attribute.key, attribute.value.string_value = name, value
    return bytes(request.SerializeToString())


def errors_in(spool: Spool) -> list[dict[str, Any]]:
    lines = [line.content or {} for path in spool.segments() for line in read_segment(path)]
    return [line for line in lines if line.get("kind") == "error"]


def status_of(answer: httpx.Response) -> Status:
    """What went wrong, as a sender reads it in its own encoding."""
    if answer.headers["content-type"] == PROTOBUF["content-type"]:
        return Status.FromString(answer.content)
    assert answer.headers["content-type"] == JSON["content-type"]
    content = answer.json()
    assert set(content) == {"code", "message"}
    return Status(code=content["code"], message=content["message"])


# What is taken


@pytest.mark.parametrize("encoding", ["gzip", "identity", None])
async def test_an_error_is_on_the_disk_when_it_is_answered(
    sender: httpx.AsyncClient, spool: Spool, encoding: str | None
) -> None:
    body = gzip.compress(a_log()) if encoding == "gzip" else a_log()
    headers = PROTOBUF | ({"content-encoding": encoding} if encoding else {})

    answer = await sender.post("/v1/logs", content=body, headers=headers)

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == PROTOBUF["content-type"]
    assert [line["body"] for line in errors_in(spool)] == ["boom"]


async def test_a_body_in_chunks_is_taken_too(sender: httpx.AsyncClient, spool: Spool) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in a_log():
            yield bytes([byte])

    answer = await sender.post("/v1/logs", content=chunks(), headers=PROTOBUF)

    assert answer.status_code == 200
    assert len(errors_in(spool)) == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/logs", ExportLogsServiceResponse),
        ("/v1/traces", ExportTraceServiceResponse),
    ],
)
async def test_an_empty_request_is_a_request(sender: httpx.AsyncClient, path: str, kind: type[Message]) -> None:
    binary = await sender.post(path, headers=PROTOBUF)
    text = await sender.post(path, content=b"{}", headers={"content-type": "application/json; charset=UTF-8"})

    assert (binary.status_code, text.status_code) == (200, 200)
    assert kind.FromString(binary.content) == kind()
    assert text.json() == {}


class Choosy(Reader):
    """Takes all but two."""

    def logs(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        return Reading(taken=3, rejected=300, problem="no time in résumé")

    def traces(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        return self.logs(body, is_json=is_json, now_ns=now_ns)


@pytest.fixture
def choosy(spool: Spool) -> Iterator[Door]:
    door = Door(Choosy(Settings()), spool, wake=lambda: None)
    door.start()
    yield door
    door.close(5)


async def test_what_was_rejected_is_told(choosy: Door) -> None:
    """With its count and the first reason, in the encoding of the request."""
    async with client_on(choosy) as sender:
        logs = await sender.post("/v1/logs", headers=PROTOBUF)
        spans = await sender.post("/v1/traces", headers=PROTOBUF)
        logs_text = await sender.post("/v1/logs", content=b"{}", headers=JSON)
        spans_text = await sender.post("/v1/traces", content=b"{}", headers=JSON)

    log_part = ExportLogsServiceResponse.FromString(logs.content).partial_success
    span_part = ExportTraceServiceResponse.FromString(spans.content).partial_success
    assert (log_part.rejected_log_records, log_part.error_message) == (300, "no time in résumé")
    assert (span_part.rejected_spans, span_part.error_message) == (300, "no time in résumé")
    text = {"errorMessage": "no time in résumé"}
    assert logs_text.json() == {"partialSuccess": {"rejectedLogRecords": "300"} | text}
    assert spans_text.json() == {"partialSuccess": {"rejectedSpans": "300"} | text}


async def test_metrics_are_dropped_and_that_is_said(sender: httpx.AsyncClient, spool: Spool) -> None:
    binary = await sender.post("/v1/metrics", content=b"\xff" * 100_000, headers=PROTOBUF)
    text = await sender.post("/v1/metrics", content=b"{}", headers=JSON)

    part = ExportMetricsServiceResponse.FromString(binary.content).partial_success
    assert (binary.status_code, part.rejected_data_points) == (200, 0)
    assert "no metrics" in part.error_message
    assert "no metrics" in text.json()["partialSuccess"]["errorMessage"]
    assert errors_in(spool) == []


# What is refused


async def chunked(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 65536 + 1):
        yield bytes(65536)


GZIP = {"content-encoding": "gzip"}
REFUSED: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "no protobuf": ("POST", {"content": b"\xff\xff", "headers": PROTOBUF}, 400, 3),
    "no JSON": ("POST", {"content": b"{", "headers": JSON}, 400, 3),
    "no gzip": ("POST", {"content": b"{}", "headers": JSON | GZIP}, 400, 3),
    "half a gzip": ("POST", {"content": gzip.compress(a_log())[:-3], "headers": PROTOBUF | GZIP}, 400, 3),
    "a gzip bomb": ("POST", {"content": gzip.compress(bytes(64 * MIB)), "headers": PROTOBUF | GZIP}, 413, 8),
    "too long, and it says so": ("POST", {"content": bytes(11 * MIB), "headers": PROTOBUF}, 413, 8),
    "another encoding": ("POST", {"content": b"{}", "headers": JSON | {"content-encoding": "deflate"}}, 415, 3),
    "gzip twice": ("POST", {"content": b"{}", "headers": JSON | {"content-encoding": "gzip, gzip"}}, 415, 3),
    "no type": ("POST", {"content": b"{}"}, 415, 3),
    "a form": ("POST", {"data": {"a": "b"}}, 415, 3),
    "plain text": ("POST", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415, 3),
    "parts": ("POST", {"files": {"a": b"b"}}, 415, 3),
    "another charset": (
        "POST",
        {"content": b"{}", "headers": {"content-type": "application/json; charset=utf-16"}},
        415,
        3,
    ),
    "a negative length": ("POST", {"headers": PROTOBUF | {"content-length": "-1"}}, 413, 8),
    "GET": ("GET", {}, 405, 12),
    "PUT": ("PUT", {"headers": PROTOBUF}, 405, 12),
    "OPTIONS": ("OPTIONS", {"headers": PROTOBUF}, 405, 12),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("path", ["/v1/logs", "/v1/traces"])
async def test_a_refusal_is_a_status_in_the_senders_encoding(
    sender: httpx.AsyncClient, spool: Spool, path: str, case: str
) -> None:
    method, request, expected, code = REFUSED[case]

    answer = await sender.request(method, path, **request)

    assert answer.status_code == expected
    assert status_of(answer).code == code
    assert status_of(answer).message
    assert (answer.headers["content-type"] == PROTOBUF["content-type"]) == (
        request.get("headers", {}).get("content-type") == PROTOBUF["content-type"]
    )
    if expected == 405:
        assert answer.headers["allow"] == "POST"
    assert errors_in(spool) == []


async def test_a_body_without_a_length_is_counted_while_it_arrives(sender: httpx.AsyncClient) -> None:
    answer = await sender.post("/v1/logs", content=chunked(11 * MIB), headers=PROTOBUF)

    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


async def test_when_there_is_no_room_it_shall_come_again(tmp_path: Path) -> None:
    """And nothing counts as lost: the sender still has it."""
    spool = Spool(tmp_path / "small", 200, {"door": True})
    door = Door(Reader(Settings()), spool, wake=lambda: None)
    door.start()
    async with client_on(door) as sender:
        full = await sender.post("/v1/logs", content=a_log(), headers=PROTOBUF)
        with door.room.enter() as place:
            place.grow(10 * MIB)
            busy = await sender.post("/v1/logs", content=a_log(), headers=PROTOBUF)
        door.close(5)
        stopping = await sender.post("/v1/logs", content=a_log(), headers=PROTOBUF)
        posted = await sender.post("/api/debug/errors", json={"message": "boom"})
    assert spool.lost == 0
    spool.close(everything_stored=True)

    for answer in (full, busy, stopping):
        assert (answer.status_code, status_of(answer).code) == (503, 14)
        assert int(answer.headers["retry-after"]) > 0
    assert (posted.status_code, posted.json()["success"]) == (503, False)


async def test_where_nothing_is_taken_it_says_where() -> None:
    """Within another application there is no door: `tocsin serve` has it."""
    async with client_on(None) as sender:
        otlp = await sender.post("/v1/logs", content=a_log(), headers=PROTOBUF)
        posted = await sender.post("/api/debug/errors", json={"message": "boom"})

    assert (otlp.status_code, status_of(otlp).code) == (404, 5)
    assert posted.status_code == 404
    assert "tocsin serve" in posted.json()["error"]


# Posted by hand


async def test_an_error_can_be_posted_as_json(sender: httpx.AsyncClient, spool: Spool) -> None:
    one = await sender.post("/api/debug/errors", json={"message": "backup failed", "service": "cron"})
    more = await sender.post("/api/debug/errors", json=[{"message": "a"}, {"message": "b"}])
    packed = gzip.compress(b'{"message": "c"}')
    last = await sender.post("/api/debug/errors", content=packed, headers=JSON | GZIP)

    assert (one.status_code, one.json()["success"], one.json()["count"]) == (200, True, 1)
    assert (more.json()["count"], last.json()["count"]) == (2, 1)
    kept = {line["id"]: line["body"] for line in errors_in(spool)}
    ids = [error_id for answer in (one, more, last) for error_id in answer.json()["ids"]]
    assert [kept[one] for one in ids] == ["backup failed", "a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "status", "word"),
    [
        (b"{}", 400, "message"),
        (b'{"message": ""}', 400, "message"),
        (b'{"message": " \\n\\t\\u00a0"}', 400, "message"),
        (b'{"message": "\\u200b\\u0000\\ufeff", "type": "KeyError"}', 400, "message"),
        (b'[{"message": "a"}, {"stack": "  "}]', 400, "[1].message"),
        (b'[{"message": "a"}, {"message": 7}]', 400, "message"),
        (b"nonsense", 400, ""),
        (b"", 400, ""),
        (b'"' + bytes(MIB) + b'"', 413, "longer"),
    ],
)
async def test_a_wrong_field_is_named(
    sender: httpx.AsyncClient, spool: Spool, content: bytes, status: int, word: str
) -> None:
    """And nothing of it is kept."""
    answer = await sender.post("/api/debug/errors", content=content, headers=JSON)

    assert answer.status_code == status
    assert answer.json()["success"] is False
    assert word in answer.json()["error"]
    assert errors_in(spool) == []


async def test_curl_may_call_json_a_form_when_it_has_a_token(sender: httpx.AsyncClient, door: Door) -> None:
    """A page of another origin could send that as well; it has none."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    content = json.dumps({"message": "boom"}).encode()

    with_token = await sender.post("/api/debug/errors", content=content, headers=form)
    async with client_of(create_app(Settings(), door=door), host=HERE, peer="127.0.0.1") as here:
        without = await here.post("/api/debug/errors", content=content, headers=form)

    assert (with_token.status_code, without.status_code) == (200, 415)


# Who may send


@pytest.mark.parametrize(
    ("token", "status"),
    [(TOKENS["ingest"], 200), (TOKENS["full"], 200), (TOKENS["read"], 403), ("wrong", 401), (None, 401)],
)
async def test_only_who_may_send_is_heard(store: Any, door: Door, token: str | None, status: int) -> None:
    async with client_of(create_app(settings_with(), store=store, door=door), token=token) as client:
        answer = await client.post("/v1/logs", content=a_log(), headers=PROTOBUF)

    assert answer.status_code == status
    if status != 200:
        assert status_of(answer).code == (16 if status == 401 else 7)


async def test_who_may_send_may_not_read(app: Any) -> None:
    async with client_of(app, token=TOKENS["ingest"]) as client:
        assert (await client.get("/api/debug/errors")).status_code == 403


@pytest.mark.parametrize(
    ("peer", "host", "headers", "status"),
    [
        ("127.0.0.1", HERE, {}, 200),
        ("127.8.9.1", "http://localhost:4318", {}, 200),
        ("::1", "http://[::1]:4318", {}, 200),
        ("::ffff:127.0.0.1", HERE, {}, 200),
        ("10.0.0.9", HERE, {}, 401),
        ("::ffff:10.0.0.9", HERE, {}, 401),
        ("unknown", HERE, {}, 401),
        # Through a proxy on this machine it may be anybody.
        ("127.0.0.1", HERE, {"x-forwarded-for": "127.0.0.1"}, 401),
        ("127.0.0.1", HERE, {"x-forwarded-proto": "https"}, 401),
        ("127.0.0.1", HERE, {"forwarded": "for=127.0.0.1"}, 401),
        ("127.0.0.1", HERE, {"x-real-ip": "127.0.0.1"}, 401),
        ("127.0.0.1", HERE, {"via": "1.1 proxy"}, 401),
        # The name of a page that was made to lead here.
        ("127.0.0.1", "http://evil.test:4318", {}, 401),
        ("127.0.0.1", "http://127.0.0.1.evil.test", {}, 401),
        ("127.0.0.1", HERE, {"host": ""}, 401),
        # A page of another origin, in a browser on this machine.
        ("127.0.0.1", HERE, {"origin": "http://evil.test"}, 403),
        ("127.0.0.1", HERE, {"origin": "null"}, 403),
        ("127.0.0.1", HERE, {"origin": "http://127.0.0.1:8000"}, 403),
        ("127.0.0.1", HERE, {"sec-fetch-site": "cross-site"}, 403),
        ("127.0.0.1", HERE, {"sec-fetch-site": "same-site"}, 403),
        ("127.0.0.1", HERE, {"sec-fetch-site": "none"}, 403),
        ("127.0.0.1", HERE, {"origin": HERE}, 200),
        # A token that is sent is looked at.
        ("127.0.0.1", HERE, {"authorization": "Basic YTpi"}, 401),
    ],
)
async def test_programs_of_this_machine_need_no_token(
    door: Door, peer: str, host: str, headers: dict[str, str], status: int
) -> None:
    """And nobody else passes for one."""
    app = create_app(Settings(token="full-secret"), door=door)
    async with client_of(app, host=host, peer=peer) as client:
        answer = await client.post("/v1/logs", content=a_log(), headers=PROTOBUF | headers)
        read = await client.get("/api/debug/errors", headers=headers)

    assert answer.status_code == status
    assert read.status_code == 401


async def test_once_there_is_a_token_for_it_everybody_needs_one(door: Door) -> None:
    app = create_app(Settings(ingest_token="ingest-secret"), door=door)
    async with client_of(app, host=HERE, peer="127.0.0.1") as client:
        answer = await client.post("/v1/logs", content=a_log(), headers=PROTOBUF)

    assert answer.status_code == 401


async def test_an_old_proxy_that_says_nothing_of_itself_is_seen(door: Door) -> None:
    """By its version: no SDK speaks HTTP/1.0, and nginx does when nobody tells it otherwise."""
    app = create_app(Settings(), door=door)

    async def as_nginx(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"http_version": "1.0"}, receive, send)

    transport = httpx.ASGITransport(as_nginx, client=("127.0.0.1", 40000))
    async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
        assert (await client.post("/v1/logs", content=a_log(), headers=PROTOBUF)).status_code == 401


async def test_a_session_of_the_page_sends_nothing(app: Any, store: Any) -> None:
    """Else any page could send in the name of who is logged in."""
    async with client_of(app) as browser:
        await browser.post("/admin/debug/login", data={"token": TOKENS["full"]})
        page = await browser.get("/admin/debug")
        answer = await browser.post("/v1/logs", content=a_log(), headers=PROTOBUF)

    assert page.status_code == 200
    assert answer.status_code == 401
