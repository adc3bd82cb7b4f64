"""What ``POST /api/debug/errors`` takes: an error as a script or a cron job describes it, or a list of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from tocsin import semconv
from tocsin.exporter import foreign
from tocsin.exporter.foreign import Error, Stacks
from tocsin.exporter.otlp_json import loads
from tocsin.failures import BadInput
from tocsin.ids import uuid7
from tocsin.model import Severity

MOST: Final = 1_000
"""Errors in one body."""

_MOST_FIELDS = 64
_KNOWN = frozenset(
    {"message", "stack", "severity", "category", "context", "service", "environment", "timestamp", "release", "id"}
    | {"exception_type", "type"}
)
_SECONDS = (946_684_800, 4_102_444_800)  # 2000 to 2100; a thousand times that is milliseconds
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})  # kinds of characters


def read(body: bytes, stacks: Stacks, now_ns: int) -> list[Error]:
    """
    The errors of a body, in order.

    Raises:
        Unreadable, TooMuch: of the whole body.
        BadInput: a field is wrong; it is named as in ``[3].severity``. Nothing is taken then.
    """
    found = loads(body)
    if not isinstance(found, list):
        return [_error(found, "", stacks, now_ns)]
    if len(found) > MOST:
        raise BadInput("errors", f"give at most {MOST} at once, not {len(found)}")
    return [_error(one, f"[{at}].", stacks, now_ns) for at, one in enumerate(found)]


def _error(found: Any, where: str, stacks: Stacks, now_ns: int) -> Error:
    if not isinstance(found, dict):
        raise BadInput(where.rstrip(".") or "body", "give an object with a message")
    message, text = _text(found, "message", where), _text(found, "stack", where)
    stack = stacks.get(text) if text else foreign.NO_STACK
    kind = _text(found, "exception_type", where) or _text(found, "type", where)
    if not message and stack.outline is not None:
        message = stack.outline.message
    if not _says_anything(message) and (message or not _says_anything(kind + text)):
        raise BadInput(f"{where}message", "give a text that says what went wrong")
    time_ns = foreign.moment(_time(found.get("timestamp"), where, now_ns), now_ns)
    resource = {
        semconv.SERVICE_NAME: _text(found, "service", where),
        semconv.DEPLOYMENT_ENVIRONMENT: _text(found, "environment", where),
        semconv.SERVICE_VERSION: _text(found, "release", where),
    }
    return Error(
        id=_id(found.get("id"), where) or uuid7(now_ns),
        time_ns=time_ns,
        message=message,
        mechanism="posted",
        resource=foreign.resource_of(resource),
        exception_type=foreign.name_of(kind, stack),
        stack=stack,
        severity=_severity(found.get("severity"), where),
        category=_category(found.get("category"), where),
        context=_context(found, where),
    )


def _text(found: Mapping[str, Any], key: str, where: str) -> str:
    value = found.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{where}{key}", "give a text")
    return value


def _says_anything(text: str) -> bool:
    """Whether a person would see anything: not only spaces, control characters, or such as take no room."""
    return any(unicodedata.category(char) not in _UNSEEN for char in text)


def _severity(value: Any, where: str) -> Severity:
    if value is None:
        return Severity.HIGH
    if not isinstance(value, str) or value not in list(Severity):
        raise BadInput(f"{where}severity", "give low, medium, high or critical")
    return Severity(value)


def _category(value: Any, where: str) -> str | None:
    if value is None:
        return None
    word = foreign.word_of(value)
    if word is None:
        raise BadInput(f"{where}category", "give a word of at most 40 characters")
    return word


def _context(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    context = found.get("context")
    if context is None:
        context = {}
    if not isinstance(context, dict):
        raise BadInput(f"{where}context", "give an object")
    more = {key: value for key, value in list(found.items())[:_MOST_FIELDS] if key not in _KNOWN}
    return {**more, **context}


def _id(value: Any, where: str) -> str | None:
    if value is None:
        return None
    found = foreign.uuid_of(value)
    if found is None:
        raise BadInput(f"{where}id", "give a UUID, or none")
    return found


def _time(value: Any, where: str, now_ns: int) -> int:
    """Nanoseconds since the epoch of a time in ISO 8601 (UTC where it names no zone), seconds or milliseconds."""
    if value is None:
        return now_ns
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value[:64])
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            return int(moment.timestamp() * 1_000_000) * 1_000
        if type(value) in (int, float):
            for factor in (1, 1_000):
                if _SECONDS[0] <= value / factor <= _SECONDS[1]:
                    return int(value * 1_000_000 // factor) * 1_000
    except (ValueError, OverflowError):
        pass
    raise BadInput(f"{where}timestamp", "give ISO 8601, such as 2026-03-14T09:26:53Z, or seconds since 1970")
