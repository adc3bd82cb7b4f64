"""Bodies that nobody should send to the door, and some that everybody does: for each seed the same ones."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import random
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

LOGS, TRACES, POSTED = "/v1/logs", "/v1/traces", "/api/debug/errors"
JSON, PROTOBUF = "application/json", "application/x-protobuf"

Input = tuple[str, dict[str, str], bytes]
"""A path, headers, and a body as it goes over the wire."""

NOW_NS = 1_773_480_413_000_000_000

STACKS = (
    'Traceback (most recent call last):\n  File "/app/shop/orders.py", line 7, in pay\n    raise Refused(order)\n'
    "shop.Refused: 7\n",
    "TypeError: order 5 has no items\n    at reserve (/app/src/x.js:17:9)\n"
    "    at async /app/node_modules/express/lib/router.js:1:2",
    "Traceback (most recent call last):\n"
    + '  File "/a.py", line 1, in f\n    f()\n' * 50
    + "RecursionError: too deep\n",
    "Error\n" + "    at " * 500,
    "    at eval (eval at <anonymous> (" * 40,
    'File "' * 300,
    "| +-+--\n" * 200,
    "[cause]:\n" * 100,
    ": \n  at x (y:1:2)",
)
TEXTS = (
    *(
        "",
        "\x00",
        "\ud800",
        "\u202e evil",
        "\ufeff",
        "é" * 300,
        "💥" * 200,
        "a" * 5_000,
        "\n" * 500,
        "\\" * 400,
        '"' * 99,
    ),
    *("password=hunter22", "Bearer abcdefghijklmnop", "https://u:p@h/x?token=1", "4111 1111 1111 1111", "-----BEGIN "),
    *(
        "null",
        "NaN",
        "__proto__",
        "constructor",
        "' OR 1=1 --",
        "<script>alert(1)</script>",
        "${jndi:ldap://x}",
        "{{7*7}}",
    ),
    *("True", "0", "-1", "1e999", "../../etc/passwd", "low", "critical", "excepthook"),
)
NUMBERS = (0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, 5e-324, -0.0, NOW_NS)
ODDITIES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, "x", "", *NUMBERS, *TEXTS)
KEYS = (
    *("exception.type", "exception.message", "exception.stacktrace", "exception.escaped", "http.route", "http.target"),
    *("http.status_code", "http.response.status_code", "http.method", "url.full", "url.query", "code.line.number"),
    *("tocsin.severity", "tocsin.category", "tocsin.handled", "tocsin.mechanism", "tocsin.exit", "tocsin.context"),
    *("tocsin.error.id", "tocsin.line", "tocsin.frames", "tocsin.synthetic", "tocsin.exception.bases", "tocsin.place"),
    *("err", "error", "stack", "password", "k" * 600, "", "user.id", "server.address"),
)


def inputs(seed: int, count: int) -> Iterator[Input]:
    """So many of them; most are small, some would take a gigabyte if they were believed."""
    chance = random.Random(seed)
    for _ in range(count):
        yield chance.choices(_MAKERS, _WEIGHTS)[0](chance)


# Good ones, and what can happen to them


def value(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """An AnyValue in OTLP's JSON."""
    kind = chance.randrange(9 if depth < 4 else 6)
    if kind <= 2:
        return {"stringValue": chance.choice(TEXTS) if kind else chance.choice(STACKS)}
    if kind == 3:
        return {"intValue": str(chance.choice((0, 1, 404, 500, -1, 2**63 - 1)))}
    if kind == 4:
        return {"boolValue": chance.random() < 0.5}
    if kind == 5:
        return {"doubleValue": chance.choice((0.5, 1e308, "NaN", "Infinity"))}
    if kind == 6:
        return {"bytesValue": base64.b64encode(chance.randbytes(9)).decode()}
    if kind == 7:
        return {"arrayValue": {"values": [value(chance, depth + 1) for _ in range(chance.randrange(4))]}}
    return {"kvlistValue": {"values": attributes(chance, depth + 1)}}


