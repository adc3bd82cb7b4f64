"""
Capture: from a live exception to one line in the spool.

The order is what keeps it cheap and harmless: recognise what was seen already, name the code place,
ask whether this place may still write one out in full, and only then format anything. It never
raises, takes no lock that anybody else could hold, and touches no network and no SQL.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Final

from tocsin import clock, semconv
from tocsin.contained import contained, own_threads
from tocsin.exporter import scrub
from tocsin.exporter.classify import is_error
from tocsin.exporter.drain import Drain
from tocsin.exporter.fingerprint import template
from tocsin.exporter.spool import LINE_BYTES, VERSION, Counter, Spool
from tocsin.ids import uuid7
from tocsin.instrumentation import context, emit, stacks
from tocsin.model import Severity
from tocsin.text import STACK_LIMIT, clean, shorten

FULL_PER_SECOND: Final = 3
"""Errors of one place that are written out in full each second; the rest is counted."""

FULL_IN_ALL_PER_SECOND: Final = 200
"""The same for all places together."""

_PLACES: Final = 4000
_MARK: Final = "__tocsin__"
_DEFERRED: Final = 10

_encode = json.JSONEncoder(separators=(",", ":")).encode

# The hooks at the very end of an exception's way, which see each exception once.
_TERMINAL: Final = {"excepthook", "threading", "asyncio", "unraisable"}

_UNHANDLED: Final[Mapping[str, Severity]] = {
    "excepthook": Severity.CRITICAL,
    "asgi": Severity.HIGH,
    "threading": Severity.HIGH,
    "asyncio": Severity.HIGH,
}


@dataclass(slots=True)
class _Place:
    """What is known of one place that raises: how much it wrote this second, and its counter."""

    second: int = -1
    written: int = 0
    last_id: str = ""
    counter: Counter | None = None


@dataclass(slots=True)
class _Sighting:
    """One call of `Capture.see`, kept for a moment when it comes in the middle of another."""

    error: BaseException | str
    error_id: str
    time_ns: int
    facts: dict[str, Any]


class _Busy(threading.local):
    is_capturing: bool = False

    def __init__(self) -> None:
        self.deferred: deque[_Sighting] = deque(maxlen=_DEFERRED)


class Capture:
    """
    The capturing side of this process: its spool, its drain, and what it saw lately.

    Args:
        header: the resource, as the first line of each spool segment.
    """

    def __init__(self, spool: Spool, drain: Drain) -> None:
        self.spool = spool
        self.drain = drain
        self._places: dict[Any, _Place] = {}
        self._all = _Place()
        self._overflow = _Place()
        self._busy = _Busy()
        # Errors by (trace, short type) → message, "" where it was only counted: what span and log
        # exporters bring again later.
        self._seen: dict[tuple[str | None, str], str] = {}

    def see(
        self,
        error: BaseException | str,
        *,
        mechanism: str,
        handled: bool,
        severity: str | None = None,
        category: str | None = None,
        facts: Mapping[str, Any] | None = None,
        level: int | None = None,
        logger: str | None = None,
        place: str | None = None,
        stack: str | None = None,
        tb: TracebackType | None = None,
        status: int | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> str | None:
        """
        Record one sighting of an error.

        Args:
            error: the exception, or a text where there is none.
            mechanism: what saw it: asgi, logging, excepthook, threading, asyncio, track_error, protect.
            handled: whether the program had an answer to it.
            severity, category: what the user's code says of it, if it does.
            facts: joined to the error's context.
            level: of the log line, as `logging` numbers it.
            logger, place, stack: what is known where there is no exception.
            tb: its traceback, where the exception does not hold it.
            status: of the response.
            attributes: further OpenTelemetry attributes; trusted to be clean.

        Returns:
            The error's id, also when it was seen before; None for what is no error.
        """
        if threading.get_ident() in own_threads:
            return None
        sighting = _Sighting(error, "", clock.now_ns(), {})
        options = {
            "mechanism": mechanism,
            "handled": handled,
            "severity": severity,
            "category": category,
            "facts": facts,
            "level": level,
            "logger": logger,
            "place": place,
            "stack": stack,
            "tb": tb,
            "status": status,
            "attributes": attributes,
        }
        busy = self._busy
        if busy.is_capturing:
            # A signal handler, a __del__ or a __str__ that logs: after the one under way.
            sighting.error_id = uuid7()
            sighting.facts = options
            busy.deferred.append(sighting)
            return sighting.error_id
        busy.is_capturing = True
        error_id = None
        try:
            with contained("capture"):
                error_id = self._see(error, "", sighting.time_ns, **options)
            for _ in range(_DEFERRED):
                if not busy.deferred:
                    break
                late = busy.deferred.popleft()
                with contained("capture"):
                    self._see(late.error, late.error_id, late.time_ns, **late.facts)
            busy.deferred.clear()
        finally:
            busy.is_capturing = False
        return error_id

    def _see(
        self,
        error: BaseException | str,
        error_id: str,
        time_ns: int,
        *,
        mechanism: str,
        handled: bool,
        severity: str | None,
        category: str | None,
        facts: Mapping[str, Any] | None,
        level: int | None,
        logger: str | None,
        place: str | None,
        stack: str | None,
        tb: TracebackType | None,
        status: int | None,
        attributes: Mapping[str, Any] | None,
    ) -> str | None:
        scope = context.current_scope.get()
        key: Any
        if isinstance(error, BaseException):
            if not is_error(error):
                return None
            unit = context.trace_of(scope)[0] if scope is not None else context.unit_key()
            carried = context.attributes_of(error)
            mark = carried.get(_MARK)
            if mark is not None and _is_same_unit(mark[1], unit, scope is None, mechanism):
                return self._amend(error, mark, mechanism, handled, severity, category, level, facts)
            tb = tb or error.__traceback__
            code_key = stacks.key_of(tb)
            key = (type(error), code_key)
            if not code_key:  # never raised: it is told apart by who reports it
                frame = stacks.caller()
                key = (type(error), frame and (id(frame.f_code), frame.f_lasti))
        else:
            unit, code_key, carried = "", (), {}
            key = (logger, place, template(error[:300]))

        known = self._places.get(key)
        second = time_ns >> 30
        error_id = error_id or uuid7(time_ns)
        if not self._may_write(known, second):
            error_id = self._count(known, error_id, time_ns)
        else:
            if known is None:
                known = self._new_place(key)
            if known.second != second:
                known.second, known.written = second, 0
            known.written += 1
            known.last_id = error_id
            self._write(
                error, error_id, time_ns, code_key, tb, scope,
                mechanism=mechanism, handled=handled, severity=severity, category=category, facts=facts,
                level=level, logger=logger, place=place, stack=stack, status=status, attributes=attributes,
            )  # fmt: skip
        if scope is not None:
            scope["tocsin.seen"] = True
        if isinstance(error, BaseException):
            rank = Severity(severity).rank if severity else _rank(mechanism, level, handled)
            carried[_MARK] = (error_id, unit, rank, handled)
        return error_id

    def record(
        self,
        *,
        exception_type: str | None,
        message: str,
        stack: str | None,
        attributes: Mapping[str, Any],
        trace_id: str | None,
        span_id: str | None,
        time_ns: int,
        mechanism: str,
        severity_number: int,
        logger: str | None = None,
    ) -> str | None:
        """
        Record an error that someone else described, unless this process's own hooks have seen it.

        Args:
            exception_type, message, stack, attributes: as OpenTelemetry has them; not trusted.
            trace_id, span_id: hex.
            time_ns: since the epoch.

        Returns:
            The error's id, or None where it was seen already.
        """
        if threading.get_ident() in own_threads:
            return None
        message = stacks.tidy(message)
        seen = (trace_id, (exception_type or "").rpartition(".")[2])
        known = self._seen.get(seen)
        if known is not None and (known == "" or known == message):
            return None
        if trace_id is not None:
            self._remember(seen, message)
        found = {
            **{clean(str(key), 200): scrub.scrub_value(value, str(key)) for key, value in list(attributes.items())[:128]},
            semconv.MECHANISM: mechanism,
            semconv.HANDLED: False,
        }
        for name, value in (
            (semconv.EXCEPTION_TYPE, clean(exception_type, 300) if exception_type else None),
            (semconv.EXCEPTION_STACKTRACE, stacks.tidy(stack, STACK_LIMIT) if stack else None),
            (semconv.LOGGER, clean(logger, 200) if logger else None),
        ):
            if value:
                found[name] = value
        error_id = uuid7(time_ns)
        self._append(_line(error_id, time_ns, severity_number, trace_id, span_id, message, found))
        return error_id

    def _remember(self, seen: tuple[str | None, str], message: str) -> None:
        if len(self._seen) >= _PLACES:
            for old in list(self._seen)[: _PLACES // 10]:
                self._seen.pop(old, None)
        self._seen[seen] = message

    def _may_write(self, known: _Place | None, second: int) -> bool:
        every = self._all
        if every.second != second:
            every.second, every.written = second, 0
        if known is not None and known.second == second and known.written >= FULL_PER_SECOND:
            return False
        every.written += 1
        return every.written <= FULL_IN_ALL_PER_SECOND

    def _count(self, known: _Place | None, error_id: str, time_ns: int) -> str:
        """Count one more of a place, or of the overflow when its place was never written out."""
        if known is None or not known.last_id:
            known = self._overflow
            if not known.last_id:
                known.last_id = error_id
                self._write_overflow(error_id, time_ns)
                return error_id
        counter = known.counter
        if counter is None or counter.is_free:
            counter = known.counter = self.spool.counter(known.last_id)
        if counter is None:
            self.spool.lose()
        else:
            # A counter stays with the error that it was bound to for as long as the storm goes on.
            counter.tick()
            return counter.error_id
        return known.last_id

    def _new_place(self, key: Any) -> _Place:
        if len(self._places) >= _PLACES:
            for old in list(self._places)[: _PLACES // 10]:
                self._places.pop(old, None)
        known = self._places[key] = _Place()
        return known

    def _write(
        self,
        error: BaseException | str,
        error_id: str,
        time_ns: int,
        code_key: stacks.Key,
        tb: TracebackType | None,
        scope: context.Scope | None,
        *,
        mechanism: str,
        handled: bool,
        severity: str | None,
        category: str | None,
        facts: Mapping[str, Any] | None,
        level: int | None,
        logger: str | None,
        place: str | None,
        stack: str | None,
        status: int | None,
        attributes: Mapping[str, Any] | None,
    ) -> None:
        """Write one error out in full, offer it to the user's OpenTelemetry, wake the drain."""
        is_exception = isinstance(error, BaseException)
        found: dict[str, Any] = {semconv.MECHANISM: mechanism, semconv.HANDLED: handled}
        frames_json = None
        if isinstance(error, BaseException):
            message = stacks.safe_message(error)
            if not code_key:
                stack, frames_json = _caller_stack(error, message)
            else:
                stack = stacks.stack_text(error, message, tb, code_key)
                frames_json = stacks.link_of(error, tb, code_key).frames_json
            names = stacks.names_of(type(error))
            found[semconv.EXCEPTION_TYPE] = names[0] if names else type(error).__name__
            causes = stacks.causes_of(error)
            found[semconv.EXCEPTION_BASES] = {
                "own": names[:20],
                "causes": [name for cause in causes for name in stacks.names_of(type(cause))][:100],
            }
            if causes:
                found[semconv.CAUSES] = [
                    {"type": stacks.names_of(type(cause))[0], "message": shorten(stacks.safe_message(cause), 500)}
                    for cause in causes[:10]
                    if stacks.names_of(type(cause))
                ]
        else:
            message = stacks.tidy(error)
        for name, value in (
            (semconv.SEVERITY, severity),
            (semconv.CATEGORY, category),
            (semconv.LOGGER, clean(logger, 200) if logger else None),
            (semconv.PLACE, clean(place, 300) if place else None),
            (semconv.EXCEPTION_STACKTRACE, stack),
        ):
            if value:
                found[name] = value
        if mechanism == "excepthook":
            found[semconv.EXIT] = True
        found |= context.where()
        found |= context.span_attributes()
        if scope is not None:
            found |= context.request_attributes(scope, status)
        if attributes:
            found |= attributes
        if is_exception and (host := _host_of(error)):
            found.setdefault(semconv.SERVER_ADDRESS, host)
        said = {**context.facts_of(error if is_exception else None), **(facts or {})}  # type: ignore[arg-type]
        if said:
            found[semconv.CONTEXT] = scrub.scrub_value(said)
        trace_id, span_id = context.trace_of(scope)

        line = _line(
            error_id, time_ns, _severity_number(mechanism, level, handled), trace_id, span_id, message, found
        )
        if isinstance(error, BaseException) and sys.modules.get("opentelemetry.sdk") is not None:
            self._remember((trace_id, type(error).__name__), message)
        self._append(line, frames_json, durable=mechanism == "excepthook")
        emit.emit(line)

    def _append(self, line: dict[str, Any], frames_json: str | None = None, *, durable: bool = False) -> None:
        text = _encode(line)
        if frames_json is not None:  # made once per place: put in as it is
            text = f'{text[:-2]},"{semconv.FRAMES}":{frames_json}}}}}'
        data = text.encode("utf-8") + b"\n"
        if len(data) > LINE_BYTES:
            data = _smaller(line)
        self.spool.append(data, durable=durable)
        self.drain.wake()

    def _write_overflow(self, error_id: str, time_ns: int) -> None:
        self._write(
            "more different errors at once than can be written out; the rest is counted here",
            error_id, time_ns, (), None, None,
            mechanism="overflow", handled=False, severity=None, category=None, facts=None, level=logging.ERROR,
            logger="tocsin", place="tocsin overflow", stack=None, status=None, attributes=None,
        )  # fmt: skip

    def _amend(
        self,
        error: BaseException,
        mark: tuple[str, str, int, bool],
        mechanism: str,
        handled: bool,
        severity: str | None,
        category: str | None,
        level: int | None,
        facts: Mapping[str, Any] | None,
    ) -> str:
        """Tell what this later sighting knows better than the first, if it does."""
        error_id, unit, rank, was_handled = mark
        new_rank = Severity(severity).rank if severity else _rank(mechanism, level, handled)
        line: dict[str, Any] = {}
        if new_rank > rank:
            line["severity"] = list(Severity)[new_rank]
        if category:
            line["category"] = category
        if was_handled and not handled:
            line["handled"] = False
            line["mechanism"] = mechanism
        if facts:
            line["context"] = scrub.scrub_value(dict(facts))
        if line:
            context.attributes_of(error)[_MARK] = (error_id, unit, max(rank, new_rank), was_handled and handled)
            line |= {"v": VERSION, "kind": "amend", "error_id": error_id}
            self.spool.append(_encode(line).encode() + b"\n", durable=mechanism == "excepthook")
            self.drain.wake()
        return error_id


