"""From a line of the spool to what the store takes: classified, grouped, named."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from tocsin import clock, packing, semconv
from tocsin.exporter import breadcrumbs, classify, facts, frames
from tocsin.exporter.brief import without_numbers
from tocsin.exporter.fingerprint import culprit, fingerprint, of_place, title
from tocsin.exporter.scrub import scrub_text
from tocsin.exporter.source import lines_of
from tocsin.model import Amendment, Entry, ErrorRecord, Fact, Frame, Instance, Repeats, Severity
from tocsin.text import clean, one_line

# What is read into columns, or only needed to classify: not repeated in the context.
_CONSUMED = {
    semconv.EXCEPTION_TYPE,
    semconv.EXCEPTION_MESSAGE,
    semconv.EXCEPTION_STACKTRACE,
    semconv.EXCEPTION_BASES,
    semconv.EXCEPTION_STATUS,
    semconv.EXCEPTION_HOSTS,
    semconv.SEVERITY,
    semconv.CATEGORY,
    semconv.HANDLED,
    semconv.MECHANISM,
    semconv.SYNTHETIC,
    semconv.CONTEXT,
    semconv.EXIT,
    semconv.PLACE,
    semconv.TEMPLATE,
    semconv.FRAMES,
}


# Only a log line's number is a level; elsewhere WARN says no more than that an exception was handled.
_LOG_LINES = ("logging", "log record", "overflow")

# Whoever asks by hand for an error to be recorded gets it, also where it was to be expected.
_BY_HAND = ("track_error", "protect")


# What is meant is a thing, whichever line of code has met it: see `tocsin.instrumentation.dependency`.
_KNOWN_BY_PLACE = ("dependency",)

# Where code was found at work, which may be at any of its lines: see `tocsin.instrumentation.loop`.
_SEEN_FROM_OUTSIDE = ("event_loop",)

_MOST_ENDS = 4_000
_MOST_OF_A_MESSAGE = 2_000

KNOWN_CHARS = 2**20
"""Characters of stacks whose frames are kept in memory, at about five bytes each."""


@dataclass(frozen=True, slots=True)
class Source:
    """Whose lines they are: the first line of a segment, as values."""

    service: str
    environment: str
    release: str | None
    instance_id: str | None
    instance: Instance | None  # None for lines that came by HTTP, each with a resource of its own

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> Source:
        """Read a segment's first line; what is missing gets a name that says so."""
        resource = header.get("resource")
        if not isinstance(resource, dict):
            resource = {}
        service = str(resource.get(semconv.SERVICE_NAME) or "unknown_service")
        environment = str(resource.get(semconv.DEPLOYMENT_ENVIRONMENT) or "production")
        release = resource.get(semconv.SERVICE_VERSION)
        release = str(release) if release else None
        instance_id = resource.get(semconv.SERVICE_INSTANCE_ID)
        instance_id = str(instance_id) if instance_id else None
        if header.get("kind") != "segment" or header.get("door"):
            return cls(service, environment, release, instance_id, None)
        instance = Instance(
            id=instance_id or "unknown",
            service=service,
            environment=environment,
            release=release,
            host=str(resource.get(semconv.HOST_NAME) or "unknown"),
            pid=int(resource.get(semconv.PROCESS_PID) or 0),
            started_at=clock.from_ns(int(header.get("started_ns") or 0)),
            python_version=resource.get(semconv.RUNTIME_VERSION),
            # Of a process whose end was seen before this was written: see `tocsin.watch`.
            ended_at=clock.from_ns(int(ended_ns)) if (ended_ns := header.get("ended_ns")) else None,
            ended_how=header.get("ended_how"),
        )
        return cls(service, environment, release, instance.id, instance)


@dataclass(frozen=True, slots=True)
class _Trace:
    """What the text of a stack says; all of it hangs on the text and the exception's type alone."""

    frames: list[Frame]
    modules: tuple[str, ...]
    packed: str
    end: str  #                 what a fingerprint of its end hangs on
    culprit: str | None
    fingerprint: str | None  # None: the message matters too


