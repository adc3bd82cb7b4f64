"""
Breadcrumbs: what a unit of work did before it failed, kept in memory until something fails, and mostly forgotten.

A unit is the request, with its threads and pool jobs; outside of one the asyncio task, else the thread. A
crumb holds strings and numbers alone, so that no argument, record, exception or response lives longer for it.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json.encoder import encode_basestring_ascii as _quote
from typing import Any, Final, cast
from urllib.parse import unquote

from tocsin.contained import contained
from tocsin.exporter.breadcrumbs import MOST_CHARS, Kind
from tocsin.exporter.scrub import scrub_text
from tocsin.instrumentation.context import current_scope, current_task, root_of
from tocsin.instrumentation.stacks import make_room
from tocsin.text import clean

MAX_AGE_S: Final = 5 * 60
"""Older crumbs of a thread or task belong to other work, most likely; a request keeps its own."""

MAX_BYTES: Final = 8 * 1024
"""Of all crumbs in the line of an error; the oldest are left out."""

KEPT_CHARS: Final = MOST_CHARS + 256
"""Characters kept of a text: a secret that begins among those that are shown has its shape within these."""

Crumb = tuple[float, Kind, int | None, float | None, *tuple[str, ...]]
"""When (seconds since the epoch), what, a level or status, milliseconds; then the texts."""

_KEY: Final = "tocsin.breadcrumbs"
_ON_TASK: Final = "_tocsin_breadcrumbs"
_LEVELS: Final = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}
_LOG: Final = Kind.LOG  # (looked up once: an enumeration's member costs more than the rest of a crumb)
_MOST_KNOWN: Final = 500
_SEAM: Final = "\n\0\n"

most: int = 0
"""How many each unit keeps; 0: none are left."""


class _Own(threading.local):
    """What belongs to one thread: its trail, and the task that an error is told for."""

    def __init__(self) -> None:
        self.trail: deque[Crumb] = deque(maxlen=most)
        self.task: Any = None


_own = _Own()
_known: dict[Crumb, str] = {}


def keep(count: int) -> None:
    """Keep that many for each unit from now on; what threads have left so far is forgotten."""
    global most, _own
    most = count
    _own = _Own()
    _known.clear()


def log_line(time_s: float, level: int, logger: str, message: str) -> None:
    """Leave a log line."""
    if len(message) > KEPT_CHARS:
        message = message[:KEPT_CHARS]
    _trail().append((time_s, _LOG, level, None, logger, message))


def call(time_s: float, target: tuple[str, str, str], outcome: int | str, ms: float) -> None:
    """Leave an outgoing call: of method, host and path came a status, or the type of an exception."""
    status, problem = (outcome, "") if isinstance(outcome, int) else (None, outcome)
    method, host, path = map(_cut, target)
    _trail().append((time_s, Kind.HTTP, status, ms, method, host, path, _cut(problem)))


def error(time_s: float, kind: str, message: str) -> None:
    """Leave an error, for those that come after it."""
    if most:
        _trail().append((time_s, Kind.ERROR, None, None, _cut(kind), _cut(message)))


@contextmanager
def of_task(task: object) -> Iterator[None]:
    """Inside, the crumbs of a task count that does not run just now."""
    before, _own.task = _own.task, task
    try:
        yield
    finally:
        _own.task = before


def as_json(now_s: float) -> str | None:
    """The crumbs of this unit, scrubbed, oldest first, as a JSON list; None where there are none."""
    if not most:
        return None
    with contained("telling breadcrumbs"):  # the error is worth more than they are
        crumbs = _copy(_trail())
        if current_scope.get() is None:
            crumbs = [crumb for crumb in crumbs if now_s - crumb[0] <= MAX_AGE_S]
        if crumbs:
            return _fitting(_tell(crumbs))
    return None


def _tell(crumbs: list[Crumb]) -> list[str]:
    """Each as JSON; what an earlier error of the unit has told is not looked through again."""
    told = list(map(_known.get, crumbs))
    places = [place for place, one in enumerate(told) if one is None]
    if places:
        # Loggers and hosts come again and again.
        texts = list(dict.fromkeys(text for place in places for text in crumbs[place][4:]))
        tidy = dict(zip(texts, _tidy(texts), strict=True))
        make_room(_known, _MOST_KNOWN)
        for place in places:
            crumb = crumbs[place]
            one = told[place] = _TOLD[crumb[1]](crumb, [tidy[text] for text in crumb[4:]])
            _known[crumb] = one
    return cast("list[str]", told)


def _fitting(told: list[str]) -> str:
    left = MAX_BYTES - sum(map(len, told)) - len(told)
    at = 0
    while left < 0:
        left += len(told[at]) + 1
        at += 1
    return f"[{','.join(told[at:])}]"


def _trail() -> deque[Crumb]:
    scope = current_scope.get()
    if scope is not None:
        scope = root_of(scope)
        found = scope.get(_KEY)
        if found is None:
            found = scope.setdefault(_KEY, deque(maxlen=most))
        return found  # type: ignore[no-any-return]
    task = _own.task
    if task is None:
        task = current_task()
    if task is None:
        return _own.trail
    try:
        return task._tocsin_breadcrumbs  # type: ignore[no-any-return]
    except AttributeError:
        pass
    made: deque[Crumb] = deque(maxlen=most)
    try:
        setattr(task, _ON_TASK, made)
    except AttributeError:  # a kind of task that takes none
        return _own.trail
    return made


def _copy(trail: deque[Crumb]) -> list[Crumb]:
    for _ in range(3):
        try:
            return list(trail)
        except RuntimeError:  # another thread of the request has just left one
            continue
    return []


def _cut(text: str) -> str:
    return text if len(text) <= KEPT_CHARS else text[:KEPT_CHARS]


_QUOTED: Final = re.compile("%3[adAD]")  # the signs that a key and its value have between them


def _tidy(texts: list[str]) -> list[str]:
    """Scrubbed, cut, cleaned; texts without any secret are looked through in one go."""
    together = _SEAM.join(texts)
    if "%3" in together:  # as an access log quotes a path, in which a secret would look like none
        texts = [_QUOTED.sub(lambda match: unquote(match[0]), text) for text in texts]
        together = _SEAM.join(texts)
    if scrub_text(together) != together:
        texts = [_scrubbed(text) for text in texts]
    return [text if len(text) <= MOST_CHARS and text.isprintable() else _shown(text) for text in texts]


def _scrubbed(text: str) -> str:
    scrubbed = scrub_text(text)
    # At the end of what was cut may be half a secret.
    return scrubbed if len(text) < KEPT_CHARS else scrubbed[: MOST_CHARS - KEPT_CHARS] + "…"


def _shown(text: str) -> str:
    return clean(text if len(text) <= MOST_CHARS else text[: MOST_CHARS - 1] + "…", MOST_CHARS)


def _told_log(crumb: Crumb, texts: list[str]) -> str:
    level = _LEVELS.get(crumb[2] or 0) or f"level {crumb[2]}"
    return (
        f'{{"time_unix_nano":{int(crumb[0] * 1e6)}000,"kind":"log","level":"{level}"'
        f',"logger":{_quote(texts[0])},"message":{_quote(texts[1])}}}'
    )


def _told_call(crumb: Crumb, texts: list[str]) -> str:
    method, host, path, problem = map(_quote, texts)
    outcome = f'"status":{crumb[2]}' if crumb[2] is not None else f'"exception":{problem}'
    return (
        f'{{"time_unix_nano":{int(crumb[0] * 1e6)}000,"kind":"http","method":{method},"host":{host},"path":{path}'
        f',{outcome},"ms":{crumb[3]}}}'
    )


def _told_error(crumb: Crumb, texts: list[str]) -> str:
    kind = f',"type":{_quote(texts[0])}' if texts[0] else ""
    return f'{{"time_unix_nano":{int(crumb[0] * 1e6)}000,"kind":"error"{kind},"message":{_quote(texts[1])}}}'


_TOLD: Final[dict[Kind, Callable[[Crumb, list[str]], str]]] = {
    Kind.LOG: _told_log,
    Kind.HTTP: _told_call,
    Kind.ERROR: _told_error,
}
