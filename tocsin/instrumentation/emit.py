"""
Offer a record to the OpenTelemetry that the user has set up; best effort, and never with ``exception=``.

OpenTelemetry's logs are still in modules with an underscore; here is the only place that knows them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from tocsin import semconv
from tocsin.contained import contained

_OURS = {
    semconv.FRAMES,
    semconv.EXCEPTION_BASES,
    semconv.EXCEPTION_STATUS,
    semconv.EXCEPTION_HOSTS,
    semconv.CONTEXT,
    semconv.EXIT,
}


def emit(line: Mapping[str, Any]) -> None:
    """Emit one spool line as a log record, if a LoggerProvider was set; nothing is imported for it."""
    logs = sys.modules.get("opentelemetry._logs._internal")
    if logs is None or getattr(logs, "_LOGGER_PROVIDER", None) is None:
        return
    with contained("offering a record to OpenTelemetry"):
        number = logs.SeverityNumber(line["severity_number"])
        attributes = {key: value for key, value in line["attributes"].items() if key not in _OURS}
        attributes[semconv.ERROR_ID] = line["id"]
        if semconv.EXCEPTION_TYPE in attributes:
            attributes[semconv.EXCEPTION_MESSAGE] = line["body"]
        for key, value in (line["attributes"].get(semconv.CONTEXT) or {}).items():
            attributes.setdefault(key, value)
        logger = logs._LOGGER_PROVIDER.get_logger("tocsin")
        record = logs.LogRecord(
            timestamp=line["time_unix_nano"],
            severity_number=number,
            severity_text=number.name,
            event_name=line["event_name"],
            body=line["body"],
            attributes=attributes,
            **_trace(line),
        )
        logger.emit(record)


def _trace(line: Mapping[str, Any]) -> dict[str, Any]:
    if not line["trace_id"]:
        return {}
    found = {"trace_id": int(line["trace_id"], 16)}
    if line["span_id"]:
        found["span_id"] = int(line["span_id"], 16)
    return found