def _is_same_unit(marked: str, unit: str | None, is_outside: bool, mechanism: str) -> bool:
    """
    Whether a marked exception is seen again on its way, and not raised anew somewhere else.

    What left a request is seen outside of it: by the server's log, by a hook. A unit of another kind
    than a request has a colon in its name.
    """
    return marked == unit or mechanism in _TERMINAL or (is_outside and ":" not in marked)


def _line(
    error_id: str,
    time_ns: int,
    severity_number: int,
    trace_id: str | None,
    span_id: str | None,
    message: str,
    attributes: dict[str, Any],
) -> dict[str, Any]:
    """
    One error as a line of the spool; `attributes` come last, since frames are put in at its end.

    Source: OpenTelemetry logs data model.
    """
    return {
        "v": VERSION,
        "kind": "error",
        "id": error_id,
        "time_unix_nano": time_ns,
        "severity_number": severity_number,
        "event_name": semconv.EVENT_EXCEPTION,
        "trace_id": trace_id,
        "span_id": span_id,
        "body": message,
        "attributes": attributes,
    }


def _rank(mechanism: str, level: int | None, handled: bool) -> int:
    """The severity that a sighting alone speaks for; the exporter may find a higher one."""
    if level is not None:
        found = Severity.CRITICAL if level >= logging.CRITICAL else Severity.HIGH
        return (found if level >= logging.ERROR else Severity.LOW).rank
    return _UNHANDLED.get(mechanism, Severity.LOW).rank if not handled else Severity.LOW.rank