class Known:
    """
    What was worked out of stacks: errors of a group mostly have the same one.

    For one thread. Bounded by the characters of the stacks; what was not asked for longest goes first.
    """

    def __init__(self, most_chars: int = KNOWN_CHARS) -> None:
        self._most_chars = most_chars
        self._chars = 0
        self._traces: OrderedDict[tuple[str | None, str], _Trace] = OrderedDict()
        self._ends: dict[tuple[str | None, str, str], str] = {}
        self._source: tuple[Mapping[str, Any], Source] | None = None

    def __len__(self) -> int:
        return len(self._traces)

    def trace(self, exception_type: str | None, message: str, stack: str) -> _Trace:
        """The frames of a stack and what follows from them."""
        stack = _without_message(exception_type, message, stack)
        key = exception_type, stack
        trace = self._traces.get(key)
        if trace is not None:
            self._traces.move_to_end(key)
            return trace
        trace = self._traces[key] = _trace(exception_type, stack)
        self._chars += len(stack)
        while self._chars > self._most_chars and len(self._traces) > 1:
            (_, oldest), _ = self._traces.popitem(last=False)
            self._chars -= len(oldest)
        return trace

    def fingerprint_of_end(self, exception_type: str | None, trace: _Trace, message: str) -> str:
        """The fingerprint of a stack of which only the end is sure: it hangs on the message too."""
        key = exception_type, trace.end, without_numbers(message[:_MOST_OF_A_MESSAGE])
        found = self._ends.get(key)
        if found is None:
            if len(self._ends) >= _MOST_ENDS:
                self._ends.clear()
            found = self._ends[key] = fingerprint(
                exception_type=exception_type, frames=trace.frames, message=message, is_partial=True
            )
        return found

    def source(self, resource: Mapping[str, Any]) -> Source:
        """Whose a line is that says so itself; mostly the same as of the line before."""
        if self._source is None or self._source[0] != resource:
            self._source = resource, Source.of({"resource": resource})
        return self._source[1]


def decode(
    content: Mapping[str, Any],
    source: Source,
    *,
    own_categories: tuple[tuple[str, str, str], ...] = (),
    capture_4xx: bool = False,
    behind: timedelta = timedelta(0),
    known: Known | None = None,
) -> Entry | Fact | Instance | None:
    """
    One line of the spool as an entry for the store, or None for what is not stored.

    Args:
        content: a line that capture wrote, or the door: cleaned, shortened and scrubbed already. One from
            the door has a ``resource`` of its own, and no file is read for it: its paths are anybody's.
        behind: what to add to this machine's clock to get the database's.
        known: of earlier lines; makes the same stack cheap.

    Raises:
        KeyError, TypeError, ValueError: the line is not what capture writes.
    """
    known = Known() if known is None else known
    if isinstance(resource := content.get("resource"), dict) and content.get("kind") != "segment":
        source = known.source(resource)
    match content.get("kind"):
        case "error":
            moment = clock.from_ns(int(content["time_unix_nano"])) + behind
            return _error(content, source, moment, known, behind, own=own_categories, capture_4xx=capture_4xx)
        case "amend":
            return _amendment(content)
        case "repeats":
            count = int(content["to"]) - int(content["from"])
            moment = clock.from_ns(int(content["time_ns"])) + behind
            repeats = Repeats(error_id=str(content["error_id"]), count=count, timestamp=moment, id=content.get("id"))
            return repeats if count > 0 else None
        case "instance":
            return _instance(content, source, behind)
        case kind if kind in facts.KINDS:
            return facts.read(content, source, behind, is_shipped=bool(content.get("shipped")))
        case _:
            return None


