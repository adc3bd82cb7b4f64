"""Ids made without a look at anything shared: of errors, which sort by time (UUIDv7), and of groups."""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache

# A generator of our own: ids need not be secret, and a user's `random.seed` must not repeat them.
_random = random.Random()
os.register_at_fork(after_in_child=_random.seed)


def uuid7(time_ns: int | None = None, tail: int | None = None) -> str:
    """
    A new UUIDv7, hyphenated; ids made later sort later, to about a microsecond.

    Args:
        tail: 62 bits that no other id of that time has (default: by chance).

    Source: RFC 9562, section 5.7, and section 6.2 method 3 for the bits below the millisecond.
    """
    time_ns = time.time_ns() if time_ns is None else time_ns
    millis, rest_ns = divmod(time_ns, 1_000_000)
    below = rest_ns * 4096 // 1_000_000  # 12 bits
    tail = _random.getrandbits(62) if tail is None else tail & (1 << 62) - 1
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | below << 64 | 0b10 << 62 | tail
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def is_own(error_id: str) -> bool:
    """Whether tocsin's own capture gave this id (UUIDv7); errors of others get one from what they are (UUIDv8)."""
    return error_id[14:15] == "7"


@lru_cache(maxsize=4096)
def group_id(fingerprint: str, service: str, environment: str) -> str:
    """The id of the group that errors with this fingerprint form there: 32 hex digits, no look-up needed."""
    import hashlib  # noqa: PLC0415  (it loads OpenSSL, for which no program shall wait)

    named = "\x1f".join((fingerprint, service, environment))
    return hashlib.sha256(named.encode("utf-8", "backslashreplace")).hexdigest()[:32]