def _severity_number(mechanism: str, level: int | None, handled: bool) -> int:
    """OpenTelemetry's number: FATAL 21, ERROR 17, WARN 13. Source: semantic conventions, exceptions in logs."""
    if mechanism == "excepthook" or (level is not None and level >= logging.CRITICAL):
        return 21
    if level is not None:
        return 17 if level >= logging.ERROR else 13
    return 13 if handled else 17


def _caller_stack(error: BaseException, message: str) -> tuple[str, str]:
    """Text and frames for an exception that was never raised: the stack of who reports it."""
    frames: list[tuple[FrameType, int]] = []
    frame = stacks.caller()
    while frame is not None and len(frames) < 30:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    frames.reverse()
    described = stacks.describe(frames)
    lines = ["Traceback (most recent call last):\n"] if described else []
    for one in described:
        lines.append(f'  File "{one["file"]}", line {one["line"]}, in {one["function"]}\n    {one["text"]}\n')
    name = type(error).__qualname__
    return "".join(lines) + f"{name}: {message}\n", _encode(described)


def _host_of(error: object) -> str | None:
    """The host that a failed request was for, where an HTTP client's exception carries the request."""
    request = getattr(error, "__dict__", {}).get("_request") or getattr(error, "__dict__", {}).get("request")
    url = getattr(request, "url", None)
    host = getattr(url, "host", None)
    return clean(host, 200) if isinstance(host, str) and host else None