def _error(
    content: Mapping[str, Any],
    source: Source,
    moment: datetime,
    known: Known,
    behind: timedelta,
    *,
    own: tuple[tuple[str, str, str], ...],
    capture_4xx: bool,
) -> ErrorRecord | None:
    attributes: dict[str, Any] = content["attributes"]
    message = str(content["body"])
    is_foreign = bool(content.get("door"))
    if is_foreign and isinstance(brief := content.get("brief"), dict):
        return _brief(brief, content, source, moment)
    exception_type = attributes.get(semconv.EXCEPTION_TYPE)
    stack = attributes.get(semconv.EXCEPTION_STACKTRACE)
    logger = attributes.get(semconv.LOGGER)
    mechanism = attributes.get(semconv.MECHANISM)
    handled = attributes.get(semconv.HANDLED)
    stored: list[dict[str, Any]] = attributes.get(semconv.FRAMES) or []
    trace = _trace_of(stored) if stored else known.trace(exception_type, message, stack) if stack else _NO_TRACE

    bases = attributes.get(semconv.EXCEPTION_BASES) or {}
    verdict = classify.classify(
        classify.Evidence(
            types=tuple(bases.get("own") or ((exception_type,) if exception_type else ())),
            cause_types=tuple(bases.get("causes") or ()),
            message=message,
            modules=trace.modules,
            logger=logger,
            hosts=_hosts(attributes),
            mechanism=mechanism,
            handled=handled,
            status_code=attributes.get(semconv.HTTP_STATUS) or attributes.get(semconv.EXCEPTION_STATUS),
            level=_level(content.get("severity_number")) if mechanism in _LOG_LINES else None,
            exit=bool(attributes.get(semconv.EXIT)),
        ),
        own,
    )
    explicit = attributes.get(semconv.SEVERITY)
    if not verdict.is_stored and not capture_4xx and not explicit and mechanism not in _BY_HAND:
        return None

    is_partial = is_foreign and not stored and mechanism in _TOLD_BY_MANY
    place = attributes.get(semconv.PLACE)
    is_placed = mechanism in _KNOWN_BY_PLACE and bool(place)
    if is_placed:
        value = of_place(str(place))
        message = f"{place}: {message}"
    elif mechanism in _SEEN_FROM_OUTSIDE and trace.frames:
        value = fingerprint(exception_type=exception_type, frames=_without_chance(trace.frames), message=message)
    elif is_partial and exception_type and trace.frames:
        value = known.fingerprint_of_end(exception_type, trace, message)
    else:
        value = trace.fingerprint or fingerprint(
            exception_type=exception_type,
            # Without an exception the frames only say who reports it; what it says tells it apart.
            frames=trace.frames if exception_type else [],
            message=attributes.get(semconv.TEMPLATE) or message,
            logger=logger,
            place=place,
        )
    context = dict(attributes.get(semconv.CONTEXT) or {})
    context.update((key, value) for key, value in attributes.items() if key not in _CONSUMED)
    if semconv.BREADCRUMBS in context:
        context[semconv.BREADCRUMBS] = breadcrumbs.dated(context[semconv.BREADCRUMBS], behind)
    if stored:
        # Another machine's paths are not ours to read.
        context[semconv.FRAMES] = stored if is_foreign else with_source(stored)
    elif trace.frames:
        context[semconv.FRAMES] = (
            trace.packed if is_foreign else with_source([packing.shown(one) for one in trace.frames])
        )

    return ErrorRecord(
        id=_id_from_outside(content["id"]) if is_foreign else str(content["id"]),
        timestamp=moment,
        severity=Severity(explicit) if explicit else verdict.severity,
        category=attributes.get(semconv.CATEGORY) or verdict.category,
        message=message,
        fingerprint=value,
        title=title(None if is_placed or mechanism in _SEEN_FROM_OUTSIDE else exception_type, message)
        or one_line(str(logger or mechanism or "error")),
        culprit=trace.culprit or place,
        service=source.service,
        environment=source.environment,
        release=source.release,
        stack=stack,
        context=context,
        exception_type=exception_type,
        trace_id=content.get("trace_id"),
        span_id=content.get("span_id"),
        handled=handled,
        mechanism=mechanism,
        instance_id=source.instance_id,
        from_outside=is_foreign,
        is_shipped=is_foreign and bool(content.get("shipped")),
        is_synthetic=bool(attributes.get(semconv.SYNTHETIC)),
        kind=content.get("of_kind") if is_foreign else None,
    )


def _brief(brief: Mapping[str, Any], content: Mapping[str, Any], source: Source, moment: datetime) -> ErrorRecord:
    """An error that was known to be beyond its group's cap when it came."""
    attributes: dict[str, Any] = content["attributes"]
    exception_type = attributes.get(semconv.EXCEPTION_TYPE)
    return ErrorRecord(
        id=_id_from_outside(content["id"]),
        timestamp=moment,
        severity=Severity(brief["severity"]),
        category=brief["category"],
        message=content["body"],
        fingerprint=brief["fingerprint"],
        title=brief["title"],
        culprit=brief["culprit"],
        service=source.service,
        environment=source.environment,
        release=source.release,
        context={"tocsin.left_out": "only counted, since there were too many of its kind in that minute"},
        exception_type=exception_type,
        trace_id=content.get("trace_id"),
        span_id=content.get("span_id"),
        mechanism=attributes.get(semconv.MECHANISM),
        instance_id=source.instance_id,
        from_outside=True,
        is_brief=True,
    )


_TOLD_BY_MANY = ("span", "log record")
"""Each of the spans that an exception passes tells of it, and a log record: which comes first is chance."""


def _id_from_outside(given: str) -> str:
    """An id in the one way to write it; the database compares what it gives back with what it got."""
    return given if _UUID.fullmatch(given) else str(UUID(given))


_UUID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def _without_message(exception_type: str | None, message: str, stack: str) -> str:
    """What errors of one place share of their stacks: the message stands at the end, or of Node's at the start."""
    said = f"{(exception_type or '').rpartition('.')[2]}: {message}"
    if stack.startswith(said):
        return stack[len(said) :]
    stack = stack.rstrip("\n")
    return stack[: -len(message)] if message and stack.endswith(said) else stack


def _trace(exception_type: str | None, stack: str) -> _Trace:
    found = frames.parse(stack)
    value = None
    if exception_type and found:
        # Whether the message matters is for `fingerprint` to say, which is asked with two.
        value, other = (fingerprint(exception_type=exception_type, frames=found, message=said) for said in ("a", "b"))
        value = value if value == other else None
    modules = tuple(frame.module for frame in found)
    return _Trace(found, modules, packing.pack(found), _end(found), culprit(found), value)


