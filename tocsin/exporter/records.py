"""Log records and spans as they came, whichever encoding they came in, and how many are taken at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from tocsin import semconv
from tocsin.failures import TocsinError

MOST_RECORDS: Final = 10_000
MOST_SPANS: Final = 20_000
MOST_ATTRIBUTES: Final = 128
"""Of one record; what comes after them is left out, but for an exception's own."""

EXCEPTION: Final = frozenset(
    {semconv.EXCEPTION_TYPE, semconv.EXCEPTION_MESSAGE, semconv.EXCEPTION_STACKTRACE, semconv.LINE}
)
"""What makes a log record worth reading, however mild it is; another tocsin's line is one of any severity."""

SERVER: Final = 2
CONSUMER: Final = 5
FAILED: Final = 2
"""Numbers of SpanKind and StatusCode. Source: OpenTelemetry protocol, trace.proto."""

Record = TypeVar("Record")


def severity_of(text: str) -> int:
    """The number of a severity that only its word is given of; 0 for a word that says nothing."""
    return _SEVERITIES.get(text[:16].upper(), 0)


_SEVERITIES: Final = {
    **dict.fromkeys(("WARN", "WARNING"), 13),
    **dict.fromkeys(("ERROR", "ERR"), 17),
    **dict.fromkeys(("FATAL", "CRITICAL", "CRIT", "ALERT", "EMERG", "EMERGENCY", "PANIC"), 21),
}


class Unreadable(TocsinError):
    """A body that is not what it says it is: its sender need not try again (400)."""


class TooMuch(TocsinError):
    """A body with more in it than is taken at once (413)."""


class Malformed(Exception):
    """One record that cannot be read, in a body that can."""


@dataclass(slots=True)
class Log:
    """A log record that may tell of an error; values are plain Python's, as they came."""

    time_ns: int  #                 0 where it has none
    severity_number: int
    body: Any
    attributes: dict[str, Any]
    trace_id: str | None = None
    span_id: str | None = None


@dataclass(slots=True)
class Event:
    """An exception that passed through a span."""

    time_ns: int
    attributes: dict[str, Any]


@dataclass(slots=True)
class Span:
    """What of a span is needed; attributes are read only where they can say something."""

    trace_id: str
    span_id: str
    parent_id: str | None
    kind: int
    start_ns: int
    end_ns: int
    is_failed: bool
    attributes: dict[str, Any] = field(default_factory=dict)
    exceptions: list[Event] = field(default_factory=list)

    @property
    def is_entry(self) -> bool:
        """Whether a request or a message came in by it."""
        return self.kind in (SERVER, CONSUMER)


@dataclass(slots=True)
class Batch(Generic[Record]):
    """Records of one sender and scope; None stands for one that is no error."""

    resource: dict[str, Any]
    scope: str
    records: Iterator[Record | Malformed | None]
