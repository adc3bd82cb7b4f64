"""
The arguments of a call as JSON can hold them, without secrets, and which of them are no longer what they were.

Only a call whose arguments are all there can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tocsin.exporter.scrub import MASK, is_secret_key, scrub_value

MOST: Final = 16 * 1024
"""Characters of a call's arguments as JSON; beyond it they are left out, which is said."""

ALL: Final = "arguments"
"""The place of them all."""

MOST_PLACES: Final = 50
"""So many are named; there may be more."""

_PLACE: Final = 100
_SAME: Final = (str, int, float, bool, type(None))


def encode(
    args: Sequence[object], kwargs: Mapping[str, object], names: Sequence[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """
    The arguments as ``{"args": […], "kwargs": {…}}``, and the places that were altered: ``args.0``, ``kwargs.token``.

    Args:
        names: the parameters that `args` are given to, which may name a secret; the last one holds for the rest.
    """
    called = {place: names[min(place, len(names) - 1)] for place in range(len(args))} if names else {}
    hidden = [MASK if is_secret_key(called.get(place, "")) else value for place, value in enumerate(args)]
    found, _ = tidy({"args": hidden, "kwargs": kwargs})
    return found, changes({"args": list(args), "kwargs": kwargs}, found)


def tidy(arguments: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arguments bounded and scrubbed, and what that altered; done again, it alters nothing more."""
    before = {"args": arguments.get("args"), "kwargs": arguments.get("kwargs")}
    found: dict[str, Any] = scrub_value(before, limit=MOST)
    is_whole = isinstance(found["args"], list) and isinstance(found["kwargs"], dict)
    if not is_whole or len(json.dumps(found)) > MOST:
        found = {"args": [], "kwargs": {}}
    return found, changes(before, found)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The places at which `after`, which was made of `before`, is something else, also by its type alone."""
    found: list[str] = []
    try:
        _compare(before, after, "", found)
    except Exception:  # another thread has changed them meanwhile
        return [ALL]
    return [ALL] if found and not after["args"] and not after["kwargs"] else found


def _compare(before: object, after: object, place: str, found: list[str]) -> None:
    """Only of Python's own types, exactly: nothing foreign is asked, and an equal object of another class is none."""
    if len(found) >= MOST_PLACES:
        return
    kind = type(before)
    if kind is not type(after):
        found.append(place[:_PLACE])
    elif isinstance(before, dict) and isinstance(after, dict):
        if len(before) != len(after):
            found.append(place[:_PLACE])
            return
        for (key, value), (kept, now) in zip(before.items(), after.items(), strict=True):
            inside = f"{place}.{kept}" if place else str(kept)
            if type(key) is not str or key != kept:
                found.append(inside[:_PLACE])
            else:
                _compare(value, now, inside, found)
    elif isinstance(before, list) and isinstance(after, list):
        if len(before) != len(after):
            found.append(place[:_PLACE])
            return
        for number, (value, now) in enumerate(zip(before, after, strict=True)):
            _compare(value, now, f"{place}.{number}", found)
    elif kind not in _SAME or before != after:
        found.append(place[:_PLACE])
