"""How long: as people write it on the command line, in the chat and in a request, and everywhere the same."""

from __future__ import annotations

import re
from datetime import timedelta

LONGEST = timedelta(days=366)

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def span_of(text: str) -> timedelta | None:
    """A length of time such as ``30m``, ``2h``, ``1d``, ``1w``; None for what is none, or over a year."""
    match = re.fullmatch(r"([0-9]{1,8}) ?([smhdw])", text.strip().lower(), re.ASCII)
    if not match:
        return None
    span = timedelta(seconds=int(match[1]) * _UNITS_S[match[2]])
    return span if timedelta() < span <= LONGEST else None


def text_of(seconds: float) -> str:
    """A length of time in the largest unit that it is a whole number of: ``1d``, ``90m``."""
    for unit, size in reversed(_UNITS_S.items()):
        if seconds >= size and not seconds % size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s"
