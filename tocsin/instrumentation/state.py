"""What runs in this process: the one witness that all hooks report their sightings to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tocsin.settings import Settings


@dataclass(slots=True)
class Sighting:
    """
    One time that somebody saw an error; an exception is usually seen several times on its way.

    Args:
        error: the exception, or a text where there is none.
        mechanism: who saw it: asgi, logging, excepthook, threading, asyncio, unraisable, future,
            multiprocessing, track_error, protect.
        handled: whether the program had an answer to it.
        severity, category: what the user's code says of it, if it does.
        facts: joined to the error's context.
        level: of the log line, as `logging` numbers it.
        logger, place, stack: what is known where there is no exception.
        template: of a text, without what was put into it.
        tb: its traceback, where the exception does not hold it.
        status: of the response.
        attributes: further OpenTelemetry attributes; trusted to be clean.
    """

    error: BaseException | str
    mechanism: str
    handled: bool
    severity: str | None = None
    category: str | None = None
    facts: Mapping[str, Any] | None = None
    level: int | None = None
    logger: str | None = None
    place: str | None = None
    template: str | None = None
    stack: str | None = None
    tb: TracebackType | None = None
    status: int | None = None
    attributes: Mapping[str, Any] | None = None
    time_ns: int = 0  #          set when it is reported
    is_admitted: bool = False  # it is written out under that id, again where an interrupt came in between
    is_counted: bool = False  #  it needs no line any more: it was one more of a storm
    error_id: str | None = None  # the same, where it must be known early


@dataclass(slots=True, kw_only=True)
class Report:
    """An error that someone else described, as OpenTelemetry has it; not trusted. Ids are hex."""

    exception_type: str | None
    message: str
    stack: str | None
    attributes: Mapping[str, Any]
    trace_id: str | None
    span_id: str | None
    time_ns: int
    mechanism: str
    severity_number: int
    logger: str | None = None


class Witness(Protocol):
    """Who the hooks report to; see `tocsin.instrumentation.capture.Capture`."""

    def see(self, sighting: Sighting) -> str | None: ...

    def record(self, report: Report) -> str | None: ...

    def tell(self, line: Mapping[str, Any]) -> None: ...

    def flush(self, timeout_s: float) -> bool: ...

    def close(self, timeout_s: float) -> None: ...


current: Witness | None = None
settings: Settings | None = None

unsaid: list[Callable[[bool], None]] = []
"""What is told about twice a second, and before the end, which the argument says; none waits."""

missed = 0
"""How many errors were seen where not even a call was possible any more; whoever sees the next one counts them lost."""
