"""Wait for a condition, with a limit; no test sleeps for a time that somebody guessed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

_EVERY_S = 0.02
_MOST_S = 0.2
_SHARE = 4
"""How much longer than a look takes is waited before the next: many look into a database."""


def _pause_s(took_s: float) -> float:
    return min(max(_EVERY_S, _SHARE * took_s), _MOST_S)


def eventually(condition: Callable[[], T], timeout_s: float = 10.0) -> T:
    """The first true value of a condition; fails with the last one when the time is over."""
    until = time.monotonic() + timeout_s
    begun = time.monotonic()
    while not (value := condition()):
        if (now := time.monotonic()) > until:
            raise AssertionError(f"still {value!r} after {timeout_s} s: {condition}")
        time.sleep(_pause_s(now - begun))
        begun = time.monotonic()
    return value


@overload
async def aeventually(condition: Callable[[], Awaitable[T]], timeout_s: float = ...) -> T: ...
@overload
async def aeventually(condition: Callable[[], T], timeout_s: float = ...) -> T: ...
async def aeventually(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """`eventually` in an event loop; the condition may be a coroutine function."""
    until = time.monotonic() + timeout_s
    while True:
        begun = time.monotonic()
        found = condition()
        value = await found if isinstance(found, Awaitable) else found
        if value:
            return value
        if (now := time.monotonic()) > until:
            raise AssertionError(f"still {value!r} after {timeout_s} s: {condition}")
        await asyncio.sleep(_pause_s(now - begun))
