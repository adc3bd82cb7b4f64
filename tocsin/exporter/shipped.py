"""
Lines of a spool that another tocsin has sent: read strictly, bounded and cleaned again, ids kept.

Whoever holds the ingest token can write one by hand, so nothing in it is believed that a service's own
capture would never write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tocsin import semconv
from tocsin.exporter import breadcrumbs, facts, foreign
from tocsin.exporter.foreign import Error, Resource, Stacks
from tocsin.exporter.join import status_in
from tocsin.exporter.otlp_json import loads
from tocsin.exporter.records import MOST_ATTRIBUTES, Malformed, TooMuch, Unreadable
from tocsin.exporter.scrub import scrub_value
from tocsin.exporter.spool import LINE_BYTES, VERSION
from tocsin.model import Severity

MOST_FRAMES: Final = 200
_NAME = 300
_MOST_AROUND = 5
_MOST_COUNTED = 2**40
_LONGEST_BEAT_S = 86_400


def read(text: Any, resource: Resource, stacks: Stacks, now_ns: int) -> Error | bytes:
    """
    One line of another process's spool: an error, or the finished line of anything else.

    Raises:
        Malformed: no tocsin writes such a line.
    """
    if not isinstance(text, str) or len(text) > LINE_BYTES:
        raise Malformed("a tocsin.line that is no text of at most 256 KiB")
    try:
        content = loads(text.encode("utf-8", "surrogatepass"))
    except (Unreadable, TooMuch):
        raise Malformed("a tocsin.line that is no JSON") from None
    if not isinstance(content, dict) or content.get("v") != VERSION:
        raise Malformed("a tocsin.line of another version")
    match content.get("kind"):
        case "error":
            return _error(content, resource, stacks, now_ns)
        case "amend":
            return _amendment(content, resource)
        case "repeats":
            return _repeats(content, resource, now_ns)
        case "instance":
            return _instance(content, resource, now_ns)
        case kind if kind in facts.KINDS:
            return _fact(content, resource, now_ns)
        case _:
            raise Malformed("a tocsin.line of an unknown kind")


def _error(content: Mapping[str, Any], resource: Resource, stacks: Stacks, now_ns: int) -> Error:
    attributes = _dict(content, "attributes")
    stack = attributes.get(semconv.EXCEPTION_STACKTRACE)
    made = Error(
        id=_id(content, "id"),
        time_ns=_time(content, "time_unix_nano", resource, now_ns),
        severity_number=_whole(content, "severity_number", 0, 24),
        message=_text(content, "body"),
        mechanism=str(attributes.get(semconv.MECHANISM) or "unknown"),
        resource=resource,
        exception_type=_name(attributes.get(semconv.EXCEPTION_TYPE)),
        stack=stacks.get(stack) if isinstance(stack, str) and stack else foreign.NO_STACK,
        logger=_name(attributes.get(semconv.LOGGER)),
        status=status_in(attributes),
        trace_id=_hex(content.get("trace_id"), 32),
        span_id=_hex(content.get("span_id"), 16),
        attributes={key: value for key, value in list(attributes.items())[:MOST_ATTRIBUTES] if key not in _SAID_APART},
    )
    foreign.said_by_sender(made, attributes)
    made.own = _own_words(attributes)
    if crumbs := breadcrumbs.bounded(attributes.get(semconv.BREADCRUMBS), resource.offset_ns):
        made.own[semconv.BREADCRUMBS] = crumbs
    made.is_shipped = True
    return made


_SAID_APART = frozenset(
    {semconv.BREADCRUMBS, semconv.EXCEPTION_TYPE, semconv.LOGGER, semconv.HTTP_STATUS, semconv.CONTEXT}
)


def _own_words(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What only capture can know of an exception, each in its own shape."""
    found: dict[str, Any] = {}
    if isinstance(bases := attributes.get(semconv.EXCEPTION_BASES), dict):
        found[semconv.EXCEPTION_BASES] = {
            "own": _names(bases.get("own"), 20),
            "causes": _names(bases.get("causes"), 100),
        }
    status = attributes.get(semconv.EXCEPTION_STATUS)
    if type(status) is int and 100 <= status <= 599:
        found[semconv.EXCEPTION_STATUS] = status
    if hosts := _names(attributes.get(semconv.EXCEPTION_HOSTS), 5):
        found[semconv.EXCEPTION_HOSTS] = hosts
    if isinstance(causes := attributes.get(semconv.CAUSES), list):
        found[semconv.CAUSES] = scrub_value(causes[:10])
    if isinstance(place := attributes.get(semconv.PLACE), str):
        found[semconv.PLACE] = foreign.tidy(place, 300)
    if isinstance(template := attributes.get(semconv.TEMPLATE), str):
        found[semconv.TEMPLATE] = foreign.tidy(template, 300)
    if attributes.get(semconv.SYNTHETIC) is True:
        found[semconv.SYNTHETIC] = True
    if isinstance(frames := attributes.get(semconv.FRAMES), list):
        found[semconv.FRAMES] = [_frame(one) for one in frames[-MOST_FRAMES:]]
        _add_variables(found[semconv.FRAMES], frames[-MOST_FRAMES:])
    return found


