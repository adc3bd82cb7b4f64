"""OpenTelemetry beside tocsin: what its spans and log records know, and who else gets our records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.processes import rows_of, run_program

LAUNCH = ("opentelemetry-instrument",)
EXPORTERS = {
    "OTEL_TRACES_EXPORTER": "tocsin",
    "OTEL_LOGS_EXPORTER": "tocsin",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_SERVICE_NAME": "shop",
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "fastapi",  # no program here has it, and to load it takes long
}

SPANS = """
import logging
from opentelemetry import trace
tracer = trace.get_tracer("shop")
with tracer.start_as_current_span("ok"):
    pass
"""


def launch(folder: Path, code: str, url: str, **environ: str) -> list[Any]:
    done = run_program(folder, SPANS + code, url, command=LAUNCH, environ=EXPORTERS | environ)
    assert "Traceback" not in done.stderr.replace("Traceback (most recent call last):\n  File", ""), done.stderr
    return rows_of(url)


def test_spans_log_record_and_hooks_give_one_row_with_the_span_s_trace(tmp_path: Path, sqlite_url: str) -> None:
    """Two nested spans record the exception, `logging` does, and it ends the process."""
    code = """
with tracer.start_as_current_span("outer") as span:
    print(f"{span.get_span_context().trace_id:032x}", flush=True)
    with tracer.start_as_current_span("inner"):
        try:
            1 / 0
        except ZeroDivisionError:
            logging.exception("seen")
            raise
"""
    done = run_program(tmp_path, SPANS + code, sqlite_url, command=LAUNCH, environ=EXPORTERS)

    assert done.returncode == 1
    (row,) = rows_of(sqlite_url)
    assert (row.exception_type, row.trace_id, row.service) == ("ZeroDivisionError", done.stdout.strip(), "shop")
    assert (row.count, row.handled, row.severity) == (1, False, "critical")


def test_what_only_a_span_recorded_is_brought_in_at_the_end(tmp_path: Path, sqlite_url: str) -> None:
    """The batch of the last seconds is exported while the process ends."""
    rows = launch(
        tmp_path,
        """
with tracer.start_as_current_span("pay", attributes={"order": "o-1", "password": "geheim77"}) as span:
    try:
        raise KeyError("phone")
    except KeyError as exc:
        span.record_exception(exc)
""",
        sqlite_url,
    )

    (row,) = rows
    assert (row.exception_type, row.message, row.mechanism) == ("KeyError", "'phone'", "span")
    assert row.stack.endswith("KeyError: 'phone'\n")
    assert row.context["order"] == "o-1"
    assert row.context["password"] != "geheim77"


def test_a_storm_that_spans_record_too_is_counted_once(tmp_path: Path, sqlite_url: str) -> None:
    """What was only counted is known as well, however many requests it came from."""
    rows = launch(
        tmp_path,
        """
import tocsin
for number in range(50):
    try:
        with tracer.start_as_current_span("request"):
            try:
                raise KeyError(number)
            except KeyError as exc:
                tocsin.track_error(exc)
                raise
    except KeyError:
        pass
""",
        sqlite_url,
    )

    assert {row.mechanism for row in rows} == {"track_error"}
    assert sum(row.count for row in rows) == 50


def test_different_errors_of_one_trace_are_known_each(tmp_path: Path, sqlite_url: str) -> None:
    """A request that fails and fails again, recorded by its spans at the end."""
    rows = launch(
        tmp_path,
        """
import tocsin
with tracer.start_as_current_span("request"):
    for number in range(3):
        try:
            with tracer.start_as_current_span("attempt"):
                try:
                    raise KeyError(number)
                except KeyError as exc:
                    tocsin.track_error(exc)
                    raise
        except KeyError:
            pass
""",
        sqlite_url,
    )

    assert [(row.mechanism, row.count) for row in rows] == [("track_error", 1)] * 3


def test_a_storm_that_only_spans_record_is_summed_up(tmp_path: Path, sqlite_url: str) -> None:
    rows = launch(
        tmp_path,
        """
for number in range(300):
    with tracer.start_as_current_span("request") as span:
        try:
            raise KeyError("phone")
        except KeyError as exc:
            span.record_exception(exc)
""",
        sqlite_url,
    )

    assert {row.mechanism for row in rows} == {"span"}
    assert sum(row.count for row in rows) == 300
    assert len(rows) < 30


def test_a_log_line_that_is_exported_too_is_one_row(tmp_path: Path, sqlite_url: str) -> None:
    """Through the handler that OpenTelemetry puts on the root logger."""
    rows = launch(
        tmp_path,
        """
