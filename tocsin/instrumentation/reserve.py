"""Memory that is given up where it has run out, so that the error which says so can be recorded."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

_BYTES: Final = 2**20
_PIECES: Final = 4

_kept: list[bytes] = []


def keep() -> None:
    """Have all of it again, where there is memory; it is address space alone, of which no page is touched."""
    with suppress(MemoryError):
        while len(_kept) < _PIECES:
            _kept.append(bytes(_BYTES))


def give_up() -> None:
    """Leave a piece of it to whoever needs it now; `keep` is called again when that is over."""
    if _kept:
        _kept.pop()
