"""What a heartbeat is called and how often it comes: read the same in code, on the command line and by HTTP."""

from __future__ import annotations

import re
from datetime import timedelta
from enum import StrEnum
from typing import Final

from tocsin.failures import BadInput
from tocsin.spans import LONGEST, span_of
from tocsin.text import one_line

NAME: Final = re.compile(r"\w[\w .:@+-]{0,99}")
"""Without a slash: a name is a part of an address too."""

LEAST_S: Final = 1.0
LEAST_GRACE_S: Final = 60.0
MOST_GRACE_S: Final = 7200.0
"""Bounds of the grace that nobody has named. In autumn a day has 25 hours: an hour alone would be an alarm then."""


class State(StrEnum):
    """How a beat stands."""

    OK = "ok"
    FAILED = "failed"  #   it ran, and failed
    MISSING = "missing"  # it has not been heard of in time, however its last run ended


def name_of(text: str) -> str:
    """A name that a beat may have; raises `BadInput`."""
    name = one_line(text) if isinstance(text, str) else ""
    if not NAME.fullmatch(name):
        raise BadInput("name", "give 1 to 100 letters, digits, spaces and . : @ + - _, such as nightly-backup")
    return name


def seconds_of(field: str, value: str | timedelta) -> float:
    """A length of time in seconds, given as ``1d`` or as a `timedelta`; raises `BadInput`, which names the field."""
    span = span_of(value) if isinstance(value, str) else value
    if not isinstance(span, timedelta) or not LEAST_S <= span.total_seconds() <= LONGEST.total_seconds():
        raise BadInput(field, "give a length of time such as 30m, 2h, 1d or 1w, at most a year")
    return span.total_seconds()


def grace_of(every_s: float) -> float:
    """How much later than usual a beat may come where nobody says: a tenth of `every`, from 1 min to 2 h."""
    return min(max(every_s / 10, LEAST_GRACE_S), MOST_GRACE_S)
