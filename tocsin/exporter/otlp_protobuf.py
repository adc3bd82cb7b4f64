"""OTLP in protobuf: log records and spans out of a body."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

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
)
from tocsin.exporter.scrub import BREADTH_LIMIT, DEPTH_LIMIT, LEFT_OUT


def logs(body: bytes, threshold: int) -> Iterator[Batch[Log]]:
    """
    The log records of a body, sender by sender.

    Args:
        threshold: the severity number from which one without an exception is an error.

    Raises:
        Unreadable, TooMuch: of the whole body.
    """
    request = ExportLogsServiceRequest()
    _parse(request, body)
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
    _parse(request, body)
    if sum(len(scope.spans) for one in request.resource_spans for scope in one.scope_spans) > MOST_SPANS:
        raise TooMuch(f"more than {MOST_SPANS} spans at once; send smaller batches")
    for one in request.resource_spans:
        resource = _attributes(one.resource.attributes)
        for scope in one.scope_spans:
            yield Batch(resource, scope.scope.name, _spans(scope.spans))


def _parse(request: Message, body: bytes) -> None:
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Unreadable("the body is no OTLP message in protobuf") from None


def _logs(records: Iterable[logs_pb2.LogRecord], threshold: int) -> Iterator[Log | Malformed | None]:
    for record in records:
        number = record.severity_number
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
