"""
Capture: from a live exception to one line in the spool.

The order is what keeps it cheap and harmless: recognise what was seen already, name the code place,
ask whether this place may still write one out in full, and only then format anything. It takes no lock
that anybody else could hold, and touches no network and no SQL. Nothing comes out of it but what a
signal handler raises in its middle, which is the program's: after the error is recorded.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from _thread import allocate_lock
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Protocol

from tocsin import clock, semconv
from tocsin.contained import is_interrupt, note, own_threads
from tocsin.exporter import classify, scrub
from tocsin.exporter.fingerprint import template
from tocsin.exporter.life import State
from tocsin.exporter.raw import attributes_of, get, origins_of, traceback_of
from tocsin.exporter.spool import LINE_BYTES, VERSION, Counter, Spool
from tocsin.ids import uuid7
from tocsin.instrumentation import context, crumbs, emit, reserve, stacks, state, tries, variables
from tocsin.instrumentation.pulse import Pulse
from tocsin.instrumentation.state import Report, Sighting
from tocsin.model import Severity
from tocsin.text import STACK_LIMIT, clean, shorten

FULL_PER_SECOND: Final = 3
"""Errors of one place that are written out in full each second; the rest is counted."""

FULL_IN_ALL_PER_SECOND: Final = 200
"""The same for all places together."""

NEW_PLACES: Final = 200
"""Places never seen before that may be written out at once; a team reads none of them, if there are more …"""

NEW_PLACES_PER_HOUR: Final = 1000
"""… and so many in an hour; the errors of further ones are counted together, in one group."""

_PLACES: Final = 4000
_TEMPLATES: Final = 20
_TALKERS: Final = 500
_MESSAGES: Final = 20
_HOSTS: Final = 5
_SOON_NS: Final = 5_000_000_000
_MARK: Final = "__tocsin__"
_DEFERRED: Final = 10

# The hooks at the very end of an exception's way, which see each exception once.
_TERMINAL: Final = frozenset({"excepthook", "threading", "asyncio", "unraisable", "future", "multiprocessing"})

# What threads of ours see, of the service and not of themselves.
_BY_US: Final = frozenset({"event_loop"})

_UNHANDLED: Final[Mapping[str, Severity]] = {
    "excepthook": Severity.CRITICAL,
    **dict.fromkeys(
        ("asgi", "wsgi", "celery", "rq", "threading", "asyncio", "unraisable", "future", "multiprocessing"),
        Severity.HIGH,
    ),
}

_VARIOUS: Final = "various"
_MORE_FRAMES: Final = 300

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)
class _Place:
    """What is known of one place that raises: how much it wrote this second, and its counter."""

    second: int = -1
    written: int = 0
    last_id: str = ""
    counter: Counter | None = None


class _Budget:
    """So many at once, and so many in an hour: a bucket that fills again as time goes by."""

    __slots__ = ("_left", "_most", "_per_s", "_since_s")

    def __init__(self, most: int, per_hour: int) -> None:
        self._most = self._left = float(most)
        self._per_s = per_hour / 3600
        self._since_s = time.monotonic()

    def take(self) -> bool:
        """Whether there was one left; two threads at once may take the same one, which harms nobody."""
        now_s = time.monotonic()
        left = min(self._most, self._left + (now_s - self._since_s) * self._per_s)
        self._since_s = now_s
        self._left = left - 1 if left >= 1 else left
        return left >= 1


@dataclass(slots=True)
class _Known:
    """What was seen of one kind in one trace: when which message, and when it was last counted without one."""

    messages: dict[str, int] = field(default_factory=dict)
    counted_ns: int = 0


class _Busy(threading.local):
    """What this thread is capturing just now, and what came in the middle of it."""

    def __init__(self) -> None:
        self.is_capturing = False
        self.deferred: deque[Sighting] = deque()
        self.interrupt: BaseException | None = None  # raised when what is under way is done
        self.limit = 0  # of the stack, as the program has set it, while this thread has some frames more


class Drainer(Protocol):
    """Who stores what is in the spool; see `tocsin.exporter.drain.Drain`."""

    def wake(self) -> None: ...

    def flush(self, timeout_s: float) -> bool: ...

    def finish(self, timeout_s: float) -> bool: ...


class Capture:
    """The capturing side of this process: its spool, its drain, and what it saw lately."""

    def __init__(self, spool: Spool, drain: Drainer, pulse: Pulse | None = None) -> None:
        self.spool = spool
        self.drain = drain
        self._pulse = pulse
        self._places: dict[Any, _Place] = {}
        self._all = _Place()
        self._new_places = _Budget(NEW_PLACES, NEW_PLACES_PER_HOUR)
        self._overflow = _Place()
        self._templates: dict[Any, set[str]] = {}  # what was said in each place
        self._busy = _Busy()
        self._room = allocate_lock()  # only ever tried
        # By trace and kind: what span and log exporters bring again later.
        self._seen: dict[tuple[str | None, str], _Known] = {}

    def see(self, sighting: Sighting) -> str | None:
        """Record one sighting; the error's id, also when it was seen before, or None for what is no error."""
        if threading.get_ident() in own_threads and sighting.mechanism not in _BY_US:
            return None
        sighting.time_ns = clock.now_ns()
        busy = self._busy
        if busy.is_capturing:
            # A signal handler, a __del__ or a __str__ that logs: after the one under way.
            sighting.error_id = uuid7(sighting.time_ns)
            if len(busy.deferred) == _DEFERRED:
                self.spool.lose()
            else:
                busy.deferred.append(sighting)
            return sighting.error_id
        if state.missed:
            self._lose_missed()
        busy.is_capturing = True
        try:
            try:
                error_id = self._see(sighting)
            except BaseException as problem:
                error_id = self._see_again(sighting, problem, busy)
            while busy.deferred:
                self._see_deferred(busy)
        finally:
            busy.is_capturing = False
            if busy.limit:  # here, since it cannot be lowered to where the stack is
                sys.setrecursionlimit(busy.limit)
                busy.limit = 0
                self._room.release()
        if busy.interrupt is not None:
            interrupt, busy.interrupt = busy.interrupt, None
            raise interrupt
        return error_id

    def _see_again(self, sighting: Sighting, problem: BaseException, busy: _Busy) -> str | None:
        """Once more, with what was missing: room on the stack, memory, or peace from an interrupt."""
        kind = type(problem)
        try:
            if issubclass(kind, RecursionError):
                self._make_room(busy)
                return self._see(sighting)
            if is_interrupt(problem):
                busy.interrupt = problem
                return sighting.error_id if sighting.is_counted else self._see(sighting)
            if issubclass(kind, MemoryError):
                reserve.give_up()
                return self._see(sighting)
        except BaseException as again:
            if is_interrupt(again):
                busy.interrupt = again
            problem = again
        if busy.interrupt is None:
            note("capture", problem)
        problem = None  # type: ignore[assignment]  # it knows this frame, and all that was raised before it
        self.spool.lose()
        return None

    def _make_room(self, busy: _Busy) -> None:
        """Some more frames for what ran out of them; the other threads have them too, for this moment."""
        if not busy.limit and self._room.acquire(blocking=False):
            busy.limit = sys.getrecursionlimit()
            sys.setrecursionlimit(busy.limit + _MORE_FRAMES)

    def _lose_missed(self) -> None:
        missed, state.missed = state.missed, 0
        for _ in range(missed):
            self.spool.lose()

    def record(self, report: Report) -> str | None:
        """Record what someone else described; None where this process's own hooks have seen it already."""
        if threading.get_ident() in own_threads:
            return None
        message = stacks.tidy(report.message)
        kind = _short(report.exception_type) if report.exception_type else report.logger or ""
        if self._has_seen(report, kind, message):
            return None
        if report.trace_id is not None:
            self._remember(report.trace_id, kind, report.time_ns, message)
        place = hash(report.stack) if report.stack else template(message[:300])
        error_id, is_full = self._admit((report.mechanism, kind, place), clock.now_ns(), uuid7(report.time_ns))
        if not is_full:
            return error_id
        attributes = {
            clean(str(key), 200): scrub.scrub_value(value, str(key))
            for key, value in list(report.attributes.items())[:128]
        }
        attributes[semconv.MECHANISM] = report.mechanism
        attributes[semconv.HANDLED] = False
        if report.exception_type:
            attributes[semconv.EXCEPTION_TYPE] = clean(report.exception_type, 300)
        if report.stack:
            attributes[semconv.EXCEPTION_STACKTRACE] = stacks.tidy(report.stack, STACK_LIMIT)
        if report.logger:
            attributes[semconv.LOGGER] = stacks.tidy(report.logger, 200)
        trace = (report.trace_id, report.span_id)
        self._append(
            _line(error_id, report.time_ns, report.severity_number, trace, message=message, attributes=attributes)
        )
        return error_id

    def tell(self, line: Mapping[str, Any]) -> None:
        """Write down what is no error: a line of `tocsin.exporter.facts`, small and scrubbed."""
        self.spool.append(_encode({"v": VERSION, **line}).encode() + b"\n")
        self.drain.wake()

    def know(self, error: BaseException, error_id: str) -> None:
        """Take an exception for one more of an error that is told: whoever sees it on its way says nothing new."""
        self.join(error, (error_id, "", Severity.CRITICAL.rank, False))

    def join(self, error: BaseException, mark: tries.Mark) -> None:
        """The same, where that error was seen in this process: what is known better later is still told."""
        scope = context.current_scope.get()
        if scope is not None:
            context.root_of(scope)[context.SEEN] = True
        unit = context.trace_of(scope)[0] if scope is not None else context.unit_key()
        dict.__setitem__(attributes_of(error), _MARK, (mark[0], unit, mark[2], mark[3]))

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was captured so far is stored; False when the time is over."""
        return self.drain.flush(timeout_s)

    def close(self, timeout_s: float) -> None:
        """Store what is left, within a bound; what is not stored stays in the spool."""
        if self.spool.life.read().state is State.ALIVE:
            self.spool.life.set_state(State.ENDED)  # a supervisor may kill it while it waits: that is no death
        is_all_stored = self.drain.finish(timeout_s)
        if self._pulse is not None:
            self._pulse.end()
        self.spool.close(everything_stored=is_all_stored)

    def _see_deferred(self, busy: _Busy) -> None:
        for _ in range(_DEFERRED):  # each may defer another
            if not busy.deferred:
                break
            sighting = busy.deferred.popleft()
            try:
                self._see(sighting)
            except BaseException as problem:
                self._see_again(sighting, problem, busy)
        while busy.deferred:
            busy.deferred.popleft()
            self.spool.lose()

    def _see(self, sighting: Sighting) -> str | None:
        error = sighting.error
        scope = context.current_scope.get()
        if scope is not None and _tells_of_failure(sighting):
            context.root_of(scope)[context.SEEN] = True
        if not isinstance(error, BaseException):
            key: Any = self._key_of_text(sighting, error)
            return self._admit_sighting(sighting, key, (), scope)

        if not classify.is_error(error):
            return None
        if issubclass(type(error), MemoryError):
            reserve.give_up()
        unit = context.trace_of(scope)[0] if scope is not None else context.unit_key()
        carried = attributes_of(error)
        mark = get(carried, _MARK)
        if mark is None or sighting.is_admitted or not _is_mark(mark):
            pass
        elif _is_same_unit(mark[1], unit, scope is None, sighting.mechanism):
            return self._amend(sighting, mark, carried)
        one = tries.under_way() if sighting.mechanism in tries.INSIDE else None
        if one is not None and (known := one.hold(sighting)):
            return known
        if type(sighting.tb) is not TracebackType:  # a log call may bring anything
            sighting.tb = traceback_of(error)
        code_key = stacks.key_of(sighting.tb)
        if code_key:
            key = (id(type(error)), code_key)
        else:  # never raised: it is told apart by who reports it
            frame = stacks.caller()
            key = (id(type(error)), frame and (id(frame.f_code), frame.f_lasti))
        error_id = self._admit_sighting(sighting, key, code_key, scope)
        mark = (error_id, unit, _rank(sighting), sighting.handled)
        dict.__setitem__(carried, _MARK, mark)
        if one is not None:
            one.wrote(error, mark)
        return error_id

    def _key_of_text(self, sighting: Sighting, text: str) -> Any:
        """
        What tells a text from others: who says it, and what varies least of it.

        Whoever says too many different things in one place is told by the place alone: it is one mistake, of
        somebody who puts a name or a whole sentence into each.
        """
        said = template((sighting.template or text)[:300])
        at = (sighting.logger, sighting.place)
        known = self._templates.get(at)
        if known is None:
            stacks.make_room(self._templates, _TALKERS)
            known = self._templates[at] = set()
        if said not in known:
            if len(known) >= _TEMPLATES:
                sighting.template = _VARIOUS
                return (*at, _VARIOUS)
            known.add(said)
        return (*at, said)

    def _admit_sighting(self, sighting: Sighting, key: Any, code_key: stacks.Key, scope: context.Scope | None) -> str:
        if sighting.is_admitted and sighting.error_id:  # where it is written twice, it is stored once
            error_id, is_full = sighting.error_id, True
        else:
            error_id, is_full = self._admit(key, sighting.time_ns, sighting.error_id, sighting)
        if is_full:
            sighting.error_id, sighting.is_admitted = error_id, True
            if not self._write(sighting, error_id, code_key, scope) and (place := self._places.get(key)):
                place.last_id = ""  # nothing may be counted for what is not there
        elif _is_sdk_loaded():
            self._remember(context.trace_of(scope)[0], _kind(sighting), sighting.time_ns, None)
        return error_id

    def _admit(
        self, key: Any, time_ns: int, error_id: str | None, sighting: Sighting | None = None
    ) -> tuple[str, bool]:
        """The error's id, and whether to write it out in full; else its place has, and it was counted."""
        place = self._places.get(key)
        second = time_ns >> 30
        if not self._may_write(place, second):
            return self._count(place, time_ns, sighting), False
        error_id = error_id or uuid7(time_ns)
        if place is None:
            stacks.make_room(self._places, _PLACES)
            place = self._places[key] = _Place()
        if place.second != second:
            place.second, place.written = second, 0
        place.written += 1
        place.last_id = error_id
        return error_id, True

    def _may_write(self, place: _Place | None, second: int) -> bool:
        if place is not None and place.second == second and place.written >= FULL_PER_SECOND:
            return False
        every = self._all
        if every.second != second:
            every.second, every.written = second, 0
        every.written += 1
        if every.written > FULL_IN_ALL_PER_SECOND:
            return False
        return place is not None or self._new_places.take()

    def _count(self, place: _Place | None, time_ns: int, sighting: Sighting | None) -> str:
        """Count one more of a place, or of the overflow where its place was never written out."""
        if place is None:
            place = self._overflow
            if not place.last_id:
                error_id = uuid7(time_ns)
                place.last_id = error_id if self._write(_overflow(time_ns), error_id, (), None) else ""
                return error_id
        if not place.last_id:
            self.spool.lose()
            return uuid7(time_ns)
        counter = place.counter
        if counter is None or counter.is_free:
            counter = place.counter = self.spool.counter(place.last_id)
        if counter is None:
            self.spool.lose()
            return place.last_id
        if sighting is not None:  # before the tick, with nothing between them where an interrupt could come
            sighting.error_id, sighting.is_counted = counter.error_id, True
        # A counter stays with the error that it was bound to for as long as the storm goes on.
        counter.tick()
        return counter.error_id

    def _write(self, sighting: Sighting, error_id: str, code_key: stacks.Key, scope: context.Scope | None) -> bool:
        """Write one error out in full, offer it to the user's OpenTelemetry, wake the drain; False when it is lost."""
        error = sighting.error
        attributes: dict[str, Any] = {semconv.MECHANISM: sighting.mechanism, semconv.HANDLED: sighting.handled}
        frames_json = None
        if isinstance(error, BaseException):
            message = stacks.safe_message(error)
            frames_json = _describe_exception(attributes, error, message, sighting, code_key)
        else:
            message = stacks.tidy(error)
            if sighting.stack:
                attributes[semconv.EXCEPTION_STACKTRACE] = stacks.tidy(sighting.stack)
        _describe_sighting(attributes, sighting)
        attributes |= context.where()
        attributes |= context.span_attributes()
        if scope is not None:
            attributes |= context.request_attributes(scope, sighting.status)
        if sighting.attributes:
            attributes |= sighting.attributes
        said = context.facts_of(error if isinstance(error, BaseException) else None)
        said |= context.as_facts(sighting.facts)
        if said:
            attributes[semconv.CONTEXT] = scrub.scrub_value(said)
        trace = context.trace_of(scope)
        if _is_sdk_loaded():
            self._remember(trace[0], _kind(sighting), sighting.time_ns, message)
        line = _line(
            error_id, sighting.time_ns, _severity_number(sighting), trace, message=message, attributes=attributes
        )
        made = {semconv.BREADCRUMBS: crumbs.as_json(sighting.time_ns / 1e9)}
        made[semconv.FRAMES] = frames_json
        is_written = self._append(line, made, durable=sighting.mechanism == "excepthook")
        crumbs.error(sighting.time_ns / 1e9, attributes.get(semconv.EXCEPTION_TYPE) or sighting.logger or "", message)
        emit.emit(line)
        return is_written

    def _append(
        self, line: dict[str, Any], made: Mapping[str, str | None] | None = None, *, durable: bool = False
    ) -> bool:
        """Append a line; attributes that are made already, as JSON, are put in as they are."""
        text = _encode(line)
        if made:
            more = "".join(f',"{name}":{value}' for name, value in made.items() if value is not None)
            text = f"{text[:-2]}{more}}}}}"
        data = text.encode("utf-8") + b"\n"
        if len(data) > LINE_BYTES:
            data = _smaller(line)
        is_written = self.spool.append(data, durable=durable)
        self.drain.wake()
        return is_written

    def _amend(self, sighting: Sighting, mark: tuple[str, str, int, bool], carried: dict[str, Any]) -> str:
        """Tell what this later sighting knows better than the first, if it does."""
        error_id, unit, rank, was_handled = mark
        new_rank = _rank(sighting)
        line: dict[str, Any] = {}
        if new_rank > rank:
            line["severity"] = list(Severity)[new_rank]
        if sighting.category:
            line["category"] = _category(sighting.category)
        if was_handled and not sighting.handled:
            line["handled"] = False
            line["mechanism"] = sighting.mechanism
        if facts := context.as_facts(sighting.facts):
            line["context"] = scrub.scrub_value(facts)
        if line:
            dict.__setitem__(carried, _MARK, (error_id, unit, max(rank, new_rank), was_handled and sighting.handled))
            line |= {"v": VERSION, "kind": "amend", "error_id": error_id}
            self.spool.append(_encode(line).encode() + b"\n", durable=sighting.mechanism == "excepthook")
            self.drain.wake()
        return error_id

    def _remember(self, trace_id: str | None, kind: str, time_ns: int, message: str | None) -> None:
        """Keep what an exporter may bring again; None for a message that was not made, since it was counted."""
        known = self._seen.get((trace_id, kind))
        if known is None:
            stacks.make_room(self._seen, _PLACES)
            known = self._seen[trace_id, kind] = _Known()
        if message is None:
            known.counted_ns = time_ns
        else:
            stacks.make_room(known.messages, _MESSAGES)
            known.messages[message] = time_ns

    def _has_seen(self, report: Report, kind: str, message: str) -> bool:
        known = self._seen.get((report.trace_id, kind))
        if known is None:
            return False
        if report.time_ns <= known.counted_ns + _SOON_NS:  # one of those that were counted
            return True
        seen_ns = known.messages.get(message)
        # Outside of any trace the same message may come again, and be another error.
        return seen_ns is not None and (report.trace_id is not None or abs(report.time_ns - seen_ns) <= _SOON_NS)