def attributes(chance: random.Random, depth: int = 0) -> list[dict[str, Any]]:
    """A few attributes, of an exception mostly."""
    found = [{"key": chance.choice(KEYS), "value": value(chance, depth)} for _ in range(chance.randrange(5))]
    if depth == 0 and chance.random() < 0.7:
        found += [
            {
                "key": "exception.type",
                "value": {"stringValue": chance.choice(("KeyError", "shop.Refused", "ECONNREFUSED"))},
            },
            {"key": "exception.stacktrace", "value": {"stringValue": chance.choice(STACKS)}},
        ]
    return found


def _id(chance: random.Random, size: int) -> str:
    return chance.randbytes(size).hex()


def request(chance: random.Random, path: str) -> dict[str, Any]:
    """A whole body in OTLP's JSON."""
    trace = _id(chance, 16)
    if path == LOGS:
        records = [
            {
                "timeUnixNano": str(NOW_NS + chance.randrange(10**9)),
                "severityNumber": chance.choice((0, 9, 13, 17, 21)),
                "body": value(chance),
                "attributes": attributes(chance),
                "traceId": trace,
                "spanId": _id(chance, 8),
            }
            for _ in range(chance.randrange(4))
        ]
        return {
            "resourceLogs": [
                {"resource": _resource(chance), "scopeLogs": [{"scope": {"name": "x"}, "logRecords": records}]}
            ]
        }
    spans = [
        {
            "traceId": trace,
            "spanId": _id(chance, 8),
            "parentSpanId": chance.choice(("", _id(chance, 8))),
            "kind": chance.randrange(6),
            "startTimeUnixNano": str(NOW_NS),
            "endTimeUnixNano": str(NOW_NS + 10**9),
            "attributes": attributes(chance),
            "status": {"code": chance.randrange(3)},
            "events": [
                {"name": "exception", "timeUnixNano": str(NOW_NS + 5), "attributes": attributes(chance)}
                for _ in range(chance.randrange(3))
            ],
        }
        for _ in range(chance.randrange(4))
    ]
    return {"resourceSpans": [{"resource": _resource(chance), "scopeSpans": [{"spans": spans}]}]}


def _resource(chance: random.Random) -> dict[str, Any]:
    return {"attributes": [{"key": "service.name", "value": value(chance, 4)}, *attributes(chance, 3)]}


def _path(chance: random.Random) -> str:
    return chance.choice((LOGS, TRACES))


def _good(chance: random.Random) -> Input:
    path = _path(chance)
    body = request(chance, path)
    if chance.random() < 0.5:
        return path, {"content-type": PROTOBUF}, protobuf(body)
    return path, {"content-type": JSON}, _dumps(body)


def _mutated_json(chance: random.Random) -> Input:
    """Right in its shape but for some places."""
    path = _path(chance)
    body = request(chance, path)
    for _ in range(chance.randrange(1, 4)):
        _spoil(chance, body)
    return path, {"content-type": JSON}, _dumps(body)


def _spoil(chance: random.Random, body: Any) -> None:
    at = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = chance.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and chance.random() < 0.95:
            at = at[key]
            continue
        at[key] = copy.deepcopy(chance.choice(ODDITIES))  # which may be spoilt again
        return


def _mutated_bytes(chance: random.Random) -> Input:
    """Cut, turned, doubled."""
    path, headers, body = _good(chance)
    data = bytearray(body)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                del data[at:]
            case 1:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 2:
                data[at:at] = chance.randbytes(chance.randrange(9))
            case 3:
                data[at:at] = data[at : at + chance.randrange(200)]
            case _:
                del data[at : at + chance.randrange(20)]
    return path, headers, bytes(data)


