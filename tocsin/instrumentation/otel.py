"""
Entry points for OpenTelemetry: an instrumentor, and exporters that bring in what others recorded.

``OTEL_TRACES_EXPORTER=tocsin OTEL_LOGS_EXPORTER=tocsin opentelemetry-instrument python app.py``.
What tocsin's own hooks have seen already is known by its trace, type and message, and counts once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk._logs.export import LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from tocsin import clock, semconv
from tocsin.contained import contained
from tocsin.instrumentation import start, state
from tocsin.instrumentation.state import Report

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]
except ImportError:  # only `opentelemetry-instrument` loads the instrumentor, and brings this along
    BaseInstrumentor = object

_ERROR_NUMBER = 17  # OpenTelemetry logs data model: ERROR


# The exporters of a provider are closed at exit, and bring the last of what they hold. Python runs what
# was registered last first, and a provider is made after this module is loaded for it.
start.register_at_exit()


def _start() -> None:
    """As the environment says, unless the program has started tocsin its own way."""
    if state.current is None:
        start.init()


class TocsinInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """`tocsin.init` as OpenTelemetry's launcher calls it."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """None: it instruments the interpreter."""
        return []

    def _instrument(self, **options: Any) -> None:
        _start()

    def _uninstrument(self, **options: Any) -> None:
        start.shutdown()


class TocsinSpanExporter(SpanExporter):
    """Takes the exceptions out of spans; spans themselves are not kept."""

    def __init__(self) -> None:
        _start()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Record each ``exception`` event of some spans."""
        with contained("reading spans"):
            for span in spans:
                for event in span.events:
                    if event.name == semconv.EVENT_EXCEPTION:
                        _record_event(span, event.attributes or {}, event.timestamp)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing of its own to close."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """What was recorded is in the spool already."""
        return True


class TocsinLogExporter(LogRecordExporter):
    """Takes errors out of log records: those with an exception, and those of severity ERROR and above."""

    def __init__(self) -> None:
        _start()

    def export(self, batch: Sequence[ReadableLogRecord]) -> LogRecordExportResult:
        """Record the errors among some log records."""
        with contained("reading log records"):
            for one in batch:
                _record_log(one)
        return LogRecordExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing of its own to close."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """What was recorded is in the spool already."""
        return True


def _record_event(span: ReadableSpan, attributes: Mapping[str, Any], time_ns: int) -> None:
    capture = state.current
    ids = span.get_span_context()
    if capture is None or ids is None:
        return
    capture.record(
        Report(
            exception_type=_text(attributes.get(semconv.EXCEPTION_TYPE)),
            message=_text(attributes.get(semconv.EXCEPTION_MESSAGE)) or "",
            stack=_text(attributes.get(semconv.EXCEPTION_STACKTRACE)),
            attributes=span.attributes or {},
            trace_id=f"{ids.trace_id:032x}",
            span_id=f"{ids.span_id:016x}",
            time_ns=time_ns,
            mechanism="span",
            severity_number=_ERROR_NUMBER,
        )
    )


def _record_log(one: ReadableLogRecord) -> None:
    capture = state.current
    record = one.log_record
    attributes: dict[str, Any] = dict(record.attributes or {})
    number = int(record.severity_number.value) if record.severity_number is not None else 0
    has_exception = semconv.EXCEPTION_TYPE in attributes
    if capture is None or semconv.ERROR_ID in attributes or not (has_exception or number >= _ERROR_NUMBER):
        return
    message = attributes.pop(semconv.EXCEPTION_MESSAGE, None) if has_exception else None
    capture.record(
        Report(
            exception_type=_text(attributes.pop(semconv.EXCEPTION_TYPE, None)),
            message=_text(message) or _text(record.body) or "",
            stack=_text(attributes.pop(semconv.EXCEPTION_STACKTRACE, None)),
            attributes=attributes,
            trace_id=f"{record.trace_id:032x}" if record.trace_id else None,
            span_id=f"{record.span_id:016x}" if record.span_id else None,
            time_ns=record.timestamp or record.observed_timestamp or clock.now_ns(),
            mechanism="log record",
            severity_number=number or _ERROR_NUMBER,
            logger=one.instrumentation_scope.name if one.instrumentation_scope else None,
        )
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
