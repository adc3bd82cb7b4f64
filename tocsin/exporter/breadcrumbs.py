"""Breadcrumbs as lines and rows have them: a list of small objects, oldest first, each with a time and a kind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from tocsin import clock
from tocsin.exporter.scrub import scrub_text
from tocsin.text import clean

MOST: Final = 100
MOST_CHARS: Final = 300
"""Characters kept of one text."""

_TIME: Final = "time_unix_nano"
_TEXTS: Final = ("level", "logger", "type", "message", "method", "host", "path", "exception")


class Kind(StrEnum):
    """What a crumb tells of."""

    LOG = "log"  #      a log line: level, logger, message
    HTTP = "http"  #    an outgoing call: method, host, path, status or exception, ms
    ERROR = "error"  #  an error before this one: type, message


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A crumb as people read it."""

    time: str  #  of the day, UTC
    what: str  #  info, GET, error
    text: str
    note: str  #  the logger; or what came of a call, and how long it took


def bounded(given: object, offset_ns: int = 0) -> list[dict[str, Any]]:
    """
    Crumbs that another process has sent, of which nothing is believed: what is none is left out.

    Args:
        offset_ns: what to add to its clock to get ours.
    """
    if not isinstance(given, list):
        return []
    return [found for one in given[-MOST:] if (found := _bounded(one, offset_ns)) is not None]


def _bounded(given: object, offset_ns: int) -> dict[str, Any] | None:
    if not isinstance(given, dict) or given.get("kind") not in list(Kind):
        return None
    time_ns = given.get(_TIME)
    if type(time_ns) is not int or not 0 <= time_ns + offset_ns < 2**63:
        return None
    found: dict[str, Any] = {_TIME: time_ns + offset_ns, "kind": given["kind"]}
    for key in _TEXTS:
        if isinstance(text := given.get(key), str):
            found[key] = clean(scrub_text(text), MOST_CHARS)
    if type(status := given.get("status")) is int and 100 <= status <= 999:
        found["status"] = status
    if isinstance(ms := given.get("ms"), int | float) and not isinstance(ms, bool) and 0 <= ms < 1e9:
        found["ms"] = ms
    return found


def dated(crumbs: object, behind: timedelta = timedelta(0)) -> list[dict[str, Any]]:
    """Crumbs of a line as a row has them: ``time`` in ISO 8601 to the millisecond, by the database's clock."""
    if not isinstance(crumbs, list):
        return []
    found = []
    for one in crumbs:
        if isinstance(one, dict) and type(time_ns := one.get(_TIME)) is int:
            moment = clock.from_ns(time_ns) + behind
            rest = {key: value for key, value in one.items() if key != _TIME}
            found.append({"time": moment.isoformat(timespec="milliseconds"), **rest})
    return found


def told(crumbs: object) -> list[Told]:
    """The crumbs of a row for people, oldest first; a row may come from anywhere, and what is no crumb is left out."""
    if not isinstance(crumbs, list):
        return []
    return [_told(one) for one in crumbs[-MOST:] if isinstance(one, dict) and one.get("kind") in list(Kind)]


def _told(crumb: dict[str, Any]) -> Told:
    said = {key: str(value) for key, value in crumb.items() if value is not None}
    _, _, time = said.get("time", "").partition("T")
    match crumb["kind"]:
        case Kind.HTTP:
            what, text = said.get("method", ""), said.get("host", "") + said.get("path", "")
            outcome = said.get("status") or said.get("exception", "")
            note = f"{outcome}, {said['ms']} ms" if "ms" in said else outcome
        case Kind.ERROR:
            what, text, note = "error", said.get("message", ""), said.get("type", "")
        case _:
            what, text, note = said.get("level", ""), said.get("message", ""), said.get("logger", "")
    return Told(time=time[:12], what=what, text=text, note=note)