def _random_bytes(chance: random.Random) -> Input:
    path = chance.choice((LOGS, TRACES, POSTED))
    kind = chance.choice((JSON, PROTOBUF, "text/plain", "", "application/json; charset=utf-16"))
    return path, {"content-type": kind}, chance.randbytes(chance.randrange(200))


# Posts


def _post(chance: random.Random) -> Input:
    fields = (
        "message",
        "stack",
        "severity",
        "category",
        "context",
        "service",
        "environment",
        "timestamp",
        "id",
        "type",
        "x",
    )
    body: Any = [
        {
            "message": "out of stock",
            **{chance.choice(fields): chance.choice(ODDITIES) for _ in range(chance.randrange(4))},
        }
        for _ in range(chance.randrange(1, 4))
    ]
    body = body if chance.random() < 0.5 else chance.choice((body[0], chance.choice(ODDITIES)))
    return POSTED, {"content-type": JSON}, _dumps(body)


# Another tocsin's lines


def _line(chance: random.Random) -> Input:
    line: dict[str, Any] = {
        "v": 1,
        "kind": chance.choice(("error", "amend", "repeats", "instance", "segment")),
        "id": "0198a7b2-0000-7000-8000-000000000001",
        "error_id": "0198a7b2-0000-7000-8000-000000000001",
        "time_unix_nano": NOW_NS,
        "severity_number": 17,
        "body": "gone",
        "trace_id": None,
        "span_id": None,
        "attributes": {
            "exception.type": "KeyError",
            "tocsin.frames": [
                {"module": "a", "function": "f", "file": "/a.py", "line": 1, "text": "x", "in_app": True}
            ],
            "tocsin.exception.bases": {"own": ["KeyError", "LookupError"], "causes": []},
        },
        "from": 0,
        "to": 3,
        "time_ns": NOW_NS,
        "severity": "high",
        "started_at_ns": NOW_NS,
        "pid": 7,
        "lost": 0,
    }
    for _ in range(chance.randrange(3)):
        _spoil(chance, line)
    text = chance.choice((json.dumps(line), json.dumps(line)[: chance.randrange(400)], "[" * 5_000))
    record = {"timeUnixNano": str(NOW_NS), "attributes": [{"key": "tocsin.line", "value": {"stringValue": text}}]}
    return LOGS, {"content-type": JSON}, _dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]})


# Depth, length, number


def _deep(chance: random.Random) -> Input:
    depth = chance.choice((7, 31, 32, 33, 60, 200, 1_000, 50_000))
    match chance.randrange(4):
        case 0:
            opening, closing = chance.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
            body = (opening * depth + "1" + (closing * depth if chance.random() < 0.5 else "")).encode()
            return chance.choice((LOGS, TRACES, POSTED)), {"content-type": JSON}, body
        case 1:
            opening, closing = '{"arrayValue":{"values":[', "]}}"
            inner = opening * depth + '{"stringValue":"x"}' + closing * depth
            return LOGS, {"content-type": JSON}, _one_log(f'"body":{inner},"severityNumber":17')
        case 2:
            inside = b""
            for _ in range(min(depth, 2_000)):
                inside = _field(5, _field(1, inside))  # AnyValue.array_value.values
            return LOGS, {"content-type": PROTOBUF}, _around(b"\x10\x11" + _field(5, inside))
        case _:
            text = '{"a":' * min(depth, 900) + "1" + "}" * min(depth, 900)
            return POSTED, {"content-type": JSON}, f'{{"message":"x","context":{text}}}'.encode()


@lru_cache(maxsize=1)
def _wide() -> bytes:
    """A text whose characters take four bytes each in memory, for one of them."""
    return wide_text(3 * 2**20)


def wide_text(size: int) -> bytes:
    """A body of one log record, with a text of so many bytes and an emoji."""
    return _around(b"\x10\x11" + _field(5, _field(1, "💥".encode() + b"x" * size)))