def _frame(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Malformed("a frame that is no object")
    frame: dict[str, Any] = {
        "module": foreign.tidy(_text(found, "module"), _NAME),
        "function": foreign.tidy(_text(found, "function"), _NAME),
        "file": foreign.tidy(_text(found, "file"), 1024),
        "line": _whole(found, "line", 0, 2**31 - 1),
        "text": foreign.tidy(_text(found, "text"), 500),
        "in_app": found.get("in_app") is True,
    }
    for key in ("before", "after"):  # the source around it, which only its own machine can read
        if isinstance(lines := found.get(key), list):
            frame[key] = [foreign.tidy(one, 500) for one in lines[:_MOST_AROUND] if isinstance(one, str)]
    return frame


def _add_variables(made: list[dict[str, Any]], frames: list[Any]) -> None:
    """The local variables of a few frames, where the sender keeps them; looked through once more."""
    left = _MOST_OF_VARIABLES
    for frame, found in zip(reversed(made), reversed(frames), strict=True):
        values = found.get("vars")
        if not isinstance(values, dict) or left <= 0:
            continue
        frame["vars"] = {}
        for name, text in list(values.items())[:_MOST_VARIABLES]:
            shown = scrub_value(str(text), str(name), limit=_VARIABLE)
            left -= len(name) + len(shown)
            if left >= 0:
                frame["vars"][foreign.tidy(str(name), 100)] = shown


_MOST_VARIABLES: Final = 20
_VARIABLE: Final = 500
_MOST_OF_VARIABLES: Final = 10_000  # characters, of all frames


def _amendment(content: Mapping[str, Any], resource: Resource) -> bytes:
    found: dict[str, Any] = {"v": VERSION, "kind": "amend", "door": True, "shipped": True}
    found["error_id"] = _id(content, "error_id")
    if (severity := content.get("severity")) is not None:
        if severity not in list(Severity):
            raise Malformed("a severity that there is not")
        found["severity"] = severity
    if (category := content.get("category")) is not None:
        found["category"] = foreign.tidy(str(category), 40)
    if content.get("handled") is False:
        found["handled"] = False
    if (mechanism := content.get("mechanism")) is not None:
        found["mechanism"] = foreign.tidy(str(mechanism), 40)
    if context := _dict(content, "context"):
        found["context"] = scrub_value(context)
    return foreign.encoded(found, resource)


def _repeats(content: Mapping[str, Any], resource: Resource, now_ns: int) -> bytes:
    error_id = _id(content, "error_id")
    begin, end = _whole(content, "from", 0, _MOST_COUNTED), _whole(content, "to", 0, _MOST_COUNTED)
    if end < begin:
        raise Malformed("a count that ends before it begins")
    time_ns = _whole(content, "time_ns", 0, 2**63 - 1)
    # The same span of a counter is the same repeats, however often it is sent.
    same = foreign.uuid8("repeats", error_id, str(begin), str(end), str(time_ns))
    found = {
        "v": VERSION,
        "kind": "repeats",
        "door": True,
        "id": foreign.uuid_of(content.get("id")) or same,
        "error_id": error_id,
        "from": begin,
        "to": end,
        "time_ns": foreign.moment(time_ns + resource.offset_ns, now_ns),
    }
    return foreign.encoded(found, resource)


def _instance(content: Mapping[str, Any], resource: Resource, now_ns: int) -> bytes:
    found: dict[str, Any] = {
        "v": VERSION,
        "kind": "instance",
        "door": True,
        "id": foreign.tidy(_text(content, "id"), 200) or "unknown",
        "pid": _whole(content, "pid", 0, 2**31 - 1),
        "started_at_ns": _time(content, "started_at_ns", resource, now_ns),
        "is_shutting_down": content.get("is_shutting_down") is True,
        "is_alive": content.get("is_alive") is not False,
        "lost": _whole(content, "lost", 0, _MOST_COUNTED),
    }
    for key in ("service", "environment", "release", "host", "python_version", "ended_how"):
        if text := _text(content, key):
            found[key] = foreign.tidy(text, _NAME)
    for key in ("memory_bytes", "active_requests", "spool_bytes", "memory_limit_bytes"):
        if content.get(key) is not None:
            found[key] = _whole(content, key, 0, 2**53)
    if content.get("loop_lag_ms") is not None:
        found["loop_lag_ms"] = _whole(content, "loop_lag_ms", 0, 2**31 - 1)
    if content.get("memory_trend") is not None:
        found["memory_trend"] = _whole(content, "memory_trend", -(2**53), 2**53)
    if content.get("beats_every_s") is not None:
        found["beats_every_s"] = _beats_every_s(content["beats_every_s"])
    if content.get("seen_at_ns") is not None:
        found["seen_at_ns"] = _time(content, "seen_at_ns", resource, now_ns)
    if content.get("ended_at_ns") is not None:
        found["ended_at_ns"] = _time(content, "ended_at_ns", resource, now_ns)
    return foreign.encoded(found, resource)


def _beats_every_s(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _LONGEST_BEAT_S:
        raise Malformed("beats_every_s: no number of seconds of a day")
    return float(value)


def _fact(content: Mapping[str, Any], resource: Resource, now_ns: int) -> bytes:
    try:
        found = facts.tidy(content)
    except facts.Unfit as problem:
        raise Malformed(str(problem)) from None
    found["time_unix_nano"] = foreign.moment(found["time_unix_nano"] + resource.offset_ns, now_ns)
    return foreign.encoded(found | {"door": True, "shipped": True}, resource)


# The shapes of single values


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{key}: no text")
    return value


def _dict(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Malformed(f"{key}: no object")
    return value


def _whole(content: Mapping[str, Any], key: str, least: int, most: int) -> int:
    value = content.get(key)
    if value is None:
        return least
    if type(value) is not int or not least <= value <= most:
        raise Malformed(f"{key}: no whole number from {least} to {most}")
    return value


def _time(content: Mapping[str, Any], key: str, resource: Resource, now_ns: int) -> int:
    return foreign.moment(_whole(content, key, 0, 2**63 - 1) + resource.offset_ns, now_ns)


def _id(content: Mapping[str, Any], key: str) -> str:
    found = foreign.uuid_of(content.get(key))
    if found is None:
        raise Malformed(f"{key}: no UUID")
    return found


def _hex(value: Any, digits: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) != digits or not set(value) <= _HEX:
        raise Malformed(f"an id that is not {digits} hexadecimal digits")
    return value


_HEX = set("0123456789abcdef")


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _names(value: Any, most: int) -> list[str]:
    if not isinstance(value, list):
        return []
    return [foreign.tidy(one, _NAME) for one in value[:most] if isinstance(one, str)]
