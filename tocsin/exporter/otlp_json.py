"""
OTLP in JSON: log records and spans out of a body, walked by hand.

protobuf's own reader of JSON takes fifteen times as long, and reads ids as base64.

Source: OpenTelemetry protocol 1.9, *JSON Protobuf Encoding*; protobuf, *ProtoJSON format*.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from array import array
from collections.abc import Iterator, Mapping
from itertools import accumulate, islice
from typing import Any, Final, NoReturn

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

MOST_PARTS: Final = 150_000
"""Members, and two for each object and list, in one body: each costs memory, however few bytes it is written in."""

MOST_NAMES: Final = 5_000
"""Different names of members in one body: each costs ten times what the same name again does."""

MOST_BYTES: Final = 4 * 2**20
MOST_WIDE_BYTES: Final = 3 * 2**20
"""Of one body; of one with characters beyond 16 bits, such as an emoji, of which a text takes four times as much."""

_PIECE_BYTES = 64 * 2**10
_FEW_PARTS = 30_000  # that cannot cost much, whatever they are
_WIDE = re.compile(rb"[\xf0-\xff]")
_NAME = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+(:?)', re.DOTALL)
_DEPTH: Final = 150  # a value 32 deep in a record, four brackets each, and what is around it
_STRING = re.compile(rb'"[^"]*+"')
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
_NUMBER = re.compile(r"-?[0-9]{1,20}")
_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_KIND_NAMES = {f"SPAN_KIND_{word}": number for number, word in enumerate(_KINDS)}
_STATUS_NAMES = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
_SEVERITY_NAMES = {"SEVERITY_NUMBER_UNSPECIFIED": 0} | {
    f"SEVERITY_NUMBER_{word}{step or ''}": 4 * at + max(step, 1)
    for at, word in enumerate(("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"))
    for step in (0, 2, 3, 4)
}


def loads(body: bytes) -> Any:
    """
    A body of JSON, looked through before anything is made of it.

    Raises:
        Unreadable: it is none, or nested deeper than any sensible one.
        TooMuch: it has more parts than are taken.
    """
    most = MOST_WIDE_BYTES if len(body) > MOST_WIDE_BYTES and _WIDE.search(body) else MOST_BYTES
    if len(body) > most:
        raise TooMuch(f"more than {most} bytes of JSON at once; send smaller batches, or protobuf")
    commas, brackets = 0, b""
    for bare in _without_strings(body.replace(rb"\\", b"").replace(rb"\"", b"")):
        commas += bare.count(b",")
        brackets += bare.translate(_STEPS, _NO_BRACKETS)
        if commas + len(brackets) > MOST_PARTS:
            raise TooMuch(f"more than {MOST_PARTS} values in one body; send smaller batches")
    if commas + len(brackets) > _FEW_PARTS:
        _count_names(body)
    if max(accumulate(array("b", brackets)), default=0) > _DEPTH:
        raise Unreadable(f"JSON nested more than {_DEPTH} deep")
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):  # also UTF-8 that is none, and numbers with thousands of digits
        raise Unreadable("the body is no JSON in UTF-8") from None


def logs(body: bytes, threshold: int) -> Iterator[Batch[Log]]:
    """As `otlp_protobuf.logs`."""
    batches = _batches(loads(body), "resourceLogs", "scopeLogs", "logRecords")
    if sum(len(records) for _, _, records in batches) > MOST_RECORDS:
        raise TooMuch(f"more than {MOST_RECORDS} log records at once; send smaller batches")
    for resource, scope, records in batches:
        yield Batch(resource, scope, _logs(records, threshold))


def spans(body: bytes) -> Iterator[Batch[Span]]:
    """As `otlp_protobuf.spans`."""
    batches = _batches(loads(body), "resourceSpans", "scopeSpans", "spans")
    if sum(len(found) for _, _, found in batches) > MOST_SPANS:
        raise TooMuch(f"more than {MOST_SPANS} spans at once; send smaller batches")
    for resource, scope, found in batches:
        yield Batch(resource, scope, _spans(found))


def _without_strings(plain: bytes) -> Iterator[bytes]:
    """JSON without escapes by pieces: what is cut out of all at once takes ten times the memory of what is left."""
    start = 0
    while start < len(plain):
        end = start + _PIECE_BYTES
        if plain.count(b'"', start, end) % 2:  # it would end within a string
            end = plain.find(b'"', end) + 1 or len(plain)
        yield _STRING.sub(b"", plain[start:end])
        start = end


def _count_names(body: bytes) -> None:
    names = set()
    for found in _NAME.finditer(body):
        if found[2]:
            names.add(found[1])
            if len(names) > MOST_NAMES:
                raise TooMuch(f"more than {MOST_NAMES} different names in one body")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _batches(found: Any, outer: str, inner: str, records: str) -> list[tuple[dict[str, Any], str, list[Any]]]:
    """Each scope's records with whose they are; what surrounds records must be right, or nothing is."""
    try:
        return [
            (resource, _text(_object(scope.get("scope")).get("name")), _list(scope.get(records)))
            for one in map(_object, _list(_object(found).get(outer)))
            for resource in [_attributes(_object(one.get("resource")).get("attributes"))]
            for scope in map(_object, _list(one.get(inner)))
        ]
    except Malformed as problem:
        raise Unreadable(f"the body is no OTLP message in JSON: {problem}") from None


