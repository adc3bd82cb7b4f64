"""
An error that somebody else's code describes: cleaned, named, and written as a line of the spool.

Its id comes from what it says, so that it is one error however often and by whichever way it comes: sent
again, told of by each span that it passed, and by a log record as well.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any, Final
from uuid import UUID

from tocsin import semconv
from tocsin.exporter.brief import Verdict
from tocsin.exporter.frames import Outline, headline, outline
from tocsin.exporter.records import EXCEPTION
from tocsin.exporter.scrub import (
    KEY_LIMIT,
    LEFT_OUT,
    MASK,
    is_secret_key,
    scrub_query,
    scrub_text,
    scrub_url,
    scrub_value,
)
from tocsin.exporter.spool import LINE_BYTES, VERSION
from tocsin.model import Severity
from tocsin.text import MESSAGE_LIMIT, STACK_LIMIT, clean, shorten

TEXT_LIMIT: Final = 16 * 1024
"""Characters kept of one attribute's text."""

ATTRIBUTES_LIMIT: Final = 64 * 1024
"""Characters kept of all attributes of one error together."""

STACKS_LIMIT: Final = 3 * 2**20
"""Characters of stacks that are kept ready."""

ERROR_NUMBER: Final = 17
FATAL_NUMBER: Final = 21
"""OpenTelemetry's severity numbers. Source: logs data model, SeverityNumber."""

