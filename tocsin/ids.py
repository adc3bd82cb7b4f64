"""Ids that sort by time (UUIDv7), made without a look at anything shared."""

from __future__ import annotations

import os
import time


def uuid7(time_ns: int | None = None) -> str:
    """
    A new UUIDv7, hyphenated; ids made later sort later, to about a microsecond.

    Source: RFC 9562, section 5.7, and section 6.2 method 3 for the bits below the millisecond.
    """
    time_ns = time.time_ns() if time_ns is None else time_ns
    millis, rest_ns = divmod(time_ns, 1_000_000)
    below = rest_ns * 4096 // 1_000_000  # 12 bits
    random = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    value = (millis & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | below << 64 | 0b10 << 62 | random
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