def _logs(records: list[Any], threshold: int) -> Iterator[Log | Malformed | None]:
    for one in records:
        try:
            record = _object(one)
            number = _enum(record.get("severityNumber"), _SEVERITY_NAMES)
            number = number or severity_of(_text(record.get("severityText")))
            attributes = _list(record.get("attributes"))
            if number < threshold and EXCEPTION.isdisjoint([_key(pair) for pair in attributes]):
                yield None
                continue
            yield Log(
                _time(record.get("timeUnixNano")) or _time(record.get("observedTimeUnixNano")),
                number,
                _value(record.get("body"), 0),
                _attributes(attributes),
                _id(record.get("traceId"), 16),
                _id(record.get("spanId"), 8),
            )
        except Malformed as problem:
            yield problem


def _spans(found: list[Any]) -> Iterator[Span | Malformed | None]:
    for one in found:
        try:
            span = _object(one)
            kind = _enum(span.get("kind"), _KIND_NAMES)
            trace_id, span_id = _id(span.get("traceId"), 16), _id(span.get("spanId"), 8)
            if trace_id is None or span_id is None:
                raise Malformed("a span without an id")
            read = Span(
                trace_id,
                span_id,
                _id(span.get("parentSpanId"), 8),
                kind,
                _time(span.get("startTimeUnixNano")),
                _time(span.get("endTimeUnixNano")),
                _enum(_object(span.get("status")).get("code"), _STATUS_NAMES) == FAILED,
            )
            read.exceptions = [
                Event(_time(event.get("timeUnixNano")), _attributes(event.get("attributes")))
                for event in map(_object, _list(span.get("events")))
                if event.get("name") == semconv.EVENT_EXCEPTION
            ]
            if read.exceptions or kind in (SERVER, CONSUMER):
                read.attributes = _attributes(span.get("attributes"))
            yield read
        except Malformed as problem:
            yield problem


def _attributes(found: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for one in _list(found):
        key = _key(one)
        if len(attributes) < MOST_ATTRIBUTES or key in EXCEPTION:
            attributes[key] = _value(one.get("value"), 0)
    return attributes


def _value(found: Any, depth: int) -> Any:
    value = _object(found)
    if (text := value.get("stringValue")) is not None:
        return _text(text)
    if (flag := value.get("boolValue")) is not None:
        if not isinstance(flag, bool):
            raise Malformed("a boolValue that is neither true nor false")
        return flag
    if (whole := value.get("intValue")) is not None:
        return _whole(whole, -(2**63), 2**63 - 1)
    if (number := value.get("doubleValue")) is not None:
        return _number(number)
    if (items := value.get("arrayValue")) is not None:
        inner = _list(_object(items).get("values"))
        return (
            LEFT_OUT if depth >= DEPTH_LIMIT else [_value(one, depth + 1) for one in islice(inner, BREADTH_LIMIT + 1)]
        )
    if (pairs := value.get("kvlistValue")) is not None:
        inner = _list(_object(pairs).get("values"))
        if depth >= DEPTH_LIMIT:
            return LEFT_OUT
        return {_key(one): _value(one.get("value"), depth + 1) for one in islice(inner, BREADTH_LIMIT + 1)}
    if (data := value.get("bytesValue")) is not None:
        return _bytes(_text(data))
    return None


# The shapes of single values; null stands for what is not there.


def _object(found: Any) -> Mapping[str, Any]:
    if found is None:
        return {}
    if type(found) is not dict:
        raise Malformed("something that should be an object is none")
    return found


def _list(found: Any) -> list[Any]:
    if found is None:
        return []
    if type(found) is not list:
        raise Malformed("something that should be a list is none")
    return found


def _text(found: Any) -> str:
    if found is None:
        return ""
    if type(found) is not str:
        raise Malformed("something that should be a text is none")
    return found


def _key(pair: Any) -> str:
    if type(pair) is not dict:
        raise Malformed("an attribute that is no object")
    return _text(pair.get("key"))


def _whole(found: Any, least: int, most: int) -> int:
    if (type(found) is str and _NUMBER.fullmatch(found)) or (type(found) is float and found.is_integer()):
        found = int(found)
    if type(found) is not int or not least <= found <= most:
        raise Malformed("something that should be a whole number of 64 bits is none")
    return found


def _time(found: Any) -> int:
    return 0 if found is None else _whole(found, 0, 2**64 - 1)


def _enum(found: Any, names: Mapping[str, int]) -> int:
    if found is None:
        return 0
    if type(found) is str:
        found = names.get(found, found)
    return _whole(found, -(2**31), 2**31 - 1)


def _number(found: Any) -> float:
    if type(found) not in (int, float, str):
        raise Malformed("a doubleValue that is no number")
    try:
        return float(found[:64] if type(found) is str else found)
    except (ValueError, OverflowError):
        raise Malformed("a doubleValue that is no number") from None


def _bytes(text: str) -> bytes:
    try:
        padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
        return base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
    except (ValueError, binascii.Error):
        raise Malformed("a bytesValue that is no base64") from None


def _id(found: Any, size: int) -> str | None:
    """An id in hexadecimal, as the protocol has it; in base64 too, as protobuf's own writer of JSON makes it."""
    text = _text(found)
    if not text:
        return None
    try:
        data = bytes.fromhex(text) if len(text) == 2 * size else _bytes(text)
    except ValueError:
        raise Malformed("an id that is not in hexadecimal") from None
    if len(data) != size:
        raise Malformed(f"an id of {len(data)} bytes; a trace's has 16, a span's 8")
    return data.hex() if any(data) else None