def resource(service: str, environment: str, release: str | None, instance_id: str) -> dict[str, Any]:
    """Whose errors they are, as OpenTelemetry's resource attributes."""
    found = {
        semconv.SERVICE_NAME: service,
        semconv.DEPLOYMENT_ENVIRONMENT: environment,
        semconv.SERVICE_INSTANCE_ID: instance_id,
        semconv.HOST_NAME: os.uname().nodename,
        semconv.PROCESS_PID: os.getpid(),
        semconv.RUNTIME_VERSION: ".".join(map(str, sys.version_info[:3])),
    }
    if release:
        found[semconv.SERVICE_VERSION] = release
    return found


def _is_mark(found: object) -> bool:
    """Whether it was put there here, in this version; an exception may come from anywhere."""
    return type(found) is tuple and [type(part) for part in found] == _MARK_OF


_MARK_OF: Final = [str, str, int, bool]


def _is_same_unit(marked: str, unit: str | None, is_outside: bool, mechanism: str) -> bool:
    """
    Whether a marked exception is seen again on its way, and not raised anew somewhere else.

    What left a request is seen outside of it: by the server's log, by a hook. A unit of another kind
    than a request has a colon in its name.
    """
    return marked == unit or mechanism in _TERMINAL or (is_outside and ":" not in marked)