def _without_chance(found: list[Frame]) -> list[Frame]:
    """The team's own frames without the line that was just reached; the way into a library where there are none."""
    own = [replace(frame, text="") for frame in found if frame.in_app]
    return own or [replace(found[0], text="")]


def _end(found: list[Frame]) -> str:
    last = next((frame for frame in reversed(found) if frame.in_app), None)
    shown = (last, found[-1] if found else None)
    return "\n".join(f"{one.module}\n{one.function}\n{one.file}\n{one.text}" for one in shown if one is not None)


def _trace_of(stored: list[dict[str, Any]]) -> _Trace:
    """The same of frames as capture made them."""
    found = [
        Frame(
            module=frame["module"],
            function=frame["function"],
            file=frame["file"],
            line=frame["line"],
            text=frame.get("text", ""),
            in_app=frame.get("in_app", False),
        )
        for frame in stored
    ]
    return _Trace(found, tuple(frame.module for frame in found), "", "", culprit(found), None)


_NO_TRACE = _Trace([], (), "", "", None, None)


def _instance(content: Mapping[str, Any], source: Source, behind: timedelta) -> Instance:
    """How a process somewhere else is; its own times by its own clock, but for a wrong one of this machine."""
    ended_ns, seen_ns = content.get("ended_at_ns"), content.get("seen_at_ns")
    return Instance(
        id=str(content["id"]),
        service=str(content.get("service") or source.service),
        environment=str(content.get("environment") or source.environment),
        release=content.get("release") or source.release,
        host=str(content.get("host") or "unknown"),
        pid=int(content.get("pid") or 0),
        started_at=clock.from_ns(int(content["started_at_ns"])) + behind,
        python_version=content.get("python_version"),
        memory_bytes=content.get("memory_bytes"),
        active_requests=content.get("active_requests"),
        is_shutting_down=bool(content.get("is_shutting_down")),
        spool_bytes=content.get("spool_bytes"),
        loop_lag_ms=content.get("loop_lag_ms"),
        memory_limit_bytes=content.get("memory_limit_bytes"),
        memory_trend=content.get("memory_trend"),
        beats_every_s=content.get("beats_every_s"),
        seen_at=clock.from_ns(int(seen_ns)) + behind if seen_ns is not None else None,
        lost=int(content.get("lost") or 0),
        is_alive=bool(content.get("is_alive", True)),
        ended_at=clock.from_ns(int(ended_ns)) + behind if ended_ns is not None else None,
        ended_how=content.get("ended_how"),
    )


def _amendment(content: Mapping[str, Any]) -> Amendment:
    severity = content.get("severity")
    return Amendment(
        error_id=str(content["error_id"]),
        severity=Severity(severity) if severity else None,
        category=content.get("category"),
        handled=content.get("handled"),
        mechanism=content.get("mechanism"),
        context=content.get("context") or {},
        is_shipped=bool(content.get("shipped")),
    )


SOURCE_LINES = 5  # around a line
SOURCE_FRAMES = 10  # the innermost of the team's own


def with_source(stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    Frames with the source lines around the team's own, where the file still says what it said.

    Read here and not at capture: it costs a service nothing, and a file that a deploy has changed
    since is told by its line.
    """
    with_source = SOURCE_FRAMES
    shown = []
    for frame in reversed(stored):
        if frame.get("in_app") and with_source and frame.get("text"):
            with_source -= 1
            line = frame["line"]
            first = max(line - SOURCE_LINES, 1)
            lines = [one.rstrip("\n")[:400] for one in lines_of(frame["file"])[first - 1 : line + SOURCE_LINES]]
            here = line - first
            if here < len(lines) and scrub_text(lines[here]).strip() == frame["text"]:
                tidied = [clean(scrub_text(one), 500) for one in lines]
                shown.append({**frame, "before": tidied[:here], "after": tidied[here + 1 :]})
                continue
        shown.append(frame)
    return shown[::-1]


def _hosts(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    found = list(attributes.get(semconv.EXCEPTION_HOSTS) or ())
    for key in (semconv.SERVER_ADDRESS, semconv.URL_FULL):
        value = attributes.get(key)
        if isinstance(value, str):
            found.append((classify.host_in(value) or "") if "://" in value else value)
    return tuple(host for host in found if host)


def _level(severity_number: int | None) -> str | None:
    """The word for an OpenTelemetry severity number (data model, SeverityNumber)."""
    if severity_number is None:
        return None
    return "critical" if severity_number >= 21 else "error" if severity_number >= 17 else "warning"
