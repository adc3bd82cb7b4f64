"""OTLP in protobuf: log records and spans out of a body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

from tocsin import semconv
from tocsin.exporter.records import (
    CONSUMER,
    EXCEPTION,
    FAILED,
    MOST_ATTRIBUTES,
    MOST_RECORDS,
    MOST_SPANS,
    SERVER,
    Batch,
    Event,
    Log,
    Malformed,
    Span,
    TooMuch,
    Unreadable,
    severity_of,
)
from tocsin.exporter.scrub import BREADTH_LIMIT, DEPTH_LIMIT, LEFT_OUT

MOST_PARTS: Final = 400_000
"""Messages and texts in one body: each takes some 50 bytes of memory, and may take two of the body."""

_MARKS = bytes(byte & 7 == 2 for byte in range(256))  # with which a part begins (wire type LEN)

# Which fields of a message are messages, by what they are.
_INSIDE: Final[Mapping[str, Mapping[int, str]]] = {
    "logs": {1: "logs of one"},
    "spans": {1: "spans of one"},
    "logs of one": {1: "owner", 2: "scope of logs"},
    "spans of one": {1: "owner", 2: "scope of spans"},
    "owner": {1: "pair"},
    "scope of logs": {1: "named", 2: "log"},
    "scope of spans": {1: "named", 2: "span"},
    "named": {3: "pair"},
    "log": {5: "value", 6: "pair"},
    "span": {9: "pair", 11: "event", 13: "event"},
    "event": {3: "pair", 4: "pair"},
    "pair": {2: "value"},
    "value": {5: "items", 6: "pairs"},
    "items": {1: "value"},
    "pairs": {1: "pair"},
}


def logs(body: bytes, threshold: int) -> Iterator[Batch[Log]]:
    """
    The log records of a body, sender by sender.

    Args:
        threshold: the severity number from which one without an exception is an error.

    Raises:
        Unreadable, TooMuch: of the whole body.
    """
    request = ExportLogsServiceRequest()
    _parse(request, body, "logs")
    if sum(len(scope.log_records) for one in request.resource_logs for scope in one.scope_logs) > MOST_RECORDS:
        raise TooMuch(f"more than {MOST_RECORDS} log records at once; send smaller batches")
    for one in request.resource_logs:
        resource = _attributes(one.resource.attributes)
        for scope in one.scope_logs:
            yield Batch(resource, scope.scope.name, _logs(scope.log_records, threshold))


def spans(body: bytes) -> Iterator[Batch[Span]]:
    """
    The spans of a body, sender by sender.

    Raises:
        Unreadable, TooMuch: of the whole body.
    """
    request = ExportTraceServiceRequest()
    _parse(request, body, "spans")
    if sum(len(scope.spans) for one in request.resource_spans for scope in one.scope_spans) > MOST_SPANS:
        raise TooMuch(f"more than {MOST_SPANS} spans at once; send smaller batches")
    for one in request.resource_spans:
        resource = _attributes(one.resource.attributes)
        for scope in one.scope_spans:
            yield Batch(resource, scope.scope.name, _spans(scope.spans))


def _parse(request: Message, body: bytes, kind: str) -> None:
    if len(body) > 2 * MOST_PARTS and body.translate(_MARKS).count(1) > MOST_PARTS:
        _count_parts(body, kind)
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Unreadable("the body is no OTLP message in protobuf") from None


def _count_parts(body: bytes, kind: str) -> None:
    """
    Walk a large body before anything is made of it, or `TooMuch`: parsed, it could be 60 times as large.

    What cannot be read is for the parser to refuse.
    """
    count, at, end = 0, 0, len(body)
    inside = _INSIDE[kind]
    above: list[tuple[int, Mapping[int, str]]] = []  # where each message around this one ends
    while True:
        if at >= end:
            if not above:
                return
            at = end
            end, inside = above.pop()
            continue
        tag = body[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(body, at - 1)
        if tag & 7 != 2:
            at = _varint(body, at)[1] if tag & 7 == 0 else at + _FIXED.get(tag & 7, end)
            continue
        count += 1
        if count > MOST_PARTS:
            raise TooMuch(f"more than {MOST_PARTS} values in one body; send smaller batches")
        size = body[at] if at < end else 0
        at += 1
        if size >= 0x80:
            size, at = _varint(body, at - 1)
        if size and (name := inside.get(tag >> 3)) is not None:
            above.append((end, inside))
            end, inside = min(at + size, end), _INSIDE[name]
        else:
            at += size


_FIXED = {1: 8, 5: 4}


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; ten bytes at most are looked at."""
    value = shift = 0
    for byte in body[at : at + 10]:
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            break
    return value, at


def _logs(records: Iterable[logs_pb2.LogRecord], threshold: int) -> Iterator[Log | Malformed | None]:
    for record in records:
        number = record.severity_number or severity_of(record.severity_text)
        if number < threshold and EXCEPTION.isdisjoint([one.key for one in record.attributes]):
            yield None
            continue
        try:
            yield Log(
                record.time_unix_nano or record.observed_time_unix_nano,
                number,
                _value(record.body, 0),
                _attributes(record.attributes),
                _id(record.trace_id, 16),
                _id(record.span_id, 8),
            )
        except Malformed as problem:
            yield problem


def _spans(found: Iterable[trace_pb2.Span]) -> Iterator[Span | Malformed | None]:
    for span in found:
        try:
            kind = span.kind
            trace_id, span_id = _id(span.trace_id, 16), _id(span.span_id, 8)
            if trace_id is None or span_id is None:
                raise Malformed("a span without an id")
            read = Span(
                trace_id,
                span_id,
                _id(span.parent_span_id, 8),
                kind,
                span.start_time_unix_nano,
                span.end_time_unix_nano,
                span.status.code == FAILED,
            )
            if span.events:
                read.exceptions = [
                    Event(event.time_unix_nano, _attributes(event.attributes))
                    for event in span.events
                    if event.name == semconv.EVENT_EXCEPTION
                ]
            if read.exceptions or kind in (SERVER, CONSUMER):
                read.attributes = _attributes(span.attributes)
            yield read
        except Malformed as problem:
            yield problem


def _id(found: bytes, size: int) -> str | None:
    if not found:
        return None
    if len(found) != size:
        raise Malformed(f"an id of {len(found)} bytes; a trace's has 16, a span's 8")
    return found.hex() if any(found) else None


def _attributes(found: Iterable[KeyValue]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for one in found:
        key = one.key
        if len(attributes) < MOST_ATTRIBUTES or key in EXCEPTION:
            value = one.value
            attributes[key] = value.string_value or _value(value, 0)
    return attributes


def _value(found: AnyValue, depth: int) -> Any:
    match found.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            if depth >= DEPTH_LIMIT:
                return LEFT_OUT
            return [_value(one, depth + 1) for one in islice(found.array_value.values, BREADTH_LIMIT + 1)]
        case "kvlist_value":
            if depth >= DEPTH_LIMIT:
                return LEFT_OUT
            pairs = islice(found.kvlist_value.values, BREADTH_LIMIT + 1)
            return {one.key: _value(one.value, depth + 1) for one in pairs}
        case "string_value":
            return found.string_value
        case "bool_value":
            return found.bool_value
        case "int_value":
            return found.int_value
        case "double_value":
            return found.double_value
        case "bytes_value":
            return found.bytes_value
        case _:  # what a newer version of the protocol has
            return None