def _describe_exception(
    attributes: dict[str, Any], error: BaseException, message: str, sighting: Sighting, code_key: stacks.Key
) -> str:
    """Type, stack and causes into the attributes; the frames as JSON."""
    if code_key:
        stack = stacks.stack_text(error, message, sighting.tb, code_key)
        frames_json = stacks.link_of(error, sighting.tb, code_key).frames_json
    else:
        stack, frames_json = stacks.caller_stack(error, message)
    if variables.is_kept:
        frames_json = variables.with_values(frames_json, sighting.tb if code_key else None)
    names = stacks.names_of(type(error))
    attributes[semconv.EXCEPTION_TYPE] = names[0]
    attributes[semconv.EXCEPTION_STACKTRACE] = stack
    if status := classify.status_of(error, names):
        attributes[semconv.EXCEPTION_STATUS] = status
    origins = origins_of(error, with_members=True)
    attributes[semconv.EXCEPTION_BASES] = {
        "own": names[:20],
        "causes": list(dict.fromkeys(name for one in origins for name in stacks.names_of(type(one))))[:100],
    }
    if origins and (causes := origins_of(error)):
        attributes[semconv.CAUSES] = [
            {"type": stacks.names_of(type(cause))[0], "message": shorten(stacks.safe_message(cause), 500)}
            for cause in causes[:10]
        ]
    if hosts := _hosts_of([error, *origins]):
        attributes[semconv.EXCEPTION_HOSTS] = hosts
        attributes[semconv.SERVER_ADDRESS] = hosts[0]
    return frames_json


