"""
What a process tells besides errors, as lines: a recovery, a failed job, a heartbeat, how a dependency stands.

Read the same way whether the process wrote them on this machine or sent them: bounded and scrubbed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from tocsin import beats, clock
from tocsin.exporter.arguments import tidy as tidy_arguments
from tocsin.exporter.foreign import uuid_of
from tocsin.exporter.scrub import scrub_text
from tocsin.model import Beat, DependencyState, Fact, Job, Recovery
from tocsin.text import clean, one_line

if TYPE_CHECKING:
    from tocsin.exporter.decode import Source

KINDS: Final = ("recovered", "job", "beat", "dependency")

MOST_ATTEMPTS: Final = 20
LONGEST_S: Final = 366 * 86_400.0

_NAME = 200
_MESSAGE = 2_000
_LAST_NS = 2**62


class Unfit(ValueError):
    """No tocsin writes such a line."""


def tidy(content: Mapping[str, Any]) -> dict[str, Any]:
    """
    A line as a process may have written it, bounded and scrubbed; raises `Unfit`.

    What is done once changes nothing when it is done again.
    """
    kind = content.get("kind")
    found: dict[str, Any] = {"v": content.get("v"), "kind": kind}
    found["time_unix_nano"] = _whole(content, "time_unix_nano", _LAST_NS)
    match kind:
        case "recovered":
            found["error_id"] = _id(content, "error_id")
            found["message"] = _text(content, "message", _MESSAGE)
        case "job":
            found |= _job(content)
        case "beat":
            found |= _beat(content)
        case "dependency":
            found["name"] = _name(content)
            found["away"] = content.get("away") is True
            found["optional"] = content.get("optional") is True
            found["problem"] = _text(content, "problem", _MESSAGE)
        case _:
            raise Unfit(f"kind: one of {', '.join(KINDS)}")
    return found


def read(content: Mapping[str, Any], source: Source, behind: timedelta, *, is_shipped: bool) -> Fact | Recovery:
    """
    A line as what the store takes; raises `Unfit`.

    Args:
        behind: what to add to the clock that the line was written by.
    """
    found = tidy(content)
    moment = clock.from_ns(found["time_unix_nano"]) + behind
    match found["kind"]:
        case "recovered":
            return Recovery(
                error_id=found["error_id"], timestamp=moment, message=found["message"], is_shipped=is_shipped
            )
        case "job":
            return _as_job(found, source, moment)
        case "beat":
            return Beat(
                name=found["name"],
                timestamp=moment,
                environment=source.environment,
                service=source.service,
                every_s=found["every_s"],
                grace_s=found["grace_s"],
                is_ok=found["ok"],
                took_s=found["took_s"],
                message=found["message"],
            )
        case _:
            return DependencyState(
                name=found["name"],
                is_away=found["away"],
                is_optional=found["optional"],
                since=moment,
                service=source.service,
                environment=source.environment,
                instance_id=source.instance_id or "unknown",
                problem=found["problem"],
            )


def _job(content: Mapping[str, Any]) -> dict[str, Any]:
    attempts = content.get("attempts")
    arguments = content.get("arguments")
    changed = content.get("changed")
    if not isinstance(attempts, list) or not isinstance(arguments, dict) or not isinstance(changed, list):
        raise Unfit("attempts, arguments, changed: a list, an object, a list")
    function = _text(content, "function", 400)
    if not function:
        raise Unfit("function: missing")
    found: dict[str, Any] = {
        "id": _id(content, "id"),
        "function": function,
        "error_id": None if content.get("error_id") is None else _id(content, "error_id"),
        "attempts": [_attempt(one) for one in attempts[-MOST_ATTEMPTS:] if isinstance(one, dict)],
        "tries": _whole(content, "tries", 2**31),
        "message": _text(content, "message", _MESSAGE),
        "changed": [_tidied(str(one), _NAME) for one in changed[:100]],
    }
    for key in ("file", "folder", "category", "exception_type"):
        found[key] = _text(content, key, 1024) or None
    found["arguments"], altered = tidy_arguments(arguments)
    found["changed"] = list(dict.fromkeys([*found["changed"], *altered]))
    return found


def _attempt(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "at": _text(one, "at", 40),
        "type": _text(one, "type", _NAME),
        "message": _text(one, "message", 500),
        "ms": _whole(one, "ms", 2**53),
    }


def _as_job(found: Mapping[str, Any], source: Source, moment: datetime) -> Job:
    return Job(
        id=found["id"],
        failed_at=moment,
        function=found["function"],
        file=found["file"],
        folder=found["folder"],
        arguments=found["arguments"],
        changed=found["changed"],
        attempts=found["attempts"],
        tries=found["tries"],
        service=source.service,
        environment=source.environment,
        release=source.release,
        category=found["category"],
        exception_type=found["exception_type"],
        message=found["message"],
        error_id=found["error_id"],
        instance_id=source.instance_id,
    )


def _beat(content: Mapping[str, Any]) -> dict[str, Any]:
    name = _name(content)
    if not beats.NAME.fullmatch(name):
        raise Unfit("name: 1 to 100 letters, digits, spaces and .:@+-")
    return {
        "name": name,
        "every_s": _seconds(content, "every_s"),
        "grace_s": _seconds(content, "grace_s"),
        "ok": content.get("ok") is not False,
        "took_s": _seconds(content, "took_s"),
        "message": _text(content, "message", _MESSAGE),
    }


# The shapes of single values


def _text(content: Mapping[str, Any], key: str, limit: int) -> str:
    value = content.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unfit(f"{key}: no text")
    return _tidied(value, limit)


def _tidied(text: str, limit: int) -> str:
    return clean(scrub_text(text[: 2 * limit]), limit)


def _name(content: Mapping[str, Any]) -> str:
    name = one_line(_text(content, "name", _NAME))
    if not name:
        raise Unfit("name: missing")
    return name


def _whole(content: Mapping[str, Any], key: str, most: int) -> int:
    value = content.get(key, 0)
    if type(value) is not int or not 0 <= value <= most:
        raise Unfit(f"{key}: no whole number from 0 to {most}")
    return value


def _seconds(content: Mapping[str, Any], key: str) -> float | None:
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST_S:
        raise Unfit(f"{key}: no number of seconds")
    return float(value)


def _id(content: Mapping[str, Any], key: str) -> str:
    found = uuid_of(content.get(key))
    if found is None:
        raise Unfit(f"{key}: no UUID")
    return found
