"""From a line of the spool to what the store takes: classified, grouped, named."""

from __future__ import annotations

import linecache
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tocsin import clock, semconv
from tocsin.exporter import classify, frames
from tocsin.exporter.fingerprint import culprit, fingerprint, title
from tocsin.exporter.scrub import scrub_text
from tocsin.model import Amendment, Entry, ErrorRecord, Frame, Instance, Repeats, Severity
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
}


# Only a log line's number is a level; elsewhere WARN says no more than that an exception was handled.
_LOG_LINES = ("logging", "log record", "overflow")

# Whoever asks by hand for an error to be recorded gets it, also where it was to be expected.
_BY_HAND = ("track_error", "protect")


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
        )
        return cls(service, environment, release, instance.id, instance)


def decode(
    content: Mapping[str, Any],
    source: Source,
    *,
    own_categories: tuple[tuple[str, str, str], ...] = (),
    capture_4xx: bool = False,
    behind: timedelta = timedelta(0),
) -> Entry | Instance | None:
    """
    One line of the spool as an entry for the store, or None for what is not stored.

    Args:
        content: a line that capture wrote, or the door: cleaned, shortened and scrubbed already. One from
            the door has a ``resource`` of its own, and no file is read for it: its paths are anybody's.
        behind: what to add to this machine's clock to get the database's.

    Raises:
        KeyError, TypeError, ValueError: the line is not what capture writes.
    """
    if isinstance(resource := content.get("resource"), dict) and content.get("kind") != "segment":
        source = Source.of({"resource": resource})
    match content.get("kind"):
        case "error":
            return _error(content, source, own_categories, capture_4xx, behind)
        case "amend":
            return _amendment(content)
        case "repeats":
            count = int(content["to"]) - int(content["from"])
            moment = clock.from_ns(int(content["time_ns"])) + behind
            repeats = Repeats(error_id=str(content["error_id"]), count=count, timestamp=moment, id=content.get("id"))
            return repeats if count > 0 else None
        case "instance":
            return _instance(content, source, behind)
        case _:
            return None


def _error(
    content: Mapping[str, Any],
    source: Source,
    own: tuple[tuple[str, str, str], ...],
    capture_4xx: bool,
    behind: timedelta,
) -> ErrorRecord | None:
    attributes: dict[str, Any] = content["attributes"]
    message = str(content["body"])
    exception_type = attributes.get(semconv.EXCEPTION_TYPE)
    stack = attributes.get(semconv.EXCEPTION_STACKTRACE)
    logger = attributes.get(semconv.LOGGER)
    mechanism = attributes.get(semconv.MECHANISM)
    handled = attributes.get(semconv.HANDLED)
    stack_frames = _frames(attributes, stack)

    bases = attributes.get(semconv.EXCEPTION_BASES) or {}
    verdict = classify.classify(
        classify.Evidence(
            types=tuple(bases.get("own") or ((exception_type,) if exception_type else ())),
            cause_types=tuple(bases.get("causes") or ()),
            message=message,
            modules=tuple(frame.module for frame in stack_frames),
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

    return ErrorRecord(
        id=str(content["id"]),
        timestamp=_time(content, behind),
        severity=Severity(explicit) if explicit else verdict.severity,
        category=attributes.get(semconv.CATEGORY) or verdict.category,
        message=message,
        fingerprint=fingerprint(
            exception_type=exception_type,
            # Without an exception the frames only say who reports it; what it says tells it apart.
            frames=stack_frames if exception_type else [],
            message=message,
            logger=logger,
            place=attributes.get(semconv.PLACE),
        ),
        title=title(exception_type, message) or one_line(str(logger or mechanism or "error")),
        culprit=culprit(stack_frames) or attributes.get(semconv.PLACE),
        service=source.service,
        environment=source.environment,
        release=source.release,
        stack=stack,
        context={
            **(attributes.get(semconv.CONTEXT) or {}),
            **{key: value for key, value in attributes.items() if key not in _CONSUMED},
            **({semconv.FRAMES: shown} if (shown := _shown_frames(content, stack_frames)) else {}),
        },
        exception_type=exception_type,
        trace_id=content.get("trace_id"),
        span_id=content.get("span_id"),
        handled=handled,
        mechanism=mechanism,
        instance_id=source.instance_id,
        from_outside=bool(content.get("door")),
        is_synthetic=bool(attributes.get(semconv.SYNTHETIC)),
    )


def _shown_frames(content: Mapping[str, Any], parsed: list[Frame]) -> list[dict[str, Any]]:
    """The frames as capture made them, else as they were read out of the stack's text."""
    stored = content["attributes"].get(semconv.FRAMES)
    shown = stored if isinstance(stored, list) else [_shown(one) for one in parsed]
    return shown if content.get("door") else _with_source(shown)


def _shown(frame: Frame) -> dict[str, Any]:
    return {
        "module": frame.module,
        "function": frame.function,
        "file": frame.file,
        "line": frame.line,
        "text": frame.text,
        "in_app": frame.in_app,
    }


def _instance(content: Mapping[str, Any], source: Source, behind: timedelta) -> Instance:
    """How a process somewhere else is; its own times by its own clock, but for a wrong one of this machine."""
    ended_ns = content.get("ended_at_ns")
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
    )


def _frames(attributes: Mapping[str, Any], stack: str | None) -> list[Frame]:
    if stored := attributes.get(semconv.FRAMES):
        return [
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
    return frames.parse_python(stack) if stack else []


SOURCE_LINES = 5  # around a line
SOURCE_FRAMES = 10  # the innermost of the team's own


def _with_source(stored: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
            lines = [
                one.rstrip("\n")[:400] for one in linecache.getlines(frame["file"])[first - 1 : line + SOURCE_LINES]
            ]
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


def _time(content: Mapping[str, Any], behind: timedelta) -> datetime:
    return clock.from_ns(int(content["time_unix_nano"])) + behind