def _hosts_of(errors: list[BaseException]) -> list[str]:
    """The hosts that an error and what led to it were about, scrubbed; each once."""
    found = (classify.host_of(one, stacks.names_of(type(one))) for one in errors)
    return list(dict.fromkeys(stacks.tidy(host, 200) for host in found if host))[:_HOSTS]


def _is_sdk_loaded() -> bool:
    """Whether anybody could bring again what was seen."""
    return "opentelemetry.sdk" in sys.modules


def _kind(sighting: Sighting) -> str:
    """The name under which an exporter brings an error again: its type without its module, else the logger."""
    error = sighting.error
    return _short(stacks.names_of(type(error))[0]) if isinstance(error, BaseException) else sighting.logger or ""


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _category(said: object) -> str:
    return clean(str(said), 40)


def _describe_sighting(attributes: dict[str, Any], sighting: Sighting) -> None:
    if sighting.severity:
        attributes[semconv.SEVERITY] = sighting.severity
    if sighting.category:
        attributes[semconv.CATEGORY] = _category(sighting.category)
    if sighting.logger:
        attributes[semconv.LOGGER] = stacks.tidy(sighting.logger, 200)
    if sighting.template:
        attributes[semconv.TEMPLATE] = stacks.tidy(sighting.template, 300)
    if sighting.place:
        attributes[semconv.PLACE] = stacks.tidy(sighting.place, 300)
    if sighting.mechanism == "excepthook":
        attributes[semconv.EXIT] = True