for number in range(20):
    logging.getLogger("shop.orders").error("order %d is lost", number)
""",
        sqlite_url,
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
    )

    assert {row.mechanism for row in rows} == {"logging"}
    assert sum(row.count for row in rows) == 20


def test_what_only_a_log_record_says_is_brought_in(tmp_path: Path, sqlite_url: str) -> None:
    """From a library that emits to OpenTelemetry itself; records below ERROR are no errors."""
    rows = launch(
        tmp_path,
        """
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger
logger = get_logger("their.library")
for number, body in [(SeverityNumber.ERROR, "it is broken"), (SeverityNumber.INFO, "it is fine")]:
    logger.emit(LogRecord(timestamp=1_700_000_000_000_000_000, severity_number=number, body=body))
""",
        sqlite_url,
    )

    assert [(row.message, row.mechanism, row.exception_type) for row in rows] == [("it is broken", "log record", None)]


def test_the_request_s_span_is_the_error_s(tmp_path: Path, sqlite_url: str) -> None:
    """An application inside `OpenTelemetryMiddleware`, called as a server does."""
    rows = launch(
        tmp_path,
        """
import asyncio
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.routing import Route

async def boom(request):
    raise LookupError("lost")

app = OpenTelemetryMiddleware(Starlette(routes=[Route("/boom/{x}", boom)]))
scope = {"type": "http", "method": "GET", "path": "/boom/1", "headers": [
    (b"traceparent", b"00-abababababababababababababababab-00f067aa0ba902b7-01")],
    "query_string": b"", "scheme": "http", "server": ("h", 80), "client": ("1.2.3.4", 5), "http_version": "1.1"}
async def receive(): return {"type": "http.request"}
async def send(message): pass
try:
    asyncio.run(app(scope, receive, send))
except LookupError:
    pass
""",
        sqlite_url,
    )

    (row,) = rows
    assert (row.trace_id, row.count, row.handled) == ("ab" * 16, 1, False)
    assert row.span_id != "00f067aa0ba902b7"
    assert row.context["http.route"] == "/boom/{x}"


def test_a_log_exporter_of_the_user_gets_the_record_too(tmp_path: Path, sqlite_url: str) -> None:
    """The one that capture made: with the error's id, and the stack as an attribute."""
    done = run_program(
        tmp_path,
        """
import json, tocsin
from opentelemetry._logs import set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
exporter, provider = InMemoryLogRecordExporter(), LoggerProvider()
provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
set_logger_provider(provider)
try:
    raise KeyError("phone")
except KeyError as exc:
    error_id = tocsin.track_error(exc, context={"lead_id": "123"})
(one,) = exporter.get_finished_logs()
record = one.log_record
print(json.dumps([error_id, record.event_name, record.body, record.severity_text, dict(record.attributes)]))
""",
        sqlite_url,
    )

    error_id, event, body, severity, attributes = json.loads(done.stdout)
    assert (event, body, severity) == ("exception", "'phone'", "WARN")
    assert attributes["tocsin.error.id"] == error_id == rows_of(sqlite_url)[0].id
    assert attributes["exception.type"] == "KeyError"
    assert attributes["exception.message"] == "'phone'"
    assert attributes["exception.stacktrace"] == rows_of(sqlite_url)[0].stack
    assert attributes["lead_id"] == "123"


def test_a_disabled_sdk_loses_nothing(tmp_path: Path, sqlite_url: str) -> None:
    """tocsin's own hooks need no SDK."""
    rows = launch(tmp_path, "logging.error('still here')\n", sqlite_url, OTEL_SDK_DISABLED="true")

    assert [row.message for row in rows] == ["still here"]


@pytest.mark.parametrize("launcher", [LAUNCH, ("tocsin", "run", "--")])
def test_a_program_s_own_init_is_stronger_than_the_exporters(
    launcher: tuple[str, ...], tmp_path: Path, sqlite_url: str
) -> None:
    """An exporter that is made later starts nothing anew."""
    code = """
import tocsin, logging
tocsin.init(service="their-name", release="r7")
from tocsin.instrumentation.otel import TocsinSpanExporter
TocsinSpanExporter()
logging.error("whose am I")
"""
    run_program(tmp_path, code, sqlite_url, command=launcher, environ=EXPORTERS)

    assert [(row.service, row.release) for row in rows_of(sqlite_url)] == [("their-name", "r7")]