def _smaller(line: dict[str, Any]) -> bytes:
    """A line that fits: without frames and context, with stack and message cut hard."""
    attributes = {
        key: value
        for key, value in line["attributes"].items()
        if key not in (semconv.CONTEXT, semconv.FRAMES) and (not isinstance(value, str) or len(value) < 4096)
    }
    stack = line["attributes"].get(semconv.EXCEPTION_STACKTRACE)
    if stack:
        attributes[semconv.EXCEPTION_STACKTRACE] = shorten(stack, 16 * 1024)
    attributes[semconv.CONTEXT] = {"tocsin.left_out": "the error was too large"}
    smaller = {**line, "body": shorten(line["body"], 4096), "attributes": attributes}
    return _encode(smaller).encode() + b"\n"


def resource(service: str, environment: str, release: str | None, instance_id: str) -> dict[str, Any]:
    """Whose errors they are, as OpenTelemetry's resource attributes."""
    found = {
        semconv.SERVICE_NAME: service,
        semconv.DEPLOYMENT_ENVIRONMENT: environment,
        semconv.SERVICE_INSTANCE_ID: instance_id,
        semconv.HOST_NAME: os.uname().nodename,
        semconv.PROCESS_PID: os.getpid(),
        "process.runtime.version": ".".join(map(str, sys.version_info[:3])),
    }
    if release:
        found[semconv.SERVICE_VERSION] = release
    return found


