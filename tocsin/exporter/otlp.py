"""
The reader of all that comes by HTTP: OTLP in both of its encodings, and plain posts, into lines of the spool.

It believes nothing: what goes into a line is bounded, cleaned and scrubbed here, whoever has sent it.

Source: OpenTelemetry protocol 1.9; logs data model; semantic conventions 1.44, *Exceptions*.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tocsin import semconv
from tocsin.exporter import foreign, otlp_json, otlp_protobuf, posted, shipped
from tocsin.exporter.brief import Briefs, kind_of
from tocsin.exporter.foreign import ERROR_NUMBER, FATAL_NUMBER, Error, Resource, Stacks
from tocsin.exporter.join import Family, Memory, Request, Told, renamed, status_in
from tocsin.exporter.records import Batch, Event, Log, Malformed, Record, Span, TooMuch, Unreadable
from tocsin.model import Severity
from tocsin.settings import Settings
from tocsin.text import shorten

__all__ = ["Reader", "Reading", "TooMuch", "Unreadable"]

_THRESHOLDS: Final = {"warning": 13, "error": ERROR_NUMBER, "critical": FATAL_NUMBER}
_MOST_OF_A_NAME = 2_000


@dataclass(slots=True)
class Reading:
    """What was in one body."""

    lines: list[bytes] = field(default_factory=list)  # of the spool; each ends with a newline
    taken: int = 0  #              records or spans, also those that are no errors
    rejected: int = 0
    problem: str | None = None  #  of the first that was rejected
    ids: list[str] = field(default_factory=list)  #   of the errors, in order

    def reject(self, problem: Malformed) -> None:
        """Count one that cannot be read."""
        self.rejected += 1
        self.problem = self.problem or str(problem)


_SENDERS_OWN = ("opentelemetry.sdk.", "opentelemetry.exporter.")


class Reader:
    """
    Reads bodies, one after the other; for one thread.

    Reading a body again gives the same lines again, but for what it says of other bodies' errors: whoever
    takes them in shall take each id once, and may take an amendment twice.

    Args:
        briefs: which errors only count now; they get a short line.
    """

    def __init__(self, settings: Settings, briefs: Briefs | None = None) -> None:
        self._threshold = _THRESHOLDS[settings.log_level]
        self._briefs = briefs or Briefs()
        self._stacks = Stacks()
        self._memory = Memory()

    def logs(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        """
        The errors among some log records: those with an exception, and those that are severe enough.

        Raises:
            Unreadable, TooMuch: of the whole body; nothing of it is taken.
        """
        sheet = _Sheet(self._memory, self._briefs, now_ns)
        decoder = otlp_json if is_json else otlp_protobuf
        for batch in decoder.logs(body, self._threshold):
            resource = foreign.resource_of(batch.resource, now_ns)
            for record in _good(batch, sheet.reading):
                try:
                    self._log(record, batch.scope, resource, sheet)
                    sheet.reading.taken += 1
                except Malformed as problem:
                    sheet.reading.reject(problem)
        return sheet.finished()

    def traces(self, body: bytes, *, is_json: bool, now_ns: int) -> Reading:
        """
        The errors among some spans: their ``exception`` events, with the request that they happened in.

        Raises:
            Unreadable, TooMuch: of the whole body; nothing of it is taken.
        """
        sheet = _Sheet(self._memory, self._briefs, now_ns)
        decoder = otlp_json if is_json else otlp_protobuf
        batches = []
        for batch in decoder.spans(body):
            spans = list(_good(batch, sheet.reading))
            sheet.reading.taken += len(spans)
            batches.append((foreign.resource_of(batch.resource, now_ns), spans))
        family = Family(span for _, spans in batches for span in spans)
        for resource, spans in batches:
            for span in spans:
                if span.is_entry:
                    sheet.meet(resource, span.trace_id, family.own(span))
        for resource, spans in batches:
            for span in spans:
                for event in span.exceptions:
                    sheet.add(self._event(event, span, resource, family, now_ns))
        return sheet.finished()

    def posted(self, body: bytes, *, now_ns: int) -> Reading:
        """
        The errors of a ``POST /api/debug/errors``.

        Raises:
            Unreadable, TooMuch: of the whole body.
            BadInput: a field is wrong, which it names.
        """
        errors = posted.read(body, self._stacks, now_ns)
        return Reading([foreign.line(one) for one in errors], len(errors), ids=[one.id for one in errors])

    def _log(self, record: Log, scope: str, resource: Resource, sheet: _Sheet) -> None:
        attributes = record.attributes
        if semconv.LINE in attributes:
            made = shipped.read(attributes[semconv.LINE], resource, self._stacks, sheet.now_ns)
            if isinstance(made, bytes):
                sheet.say_after(made)
            else:
                sheet.add_own(made)
            return
        kind, message, text = _exception_in(attributes)
        stack = self._stacks.get(text, message) if text else foreign.NO_STACK
        is_exception = bool(kind or message or text)
        body = foreign.text_of(record.body)
        if is_exception and not message:
            message = stack.outline.message if stack.outline is not None else body
        elif not is_exception:
            if scope.startswith(_SENDERS_OWN):
                return  # its exporter says that we could not be reached: a storm after every outage of ours
            message = body
        time_ns = record.time_ns or sheet.unique_ns()
        trace_id = record.trace_id
        number = min(max(record.severity_number or ERROR_NUMBER, 0), 24)
        error_id = (
            foreign.content_id(resource.service, trace_id, time_ns, stack, kind, message)
            if is_exception
            else foreign.uuid8(resource.service, trace_id or "", str(time_ns), scope, message)
        )
        error = Error(
            id=error_id,
            time_ns=foreign.moment(time_ns, sheet.now_ns),
            message=message,
            mechanism="log record",
            resource=resource,
            severity_number=number,
            exception_type=foreign.name_of(kind, stack),
            stack=stack,
            logger=scope or None,
            trace_id=trace_id,
            span_id=record.span_id,
            attributes=renamed(attributes),
        )
        error.status = status_in(error.attributes)
        if is_exception and body and body != message:
            error.attributes[semconv.LOG_MESSAGE] = body
        foreign.said_by_sender(error, attributes)
        if trace_id is not None:
            sheet.join(error, self._memory.request_of(resource.service, trace_id, record.span_id, time_ns))
        own_id = foreign.uuid_of(attributes.get(semconv.ERROR_ID))
        if own_id is None:
            sheet.add(error)
        else:
            error.id = own_id
            sheet.add_own(error)

    def _event(self, event: Event, span: Span, resource: Resource, family: Family, now_ns: int) -> Error:
        kind, message, text = _exception_in(event.attributes)
        stack = self._stacks.get(text, message) if text else foreign.NO_STACK
        message = message or (stack.outline.message if stack.outline is not None else "")
        time_ns = event.time_ns or span.end_ns
        error = Error(
            id=foreign.content_id(resource.service, span.trace_id, time_ns, stack, kind, message),
            time_ns=foreign.moment(time_ns, now_ns),
            message=message,
            mechanism="span",
            resource=resource,
            exception_type=foreign.name_of(kind, stack),
            stack=stack,
            trace_id=span.trace_id,
            span_id=span.span_id,
            attributes=renamed(span.attributes) | renamed(event.attributes),
        )
        status = status_in(error.attributes)
        if span.is_entry:
            error.status = status
        elif status is not None:  # what somebody else answered to us
            error.context = {semconv.HTTP_STATUS: status}
        escaped = error.attributes.pop("exception.escaped", None)
        if str(escaped).lower() == "true":
            error.handled = False
        foreign.said_by_sender(error, event.attributes)
        request = family.request_above(span.trace_id, span.span_id) or self._memory.request_of(
            resource.service, span.trace_id, span.span_id, time_ns
        )
        _Sheet.join(error, request)
        return error


class _Sheet:
    """What one body comes to: its errors, each once, and what it says of those of other bodies."""

    def __init__(self, memory: Memory, briefs: Briefs, now_ns: int) -> None:
        self.reading = Reading()
        self.now_ns = now_ns
        self._briefs = briefs
        self._memory = memory
        self._errors: dict[str, Error] = {}
        self._after: list[bytes] = []
        self._without_time = 0

    def unique_ns(self) -> int:
        """A time for a record that has none: now, and for each another nanosecond."""
        self._without_time += 1
        return self.now_ns + self._without_time

    def add(self, error: Error) -> None:
        """Take an error that is known by what it says."""
        if error.trace_id is not None:
            error.id = self._memory.called(error.resource.service, error.trace_id, error.id)
        known = self._errors.get(error.id)
        self._errors[error.id] = error if known is None else foreign.merge(known, error)

    def add_own(self, error: Error) -> None:
        """Take an error that has an id of its own, and let it be known by what it says, too."""
        if error.trace_id is not None and (error.exception_type or error.stack.encoded):
            service = error.resource.service
            content_id = foreign.content_id(
                service, error.trace_id, error.time_ns, error.stack, error.exception_type, error.message
            )
            self._memory.call(service, error.trace_id, content_id, error.id, self.now_ns)
        known = self._errors.get(error.id)
        self._errors[error.id] = error if known is None else foreign.merge(known, error)

    def say_after(self, line: bytes) -> None:
        """Take a line that is no error: one that says something of an error counts for nothing before it."""
        self._after.append(line)

    @staticmethod
    def join(error: Error, request: Request | None) -> None:
        """Put the request that an error happened in beside it."""
        if request is None:
            return
        error.has_request = True
        error.attributes |= request.attributes
        error.status = request.status if request.status is not None else error.status
        if not error.exception_type and not error.stack.encoded:
            return  # what is only logged was not raised
        if request.has_failed:
            error.handled = False
        elif error.handled is None and request.status is not None and request.covers(error.time_ns):
            error.handled = True

    def meet(self, resource: Resource, trace_id: str, request: Request) -> None:
        """A request has come: amend the errors that were told before it."""
        for error in self._memory.add_request(resource.service, trace_id, request, self.now_ns):
            is_worse = request.has_failed and error.handled is not False
            self.say_after(
                foreign.amendment(
                    error.id,
                    resource,
                    rank=Severity.HIGH.rank if request.has_failed and error.rank < Severity.HIGH.rank else None,
                    handled=False if is_worse else None,
                    context=request.attributes,
                )
            )

    def finished(self) -> Reading:
        """All errors as lines."""
        now_s = time.monotonic()
        for error in self._errors.values():
            self.reading.ids.append(error.id)
            kind = kind_of(error)
            verdict = self._briefs.of(kind, now_s) if kind is not None else None
            made = foreign.line(error, kind) if verdict is None else foreign.brief_line(error, verdict)
            self.reading.lines.append(made)
            if error.trace_id is not None:
                self._tell(error)
        self.reading.lines += self._after
        return self.reading

    def _tell(self, error: Error) -> None:
        """Remember what is said of an error; where less was said of it before, amend that."""
        told = Told(error.id, error.span_id, error.time_ns, error.rank, error.handled, error.has_request)
        before = self._memory.tell(error.resource.service, error.trace_id or "", told, self.now_ns)
        if before is None:
            return
        is_worse = told.rank > before.rank
        is_unhandled = told.handled is False and before.handled is not False
        is_joined = told.has_request and not before.has_request
        if is_worse or is_unhandled or is_joined:
            keys = Request.keys() if is_joined else ()
            self.say_after(
                foreign.amendment(
                    error.id,
                    error.resource,
                    rank=told.rank if is_worse else None,
                    handled=False if is_unhandled else None,
                    context={key: error.attributes[key] for key in keys if key in error.attributes},
                )
            )


def _good(batch: Batch[Record], reading: Reading) -> Iterator[Record]:
    """The records that may be errors; the others are counted."""
    for record in batch.records:
        if record is None:
            reading.taken += 1
        elif isinstance(record, Malformed):
            reading.reject(record)
        else:
            yield record


def _exception_in(attributes: dict[str, Any]) -> tuple[str | None, str, str]:
    """
    Type, message and stack of the exception that some attributes tell of; they are taken out.

    Loggers that know nothing of OpenTelemetry have it as ``err`` (pino) or as ``stack`` (winston).
    """
    kind = attributes.pop(semconv.EXCEPTION_TYPE, None)
    message = attributes.pop(semconv.EXCEPTION_MESSAGE, None)
    stack = attributes.pop(semconv.EXCEPTION_STACKTRACE, None)
    if not (kind or message or stack):
        for key in ("err", "error"):
            inner = attributes.get(key)
            if isinstance(inner, dict) and isinstance(inner.get("stack"), str):
                del attributes[key]
                kind, message, stack = inner.get("type") or inner.get("name"), inner.get("message"), inner["stack"]
                break
        else:
            if isinstance(attributes.get("stack"), str):
                stack = attributes.pop("stack")
    if type(kind) is not str or len(kind) > _MOST_OF_A_NAME:
        kind = shorten(foreign.text_of(kind), _MOST_OF_A_NAME)
    message = message if type(message) is str else foreign.text_of(message)
    return kind or None, message, stack if type(stack) is str else foreign.text_of(stack)
