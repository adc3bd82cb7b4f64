"""
OTLP in protobuf: log records and spans out of a body, one after the other.

Read all at once, they would take the memory of the body again, and a text in them up to four times its bytes.

Source: protobuf, *Encoding*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
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

MOST_FIELDS: Final = 100_000
"""Fields that are looked at one by one: those around the records of a body, or those of one large record."""

LARGE_RECORD: Final = 512 * 2**10
"""Bytes of a record, or of what owns it, beyond which its texts are cut before they are read."""

_LONG_TEXT = 64 * 2**10
_NAME = 64  # bytes that are always kept: mostly it is one
_KEPT_TEXT = 16 * 2**10  # characters, as of a message
_MOST_DEEP = 100  # as protobuf's own reader has it
_PIECE_BYTES = 64 * 2**10
_MARKS = bytes(byte & 7 == 2 for byte in range(256))  # with which a part begins (wire type LEN)
_LATER_BYTES = bytes(range(0x80, 0xC0))  # in UTF-8: all of a character but its first

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
    batches = _batches(body, "logs")
    if sum(len(records) for _, _, records in batches) > MOST_RECORDS:
        raise TooMuch(f"more than {MOST_RECORDS} log records at once; send smaller batches")
    for resource, scope, records in batches:
        found = (_read(logs_pb2.LogRecord(), body, [place], "log") for place in records)
        yield Batch(resource, scope, _logs(found, threshold))


def spans(body: bytes) -> Iterator[Batch[Span]]:
    """
    The spans of a body, sender by sender.

    Raises:
        Unreadable, TooMuch: of the whole body.
    """
    batches = _batches(body, "spans")
    if sum(len(found) for _, _, found in batches) > MOST_SPANS:
        raise TooMuch(f"more than {MOST_SPANS} spans at once; send smaller batches")
    for resource, scope, found in batches:
        yield Batch(resource, scope, _spans(_read(trace_pb2.Span(), body, [place], "span") for place in found))


_Place = tuple[int, int]
_M = TypeVar("_M", bound=Message)


def _batches(body: bytes, kind: str) -> list[tuple[dict[str, Any], str, list[_Place]]]:
    """Whose records are in a body, by scope, and where each record is: three messages deep, the same for each kind."""
    if len(body) > 2 * MOST_PARTS and _most_parts(body) > MOST_PARTS:
        _count_parts(body, kind)
    walk = _Walk(body)
    batches = []
    for start, end in walk.parted(0, len(body))[0]:
        owner, scopes = walk.parted(start, end)
        resource = _attributes(_read(Resource(), body, owner, "owner").attributes)
        for scope_start, scope_end in scopes:
            named, records = walk.parted(scope_start, scope_end)
            scope = _read(InstrumentationScope(), body, named, "named")
            batches.append((resource, scope.name, records))
    return batches


def _read(message: _M, body: bytes, places: list[_Place], kind: str) -> _M:
    """A message of a body; one that came in several pieces is these one after the other."""
    try:
        slimmer = _Slimmer(body) if sum(end - start for start, end in places) > LARGE_RECORD else None
        for start, end in places:
            message.MergeFromString(slimmer.slimmed(start, end, kind) if slimmer is not None else body[start:end])
    except DecodeError:
        raise _unreadable() from None
    return message


def _unreadable() -> Unreadable:
    return Unreadable("the body is no OTLP message in protobuf")


class _Walk:
    """Goes through the fields of messages in a body without making anything of them, `MOST_FIELDS` and no more."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self._left = MOST_FIELDS

    def fields(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Each field's tag, where it begins, where its content does, and where it ends."""
        body = self.body
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise TooMuch(f"more than {MOST_FIELDS} fields around records, or in one; send smaller batches")
            begin = at
            tag, at = _varint(body, at)
            size = _FIXED.get(tag & 7)
            if tag & 7 == 2:
                size, at = _varint(body, at)
            start = at
            at = _varint(body, at)[1] if size is None else at + size
            # Groups have no length, and are in none of these messages.
            if at > end or tag < 8 or tag & 7 in (3, 4):
                raise _unreadable()
            yield tag, begin, start, at

    def parted(self, at: int, end: int) -> tuple[list[_Place], list[_Place]]:
        """Where the messages in the fields 1 and 2 of a message are."""
        ones: list[_Place] = []
        twos: list[_Place] = []
        for tag, _, start, stop in self.fields(at, end):
            if tag == 0x0A:
                ones.append((start, stop))
            elif tag == 0x12:
                twos.append((start, stop))
        return ones, twos


class _Slimmer(_Walk):
    """Takes a large message with its long texts cut, and without those for which then still is no room."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._room = LARGE_RECORD

    def slimmed(self, at: int, end: int, kind: str, depth: int = 0) -> bytes:
        if depth > _MOST_DEEP:
            raise _unreadable()
        inside = _INSIDE[kind]
        pieces: list[bytes] = []
        kept = at
        for tag, begin, start, stop in self.fields(at, end):
            if tag & 7 != 2:
                continue
            if stop - start <= max(min(_LONG_TEXT, self._room), _NAME):
                self._room -= stop - begin
                continue
            inner = inside.get(tag >> 3)
            content = self._cut(start, stop) if inner is None else self.slimmed(start, stop, inner, depth + 1)
            pieces += (self.body[kept:begin], _number(tag), _number(len(content)), content)
            kept = stop
        return b"".join([*pieces, self.body[kept:end]])

    def _cut(self, start: int, stop: int) -> bytes:
        content = _cut(memoryview(self.body)[start:stop]) if self._room > 0 else b""
        self._room -= len(content)
        return content


def _cut(text: memoryview) -> bytes:
    """As `text.shorten`, of a text that is still in UTF-8 and too long to be anything else."""
    pieces = (text[at : at + _PIECE_BYTES] for at in range(0, len(text), _PIECE_BYTES))
    length = sum(len(bytes(piece).translate(None, _LATER_BYTES)) for piece in pieces)
    head = str(text[: 4 * _KEPT_TEXT], "utf-8", "ignore")
    tail = str(text[-4 * _KEPT_TEXT :], "utf-8", "ignore")
    if length <= _KEPT_TEXT:
        return bytes(text)
    note = f" …[{length - _KEPT_TEXT} characters left out]… "
    keep = _KEPT_TEXT - len(note)
    return (head[: keep * 3 // 4] + note + tail[keep * 3 // 4 - keep :]).encode()


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _most_parts(body: bytes) -> int:
    """How many parts a body has at most; by pieces, which take no memory."""
    pieces = (body[at : at + _PIECE_BYTES] for at in range(0, len(body), _PIECE_BYTES))
    return sum(piece.translate(_MARKS).count(1) for piece in pieces)


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
    """A number and where it ends."""
    value = shift = 0
    for byte in body[at : at + 10]:
        value |= (byte & 0x7F) << shift
        at += 1
        shift += 7
        if byte < 0x80:
            return value, at
    raise _unreadable()


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