_EARLIEST_NS: Final = 946_684_800 * 1_000_000_000  # 2000-01-01: no clock that was ever set says less
_LATEST_NS: Final = 60 * 1_000_000_000
_SMALL = 256
_TELLING = 64 * 1024  # of a text that makes an id: a copy of megabytes tells no more
_OURS_TO_SAY = frozenset({semconv.TASK_NAME})
_WORD = re.compile(r"[\w .:-]{1,40}")
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Resource:
    """Whose errors they are."""

    service: str
    encoded: str  #         as the lines have it, in JSON
    offset_ns: int = 0  #   what to add to its clock to get ours


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack, cleaned: as JSON, and what it says in short."""

    encoded: str
    outline: Outline | None
    frames: str = ""  #         of it without what is said, cleaned …
    said: str | None = None  #  … and what is said; None where they cannot be told apart


NO_STACK: Final = Stack("", None)


@dataclass(frozen=True, slots=True)
class _Frames:
    """A stack without its message, cleaned: as the inside of a JSON text, and its innermost frame."""

    encoded: str
    innermost: str | None  # None where it cannot be told without the message


class Stacks:
    """
    Cleaned stacks, kept ready: a service fails in few ways, and then many times.

    The message, which a stack holds too, is different each time: it is cleaned by itself.
    """

    def __init__(self, limit: int = STACKS_LIMIT) -> None:
        self._limit = limit
        self._size = 0
        self._known: OrderedDict[tuple[str, str], _Frames] = OrderedDict()

    def get(self, text: str, message: str = "") -> Stack:
        """
        The stack that a text is.

        Args:
            message: of the exception, if it is known; mostly the stack ends with it.
        """
        before, said, after = _parted(text) if len(text) <= STACK_LIMIT else ("", text, "")
        frames = self._frames(before, after) if before or after else _NO_FRAMES
        said = _tidy_said(said, message)
        inner = encode_basestring(said)[1:-1]
        encoded = f'"{frames.encoded}{inner}"' if before else f'"{inner}{frames.encoded}"'
        if frames.innermost is not None and _is_plain(said):
            return Stack(encoded, Outline(*headline(said), frames.innermost), frames.encoded, said)
        return Stack(encoded, outline(json.loads(encoded, strict=False)))

    def _frames(self, before: str, after: str) -> _Frames:
        key = before, after
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        tidied = tidy(before or after, STACK_LIMIT)
        told = outline(f"{tidied}E: m" if before else f"E: m{tidied}")
        is_plain = told is not None and (told.exception_type, told.message) == ("E", "m")
        made = _Frames(encode_basestring(tidied)[1:-1], told.innermost if told is not None and is_plain else None)
        size = len(before) + len(after) + len(made.encoded)
        if size <= self._limit // 16:
            self._known[key] = made
            self._size += size
            while self._size > self._limit:
                (first, second), gone = self._known.popitem(last=False)
                self._size -= len(first) + len(second) + len(gone.encoded)
        return made


_NO_FRAMES = _Frames("", None)


def _tidy_said(said: str, message: str) -> str:
    """What a stack says, cleaned; its message, which is needed by itself too, once for both."""
    if message and len(message) <= _SMALL and said.endswith(message):
        kind = said[: -len(message)]
        if _KIND.fullmatch(kind):
            return tidy(kind) + tidy(message)
    return tidy(said, STACK_LIMIT)


_KIND = re.compile(r"[\w.]{1,200}: ")


def _is_plain(message: str) -> bool:
    """Whether a message has nothing in it that could be a part of a stack; else all is looked at, each time."""
    return "\n" not in message[:-1] or not any(sign in message for sign in ("|", "+-", "exception", "    at "))


def _parted(text: str) -> tuple[str, str, str]:
    """The frames before the message, as Python has them, the message, and the frames behind it, as Node."""
    at = text.rfind('\n  File "')
    if at < 0:
        at = text.find("\n    at ")
        return ("", text[:at], text[at:]) if at >= 0 else ("", text, "")
    while (at := text.find("\n", at + 1) + 1) and text[at : at + 1] in _INDENTS:
        pass
    return (text[:at], text[at:], "") if at else (text, "", "")


_INDENTS = frozenset((" ", "\t", "\r", "\n", "|", "+", ""))


@dataclass(slots=True, kw_only=True)
class Error:
    """One error on its way into a line; two of one id become one by `merge`."""

    id: str
    time_ns: int
    message: str
    mechanism: str
    resource: Resource
    severity_number: int = ERROR_NUMBER
    exception_type: str | None = None
    stack: Stack = NO_STACK
    handled: bool | None = None
    severity: Severity | None = None  # said by the sender
    category: str | None = None
    exit: bool = False
    logger: str | None = None
    status: int | None = None  #        that the request was answered with
    trace_id: str | None = None
    span_id: str | None = None
    has_request: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)  # as they came, under today's names
    context: Any = None
    own: dict[str, Any] = field(default_factory=dict)  # of another tocsin's capture; cleaned
    is_shipped: bool = False  #         as another tocsin's line

    @property
    def rank(self) -> int:
        """The severity that it speaks for by itself; the exporter may find a higher one."""
        if self.severity is not None:
            return self.severity.rank
        if self.exit or self.severity_number >= FATAL_NUMBER:
            return Severity.CRITICAL.rank
        if self.mechanism == "log record":
            return (Severity.HIGH if self.severity_number >= ERROR_NUMBER else Severity.LOW).rank
        return (Severity.MEDIUM if self.status is not None and 400 <= self.status < 500 else Severity.HIGH).rank


def merge(first: Error, second: Error) -> Error:
    """One of two sightings of the same error: what either knows, and of what both know the worst."""
    better, other = (second, first) if second.rank > first.rank else (first, second)
    has_longer_stack = len(other.stack.encoded) > len(better.stack.encoded)
    if better.handled is not False and other.handled is not None:
        better.handled = other.handled if better.handled is None else better.handled and other.handled
    better.stack = other.stack if has_longer_stack else better.stack
    better.exception_type = better.exception_type or other.exception_type
    better.message = better.message or other.message
    better.logger = better.logger or other.logger
    better.status = better.status or other.status
    better.category = better.category or other.category
    better.exit = better.exit or other.exit
    better.time_ns = min(better.time_ns, other.time_ns)
    better.has_request = better.has_request or other.has_request
    better.context = better.context or other.context
    better.own = better.own or other.own
    better.is_shipped = better.is_shipped or other.is_shipped
    better.attributes = other.attributes | better.attributes
    return better


def content_id(  # noqa: PLR0917
    service: str, trace_id: str | None, time_ns: int, stack: Stack, exception_type: str | None, message: str
) -> str:
    """
    The id of an error by what it says: a UUID of version 8.

    A stack's own line and its innermost frame go in where there are such, since they alone are the same in
    every span and log record that tells of it; else the class's last name and the message.

    Args:
        time_ns: only goes in where there is no trace.
    """
    told = stack.outline
    if told is not None:
        parts = (told.exception_type, told.message, told.innermost)
    else:
        parts = ("", (exception_type or "").rpartition(".")[2], message)
    return uuid8(service, trace_id or str(time_ns), *parts)


def uuid8(*parts: str) -> str:
    """A UUID made from some texts. Source: RFC 9562, section 5.8."""
    data = "\x1f".join([part[:_TELLING] for part in parts]).encode("utf-8", "backslashreplace")
    found = blake2b(data, digest_size=16, usedforsecurity=False).hexdigest()
    return f"{found[:8]}-{found[8:12]}-8{found[13:16]}-{'89ab'[int(found[16], 16) & 3]}{found[17:20]}-{found[20:]}"


def line(error: Error, kind: int | None = None) -> bytes:
    """
    An error as a line of the spool; always one that fits.

    Args:
        kind: which other errors are like it (`brief.kind_of`).
    """
    attributes: dict[str, Any] = {semconv.MECHANISM: error.mechanism}
    if error.exception_type:
        attributes[semconv.EXCEPTION_TYPE] = _tidy_name(error.exception_type)
    if error.handled is not None:
        attributes[semconv.HANDLED] = error.handled
    if error.severity is not None:
        attributes[semconv.SEVERITY] = error.severity
    if error.category is not None:
        attributes[semconv.CATEGORY] = tidy(error.category, 40)
    if error.logger:
        attributes[semconv.LOGGER] = _tidy_name(error.logger)
    if error.exit:
        attributes[semconv.EXIT] = True
    if error.context:
        attributes[semconv.CONTEXT] = scrub_value(error.context)
    attributes |= cleaned(error.attributes)
    attributes.pop(semconv.HTTP_STATUS, None)
    if error.status is not None:
        attributes[semconv.HTTP_STATUS] = error.status
    attributes |= error.own
    more = "" if kind is None else f'"of_kind":{kind},'
    data = _line(error, tidy(error.message), attributes, error.stack.encoded, more)
    if len(data) <= LINE_BYTES:
        return data
    short = {key: value for key, value in attributes.items() if not isinstance(value, str) or len(value) < 1024}
    short[semconv.CONTEXT] = {"tocsin.left_out": "the error was too large"}
    stack = encode_basestring(shorten(json.loads(error.stack.encoded), 16 * 1024)) if error.stack.encoded else ""
    return _line(error, tidy(error.message, 4096), short, stack)


def brief_line(error: Error, verdict: Verdict) -> bytes:
    """An error that only counts as a line: what it was taken for, and enough for a row, should there be none."""
    attributes: dict[str, Any] = {semconv.MECHANISM: error.mechanism}
    if error.exception_type:
        attributes[semconv.EXCEPTION_TYPE] = _tidy_name(error.exception_type)
    return _line(error, tidy(error.message, 1024), attributes, "", _told_briefly(verdict))


@lru_cache(maxsize=4096)
def _told_briefly(verdict: Verdict) -> str:
    told = {
        "fingerprint": verdict.fingerprint,
        "severity": verdict.severity,
        "category": verdict.category,
        "culprit": verdict.culprit,
        "title": verdict.title,
    }
    return f'"brief":{_encode(told)},'


def _line(error: Error, message: str, attributes: dict[str, Any], stack: str, more: str = "") -> bytes:
    trace = f'"{error.trace_id}"' if error.trace_id else "null"
    span = f'"{error.span_id}"' if error.span_id else "null"
    more += '"shipped":true,' if error.is_shipped else ""
    told = _encode(attributes)
    if stack:  # encoded once for all errors with it
        told = f'{told[:-1]},"{semconv.EXCEPTION_STACKTRACE}":{stack}}}'
    text = (
        f'{{"v":{VERSION},"kind":"error","door":true,{more}"id":"{error.id}","time_unix_nano":{error.time_ns},'
        f'"severity_number":{error.severity_number},"event_name":"{semconv.EVENT_EXCEPTION}",'
        f'"trace_id":{trace},"span_id":{span},"body":{encode_basestring(message)},'
        f'"resource":{error.resource.encoded},"attributes":{told}}}\n'
    )
    return text.encode("utf-8", "backslashreplace")


def amendment(
    error_id: str, resource: Resource, *, rank: int | None, handled: bool | None, context: Mapping[str, Any]
) -> bytes:
    """What a later sighting of an error knows better, as a line."""
    found: dict[str, Any] = {"v": VERSION, "kind": "amend", "door": True, "error_id": error_id}
    if rank is not None:
        found["severity"] = list(Severity)[rank]
    if handled is not None:
        found["handled"] = handled
    if context:
        found["context"] = cleaned(context)
    return encoded(found, resource)


def encoded(content: Mapping[str, Any], resource: Resource) -> bytes:
    """A line of the spool that is no error, with whose it is."""
    return f'{_encode(content)[:-1]},"resource":{resource.encoded}}}\n'.encode("utf-8", "backslashreplace")


# Cleaning


def tidy(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Scrubbed, cut, cleaned; in this order, since half a secret has no shape."""
    if len(text) <= _SMALL and len(small := _tidy_small(text)) <= limit:
        return small
    return clean(scrub_text(text), limit)


