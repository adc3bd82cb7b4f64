"""What comes by HTTP, read into lines of the spool: OTLP in both of its encodings, and plain posts."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tocsin import semconv
from tocsin.exporter.scrub import scrub_text
from tocsin.failures import BadInput, TocsinError
from tocsin.ids import uuid7
from tocsin.settings import Settings
from tocsin.text import clean


class Unreadable(TocsinError):
    """A body that is not what it says it is (400)."""


class TooMuch(TocsinError):
    """A body with more in it than is taken at once (413)."""


@dataclass(slots=True)
class Reading:
    """What was in one body."""

    lines: list[bytes] = field(default_factory=list)  # of the spool; each ends with a newline
    taken: int = 0  #              records or spans, also those that are no errors
    rejected: int = 0
    problem: str | None = None  #  of the first that was rejected
    ids: list[str] = field(default_factory=list)  #   of the errors, in order


class Reader:
    """Reads bodies, one after the other; for one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def logs(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        """The errors among some log records."""
        request = ExportLogsServiceRequest()
        if not is_json:
            try:
                request.ParseFromString(body)
            except DecodeError:
                raise Unreadable("the body is no OTLP message") from None
        reading = Reading()
        for batch in request.resource_logs:
            resource = {one.key: one.value.string_value for one in batch.resource.attributes}
            for scope in batch.scope_logs:
                for record in scope.log_records:
                    reading.taken += 1
                    found = {one.key: one.value.string_value for one in record.attributes}
                    message = found.pop(semconv.EXCEPTION_MESSAGE, None) or record.body.string_value
                    attributes = {key: clean(scrub_text(value)) for key, value in found.items()}
                    attributes[semconv.MECHANISM] = "log record"
                    error_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{record.time_unix_nano} {message}"))
                    _add(reading, error_id, record.time_unix_nano or now_ns, message, attributes, resource)
        return reading

    def traces(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        """The errors among the events of some spans."""
        return Reading()

    def posted(self, body: bytes, *, now_ns: int) -> Reading:
        """One error, or a list of them, as ``POST /api/debug/errors`` takes them."""
        try:
            found = json.loads(body)
        except ValueError:
            raise Unreadable("the body is no JSON") from None
        reading = Reading()
        for one in found if isinstance(found, list) else [found]:
            if not isinstance(one, dict) or not isinstance(one.get("message"), str):
                raise BadInput("message", "give a text")
            reading.taken += 1
            attributes: dict[str, Any] = {semconv.MECHANISM: "posted", semconv.SEVERITY: one.get("severity") or "high"}
            resource = {semconv.SERVICE_NAME: one.get("service") or "unknown_service"}
            _add(reading, uuid7(now_ns), now_ns, one["message"], attributes, resource)
        return reading


def _add(  # noqa: PLR0917
    reading: Reading,
    error_id: str,
    time_ns: int,
    message: str,
    attributes: dict[str, Any],
    resource: dict[str, Any],
) -> None:
    line = {
        "v": 1,
        "kind": "error",
        "door": True,
        "id": error_id,
        "time_unix_nano": time_ns,
        "severity_number": 17,
        "event_name": semconv.EVENT_EXCEPTION,
        "body": clean(scrub_text(message)),
        "trace_id": None,
        "span_id": None,
        "attributes": attributes,
        "resource": resource,
    }
    reading.lines.append(json.dumps(line).encode() + b"\n")
    reading.ids.append(error_id)
