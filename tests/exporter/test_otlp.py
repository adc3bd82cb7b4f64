"""OTLP and posts at the door: what becomes an error, that it is one error, and what nothing becomes of."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests import hostile
from tests.hostile import LOGS, NOW_NS, POSTED, protobuf
from tocsin import semconv
from tocsin.exporter import otlp_json, otlp_protobuf
from tocsin.exporter.decode import Source, decode
from tocsin.exporter.otlp import Reader, Reading, TooMuch, Unreadable
from tocsin.exporter.records import MOST_RECORDS
from tocsin.exporter.spool import LINE_BYTES
from tocsin.failures import BadInput
from tocsin.model import Amendment, ErrorRecord, Severity
from tocsin.settings import Settings

TRACE = "ab" * 16
SPAN = "cd" * 8
NODE = "Error: order 5 has no items\n    at reserve (/app/src/orders.js:17:9)\n    at async /app/src/app.js:22:43"
INNER = """\
Traceback (most recent call last):
  File "/app/shop/orders.py", line 7, in pay
    raise OutOfStock(order)
shop.errors.OutOfStock: 7 is gone
"""
OUTER = INNER.replace("  File", '  File "/app/shop/api.py", line 3, in post\n    pay(order)\n  File', 1)


# Bodies


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Any) -> dict[str, Any]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case bytes():
            return {"bytesValue": base64.b64encode(value).decode()}
        case list():
            return {"arrayValue": {"values": [_value(one) for one in value]}}
        case dict():
            return {"kvlistValue": {"values": _attributes(value)}}
        case _:
            return {"stringValue": value}


def _exception(kind: str = "OutOfStock", message: str = "7 is gone", stack: str = INNER) -> dict[str, Any]:
    return {
        semconv.EXCEPTION_TYPE: kind,
        semconv.EXCEPTION_MESSAGE: message,
        semconv.EXCEPTION_STACKTRACE: stack,
    }


def _log(attributes: dict[str, Any] | None = None, **record: Any) -> dict[str, Any]:
    defaults = {"timeUnixNano": str(NOW_NS), "severityNumber": 17, "traceId": TRACE, "spanId": SPAN}
    return {**defaults, "attributes": _attributes(attributes or {}), **record}


def _logs(*records: Any, service: str = "shop", scope: str = "shop.orders") -> dict[str, Any]:
    resource = {"attributes": _attributes({"service.name": service})}
    return {
        "resourceLogs": [{"resource": resource, "scopeLogs": [{"scope": {"name": scope}, "logRecords": [*records]}]}]
    }


def _span(
    span_id: str, parent: str = "", kind: int = 1, exceptions: Iterable[dict[str, Any]] = (), **attributes: Any
) -> dict[str, Any]:
    return {
        "traceId": TRACE,
        "spanId": span_id,
        "parentSpanId": parent,
        "kind": kind,
        "startTimeUnixNano": str(NOW_NS - 10**9),
        "endTimeUnixNano": str(NOW_NS + 10**9),
        "attributes": _attributes({key.replace("_", "."): value for key, value in attributes.items()}),
        "events": [
            {"name": "exception", "timeUnixNano": str(NOW_NS), "attributes": _attributes(one)} for one in exceptions
        ],
    }


def _server(status: int = 500, span_id: str = "11" * 8) -> dict[str, Any]:
    found = _span(span_id, kind=2)
    found["attributes"] = _attributes(
        {"http.request.method": "GET", "url.path": "/x", semconv.HTTP_STATUS: status, "client.address": "10.0.0.1"}
    )
    return found


def _spans(*spans: dict[str, Any]) -> dict[str, Any]:
    resource = {"attributes": _attributes({"service.name": "shop"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [*spans]}]}]}


class Door:
    """A reader, and what its lines come to; each body goes in as JSON or as protobuf."""

    def __init__(self, is_json: bool, **values: Any) -> None:
        self.is_json = is_json
        self.reader = Reader(Settings(**values))
        self.entries: list[Any] = []

    def take(self, body: dict[str, Any]) -> Reading:
        data = json.dumps(body).encode() if self.is_json else protobuf(body)
        read = self.reader.logs if "resourceLogs" in body else self.reader.traces
        reading = read(data, is_json=self.is_json, now_ns=NOW_NS)
        self.entries += [decode(json.loads(line), Source.of({})) for line in reading.lines]
        return reading

    @property
    def errors(self) -> list[ErrorRecord]:
        """Each id once, as the store has them; those that were expected are none."""
        found = {one.id: one for one in reversed(self.entries) if isinstance(one, ErrorRecord)}
        return list(found.values())[::-1]

    @property
    def amendments(self) -> list[Amendment]:
        return [one for one in self.entries if isinstance(one, Amendment)]

    def one(self) -> ErrorRecord:
        (error,) = self.errors
        return error


@pytest.fixture(params=["json", "protobuf"])
def door(request: pytest.FixtureRequest) -> Door:
    """In both encodings, which shall mean the same."""
    return Door(request.param == "json")


# Log records


def test_a_log_record_with_an_exception_is_an_error(door: Door) -> None:
    reading = door.take(_logs(_log({**_exception(), "user.id": "u7"}, body={"stringValue": "cannot pay"})))

    error = door.one()
    assert (reading.taken, reading.rejected, reading.ids) == (1, 0, [error.id])
    assert error.exception_type == "shop.errors.OutOfStock"
    assert error.message == "7 is gone"
    assert error.stack == INNER
    assert error.culprit == "shop.orders in pay"
    assert (error.service, error.trace_id, error.span_id) == ("shop", TRACE, SPAN)
    assert error.severity is Severity.HIGH
    assert error.from_outside
    assert error.context["log.message"] == "cannot pay"
    assert error.context["user.id"] == "u7"
    assert error.context[semconv.LOGGER] == "shop.orders"


@pytest.mark.parametrize(
    ("level", "number", "is_error"),
    [
        ("error", 17, True),
        ("error", 16, False),
        ("error", 9, False),
        ("error", 0, False),
        ("warning", 13, True),
        ("warning", 12, False),
        ("critical", 21, True),
        ("critical", 20, False),
    ],
)
def test_without_an_exception_the_severity_decides(level: str, number: int, is_error: bool) -> None:
    """What is no error is taken all the same: its sender shall not try again."""
    door = Door(is_json=False, log_level=level)

    reading = door.take(_logs(_log(severityNumber=number, body={"stringValue": "hm"})))

    assert (reading.taken, len(reading.lines)) == (1, is_error)


def test_a_severity_may_be_a_word_alone(door: Door) -> None:
    """Some shippers of log files know no number."""
    door.take(_logs(*[_log(severityNumber=0, severityText=word, body=_value(word)) for word in ("Error", "info", "")]))

    assert door.one().message == "Error"


def test_an_exception_is_an_error_at_any_severity_and_without_one(door: Door) -> None:
    door.take(_logs(_log(_exception(), severityNumber=0), _log(_exception("A", "b", ""), severityNumber=9)))

    assert [one.severity for one in door.errors] == [Severity.HIGH, Severity.LOW]


def test_what_a_senders_exporter_says_of_our_absence_is_no_error(door: Door) -> None:
    """Each would say so after every outage of the server; what it lost is not known by it."""
    scope = "opentelemetry.exporter.otlp.proto.http.trace_exporter"

    door.take(_logs(_log(body={"stringValue": "Failed to export spans batch"}), scope=scope))

    assert door.errors == []


def test_fatal_is_critical(door: Door) -> None:
    door.take(_logs(_log(severityNumber=21, body={"stringValue": "out of memory"})))

    assert door.one().severity is Severity.CRITICAL


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "text"),
        (7, "7"),
        (True, "true"),
        ([1, {"a": "b"}], '[1,{"a":"b"}]'),
        ({"msg": "x", "password": "hunter22"}, '{"msg":"x","password":"[scrubbed]"}'),
        (b"bytes", "bytes"),
    ],
)
def test_a_body_may_be_any_value(door: Door, value: Any, message: str) -> None:
    door.take(_logs(_log(body=_value(value))))

    assert door.one().message == message


@pytest.mark.parametrize(
    ("given_ns", "observed_ns", "taken_ns"),
    [
        (NOW_NS - 5, 0, NOW_NS - 5),
        (0, NOW_NS - 7, NOW_NS - 7),
        (NOW_NS + 59 * 10**9, 0, NOW_NS + 59 * 10**9),
        (NOW_NS + 3_600 * 10**9, 0, NOW_NS),
        (2**64 - 1, 0, NOW_NS),
        (5, 0, NOW_NS),
        (NOW_NS - 3 * 86_400 * 10**9, 0, NOW_NS - 3 * 86_400 * 10**9),
    ],
)
def test_a_time_that_cannot_be_is_now(given_ns: int, observed_ns: int, taken_ns: int) -> None:
    """Late is no fault; the future is."""
    body = _logs(_log(timeUnixNano=str(given_ns), observedTimeUnixNano=str(observed_ns), body=_value("x")))

    (line,) = Reader(Settings()).logs(json.dumps(body).encode(), is_json=True, now_ns=NOW_NS).lines

    assert json.loads(line)["time_unix_nano"] == taken_ns


def test_records_without_any_time_are_errors_of_their_own(door: Door) -> None:
    door.take(_logs(*[_log(timeUnixNano="0", traceId="", spanId="", body=_value("x"))] * 3))

    assert len(door.errors) == 3


@pytest.mark.parametrize(
    "attributes",
    [{"err": {"type": "Error", "message": "gone", "stack": NODE}}, {"stack": NODE}],
)
def test_loggers_that_know_nothing_of_opentelemetry_are_understood(door: Door, attributes: dict[str, Any]) -> None:
    """pino's ``err``, winston's ``stack``."""
    door.take(_logs(_log(attributes, body=_value("failed"))))

    error = door.one()
    assert (error.exception_type, error.culprit) == ("Error", "orders in reserve")


# Spans


def test_an_exception_of_express_is_one_error_with_its_request(door: Door) -> None:
    """Three spans tell of it and a log record; who was asked stands on a fourth."""
    failed = _exception("E_STOCK", "order 5 has no items", NODE)
    spans = [_span(f"{at}{at}" * 8, "11" * 8, exceptions=[failed], http_route="/x") for at in (2, 3, 4)]

    door.take(_spans(*spans, _server()))
    door.take(_logs(_log(failed)))

    error = door.one()
    assert (error.exception_type, error.culprit) == ("E_STOCK", "orders in reserve")
    assert error.handled is False
    assert error.severity is Severity.HIGH
    assert {"http.request.method", "url.path", "http.route", "client.address"} <= error.context.keys()


def test_an_exception_of_python_is_one_error_though_its_stack_grows(door: Door) -> None:
    inner = _exception("shop.errors.OutOfStock", "7 is gone", INNER)
    outer = _exception("shop.errors.OutOfStock", "7 is gone", OUTER)
    logged = {semconv.EXCEPTION_TYPE: "OutOfStock", semconv.EXCEPTION_STACKTRACE: INNER}  # as logging has it

    door.take(_logs(_log(logged, body=_value("cannot pay"))))
    door.take(_spans(_span("22" * 8, "33" * 8, exceptions=[inner]), _span("33" * 8, "11" * 8, exceptions=[outer])))

    assert door.one().exception_type == "shop.errors.OutOfStock"


def test_the_longest_stack_of_a_body_is_kept(door: Door) -> None:
    inner, outer = _exception(stack=INNER), _exception(stack=OUTER)

    door.take(_spans(_span("22" * 8, exceptions=[inner]), _span("33" * 8, exceptions=[outer])))

    assert door.one().stack == OUTER


def test_two_errors_of_one_trace_are_two(door: Door) -> None:
    door.take(_spans(_span("22" * 8, exceptions=[_exception(), _exception("Other", "x", INNER.replace("7", "8"))])))

    assert len(door.errors) == 2


def test_a_batch_that_is_sent_five_times_is_the_same_five_times(door: Door) -> None:
    body = _spans(_span("22" * 8, "11" * 8, exceptions=[_exception()]), _server())

    readings = [door.take(body) for _ in range(5)]

    assert len({line for reading in readings for line in reading.lines}) == len(readings[0].lines) == 1


@pytest.mark.parametrize(
    ("status", "handled", "is_stored"),
    [
        (500, False, True),
        (503, False, True),
        (200, True, True),
        (302, True, True),
        (404, None, False),
        (422, None, False),
    ],
)
def test_how_the_request_was_answered_says_what_an_exception_was(
    door: Door, status: int, handled: bool | None, is_stored: bool
) -> None:
    """A 5xx was not handled, a 4xx was expected."""
    door.take(_spans(_span("22" * 8, "11" * 8, exceptions=[_exception()]), _server(status)))

    assert len(door.errors) == is_stored
    if is_stored:
        assert door.one().handled is handled


def test_an_exception_that_left_its_span_was_not_handled(door: Door) -> None:
    door.take(_spans(_span("22" * 8, exceptions=[{**_exception(), "exception.escaped": "True"}])))
    assert door.one().handled is False

    door.take(_spans(_span("22" * 8, exceptions=[{**_exception(message="x", stack=""), "exception.escaped": "False"}])))
    assert door.errors[1].handled is None


def test_a_request_that_comes_in_a_later_batch_amends_the_error(door: Door) -> None:
    """Its span ends last."""
    door.take(_spans(_span("22" * 8, "11" * 8, exceptions=[_exception()])))
    assert door.one().handled is None

    door.take(_spans(_server()))

    (amendment,) = door.amendments
    assert amendment.error_id == door.one().id
    assert amendment.handled is False
    assert amendment.context["url.path"] == "/x"


def test_a_request_that_came_before_is_remembered(door: Door) -> None:
    door.take(_spans(_server()))
    door.take(_logs(_log(_exception())))

    assert door.one().context["url.path"] == "/x"
    assert door.one().handled is False


def test_what_is_only_logged_in_a_request_gets_its_context_and_no_more(door: Door) -> None:
    """Nothing was raised that could have been handled."""
    door.take(_spans(_server()))
    door.take(_logs(_log(body=_value("disk is filling up"))))

    assert door.one().context["url.path"] == "/x"
    assert door.one().handled is None


def test_a_second_sighting_that_knows_more_amends_the_first(door: Door) -> None:
    """Whatever of the two comes first is stored; the id is the same."""
    door.take(_logs(_log(_exception(), severityNumber=13)))
    assert door.one().severity is Severity.LOW

    door.take(_spans(_span("22" * 8, exceptions=[{**_exception(), "exception.escaped": "True"}])))

    (amendment,) = door.amendments
    assert (amendment.error_id, amendment.severity, amendment.handled) == (door.one().id, Severity.HIGH, False)


def test_what_another_service_answered_to_a_client_is_not_what_we_answered(door: Door) -> None:
    span = _span("22" * 8, kind=3, exceptions=[_exception()])

    door.take(_spans({**span, "attributes": _attributes({semconv.HTTP_STATUS: 404})}))

    assert door.one().context[semconv.HTTP_STATUS] == 404


def test_the_span_of_an_error_that_its_process_has_sent_itself_is_no_second_one(door: Door) -> None:
    """It emits a copy of what it captures, and its spans come as well."""
    own = "0198a7b2-0000-7000-8000-000000000001"

    door.take(_logs(_log({**_exception(), semconv.ERROR_ID: own, semconv.MECHANISM: "asgi", semconv.HANDLED: False})))
    door.take(_spans(_span("22" * 8, exceptions=[_exception(stack=OUTER)])))

    assert (door.one().id, door.one().mechanism) == (own, "asgi")


def test_what_amends_an_error_of_another_tocsin_stands_behind_it(door: Door) -> None:
    """Else there would be nothing yet to amend."""
    own = "0198a7b2-0000-7000-8000-000000000001"
    error = {"v": 1, "kind": "error", "id": own, "time_unix_nano": NOW_NS, "severity_number": 17, "attributes": {}}
    amend = {"v": 1, "kind": "amend", "error_id": own, "severity": "critical"}

    reading = door.take(_logs(*[_log({semconv.LINE: json.dumps(line)}) for line in (error, amend)]))

    assert [json.loads(line)["kind"] for line in reading.lines] == ["error", "amend"]
    assert (reading.taken, reading.ids) == (2, [own])


# What is refused


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"traceId": "ab"}, "an id of"),
        ({"spanId": "x" * 16}, "hexadecimal"),
        ({"timeUnixNano": "-5"}, "64 bits"),
        ({"timeUnixNano": 2**64}, "64 bits"),
        ({"timeUnixNano": []}, "64 bits"),
        ({"severityNumber": "SEVERITY_NUMBER_WORST"}, "64 bits"),
        ({"severityNumber": 1.5}, "64 bits"),
        ({"attributes": {}}, "list"),
        ({"attributes": [5]}, "attribute"),
        ({"body": {"stringValue": 5}}, "text"),
        ({"body": {"boolValue": 1}}, "boolValue"),
        ({"body": {"bytesValue": "*"}}, "base64"),
        ({"body": {"doubleValue": "x"}}, "doubleValue"),
        ({"body": []}, "object"),
    ],
)
def test_one_record_that_cannot_be_read_is_refused_alone(record: dict[str, Any], problem: str) -> None:
    """What stands beside it is taken."""
    door = Door(is_json=True)

    reading = door.take(_logs({**_log(), **record}, _log(_exception())))

    assert (reading.taken, reading.rejected) == (1, 1)
    assert problem in (reading.problem or "")
    assert len(door.errors) == 1


def test_a_record_of_protobuf_with_a_wrong_id_is_refused_alone() -> None:
    request = ExportLogsServiceRequest()
    records = request.resource_logs.add().scope_logs.add().log_records
    for trace_id in (b"short", b"\0" * 16, b"x" * 16):
        record = records.add()
        record.severity_number, record.trace_id, record.body.string_value = 17, trace_id, "x"

    reading = Reader(Settings()).logs(request.SerializeToString(), is_json=False, now_ns=NOW_NS)

    assert (reading.taken, reading.rejected) == (2, 1)
    assert [json.loads(line)["trace_id"] for line in reading.lines] == [None, b"x".hex() * 16]


@pytest.mark.parametrize(
    "record",
    [
        {"traceId": TRACE.upper(), "spanId": SPAN.upper()},
        {"traceId": base64.b64encode(bytes.fromhex(TRACE)).decode(), "spanId": base64.b64encode(b"\xcd" * 8).decode()},
        {"severityNumber": "SEVERITY_NUMBER_ERROR"},
        {"timeUnixNano": NOW_NS},
        {"timeUnixNano": float(NOW_NS)},
        {"flags": 1, "somethingNew": {"a": []}},
        {"body": None, "droppedAttributesCount": None},
    ],
)
def test_what_json_may_be_written_as_is_read_alike(record: dict[str, Any]) -> None:
    """Numbers as text, names of numbers, ids in upper case or in base64, fields of tomorrow."""
    usual, other = Door(is_json=True), Door(is_json=True)
    usual.take(_logs(_log(_exception())))
    other.take(_logs(_log(_exception(), **record)))

    assert other.one() == usual.one()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"5",
        b"null x",
        b'{"resourceLogs":5}',
        b'{"resourceLogs":[5]}',
        b'{"resourceLogs":[{"scopeLogs":{}}]}',
        b'{"resourceLogs":[{"resource":{"attributes":5}}]}',
        b'{"a":NaN}',
        b'{"a":' + b"9" * 10**6 + b"}",
        b"[" * 10**5,
        b'{"a":' * 10**4 + b"1" + b"}" * 10**4,
        b"\xff\xfe{}",
        '{"a":"\ud800"}'.encode("utf-8", "surrogatepass"),
        '{"resourceLogs":[]}'.encode("utf-16"),
    ],
)
def test_a_body_that_is_no_otlp_in_json_is_unreadable(body: bytes) -> None:
    for read in (Reader(Settings()).logs, Reader(Settings()).traces):
        try:
            read(body, is_json=True, now_ns=NOW_NS)
        except Unreadable:
            continue
        assert body.startswith(b'{"resourceLogs"')  # nothing that traces know of


def test_an_empty_body_of_protobuf_is_an_empty_request() -> None:
    assert Reader(Settings()).logs(b"", is_json=False, now_ns=NOW_NS) == Reading()
    assert Reader(Settings()).logs(b"{}", is_json=True, now_ns=NOW_NS) == Reading()


def test_too_many_at_once_are_refused_before_anything_is_read(door: Door) -> None:
    with pytest.raises(TooMuch):
        door.take(_logs(*[{}] * (MOST_RECORDS + 1)))


def test_nesting_is_cut_where_it_is_deeper_than_is_kept(door: Door) -> None:
    deep: Any = "bottom"
    for _ in range(20):
        deep = {"a": deep}

    door.take(_logs(_log({**_exception(), "deep": deep})))

    assert json.dumps(door.one().context["deep"]).count("{") == 6


def test_of_many_attributes_the_first_are_kept_and_the_exception(door: Door) -> None:
    many = {f"a{at}": at for at in range(500)}

    door.take(_logs(_log({**many, **_exception()})))

    assert door.one().stack == INNER
    assert sum(key.startswith("a") for key in door.one().context) == 128


@pytest.mark.parametrize(
    "body",
    [
        hostile._field(1, hostile._field(2, b"\x12\x00" * 500_000)),
        hostile._around(b"\x32\x00" * 500_000),
        hostile._around(hostile._field(5, hostile._field(5, b"\x0a\x00" * 500_000))),
        b"\x0a\x00" * 500_000,
        hostile._around(b"\xb2\x80\x00\x00" * 450_000),
    ],
)
def test_a_body_of_many_small_parts_is_refused_before_it_is_parsed(body: bytes) -> None:
    """A megabyte of it would take fifty in memory."""
    with pytest.raises(TooMuch):
        list(otlp_protobuf.logs(body, 17))


def test_a_large_body_of_usual_records_is_taken() -> None:
    """The walk through it sees where strings are, and counts nothing in them."""
    records = [_log({**_exception(), "text": "\n\x0a*2:JZ" * 40}, traceId=f"{at:032x}") for at in range(1, 3_000)]

    assert len(Reader(Settings()).logs(protobuf(_logs(*records)), is_json=False, now_ns=NOW_NS).lines) == 2_999


@pytest.mark.parametrize("unit", [b"[],", b'{"a":1},', b"1,", b'"a",'])
def test_json_of_many_small_parts_is_refused_before_it_is_read(unit: bytes) -> None:
    with pytest.raises(TooMuch):
        otlp_json.loads(b"[" + unit * 350_000 + b"0]")


MIB = 2**20


def _long(text: str, count: int = 1) -> bytes:
    return json.dumps(_logs(*[_log({}, body={"stringValue": text})] * count), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(_long("x" * (3 * MIB - 2_000) + "\U0001f600"), id="a wide text"),
        pytest.param(_long("x" * (4 * MIB - 2_000) + "\u4e2d"), id="a long text"),
        pytest.param(_long("x" * 4_000 + "\U0001f600", 600), id="many wide texts"),
        pytest.param(b"{" + b",".join(b'"%08d":0' % at for at in range(149_000)) + b"}", id="many names"),
        pytest.param(b"[" + b",".join(b'"%08d"' % at for at in range(149_000)) + b"]", id="many texts"),
        pytest.param(
            b"[" + b",".join(b'{"%d":"%08d"}' % (at % 4_900, at) for at in range(49_000)) + b"]", id="objects"
        ),
        pytest.param(b'"",,' * MIB, id="nothing much"),
        pytest.param(b'"\\"' * (MIB * 4 // 3), id="no end"),
    ],
)
def test_no_body_of_json_takes_much_memory(body: bytes) -> None:
    """Whatever it is: as little as four megabytes can be a hundred when they are read."""
    reader = Reader(Settings())
    reader.logs(b"{}", is_json=True, now_ns=NOW_NS)
    tracemalloc.start()
    try:
        with suppress(Unreadable, TooMuch):
            reader.logs(body, is_json=True, now_ns=NOW_NS)
        assert tracemalloc.get_traced_memory()[1] < 26 * MIB
    finally:
        tracemalloc.stop()


def test_what_ordinary_senders_send_at_once_is_taken(door: Door) -> None:
    """512 errors of four thousand characters, an emoji among them; 512 spans with much about each."""
    said: dict[str, Any] = {f"app.attribute.{at}": f"value {at}" for at in range(12)}
    text = {"stringValue": "x" * 3_990 + "\U0001f600"}
    more: dict[str, Any] = {f"http.{at}": at for at in range(10)}
    spans = [_span(f"{at:016x}", **said, **more) for at in range(1, 513)]

    assert door.take(_logs(*[_log(said, body=text, traceId=f"{at:032x}") for at in range(1, 513)])).taken == 512
    assert door.take(_spans(*spans)).taken == 512


def test_json_that_is_nested_deeper_than_any_sensible_one_is_refused_before_it_is_read() -> None:
    """Also where Python could still read it."""
    assert otlp_json.loads(b"[" * 150 + b"]" * 150)
    with pytest.raises(Unreadable):
        otlp_json.loads(b"[" * 151 + b"]" * 151)


def test_brackets_in_texts_are_not_nesting() -> None:
    """Nor are quotes behind a backslash ends of a text."""
    text = '[[[{{{"\\' * 1_000

    assert otlp_json.loads(json.dumps({"a": text}).encode()) == {"a": text}


# Both encodings

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_scalars = (
    _texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=20)
)
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3), max_leaves=10
)
_known = st.fixed_dictionaries(
    {},
    optional={
        semconv.EXCEPTION_TYPE: _values,
        semconv.EXCEPTION_MESSAGE: _values,
        semconv.EXCEPTION_STACKTRACE: st.sampled_from(hostile.STACKS) | _values,
        semconv.HTTP_STATUS: _values,
        "http.target": _values,
        semconv.SEVERITY: _values,
        semconv.CONTEXT: _values,
        semconv.LINE: _values,
        "err": _values,
    },
)
_ids = st.sampled_from(["", "00", "0" * 32]) | st.binary(min_size=16, max_size=16).map(bytes.hex)


@settings(deadline=None)
@given(
    attributes=st.dictionaries(_texts, _values, max_size=4),
    known=_known,
    body=_values,
    severity=st.integers(-5, 30),
    time_ns=st.integers(0, 2**64 - 1),
    trace_id=_ids,
)
def test_both_encodings_of_a_log_record_give_the_same_line(
    attributes: dict[str, Any], known: dict[str, Any], body: Any, severity: int, time_ns: int, trace_id: str
) -> None:
    """Who looks at one and who looks at the other see the same."""
    record = _log(
        {**attributes, **known},
        body=_value(body),
        severityNumber=severity,
        timeUnixNano=str(time_ns),
        traceId=trace_id,
    )

    assert Door(is_json=True).take(_logs(record)) == Door(is_json=False).take(_logs(record))


@settings(deadline=None)
@given(known=_known, inner=_known, status=st.integers(0, 700) | _texts, kind=st.integers(0, 6), trace_id=_ids)
def test_both_encodings_of_spans_give_the_same_lines(
    known: dict[str, Any], inner: dict[str, Any], status: Any, kind: int, trace_id: str
) -> None:
    server = {**_server(), "kind": kind, "attributes": _attributes({**known, semconv.HTTP_STATUS: status})}
    body = _spans(_span("22" * 8, "11" * 8, exceptions=[inner, known]), {**server, "traceId": trace_id})

    assert Door(is_json=True).take(body) == Door(is_json=False).take(body)


# Hostile


def _feed(reader: Reader, one: hostile.Input) -> Reading | None:
    path, headers, body = one
    if "content-encoding" in headers:
        try:
            body = zlib.decompressobj(31).decompress(body, 2**20)
        except zlib.error:
            return None
    try:
        if path == POSTED:
            return reader.posted(body, now_ns=NOW_NS)
        read = reader.logs if path == LOGS else reader.traces
        return read(body, is_json="json" in headers["content-type"], now_ns=NOW_NS)
    except (Unreadable, TooMuch, BadInput):
        return None


def _survive(seed: int, count: int) -> None:
    reader = Reader(Settings())
    source = Source.of({})
    for one in hostile.inputs(seed, count):
        reading = _feed(reader, one)
        for line in reading.lines if reading is not None else ():
            assert len(line) <= LINE_BYTES
            assert line.count(b"\n") == 1
            decode(json.loads(line), source)  # which believes what is in the spool


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_is_sent_raises_anything_else(seed: int) -> None:
    """And what becomes a line can be stored."""
    _survive(seed, 800)


@pytest.mark.gate
def test_a_hundred_thousand_hostile_bodies() -> None:
    for seed in range(100, 120):
        _survive(seed, 5_000)