def _line(
    error_id: str,
    time_ns: int,
    severity_number: int,
    trace: tuple[str | None, str | None],
    *,
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
        "trace_id": trace[0],
        "span_id": trace[1],
        "body": message,
        "attributes": attributes,
    }


def _overflow(time_ns: int) -> Sighting:
    return Sighting(
        "more different errors at once than can be written out; the rest is counted here",
        mechanism="overflow",
        handled=False,
        level=logging.ERROR,
        logger="tocsin",
        place="tocsin overflow",
        time_ns=time_ns,
    )


def _rank(sighting: Sighting) -> int:
    """The severity that a sighting alone speaks for; the exporter may find a higher one."""
    if sighting.severity:
        return Severity(sighting.severity).rank
    if sighting.level is not None:
        if sighting.level < logging.ERROR:
            return Severity.LOW.rank
        return (Severity.CRITICAL if sighting.level >= logging.CRITICAL else Severity.HIGH).rank
    if sighting.handled:
        return Severity.LOW.rank
    return _UNHANDLED.get(sighting.mechanism, Severity.LOW).rank


def _tells_of_failure(sighting: Sighting) -> bool:
    """Whether a request that is answered with a 5xx needs no further error to say so."""
    if sighting.mechanism == "dependency" and sighting.handled:
        return False
    if sighting.mechanism in _BY_US:
        return False
    if sighting.severity:
        return Severity(sighting.severity).rank >= Severity.HIGH.rank
    if sighting.level is not None:
        return sighting.level >= logging.ERROR
    return not sighting.handled or sighting.status is None or sighting.status >= 500


def _severity_number(sighting: Sighting) -> int:
    """OpenTelemetry's number: FATAL 21, ERROR 17, WARN 13. Source: semantic conventions, exceptions in logs."""
    level = sighting.level
    if sighting.mechanism == "excepthook" or (level is not None and level >= logging.CRITICAL):
        return 21
    if level is not None:
        return 17 if level >= logging.ERROR else 13
    return 13 if sighting.handled else 17


def _smaller(line: dict[str, Any]) -> bytes:
    """A line that fits: without frames and context, with stack and message cut hard."""
    attributes = {
        key: value
        for key, value in line["attributes"].items()
        if key != semconv.CONTEXT and (not isinstance(value, str) or len(value) < 4096)
    }
    stack = line["attributes"].get(semconv.EXCEPTION_STACKTRACE)
    if stack:
        attributes[semconv.EXCEPTION_STACKTRACE] = shorten(stack, 16 * 1024)
    attributes[semconv.CONTEXT] = {"tocsin.left_out": "the error was too large"}
    smaller = {**line, "body": shorten(line["body"], 4096), "attributes": attributes}
    return _encode(smaller).encode() + b"\n"