def many_texts(size: int) -> bytes:
    """A body of log records, so many bytes in all; each has a text of emojis."""
    record = _field(2, b"\x10\x11" + _field(5, _field(1, "💥".encode() * 2_000)))
    return _field(1, _field(2, record * (size // len(record))))


def _many(chance: random.Random) -> Input:
    match chance.randrange(9):
        case 8:
            return LOGS, {"content-type": PROTOBUF}, _wide()
        case 0:
            return LOGS, {"content-type": PROTOBUF}, _around(b"\x32\x00" * 60_000)  # attributes, all of them empty
        case 1:
            return LOGS, {"content-type": PROTOBUF}, _field(1, _field(2, b"\x12\x00" * 20_000))  # records
        case 2:
            return TRACES, {"content-type": PROTOBUF}, _field(1, _field(2, b"\x12\x00" * 25_000))  # spans
        case 3:
            values = ",".join(['{"stringValue":""}'] * 20_000)
            return (
                LOGS,
                {"content-type": JSON},
                _one_log(f'"body":{{"arrayValue":{{"values":[{values}]}}}},"severityNumber":17'),
            )
        case 4:
            return POSTED, {"content-type": JSON}, b"[" + b",".join([b'{"message":"x"}'] * 1_001) + b"]"
        case 5:
            return chance.choice((LOGS, POSTED)), {"content-type": JSON}, b'{"message":' + b"9" * 200_000 + b"}"
        case 6:
            return LOGS, {"content-type": JSON}, b"[" + b"[]," * 200_000 + b"[]]"
        case _:
            records = [{"severityNumber": 17, "body": {"stringValue": "x" * 300_000}, "attributes": attributes(chance)}]
            return LOGS, {"content-type": JSON}, _dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]})


def _tokens(chance: random.Random) -> Input:
    """What JSON itself does not allow, or some readers do."""
    word = chance.choice(
        ("NaN", "-Infinity", "1e999", "01", "'x'", "0x1", "1" * 5_000, '"\\ud800"', '"\\u0000"', "nul", "//", "1e-9999")
    )
    body = _one_log(f'"timeUnixNano":{word},"severityNumber":17,"severityNumber":{word}').decode()
    if chance.random() < 0.3:
        return POSTED, {"content-type": JSON}, f'{{"message":"x","timestamp":{word},"message":{word}}}'.encode()
    return LOGS, {"content-type": JSON}, body.encode(chance.choice(("utf-8", "utf-16", "utf-8-sig")))


# Compression


@lru_cache(maxsize=4)
def _bomb(megabytes: int) -> bytes:
    return gzip.compress(b"\0" * (megabytes * 2**20), 9, mtime=0)


def _gzip(chance: random.Random) -> Input:
    path, headers, body = _good(chance)
    packed = gzip.compress(body, 1, mtime=0)
    headers["content-encoding"] = "gzip"
    match chance.randrange(9):
        case 0:
            return path, headers, packed
        case 1:
            return path, headers, packed[: chance.randrange(len(packed))]
        case 2:
            return path, headers, packed + packed
        case 3:
            return path, headers, gzip.compress(packed, 1, mtime=0)
        case 4:
            return path, headers, packed[:-4] + chance.randbytes(4)
        case 5:
            return path, headers, packed + chance.randbytes(5)
        case 6:
            return path, headers, body
        case 7:
            return (
                path,
                {**headers, "content-encoding": chance.choice(("deflate", "br", "gzip, gzip", "x", "zstd"))},
                zlib.compress(body),
            )
        case _:
            return path, headers, gzip.compress(b"", mtime=0) * 200


def _bombs(chance: random.Random) -> Input:
    bomb = _bomb(chance.choice((20, 64)))
    data = bomb if chance.random() < 0.7 else gzip.compress(bomb, 1, mtime=0)
    return _path(chance), {"content-type": chance.choice((JSON, PROTOBUF)), "content-encoding": "gzip"}, data


