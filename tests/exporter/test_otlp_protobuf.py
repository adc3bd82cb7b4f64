"""Protobuf is read record by record, as its own reader would read all of it, in the memory of one."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber

from tests.hostile import _field
from tocsin.exporter import otlp_protobuf
from tocsin.exporter.records import Log, TooMuch, Unreadable
from tocsin.text import shorten

MIB = 2**20
EMOJI = "\U0001f4a5"


def a_log(**texts: str) -> LogRecord:
    made = LogRecord(severity_number=SeverityNumber.SEVERITY_NUMBER_ERROR)
    made.body.string_value = "no items"
    for key, text in texts.items():
        made.attributes.add(key=key).value.string_value = text
    return made


def body_of(*records: LogRecord) -> bytes:
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.extend(records)
    return _bytes(request)


def _bytes(message: Message) -> bytes:
    return bytes(message.SerializeToString())


def read(body: bytes) -> list[Log]:
    found: list[Any] = [record for batch in otlp_protobuf.logs(body, 17) for record in batch.records]
    return found


def test_whose_records_they_are_may_come_after_them_and_in_pieces() -> None:
    """As protobuf allows it: fields in any order, and a message in parts that add up."""
    first, second = ExportLogsServiceRequest().resource_logs.add(), ExportLogsServiceRequest().resource_logs.add()
    first.resource.attributes.add(key="service.name").value.string_value = "shop"
    first.scope_logs.add().log_records.append(a_log())
    second.resource.attributes.add(key="service.version").value.string_value = "7"
    second.scope_logs.add().scope.name = "pay"
    unknown = b"\xf8\x7f\x01" + _field(15, b"x")
    owner = _field(1, _bytes(second.resource)) + unknown + _field(1, _bytes(first.resource))
    scope = _field(2, _bytes(a_log())) + unknown + _field(1, _bytes(second.scope_logs[0].scope))

    (batch,) = otlp_protobuf.logs(unknown + _field(1, _field(2, scope) + owner), 17)

    assert batch.resource == {"service.version": "7", "service.name": "shop"}
    assert batch.scope == "pay"
    assert len(list(batch.records)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"\x80",
        b"\x0a",
        b"\x0a\x05\x0a",
        b"\x00\x01",
        b"\x0b\x0c",
        b"\x0d\x01",
        b"\xff" * 11,
        b"\x0a" + b"\xff" * 11,
        _field(1, b"\x12\x7f"),
        _field(1, _field(1, b"\x0a\x7f")),
        _field(1, _field(2, _field(1, b"\x0a\x02\xff\xfe"))),
        _field(1, _field(2, _field(2, b"\x2a\x7f"))),
        _field(1, _field(2, _field(2, _bytes(a_log())) + _field(2, b"\x2a\x7f"))),
        _field(1, _field(2, _field(2, _field(6, _field(9, bytes(MIB)) + b"\x0a\x7f")))),
    ],
)
def test_what_protobuf_does_not_allow_is_refused_wherever_it_stands(body: bytes) -> None:
    with pytest.raises(Unreadable):
        read(body)


@pytest.mark.parametrize("body", [b"\xf8\x7f\x01" * 200_000, _field(1, _field(2, _field(2, b"\x08\x01" * 400_000)))])
def test_fields_that_say_nothing_are_not_gone_through_for_ever(body: bytes) -> None:
    with pytest.raises(TooMuch):
        read(body)


@pytest.mark.parametrize("text", [EMOJI + "x" * 8 * MIB, "é" * 4 * MIB, EMOJI * 2 * MIB, "x" * 8 * MIB])
def test_of_a_text_of_megabytes_both_ends_are_kept_and_the_rest_is_counted(text: str) -> None:
    """As it would be further on, without ever having it whole: four bytes a character."""
    text = f"begin {text} end"
    body = body_of(a_log(long=text, short="kept"))

    tracemalloc.start()
    (record,) = read(body)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert record.attributes == {"long": shorten(text, 16 * 1024), "short": "kept"}
    assert record.body == "no items"
    assert peak < 2 * MIB


def test_of_a_large_record_a_stack_is_kept_whole() -> None:
    stack = "Traceback\n" + EMOJI * 10_000
    body = body_of(a_log(dump="x" * MIB, **{"exception.stacktrace": stack}), a_log(dump=EMOJI * 20_000))

    first, second = read(body)

    assert first.attributes["exception.stacktrace"] == stack
    assert second.attributes["dump"] == EMOJI * 20_000


def test_many_long_texts_in_one_record_take_no_more_than_one() -> None:
    """What is beyond the room of a record is left empty, and the record is still taken."""
    (record,) = read(body_of(a_log(**{f"a{at}": EMOJI * 15_000 for at in range(120)})))

    kept = [len(value) for value in record.attributes.values()]
    assert sum(kept) * 4 <= otlp_protobuf.LARGE_RECORD + 64 * 1024
    assert kept[0] == 15_000
    assert len(kept) == 120


def test_an_owner_in_many_pieces_is_as_large_as_all_of_them() -> None:
    pieces = [_field(1, _bytes(a_log(**{f"a{at}": EMOJI * 15_000})).replace(b"\x32", b"\x0a", 1)) for at in range(50)]

    (batch,) = otlp_protobuf.logs(_field(1, b"".join(pieces) + _field(2, _field(2, b""))), 17)

    kept = [len(value) for value in batch.resource.values() if isinstance(value, str)]
    assert 15_000 <= sum(kept) <= (otlp_protobuf.LARGE_RECORD + 64 * 1024) // 4