@lru_cache(maxsize=4096)
def _tidy_small(text: str) -> str:
    return clean(scrub_text(text))


def _tidy_name(text: str) -> str:
    return tidy(text[:300], 300)


def cleaned(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as a line has them; nothing that the exporter takes for its own word is among them."""
    found: dict[str, Any] = {}
    left = ATTRIBUTES_LIMIT
    for key, value in attributes.items():
        if value is None or key in EXCEPTION or (key.startswith("tocsin.") and key not in _OURS_TO_SAY):
            continue
        if left <= 0:
            found["…"] = LEFT_OUT
            break
        name, is_secret = _key(key) if len(key) <= _SMALL else _long_key(key)
        found[name] = made = MASK if is_secret else _made(key, value)
        left -= len(name) + (len(made) if isinstance(made, str | dict | list) else 8)
    return found


def _made(key: str, value: Any) -> Any:
    if type(value) is str:
        return _text(key, value) if len(value) <= _SMALL and len(key) <= _SMALL else _long_text(key, value)
    if type(value) is int and -_INT64 <= value < _INT64:
        return value
    return scrub_value(value, limit=TEXT_LIMIT)


_INT64 = 2**63


def _long_key(key: str) -> tuple[str, bool]:
    return tidy(key[:KEY_LIMIT], KEY_LIMIT)[:KEY_LIMIT], is_secret_key(key)


def _long_text(key: str, value: str) -> str:
    if key == semconv.URL_FULL:
        return clean(scrub_url(value), TEXT_LIMIT)
    if key == semconv.URL_QUERY:
        return clean(scrub_query(value), TEXT_LIMIT)
    return clean(scrub_text(value), TEXT_LIMIT)


# What is small and comes again and again: names, routes, methods. Bounded, since a stranger may send it.
_key = lru_cache(maxsize=2048)(_long_key)
_text = lru_cache(maxsize=4096)(_long_text)


# Reading


def resource_of(attributes: Mapping[str, Any], now_ns: int = 0) -> Resource:
    """Whose errors they are, from the attributes of an OpenTelemetry resource."""
    found: dict[str, Any] = {}
    for key, olds, limit in _RESOURCE:
        value = next((attributes[name] for name in (key, *olds) if attributes.get(name)), None)
        if isinstance(value, str):
            found[key] = tidy(value, limit)[:limit]
        elif isinstance(value, int | float):
            found[key] = str(value)
    found.setdefault(semconv.SERVICE_NAME, UNKNOWN_SERVICE)
    pid = attributes.get(semconv.PROCESS_PID)
    if type(pid) is int and 0 < pid < 2**31:
        found[semconv.PROCESS_PID] = pid
    return Resource(found[semconv.SERVICE_NAME], _encode(found), _offset(attributes.get(semconv.SENT), now_ns))


UNKNOWN_SERVICE: Final = "unknown_service"
_RESOURCE: Final[Sequence[tuple[str, tuple[str, ...], int]]] = (
    (semconv.SERVICE_NAME, (), 200),
    (semconv.SERVICE_VERSION, (), 200),
    (semconv.DEPLOYMENT_ENVIRONMENT, ("deployment.environment",), 100),
    (semconv.SERVICE_INSTANCE_ID, (), 200),
    (semconv.HOST_NAME, ("k8s.pod.name",), 200),
)


def _offset(sent: Any, now_ns: int) -> int:
    """How far a sender's clock is from ours, by when it says it sent; what a network takes is no difference."""
    if not isinstance(sent, str) or not sent.isascii() or not sent.isdigit() or len(sent) > 20:
        return 0
    offset = now_ns - int(sent)
    return offset if abs(offset) > 1_000_000_000 else 0


def moment(time_ns: int, now_ns: int) -> int:
    """A time that somebody gave; now where it is none that can be."""
    return time_ns if _EARLIEST_NS <= time_ns <= now_ns + _LATEST_NS else now_ns


def name_of(exception_type: str | None, stack: Stack) -> str | None:
    """
    The qualified name of an exception's class, the same whoever gives it.

    Python's logging has it without its module; the stack always with it.
    """
    told = stack.outline.exception_type if stack.outline is not None else None
    if not exception_type:
        return told or None
    if told and told.rpartition(".")[2] == exception_type.rpartition(".")[2]:
        return told
    return exception_type.removeprefix("__main__.")


def text_of(value: Any) -> str:
    """A value that should be a text as one."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    made = scrub_value(value, limit=TEXT_LIMIT)
    return made if isinstance(made, str) else _encode(made)


def said_by_sender(error: Error, attributes: Mapping[str, Any]) -> None:
    """Take over what the sender itself decides of an error, where it is valid."""
    if _SAID.isdisjoint(attributes):
        return
    severity = attributes.get(semconv.SEVERITY)
    if isinstance(severity, str) and severity in _SEVERITIES:
        error.severity = Severity(severity)
    if word := word_of(attributes.get(semconv.CATEGORY)):
        error.category = word
    if isinstance(handled := attributes.get(semconv.HANDLED), bool):
        error.handled = handled
    if word := word_of(attributes.get(semconv.MECHANISM)):
        error.mechanism = word
    if attributes.get(semconv.EXIT) is True:
        error.exit = True
    if isinstance(context := attributes.get(semconv.CONTEXT), dict):
        error.context = context


_SEVERITIES = frozenset(Severity)
_SAID = frozenset(
    {semconv.SEVERITY, semconv.CATEGORY, semconv.HANDLED, semconv.MECHANISM, semconv.EXIT, semconv.CONTEXT}
)


def word_of(value: Any) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def uuid_of(value: Any) -> str | None:
    """A UUID, hyphenated and in lower case; None for what is none."""
    if not isinstance(value, str) or len(value) > 45:
        return None
    try:
        return str(UUID(value))
    except ValueError:
        return None