_MAKERS: tuple[Callable[[random.Random], Input], ...] = (
    *(_good, _mutated_json, _mutated_bytes, _random_bytes, _post, _line, _deep, _tokens, _gzip, _many, _bombs),
)
_WEIGHTS = (10, 30, 30, 10, 15, 15, 8, 8, 12, 1, 0.5)


# Protobuf by hand, so that it can be wrong as well


def protobuf(body: dict[str, Any]) -> bytes:
    """A body in OTLP's JSON (of this file's making) as protobuf."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = (ExportLogsServiceRequest if "resourceLogs" in body else ExportTraceServiceRequest)()
    for one in body.get("resourceLogs") or body.get("resourceSpans") or ():
        group = (message.resource_logs if "resourceLogs" in body else message.resource_spans).add()
        _put_attributes(group.resource.attributes, one["resource"]["attributes"])
        for scope in one.get("scopeLogs") or one.get("scopeSpans") or ():
            inner = (group.scope_logs if "scopeLogs" in one else group.scope_spans).add()
            inner.scope.name = (scope.get("scope") or {}).get("name", "")
            for record in scope.get("logRecords", ()):
                _put_record(inner.log_records.add(), record)
            for span in scope.get("spans", ()):
                _put_span(inner.spans.add(), span)
    return bytes(message.SerializeToString())


def _put_record(message: Any, record: dict[str, Any]) -> None:
    message.time_unix_nano = int(record.get("timeUnixNano", 0))
    message.severity_number = record.get("severityNumber", 0)
    message.severity_text = record.get("severityText", "")
    _put_value(message.body, record.get("body") or {})
    _put_attributes(message.attributes, record.get("attributes", ()))
    message.trace_id = bytes.fromhex(record.get("traceId", ""))
    message.span_id = bytes.fromhex(record.get("spanId", ""))


def _put_span(message: Any, span: dict[str, Any]) -> None:
    message.trace_id, message.span_id = bytes.fromhex(span["traceId"]), bytes.fromhex(span["spanId"])
    message.parent_span_id = bytes.fromhex(span.get("parentSpanId", ""))
    message.kind = span.get("kind", 0)
    message.start_time_unix_nano = int(span.get("startTimeUnixNano", 0))
    message.end_time_unix_nano = int(span.get("endTimeUnixNano", 0))
    message.status.code = span.get("status", {}).get("code", 0)
    _put_attributes(message.attributes, span.get("attributes", ()))
    for event in span.get("events", ()):
        made = message.events.add()
        made.name, made.time_unix_nano = event["name"], int(event["timeUnixNano"])
        _put_attributes(made.attributes, event["attributes"])


def _put_attributes(message: Any, found: Any) -> None:
    for one in found:
        made = message.add()
        made.key = one["key"]
        _put_value(made.value, one["value"])


def _put_value(message: Any, found: dict[str, Any]) -> None:
    for kind, inner in found.items():
        if kind == "stringValue":
            message.string_value = inner.encode("utf-8", "replace").decode()
        elif kind == "intValue":
            message.int_value = int(inner)
        elif kind == "boolValue":
            message.bool_value = inner
        elif kind == "doubleValue":
            message.double_value = float(inner)
        elif kind == "bytesValue":
            message.bytes_value = base64.b64decode(inner)
        elif kind == "arrayValue":
            message.array_value.SetInParent()
            for one in inner["values"]:
                _put_value(message.array_value.values.add(), one)
        elif kind == "kvlistValue":
            message.kvlist_value.SetInParent()
            _put_attributes(message.kvlist_value.values, inner["values"])


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + data


def _around(record: bytes) -> bytes:
    """A body of one log record."""
    return _field(1, _field(2, _field(2, record)))


def _one_log(fields: str) -> bytes:
    return f'{{"resourceLogs":[{{"scopeLogs":[{{"logRecords":[{{{fields}}}]}}]}}]}}'.encode()


def _dumps(body: Any) -> bytes:
    return json.dumps(body).encode()
